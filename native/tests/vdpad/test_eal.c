/* DPDK's log lines as ours: which one is the reason of a failure. */
#include "check.h"
#include "eal.h"

#include <fcntl.h>
#include <stdbool.h>

#include <rte_log.h>

static void test_first_error(void **state) {
    const struct eal_settings settings = {.simulate = true, .file_prefix = "vdpad-test"};
    const struct log log = {.level = LEVEL_ERROR, .fd = open("/dev/null", O_WRONLY | O_CLOEXEC)};
    struct failure failure;
    struct eal eal;
    char text[256];

    (void)state;
    assert_int_equal(eal_start(&eal, &log, &settings, &failure), 0);
    eal_forget_error(&eal);
    eal_first_error(&eal, text, sizeof(text));
    assert_string_equal(text, "");
    rte_log(RTE_LOG_WARNING, RTE_LOGTYPE_USER1, "a warning\n");
    rte_log(RTE_LOG_ERR, RTE_LOGTYPE_USER1, "the cause\nits detail\n");
    rte_log(RTE_LOG_ERR, RTE_LOGTYPE_USER1, "what followed\n");
    eal_first_error(&eal, text, sizeof(text));
    assert_string_equal(text, "the cause");
    eal_forget_error(&eal);
    rte_log(RTE_LOG_ERR, RTE_LOGTYPE_USER1, "another\n");
    eal_first_error(&eal, text, sizeof(text));
    assert_string_equal(text, "another");
    eal_stop(&eal);
    close(log.fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_first_error)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
