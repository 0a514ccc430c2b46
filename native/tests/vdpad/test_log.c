/* Log lines: their form, their level, and that nothing in a message can make a second line. */
#include "check.h"
#include "log.h"

/* What one call writes, read back through a pipe. */
static const char *written(enum log_level threshold, enum log_level level, const char *message) {
    static char text[4096];
    int ends[2];
    struct log log = {.level = threshold};
    ssize_t got;

    assert_int_equal(pipe(ends), 0);
    log.fd = ends[1];
    log_line(&log, level, "%s", message);
    close(ends[1]);
    got = read(ends[0], text, sizeof(text) - 1);
    assert_true(got >= 0);
    text[got] = '\0';
    close(ends[0]);
    return text;
}

static void test_form(void **state) {
    (void)state;
    assert_string_equal(written(LEVEL_DEBUG, LEVEL_DEBUG, "a"), "debug: a\n");
    assert_string_equal(written(LEVEL_DEBUG, LEVEL_ERROR, "a b"), "error: a b\n");
    assert_string_equal(written(LEVEL_WARNING, LEVEL_WARNING, ""), "warning: \n");
    assert_string_equal(written(LEVEL_WARNING, LEVEL_INFO, "a"), "");
}

static void test_one_call_is_one_line(void **state) {
    char huge[8192];
    const char *line;

    (void)state;
    assert_string_equal(written(LEVEL_INFO, LEVEL_INFO, "a\nerror: b\r\x1b[31m\x7f"),
                        "info: a?error: b??[31m?\n");
    memset(huge, 'x', sizeof(huge));
    huge[sizeof(huge) - 1] = '\0';
    line = written(LEVEL_INFO, LEVEL_INFO, huge);
    assert_true(strlen(line) <= 2048);
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
}

static void test_levels(void **state) {
    enum log_level level = LEVEL_DEBUG;

    (void)state;
    assert_int_equal(log_level_parse("error", &level), 0);
    assert_int_equal(level, LEVEL_ERROR);
    assert_string_equal(log_level_word(LEVEL_WARNING), "warning");
    assert_int_equal(log_level_parse("ERROR", &level), -EINVAL);
    assert_int_equal(log_level_parse("", &level), -EINVAL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_form),
        cmocka_unit_test(test_one_call_is_one_line),
        cmocka_unit_test(test_levels),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
