/* What every test here includes: cmocka with the headers that it wants before it. */
#ifndef VDPAD_TESTS_CHECK_H
#define VDPAD_TESTS_CHECK_H

/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
/* clang-format on */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* A directory of its own for each test, as the state of the test. */
static inline int make_directory(void **state) {
    char *directory = strdup("/tmp/vdpad-test-XXXXXX");

    *state = directory;
    return directory == NULL || mkdtemp(directory) == NULL ? -1 : 0;
}

static inline int remove_directory(void **state) {
    char command[64];

    snprintf(command, sizeof(command), "rm -rf '%s'", (char *)*state);
    free(*state);
    return system(command);
}

#endif
