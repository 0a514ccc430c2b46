/*
 * The mapping as bytes: reasons that help, limits, and a round trip.
 * The forms themselves are in the contract files.
 */
#include "check.h"
#include "mapping.h"

static void assert_reason(const char *data, const char *expected) {
    struct mapping mapping;
    char reason[512] = "";

    assert_int_equal(mapping_decode(data, strlen(data), &mapping, reason, sizeof(reason)), -EINVAL);
    assert_null(mapping.entries);
    assert_int_equal(mapping.count, 0);
    if (strstr(reason, expected) == NULL)
        fail_msg("'%s' does not contain '%s'", reason, expected);
}

static void test_reasons(void **state) {
    (void)state;
    assert_reason("0000:82:00.2\n", "is not JSON: ");
    assert_reason("{}", "is not an array");
    assert_reason("[{\"pciAddress\": \"82:00.2\", \"socketpath\": \"/s\"}, 7]", "entry 2: is not an object");
    assert_reason("[{\"socketpath\": \"/s\"}]", "entry 1: pciAddress is missing");
    assert_reason("[{\"pciAddress\": \"82:00.9\", \"socketpath\": \"/s\"}]",
                  "entry 1: pciAddress '82:00.9' is not a PCI address such as 0000:82:00.2");
    assert_reason("[{\"pciAddress\": \"82:00.2\", \"socketpath\": \"s\"}]",
                  "entry 1: socketpath 's' is not absolute");
    assert_reason("[{\"pciAddress\": \"82:00.2\", \"socketpath\": \"/a\"},"
                  " {\"pciAddress\": \"0000:82:00.2\", \"socketpath\": \"/b\"}]",
                  "entry 2: 0000:82:00.2 is listed twice");
    assert_reason("[{\"pciAddress\": \"a\\nb\", \"socketpath\": \"/b\"}]", "'a?b'");
}

static char *entries(size_t count) {
    char *text = malloc(count * 64 + 3);
    size_t length = 0;

    assert_non_null(text);
    text[length++] = '[';
    for (size_t i = 0; i < count; i++)
        length +=
            (size_t)sprintf(text + length, "%s{\"pciAddress\":\"%02zx:%02zx.%zx\",\"socketpath\":\"/s\"}",
                            i == 0 ? "" : ",", i >> 8, (i >> 3) & 0x1f, i & 7);
    text[length++] = ']';
    text[length] = '\0';
    return text;
}

static void test_entry_limit(void **state) {
    struct mapping mapping;
    char reason[512];
    char *text = entries(MAPPING_MAX_ENTRIES);

    (void)state;
    assert_int_equal(mapping_decode(text, strlen(text), &mapping, reason, sizeof(reason)), 0);
    assert_int_equal(mapping.count, MAPPING_MAX_ENTRIES);
    assert_string_equal(mapping.entries[4095].address, "0000:0f:1f.7");
    mapping_free(&mapping);
    free(text);
    text = entries(MAPPING_MAX_ENTRIES + 1);
    assert_reason(text, "has more than 4096 entries");
    free(text);
}

static void test_size_limit(void **state) {
    char *text = malloc(MAPPING_MAX_BYTES + 2);
    struct mapping mapping;
    char reason[512];

    (void)state;
    assert_non_null(text);
    memset(text, ' ', MAPPING_MAX_BYTES + 1);
    memcpy(text, "[]", 2);
    text[MAPPING_MAX_BYTES + 1] = '\0';
    assert_int_equal(mapping_decode(text, MAPPING_MAX_BYTES, &mapping, reason, sizeof(reason)), 0);
    mapping_free(&mapping);
    assert_reason(text, "is larger than 1048576 bytes");
    free(text);
}

/* Whatever bytes come: no crash, and either entries or a reason. */
static void test_mutations(void **state) {
    static const char original[] =
        "[{\"pciAddress\": \"0000:82:00.2\", \"socketpath\": \"/var/run/vdpa/vhost/vdpa-0\"},"
        " {\"pciAddress\": \"82:00.3\", \"socketpath\": \"/\\u00e9\\\"\"}]";
    unsigned int seed = 1;

    (void)state;
    for (int round = 0; round < 20000; round++) {
        char text[sizeof(original)];
        size_t size = (size_t)rand_r(&seed) % sizeof(original);
        struct mapping mapping;
        char reason[64] = "";

        memcpy(text, original, sizeof(original));
        for (int i = rand_r(&seed) % 4; i > 0; i--)
            text[(size_t)rand_r(&seed) % sizeof(original)] = (char)rand_r(&seed);
        if (round % 2 == 0)
            size = sizeof(original) - 1;
        if (mapping_decode(text, size, &mapping, reason, sizeof(reason)) != 0)
            assert_true(reason[0] != '\0');
        mapping_free(&mapping);
    }
}

static void test_round_trip(void **state) {
    struct mapping_entry entries_in[] = {
        {.address = "0000:82:00.4", .socket = "/var/run/vdpa/vhost/vdpa-0"},
        {.address = "10000:82:00.3", .socket = "/a b/\"c\"/\\\xc3\xa9"},
    };
    struct mapping mapping = {.entries = entries_in, .count = 2};
    struct mapping back;
    char reason[512];
    char *text = mapping_encode(&mapping);

    (void)state;
    assert_non_null(text);
    assert_string_equal(
        text, "[\n"
              "{\"pciAddress\": \"0000:82:00.4\", \"socketpath\": \"/var/run/vdpa/vhost/vdpa-0\"},\n"
              "{\"pciAddress\": \"10000:82:00.3\", \"socketpath\": \"/a b/\\\"c\\\"/\\\\\xc3\xa9\"}\n"
              "]\n");
    assert_int_equal(mapping_decode(text, strlen(text), &back, reason, sizeof(reason)), 0);
    assert_int_equal(back.count, 2);
    assert_string_equal(back.entries[1].address, entries_in[1].address);
    assert_string_equal(back.entries[1].socket, entries_in[1].socket);
    mapping_free(&back);
    free(text);
    mapping.count = 0;
    text = mapping_encode(&mapping);
    assert_string_equal(text, "[]\n");
    free(text);
    mapping.count = 1;
    strcpy(entries_in[0].socket, "/\xff");
    assert_null(mapping_encode(&mapping));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reasons),    cmocka_unit_test(test_entry_limit),
        cmocka_unit_test(test_size_limit), cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_round_trip),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
