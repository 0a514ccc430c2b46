/*
 * Where the private sockets are made: nothing stays there, and a place that cannot be written to
 * is passed by.
 */
#include "check.h"
#include "private_directory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>

static bool exists(const char *path) {
    struct stat status;

    return lstat(path, &status) == 0;
}

static void test_first_place(void **state) {
    const char *const places[] = {NULL, "", (char *)*state, "/nonexistent"};
    struct private_directory directory;

    assert_int_equal(private_directory_choose(&directory, places, COUNT(places)), 0);
    assert_int_equal(strncmp(directory.path, (char *)*state, strlen((char *)*state)), 0);
    assert_false(exists(directory.path));
}

static void test_falls_back(void **state) {
    char file[64];
    const char *const places[] = {file, "/nonexistent/below", (char *)*state};
    struct private_directory directory;

    snprintf(file, sizeof(file), "%s/file", (char *)*state);
    close(open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(private_directory_choose(&directory, places, COUNT(places)), 0);
    assert_int_equal(strncmp(directory.path, (char *)*state, strlen((char *)*state)), 0);
    assert_int_equal(private_directory_choose(&directory, places, 2), -ENOENT);
    assert_int_equal(private_directory_choose(&directory, places, 1), -ENOTDIR);
}

static void test_made_again(void **state) {
    char above[64];
    const char *const places[] = {above};
    struct private_directory directory;
    struct stat status;

    snprintf(above, sizeof(above), "%s/above", (char *)*state);
    assert_int_equal(mkdir(above, 0700), 0);
    assert_int_equal(private_directory_choose(&directory, places, 1), 0);
    assert_int_equal(rmdir(above), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(private_directory_make(&directory), 0);
    assert_int_equal(lstat(directory.path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0700);
    private_directory_remove(&directory);
    assert_false(exists(directory.path));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_first_place, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_falls_back, make_directory, remove_directory),
        cmocka_unit_test_setup_teardown(test_made_again, make_directory, remove_directory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
