/* Socket paths: which are refused, and what is taken over. */
#include "check.h"
#include "socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static int bound(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    strcpy(name.sun_path, path);
    assert_int_equal(bind(fd, (const struct sockaddr *)&name, sizeof(name)), 0);
    return fd;
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

static void test_listening(void **state) {
    char path[64];
    char longer[72];
    int fd;

    (void)snprintf(path, sizeof(path), "%s/a b", (char *)*state);
    (void)snprintf(longer, sizeof(longer), "%sc", path);
    assert_int_equal(socket_is_listening(path), 0);
    fd = bound(path);
    assert_int_equal(socket_is_listening(path), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(socket_is_listening(path), 1);
    assert_int_equal(socket_is_listening(longer), 0);
    path[strlen(path) - 1] = '\0';
    assert_int_equal(socket_is_listening(path), 0);
    close(fd);
}

static void test_claim(void **state) {
    char path[64];
    char reason[256];
    int fd;

    (void)snprintf(path, sizeof(path), "%s/s", (char *)*state);
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), 0);
    assert_false(exists(path));
    /* Stale: its owner is gone, or has not begun to listen and so is nobody's. */
    close(bound(path));
    assert_true(exists(path));
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), 0);
    assert_false(exists(path));
    fd = bound(path);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), -EADDRINUSE);
    assert_non_null(strstr(reason, "in use"));
    assert_true(exists(path));
    assert_int_equal(socket_is_listening(path), 1);
    close(fd);
}

static void test_claim_refused(void **state) {
    char path[64];
    char reason[256];

    (void)snprintf(path, sizeof(path), "%s/s", (char *)*state);
    (void)fclose(fopen(path, "w"));
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), -EEXIST);
    assert_non_null(strstr(reason, "not a socket"));
    assert_true(exists(path));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("/nowhere", path), 0);
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), -EEXIST);
    assert_true(exists(path));
    assert_int_equal(unlink(path), 0);
    (void)snprintf(path, sizeof(path), "%s/missing/s", (char *)*state);
    assert_int_equal(socket_claim(path, reason, sizeof(reason)), -ENOENT);
    assert_string_equal(reason, "cannot be created: No such file or directory");
}

static void test_client(void **state) {
    char path[64];
    char reason[256];

    (void)snprintf(path, sizeof(path), "%s/s", (char *)*state);
    assert_int_equal(socket_check_client(path, reason, sizeof(reason)), 0);
    close(bound(path));
    assert_int_equal(socket_check_client(path, reason, sizeof(reason)), 0);
    assert_true(exists(path));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(socket_check_client(path, reason, sizeof(reason)), -EEXIST);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths),
        cmocka_unit_test_setup_teardown(test_listening, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_claim, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_claim_refused, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_client, make_directory, remove_directory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
