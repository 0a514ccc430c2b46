/* PCI addresses: what is one, and its one form. */
#include "check.h"
#include "pci_address.h"

static void test_forms(void **state) {
    static const struct {
        const char *text;
        const char *expected;
    } cases[] = {
        {"0000:82:00.2", "0000:82:00.2"},         {"82:00.2", "0000:82:00.2"},
        {"0000:AF:1F.7", "0000:af:1f.7"},         {"00000000:65:00.0", "0000:65:00.0"},
        {"10000:e1:00.0", "10000:e1:00.0"},       {"0010000:e1:00.0", "10000:e1:00.0"},
        {"FFFFFFFF:ff:1f.7", "ffffffff:ff:1f.7"}, {"00:00.0", "0000:00:00.0"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        char address[PCI_ADDRESS_SIZE];

        assert_int_equal(pci_address_normalise(cases[i].text, address), 0);
        assert_string_equal(address, cases[i].expected);
    }
}

static void test_refused(void **state) {
    static const char *const cases[] = {
        "",
        ":",
        ".",
        "0",
        "82",
        "82:",
        "82:00",
        "82:00.",
        "82:00.8",
        "82:00.g",
        "82:20.0",
        "82:0.0",
        "2:00.0",
        "182:00.0",
        "000:82:00.2",
        "000000000:82:00.2",
        "0000:82:00.2 ",
        " 0000:82:00.2",
        "0000:82:00.22",
        "0000:82:00:2",
        "0000.82.00.2",
        "0000:8g:00.2",
        "0x00:82:00.2",
        "0000:82:00.+2",
        "0000:82:-1.2",
        "0000::00.2",
        "0000:82:00.2\n",
        "0000:0000:82:00.2",
    };

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        char address[PCI_ADDRESS_SIZE];

        if (pci_address_normalise(cases[i], address) != -EINVAL)
            fail_msg("accepted '%s'", cases[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forms), cmocka_unit_test(test_refused)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
