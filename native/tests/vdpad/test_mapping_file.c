/* The mapping file on disk: what it replaces, what it never replaces, and what it removes. */
#include "check.h"
#include "mapping_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define LIST "0000:82:00.2\n0000:82:00.3\n"

struct fixture {
    char path[64];
    char other[64];
    struct mapping_file file;
    struct mapping_entry entry;
    struct mapping mapping;
    char reason[512];
};

static void start(struct fixture *f, const char *directory) {
    *f = (struct fixture){.entry = {.address = "0000:82:00.2", .socket = "/s0"}};
    f->mapping = (struct mapping){.entries = &f->entry, .count = 1};
    snprintf(f->path, sizeof(f->path), "%s/socketList.dat", directory);
    snprintf(f->other, sizeof(f->other), "%s/other", directory);
    assert_int_equal(mapping_file_init(&f->file, f->path), 0);
}

static void put(const char *path, const char *text) {
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void assert_content(const char *path, const char *expected) {
    char text[4096] = "";
    FILE *file = fopen(path, "r");

    assert_non_null(file);
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    assert_string_equal(text, expected);
}

static size_t files_in(const char *directory) {
    DIR *entries = opendir(directory);
    size_t count = 0;

    assert_non_null(entries);
    while (readdir(entries) != NULL)
        count++;
    closedir(entries);
    return count - 2;
}

static int replace(struct fixture *f) {
    f->reason[0] = '\0';
    return mapping_file_replace(&f->file, &f->mapping, f->reason, sizeof(f->reason));
}

#define ONE "[\n{\"pciAddress\": \"0000:82:00.2\", \"socketpath\": \"/s0\"}\n]\n"

static void test_creates_and_replaces(void **state) {
    struct fixture f;
    struct stat status;
    mode_t mask = umask(0077);

    start(&f, *state);
    assert_int_equal(replace(&f), 0);
    assert_content(f.path, ONE);
    assert_int_equal(stat(f.path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0644);
    f.mapping.count = 0;
    assert_int_equal(replace(&f), 0);
    assert_content(f.path, "[]\n");
    assert_int_equal(files_in(*state), 1);
    /*
     * A mapping of another process is replaced too, and a temporary file that a dead process left
     * does not matter.
     */
    put(f.path, "[{\"pciAddress\": \"82:00.7\", \"socketpath\": \"/other\"}]");
    put(f.file.temporary, "[\n{\"pciAddr");
    f.mapping.count = 1;
    assert_int_equal(replace(&f), 0);
    assert_content(f.path, ONE);
    assert_int_equal(files_in(*state), 1);
    umask(mask);
}

static void refuses_list(void **state, bool plain_rename) {
    struct fixture f;
    struct stat before;
    struct stat after;

    start(&f, *state);
    f.file.plain_rename = plain_rename;
    put(f.path, LIST);
    assert_int_equal(stat(f.path, &before), 0);
    assert_int_equal(replace(&f), -EEXIST);
    assert_non_null(strstr(f.reason, "is not a mapping"));
    assert_content(f.path, LIST);
    assert_int_equal(stat(f.path, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    assert_int_equal(files_in(*state), 1);
    /* Taken away, it makes place. */
    assert_int_equal(rename(f.path, f.other), 0);
    assert_int_equal(replace(&f), 0);
    assert_content(f.path, ONE);
    f.mapping.count = 0;
    assert_int_equal(replace(&f), 0);
    assert_content(f.path, "[]\n");
}

static void test_keeps_a_list(void **state) {
    refuses_list(state, false);
}

static void test_keeps_a_list_without_exchange(void **state) {
    refuses_list(state, true);
}

static void test_keeps_what_is_no_file(void **state) {
    struct fixture f;

    start(&f, *state);
    assert_int_equal(mkdir(f.path, 0755), 0);
    assert_int_equal(replace(&f), -EEXIST);
    assert_int_equal(rmdir(f.path), 0);
    assert_int_equal(mkfifo(f.path, 0600), 0);
    assert_int_equal(replace(&f), -EEXIST);
    assert_int_equal(unlink(f.path), 0);
    assert_int_equal(symlink("nowhere", f.path), 0);
    assert_int_equal(replace(&f), -EEXIST);
    assert_int_equal(unlink(f.path), 0);
    /* A mapping that belongs to another directory too, by a symbolic or a hard link. */
    put(f.other, ONE);
    assert_int_equal(symlink(f.other, f.path), 0);
    assert_int_equal(replace(&f), -EEXIST);
    assert_int_equal(unlink(f.path), 0);
    assert_int_equal(link(f.other, f.path), 0);
    assert_int_equal(replace(&f), -EEXIST);
    assert_content(f.other, ONE);
    assert_int_equal(unlink(f.path), 0);
    assert_int_equal(unlink(f.other), 0);
    put(f.path, "");
    assert_int_equal(replace(&f), -EEXIST);
    assert_int_equal(unlink(f.path), 0);
    assert_int_equal(replace(&f), 0);
    assert_int_equal(files_in(*state), 1);
}

/* Whatever has the name of the temporary file is never written to, read as ours, or waited for. */
static void test_hostile_temporary_file(void **state) {
    struct fixture f;

    start(&f, *state);
    put(f.other, "precious");
    assert_int_equal(symlink(f.other, f.file.temporary), 0);
    assert_int_equal(replace(&f), 0);
    assert_int_equal(link(f.other, f.file.temporary), 0);
    assert_int_equal(replace(&f), 0);
    assert_int_equal(mkfifo(f.file.temporary, 0600), 0);
    assert_int_equal(replace(&f), 0);
    assert_content(f.other, "precious");
    assert_content(f.path, ONE);
    assert_int_equal(files_in(*state), 2);
}

static void test_reports_why_it_cannot_write(void **state) {
    char path[300];
    struct mapping_file file;
    struct mapping mapping = {0};
    char reason[512];

    snprintf(path, sizeof(path), "%s/missing/socketList.dat", (char *)*state);
    assert_int_equal(mapping_file_init(&file, path), 0);
    assert_int_equal(mapping_file_replace(&file, &mapping, reason, sizeof(reason)), -ENOENT);
    assert_string_equal(reason, "No such file or directory");
}

/*
 * A write that fails half way, as on a full file system:
 * what was there stays, and nothing is left beside it.
 */
static void test_keeps_the_old_when_the_write_fails(void **state) {
    struct rlimit before;
    struct rlimit small;
    struct fixture f;
    int error;

    start(&f, *state);
    assert_int_equal(replace(&f), 0);
    f.mapping.count = 0;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 1;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    error = replace(&f);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(error, -EFBIG);
    assert_string_equal(f.reason, "File too large: raise the limit of file size (ulimit -f)");
    assert_content(f.path, ONE);
    assert_int_equal(files_in(*state), 1);
}

static void test_removes_only_its_own(void **state) {
    struct fixture f;

    start(&f, *state);
    put(f.path, LIST);
    mapping_file_remove(&f.file);
    assert_content(f.path, LIST);
    assert_int_equal(unlink(f.path), 0);
    assert_int_equal(replace(&f), 0);
    put(f.other, LIST);
    assert_int_equal(rename(f.other, f.path), 0);
    mapping_file_remove(&f.file);
    assert_content(f.path, LIST);
    assert_int_equal(unlink(f.path), 0);
    assert_int_equal(replace(&f), 0);
    mapping_file_remove(&f.file);
    assert_int_equal(files_in(*state), 0);
}

/* A file system gives the inode of a removed file to the next one: what was written since is not removed. */
static void test_keeps_what_was_put_there_under_its_inode(void **state) {
    struct fixture f;
    struct stat status;

    start(&f, *state);
    assert_int_equal(replace(&f), 0);
    put(f.path, LIST); /* in place */
    mapping_file_remove(&f.file);
    assert_content(f.path, LIST);
    assert_int_equal(unlink(f.path), 0);
    assert_int_equal(mkdir(f.path, 0755), 0);
    assert_int_equal(stat(f.path, &status), 0);
    f.file.last.st_dev = status.st_dev;
    f.file.last.st_ino = status.st_ino;
    mapping_file_remove(&f.file);
    assert_int_equal(rmdir(f.path), 0);
    assert_int_equal(files_in(*state), 0);
}

static void test_directory_under_the_temporary_name(void **state) {
    struct fixture f;
    char inside[PATH_MAX + 8];

    start(&f, *state);
    assert_int_equal(mkdir(f.file.temporary, 0755), 0);
    assert_int_equal(replace(&f), 0);
    assert_content(f.path, ONE);
    assert_int_equal(files_in(*state), 1);
    assert_int_equal(mkdir(f.file.temporary, 0755), 0);
    snprintf(inside, sizeof(inside), "%s/x", f.file.temporary);
    put(inside, "");
    assert_int_equal(replace(&f), -ENOTEMPTY);
    assert_non_null(
        strstr(f.reason, ".socketList.dat.vdpad, where it is written first, is a directory: remove it"));
    assert_content(f.path, ONE);
    assert_int_equal(unlink(inside), 0);
    assert_int_equal(rmdir(f.file.temporary), 0);
    assert_int_equal(unlink(f.path), 0);
}

/*
 * The calls by which the file is moved, with another process at work before each: renameat2() here takes the
 * place of libc's.
 */
static struct {
    struct fixture *f;
    int call; /* the number of the next one */
    int at;   /* before which one `what` happens */
    void (*what)(struct fixture *f);
    int refuse_flags; /* an errno, as of a file system that knows no flags */
} moves;

int renameat2(int old_directory, const char *old, int new_directory, const char *new, unsigned int flags) {
    if (moves.what != NULL && moves.call++ == moves.at)
        moves.what(moves.f);
    if (flags != 0 && moves.refuse_flags != 0) {
        errno = moves.refuse_flags;
        return -1;
    }
    return (int)syscall(SYS_renameat2, old_directory, old, new_directory, new, flags);
}

int rename(const char *old, const char *new) {
    return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0);
}

static void interfere(struct fixture *f, int at, void (*what)(struct fixture *f)) {
    moves = (__typeof__(moves)){.f = f, .at = at, .what = what};
}

static void put_list(struct fixture *f) {
    put(f->other, LIST);
    assert_int_equal((int)syscall(SYS_rename, f->other, f->path), 0);
}

static void put_newer(struct fixture *f) {
    put(f->other, "newer");
    assert_int_equal((int)syscall(SYS_rename, f->other, f->path), 0);
}

static void take_away(struct fixture *f) {
    assert_int_equal(unlink(f->path), 0);
}

/* The calls of a replacement: 0 to an empty place, 1 exchange, 2 exchange back, 3 what is left to do. */
static void test_list_comes_while_it_is_replaced(void **state) {
    struct fixture f;

    start(&f, *state);
    assert_int_equal(replace(&f), 0);
    interfere(&f, 1, put_list);
    assert_int_equal(replace(&f), -EEXIST);
    assert_content(f.path, LIST);
    assert_int_equal(files_in(*state), 1);
    interfere(&f, -1, NULL);
}

/* Before call 1 a list, before call 2 something else again. */
static void (*second_step)(struct fixture *f);

static void list_then(struct fixture *f) {
    put_list(f);
    moves.at = 2;
    moves.what = second_step;
}

static void test_ours_is_taken_away_while_the_list_goes_back(void **state) {
    struct fixture f;

    start(&f, *state);
    assert_int_equal(replace(&f), 0);
    second_step = take_away;
    interfere(&f, 1, list_then);
    assert_int_equal(replace(&f), -EEXIST);
    assert_content(f.path, LIST);
    assert_int_equal(files_in(*state), 1);
    interfere(&f, -1, NULL);
}

static void test_newer_comes_while_the_list_goes_back(void **state) {
    struct fixture f;

    start(&f, *state);
    assert_int_equal(replace(&f), 0);
    second_step = put_newer;
    interfere(&f, 1, list_then);
    assert_int_equal(replace(&f), -EEXIST);
    /* As it would have replaced the list without us. */
    assert_content(f.path, "newer");
    interfere(&f, -1, NULL);
}

static int failure;

static void fail_from_now_on(struct fixture *f) {
    (void)f;
    moves.refuse_flags = failure;
}

/* A list that cannot go back is neither deleted nor forgotten, whatever keeps it: it goes back when it can.
 */
static void test_list_cannot_go_back(void **state) {
    static const int reasons[] = {EIO, EACCES, EBUSY, EPERM, EROFS, ENOSPC, EXDEV};

    for (size_t i = 0; i < COUNT(reasons); i++) {
        struct fixture f;

        start(&f, *state);
        failure = reasons[i];
        assert_int_equal(replace(&f), 0);
        second_step = fail_from_now_on;
        interfere(&f, 1, list_then);
        assert_int_equal(replace(&f), -reasons[i]);
        assert_content(f.file.temporary, LIST);
        assert_non_null(strstr(f.reason, "what was put there is kept as "));
        assert_non_null(strstr(f.reason, strerror(reasons[i])));
        /* It is tried again with each write. */
        assert_int_equal(replace(&f), -reasons[i]);
        assert_content(f.file.temporary, LIST);
        interfere(&f, -1, NULL);
        assert_int_equal(replace(&f), -EEXIST);
        assert_content(f.path, LIST);
        assert_int_equal(files_in(*state), 1);
        assert_int_equal(unlink(f.path), 0);
        assert_int_equal(replace(&f), 0);
        assert_content(f.path, ONE);
        assert_int_equal(files_in(*state), 1);
        assert_int_equal(unlink(f.path), 0);
    }
}

/* What is held and taken away by another process keeps nothing from being written. */
static void test_what_is_held_is_taken_away(void **state) {
    struct fixture f;

    start(&f, *state);
    failure = EIO;
    assert_int_equal(replace(&f), 0);
    second_step = fail_from_now_on;
    interfere(&f, 1, list_then);
    assert_int_equal(replace(&f), -EIO);
    interfere(&f, -1, NULL);
    assert_int_equal(unlink(f.file.temporary), 0);
    assert_int_equal(replace(&f), 0);
    assert_content(f.path, ONE);
    assert_int_equal(files_in(*state), 1);
}

/* A daemon that was killed while it held a list: the next one gives it back, unless a newer one is there. */
static void test_list_of_a_dead_daemon_goes_back(void **state) {
    for (int flags = 0; flags < 2; flags++) {
        struct fixture f;

        start(&f, *state);
        interfere(&f, -1, NULL);
        moves.refuse_flags = flags == 0 ? 0 : EINVAL;
        put(f.file.temporary, LIST);
        assert_int_equal(replace(&f), -EEXIST);
        assert_content(f.path, LIST);
        assert_int_equal(files_in(*state), 1);
        start(&f, *state);
        put(f.path, ONE);
        put(f.file.temporary, LIST);
        assert_int_equal(replace(&f), -EEXIST);
        assert_content(f.path, LIST);
        assert_int_equal(files_in(*state), 1);
        start(&f, *state);
        put(f.path, "newer");
        put(f.file.temporary, LIST);
        assert_int_equal(replace(&f), -EEXIST);
        assert_content(f.path, "newer");
        assert_int_equal(files_in(*state), 1);
        assert_int_equal(unlink(f.path), 0);
        interfere(&f, -1, NULL);
    }
}

/* What was there is gone when it is to be exchanged: the empty place is taken. */
static void test_what_was_there_goes_while_it_is_replaced(void **state) {
    struct fixture f;

    start(&f, *state);
    assert_int_equal(replace(&f), 0);
    interfere(&f, 1, take_away);
    f.mapping.count = 0;
    assert_int_equal(replace(&f), 0);
    assert_content(f.path, "[]\n");
    assert_int_equal(files_in(*state), 1);
    interfere(&f, -1, NULL);
}

static void do_nothing(struct fixture *f) {
    (void)f;
}

/* Not even for a moment. */
static void test_a_list_is_not_moved_when_ours_is_removed(void **state) {
    struct fixture f;

    start(&f, *state);
    assert_int_equal(replace(&f), 0);
    put_list(&f);
    interfere(&f, -1, do_nothing);
    mapping_file_remove(&f.file);
    assert_int_equal(moves.call, 0);
    assert_content(f.path, LIST);
    interfere(&f, -1, NULL);
}

static void test_without_flags(void **state) {
    static const int refusals[] = {EINVAL, ENOSYS};

    for (size_t i = 0; i < COUNT(refusals); i++) {
        struct fixture f;

        start(&f, *state);
        interfere(&f, -1, NULL);
        moves.refuse_flags = refusals[i];
        assert_int_equal(replace(&f), 0);
        assert_true(f.file.plain_rename);
        f.mapping.count = 0;
        assert_int_equal(replace(&f), 0);
        assert_content(f.path, "[]\n");
        assert_int_equal(files_in(*state), 1);
        /* A list that comes when ours is taken aside is put back, by what the file system has. */
        moves.call = 0;
        moves.at = 0;
        moves.what = put_list;
        moves.f = &f;
        mapping_file_remove(&f.file);
        assert_content(f.path, LIST);
        assert_int_equal(files_in(*state), 1);
        interfere(&f, -1, NULL);
        assert_int_equal(unlink(f.path), 0);
    }
}

static void newer_at_the_second(struct fixture *f) {
    put_list(f);
    moves.at = 1;
    moves.what = put_newer;
}

static void test_list_comes_while_ours_is_removed(void **state) {
    struct fixture f;

    start(&f, *state);
    assert_int_equal(replace(&f), 0);
    interfere(&f, 0, put_list);
    mapping_file_remove(&f.file);
    assert_content(f.path, LIST);
    assert_int_equal(files_in(*state), 1);
    assert_int_equal(unlink(f.path), 0);
    interfere(&f, -1, NULL);
    assert_int_equal(replace(&f), 0);
    /* A newer one is there when the list would go back: it stays, as it would have replaced the list. */
    interfere(&f, 0, newer_at_the_second);
    mapping_file_remove(&f.file);
    assert_content(f.path, "newer");
    assert_int_equal(files_in(*state), 1);
    interfere(&f, -1, NULL);
}

/*
 * A list that is put there again and again, at any moment,
 * is never lost: each is found by the one who put it.
 */
struct rival {
    struct fixture *f;
    atomic_bool stop;
};

static void *write_without_end(void *context) {
    struct rival *rival = context;

    while (!atomic_load(&rival->stop))
        replace(rival->f);
    return NULL;
}

static bool holds_list(const char *path) {
    char text[64] = "";
    FILE *file = fopen(path, "r");
    bool found;

    if (file == NULL)
        return false;
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    found = strcmp(text, LIST) == 0;
    return found;
}

static void test_never_loses_a_list(void **state) {
    struct fixture f;
    struct rival rival = {.f = &f};
    pthread_t thread;

    start(&f, *state);
    assert_int_equal(pthread_create(&thread, NULL, write_without_end, &rival), 0);
    for (int round = 0; round < 300; round++) {
        int looks = 0;

        put(f.other, LIST);
        assert_int_equal(rename(f.other, f.path), 0);
        /* The swap shows the new mapping for a moment; the list comes back. */
        while (!holds_list(f.path) && looks++ < 100000)
            ;
        if (looks > 100000) {
            atomic_store(&rival.stop, true);
            pthread_join(thread, NULL);
            fail_msg("the list of round %d is lost", round);
        }
        /* Taken away as the agent does it: renamed aside, looked at, and put aside for good. */
        for (bool taken = false; !taken;) {
            if (rename(f.path, f.other) == 0)
                taken = holds_list(f.other);
        }
    }
    atomic_store(&rival.stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_creates_and_replaces, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_keeps_a_list, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_keeps_a_list_without_exchange, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_keeps_what_is_no_file, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_hostile_temporary_file, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_reports_why_it_cannot_write, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_keeps_the_old_when_the_write_fails, make_directory,
                                        remove_directory),
        cmocka_unit_test_setup_teardown(test_removes_only_its_own, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_keeps_what_was_put_there_under_its_inode, make_directory,
                                        remove_directory),
        cmocka_unit_test_setup_teardown(test_directory_under_the_temporary_name, make_directory,
                                        remove_directory),
        cmocka_unit_test_setup_teardown(test_list_comes_while_it_is_replaced, make_directory,
                                        remove_directory),
        cmocka_unit_test_setup_teardown(test_ours_is_taken_away_while_the_list_goes_back, make_directory,
                                        remove_directory),
        cmocka_unit_test_setup_teardown(test_newer_comes_while_the_list_goes_back, make_directory,
                                        remove_directory),
        cmocka_unit_test_setup_teardown(test_list_cannot_go_back, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_what_is_held_is_taken_away, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_list_of_a_dead_daemon_goes_back, make_directory,
                                        remove_directory),
        cmocka_unit_test_setup_teardown(test_what_was_there_goes_while_it_is_replaced, make_directory,
                                        remove_directory),
        cmocka_unit_test_setup_teardown(test_a_list_is_not_moved_when_ours_is_removed, make_directory,
                                        remove_directory),
        cmocka_unit_test_setup_teardown(test_without_flags, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_list_comes_while_ours_is_removed, make_directory,
                                        remove_directory),
        cmocka_unit_test_setup_teardown(test_never_loses_a_list, make_directory, remove_directory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
