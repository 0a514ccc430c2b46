/* Socket paths: which are refused, and what is taken over. */
#include "check.h"
#include "socket.h"

#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

static int bound_as(const char *path, int type) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    strcpy(name.sun_path, path);
    assert_int_equal(bind(fd, (const struct sockaddr *)&name, sizeof(name)), 0);
    return fd;
}

static int bound(const char *path) {
    return bound_as(path, SOCK_STREAM);
}

static bool exists(const char *path) {
    struct stat status;

    return lstat(path, &status) == 0;
}

static void test_paths(void **state) {
    char path[SOCKET_PATH_SIZE + 1];

    (void)state;
    assert_null(socket_path_problem("/var/run/vdpa/vhost/vdpa-0"));
    assert_string_equal(socket_path_problem(""), "is not absolute");
    assert_string_equal(socket_path_problem("vdpa-0"), "is not absolute");
    assert_string_equal(socket_path_problem("/a\nb"), "has control characters");
    assert_string_equal(socket_path_problem("/a\x7f"), "has control characters");
    memset(path, 'x', sizeof(path));
    path[0] = '/';
    path[107] = '\0';
    assert_null(socket_path_problem(path));
    path[107] = 'x';
    path[108] = '\0';
    assert_string_equal(socket_path_problem(path), "is longer than 107 bytes");
}

static void test_probe(void **state) {
    static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    char path[64];
    char other[72];

    snprintf(path, sizeof(path), "%s/a\nb 00000000: 1 2 3 4 5 6 c", (char *)*state);
    snprintf(other, sizeof(other), "%s/hard", (char *)*state);
    assert_int_equal(socket_probe(path), SOCKET_ABSENT);
    for (size_t i = 0; i < COUNT(types); i++) {
        int fd = bound_as(path, types[i]);

        /* A socket that does not listen yet has an owner all the same. */
        assert_int_equal(socket_probe(path), SOCKET_ALIVE);
        assert_int_equal(link(path, other), 0);
        assert_int_equal(socket_probe(other), SOCKET_ALIVE);
        close(fd);
        assert_int_equal(socket_probe(path), SOCKET_STALE);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(unlink(other), 0);
    }
    snprintf(path, sizeof(path), "%s/loop", (char *)*state);
    assert_int_equal(symlink(path, path), 0);
    assert_int_equal(socket_probe(path), SOCKET_UNKNOWN);
}

/* The owner of a listening socket does not notice that it was asked. */
static void test_probe_is_not_noticed(void **state) {
    char path[64];
    int fd;

    snprintf(path, sizeof(path), "%s/s", (char *)*state);
    fd = bound(path);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    for (int i = 0; i < 100; i++)
        assert_int_equal(socket_probe(path), SOCKET_ALIVE);
    assert_int_equal(accept(fd, NULL, NULL), -1);
    close(fd);
}

/* Bound by a process of another network namespace, which no table of this one shows. */
static void test_probe_of_another_namespace(void **state) {
    char path[64];
    char byte;
    int ends[2];
    pid_t child;

    snprintf(path, sizeof(path), "%s/s", (char *)*state);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(ends[0]);
        if (unshare(CLONE_NEWNET) != 0 || listen(bound(path), 1) != 0)
            _exit(77);
        _exit(write(ends[1], "x", 1) == 1 && read(ends[1], &byte, 1) == 0 ? 0 : 1);
    }
    close(ends[1]);
    if (read(ends[0], &byte, 1) == 1) {
        char reason[256];

        assert_int_equal(socket_probe(path), SOCKET_ALIVE);
        assert_int_equal(socket_claim(path, reason, sizeof(reason)), -EADDRINUSE);
        assert_true(exists(path));
        close(ends[0]);
        assert_int_equal(waitpid(child, NULL, 0), child);
        assert_int_equal(socket_probe(path), SOCKET_STALE);
    } else {
        close(ends[0]);
        assert_int_equal(waitpid(child, NULL, 0), child);
        skip(); /* no right to make a namespace */
    }
}

static void test_claim(void **state) {
    char path[64];
    char reason[256];
    int fd;

    snprintf(path, sizeof(path), "%s/s", (char *)*state);
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), 0);
    assert_false(exists(path));
    /* Stale: its owner is gone. */
    close(bound(path));
    assert_true(exists(path));
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), 0);
    assert_false(exists(path));
    for (int listens = 0; listens < 2; listens++) {
        fd = bound(path);
        if (listens)
            assert_int_equal(listen(fd, 1), 0);
        assert_int_equal(socket_claim(path, reason, sizeof(reason)), -EADDRINUSE);
        assert_non_null(strstr(reason, "in use"));
        assert_true(exists(path));
        close(fd);
        assert_int_equal(unlink(path), 0);
    }
    fd = bound_as(path, SOCK_DGRAM);
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), -EADDRINUSE);
    assert_true(exists(path));
    close(fd);
}

/*
 * The file of a socket at the moment at which bind() has made it, and before listen() lets front ends in:
 * both functions here take the place of libc's.
 */
static struct stat at_bind;
static struct stat at_listen;

static void look(int fd, struct stat *status) {
    struct sockaddr_un name = {.sun_family = AF_UNSPEC};
    socklen_t size = sizeof(name);

    if (getsockname(fd, (struct sockaddr *)&name, &size) == 0 && name.sun_family == AF_UNIX)
        lstat(name.sun_path, status);
}

int bind(int fd, __CONST_SOCKADDR_ARG name, socklen_t size) {
    int result = (int)syscall(SYS_bind, fd, name.__sockaddr__, size);
    const int error = errno;

    look(fd, &at_bind);
    errno = error;
    return result;
}

int listen(int fd, int backlog) {
    /* Front ends are let in by the first call. */
    if (at_listen.st_ino == 0)
        look(fd, &at_listen);
    return (int)syscall(SYS_listen, fd, backlog);
}

/*
 * What came later would leave the socket open for a moment, and a mode that is set by path could
 * meet another file.
 */
static void test_listen(void **state) {
    /* Another group where this process may give it away. */
    const gid_t group = geteuid() == 0 ? getgid() + 1 : getgid();
    const struct socket_access access = {.mode = 0620, .owner = (uid_t)-1, .group = group};
    const mode_t mask = umask(0);
    struct socket_file file;
    struct stat status;
    char path[64];
    char reason[256];
    int fd;

    snprintf(path, sizeof(path), "%s/s", (char *)*state);
    at_listen = (struct stat){0};
    fd = socket_listen(path, &access, &file, reason, sizeof(reason));
    assert_true(fd >= 0);
    assert_int_equal(umask(mask), 0);
    assert_int_equal(lstat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0620);
    assert_int_equal(at_bind.st_mode & 07777, 0620);
    assert_int_equal(at_listen.st_mode & 07777, 0620);
    assert_int_equal(at_listen.st_gid, group);
    assert_int_equal(status.st_gid, group);
    assert_int_equal(status.st_ino, file.inode);
    assert_int_equal(socket_probe(path), SOCKET_ALIVE);
    assert_int_equal(socket_listen(path, &access, &file, reason, sizeof(reason)), -EADDRINUSE);
    assert_true(exists(path));
    /* What another process has put there stays. */
    assert_int_equal(unlink(path), 0);
    close(bound(path));
    socket_remove(path, &file);
    assert_true(exists(path));
    close(fd);
    assert_int_equal(unlink(path), 0);
    fd = socket_listen(path, &access, &file, reason, sizeof(reason));
    assert_true(fd >= 0);
    socket_remove(path, &file);
    assert_false(exists(path));
    close(fd);
    snprintf(path, sizeof(path), "%s/missing/s", (char *)*state);
    assert_int_equal(socket_listen(path, &access, &file, reason, sizeof(reason)), -ENOENT);
    assert_string_equal(reason, "cannot be created: No such file or directory");
}

static void test_claim_refused(void **state) {
    char path[64];
    char reason[256];

    snprintf(path, sizeof(path), "%s/s", (char *)*state);
    fclose(fopen(path, "w"));
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), -EEXIST);
    assert_non_null(strstr(reason, "not a socket"));
    assert_true(exists(path));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("/nowhere", path), 0);
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), -EEXIST);
    assert_true(exists(path));
    assert_int_equal(unlink(path), 0);
}

/* A link in place of the directory could lead to the sockets of others. */
static void test_directory_is_a_link(void **state) {
    const struct socket_access access = {.mode = 0660, .owner = (uid_t)-1, .group = (gid_t)-1};
    struct socket_file file;
    char beyond[64];
    char link[64];
    char path[72];
    char other[72];
    char reason[256];

    snprintf(beyond, sizeof(beyond), "%s/beyond", (char *)*state);
    snprintf(link, sizeof(link), "%s/link", (char *)*state);
    snprintf(other, sizeof(other), "%s/s", beyond);
    snprintf(path, sizeof(path), "%s/s", link);
    assert_int_equal(mkdir(beyond, 0700), 0);
    assert_int_equal(symlink("beyond", link), 0);
    assert_int_equal(socket_listen(path, &access, &file, reason, sizeof(reason)), -ENOTDIR);
    assert_non_null(strstr(reason, "is a symbolic link; put a directory there"));
    assert_false(exists(other));
    close(bound(other));
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), -ENOTDIR);
    assert_non_null(strstr(reason, "is a symbolic link; put a directory there"));
    assert_true(exists(other));
    assert_int_equal(socket_claim(other, reason, sizeof(reason)), 0);
    assert_int_equal(rmdir(beyond), 0);
    assert_int_equal(unlink(link), 0);
}

static void test_client(void **state) {
    char path[64];
    char reason[256];

    snprintf(path, sizeof(path), "%s/s", (char *)*state);
    assert_int_equal(socket_check_client(path, reason, sizeof(reason)), 0);
    close(bound(path));
    assert_int_equal(socket_check_client(path, reason, sizeof(reason)), 0);
    assert_true(exists(path));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(socket_check_client(path, reason, sizeof(reason)), -EEXIST);
}

/* A front end's directory, as it may make it look. */
static void test_connect(void **state) {
    char path[96];
    char aside[96];
    char link[64];
    int listener;
    int fd;

    snprintf(path, sizeof(path), "%s/s", (char *)*state);
    snprintf(aside, sizeof(aside), "%s/aside", (char *)*state);
    assert_int_equal(socket_connect(path), -ENOENT);
    listener = bound(path);
    assert_int_equal(socket_connect(path), -ECONNREFUSED);
    assert_int_equal(listen(listener, 1), 0);
    fd = socket_connect(path);
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    close(fd);
    /* A link to a living socket, of the file and of its directory. */
    assert_int_equal(rename(path, aside), 0);
    assert_int_equal(symlink(aside, path), 0);
    assert_int_equal(socket_connect(path), -ENOTSOCK);
    assert_int_equal(unlink(path), 0);
    snprintf(link, sizeof(link), "%s-link", (char *)*state);
    assert_int_equal(symlink(*state, link), 0);
    snprintf(path, sizeof(path), "%s/aside", link);
    assert_int_equal(socket_connect(path), -ENOTDIR);
    assert_int_equal(unlink(link), 0);
    close(listener);
    assert_int_equal(unlink(aside), 0);
    /* What would make an open() wait. */
    assert_int_equal(mkfifo(aside, 0600), 0);
    assert_int_equal(socket_connect(aside), -ENOTSOCK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths),
        cmocka_unit_test_setup_teardown(test_probe, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_probe_is_not_noticed, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_probe_of_another_namespace, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_listen, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_claim, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_claim_refused, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_directory_is_a_link, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_client, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_connect, make_directory, remove_directory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
