/* The rules of the switch: what it learns, forgets and refuses, and where frames go. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "switch.h"

enum { NOW = 1000, LEN = 60 };

static const mac_t broadcast = 0xffffffffffff;

static int setup(void **state) {
    struct switch_table *table = calloc(1, sizeof(*table));

    assert_non_null(table);
    switch_init(table, (const uint64_t[2]){0x1234567890abcdef, 0xfedcba0987654321});
    *state = table;
    return 0;
}

static int teardown(void **state) {
    free(*state);
    return 0;
}

static mac_t station(uint32_t n) {
    return UINT64_C(0x020000000000) + n;
}

static void address(uint8_t *frame, mac_t to, mac_t from) {
    for (int i = 0; i < 6; i++) {
        frame[i] = (uint8_t)(to >> (40 - 8 * i));
        frame[6 + i] = (uint8_t)(from >> (40 - 8 * i));
    }
}

static enum switch_route route(struct switch_table *table, uint32_t port, mac_t to, mac_t from, uint32_t now,
                               uint32_t *out) {
    uint8_t frame[LEN] = {0};

    address(frame, to, from);
    return switch_route(table, port, 0, frame, LEN, now, out);
}

static void reads_addresses_as_they_are_on_the_wire(void **state) {
    (void)state;
    assert_true(switch_mac((const uint8_t[]){2, 0, 0, 0, 0, 7}) == station(7));
    assert_true(switch_is_station(station(7)));
    assert_false(switch_is_station(0));
    assert_false(switch_is_station(broadcast));
    assert_false(switch_is_station(UINT64_C(0x01005e000001)));
}

static void floods_until_it_knows_the_port(void **state) {
    struct switch_table *table = *state;
    uint32_t to = 99;

    assert_int_equal(route(table, 1, station(2), station(1), NOW, &to), SWITCH_FLOOD);
    assert_int_equal(route(table, 2, station(1), station(2), NOW, &to), SWITCH_ONE);
    assert_int_equal(to, 1);
    assert_int_equal(route(table, 1, station(2), station(1), NOW, &to), SWITCH_ONE);
    assert_int_equal(to, 2);
    /* Groups are flooded, whoever may be in them. */
    assert_int_equal(route(table, 1, broadcast, station(1), NOW, &to), SWITCH_FLOOD);
    assert_int_equal(route(table, 1, UINT64_C(0x333300000001), station(1), NOW, &to), SWITCH_FLOOD);
    /* The first and the last port. */
    assert_int_equal(route(table, 0, broadcast, station(10), NOW, &to), SWITCH_FLOOD);
    assert_int_equal(route(table, SWITCH_PORTS - 1, station(10), station(11), NOW, &to), SWITCH_ONE);
    assert_int_equal(to, 0);
    assert_int_equal(route(table, 0, station(11), station(10), NOW, &to), SWITCH_ONE);
    assert_int_equal(to, SWITCH_PORTS - 1);
}

static void sends_nothing_back_to_its_port(void **state) {
    struct switch_table *table = *state;
    uint32_t to;

    route(table, 1, broadcast, station(1), NOW, &to);
    assert_int_equal(route(table, 1, station(1), station(5), NOW, &to), SWITCH_STAY);
    assert_int_equal(route(table, 1, station(1), station(1), NOW, &to), SWITCH_STAY);
}

static void follows_a_station_that_moves(void **state) {
    struct switch_table *table = *state;
    uint32_t to;

    route(table, 1, broadcast, station(1), NOW, &to);
    route(table, 2, broadcast, station(1), NOW, &to);
    assert_int_equal(switch_find(table, station(1), NOW), 2);
    assert_int_equal(table->learned[1], 0);
    assert_int_equal(table->learned[2], 1);
}

static void forgets_what_is_silent(void **state) {
    struct switch_table *table = *state;
    uint32_t to;

    route(table, 1, broadcast, station(1), NOW, &to);
    assert_int_equal(switch_find(table, station(1), NOW + SWITCH_AGE_S), 1);
    assert_int_equal(switch_find(table, station(1), NOW + SWITCH_AGE_S + 1), -1);
    assert_int_equal(switch_find(table, station(1), NOW - 1), 1); /* another thread's clock */
    route(table, 1, broadcast, station(1), NOW + SWITCH_AGE_S, &to);
    assert_int_equal(switch_find(table, station(1), NOW + 2 * SWITCH_AGE_S), 1);
    /* Over the end of the counter. */
    route(table, 3, broadcast, station(3), UINT32_MAX - 5, &to);
    assert_int_equal(switch_find(table, station(3), 100), 3);
    assert_int_equal(switch_find(table, station(3), SWITCH_AGE_S), -1);
}

static void forgets_a_port(void **state) {
    struct switch_table *table = *state;
    uint32_t to;

    assert_int_equal(switch_pin(table, station(3), 1), 0);
    route(table, 1, broadcast, station(1), NOW, &to);
    route(table, 2, broadcast, station(2), NOW, &to);
    switch_forget(table, 1);
    assert_int_equal(switch_find(table, station(1), NOW), -1);
    assert_int_equal(switch_find(table, station(2), NOW), 2);
    assert_int_equal(switch_find(table, station(3), NOW), 1);
    assert_int_equal(table->learned[1], 1);
}

static void refuses_what_is_no_frame(void **state) {
    struct switch_table *table = *state;
    uint8_t frame[LEN] = {0};
    uint32_t to;

    assert_int_equal(route(table, 1, station(2), broadcast, NOW, &to), SWITCH_REFUSE);
    assert_int_equal(route(table, 1, station(2), 0, NOW, &to), SWITCH_REFUSE);
    address(frame, broadcast, station(1));
    for (uint32_t len = 0; len < SWITCH_HEADER; len++)
        assert_int_equal(switch_route(table, 1, 0, frame, len, NOW, &to), SWITCH_REFUSE);
    assert_int_equal(switch_route(table, 1, 0, frame, SWITCH_HEADER, NOW, &to), SWITCH_FLOOD);
}

static void lets_a_checked_port_send_from_its_own_address_alone(void **state) {
    struct switch_table *table = *state;
    uint8_t frame[LEN] = {0};
    uint32_t to;

    address(frame, broadcast, station(1));
    assert_int_equal(switch_route(table, 1, station(2), frame, LEN, NOW, &to), SWITCH_REFUSE);
    assert_int_equal(switch_find(table, station(1), NOW), -1);
    assert_int_equal(switch_route(table, 1, station(1), frame, LEN, NOW, &to), SWITCH_FLOOD);
}

static void keeps_a_pinned_address_at_its_port(void **state) {
    struct switch_table *table = *state;
    uint32_t to;

    route(table, 9, broadcast, station(1), NOW, &to); /* learned elsewhere before */
    assert_int_equal(switch_pin(table, station(1), 1), 0);
    assert_int_equal(switch_pin(table, station(1), 1), 0);
    assert_int_equal(switch_pin(table, station(1), 2), -EEXIST);
    route(table, 9, broadcast, station(1), NOW, &to);
    assert_int_equal(switch_find(table, station(1), NOW), 1);
    assert_int_equal(switch_find(table, station(1), NOW + 10 * SWITCH_AGE_S), 1);
    switch_unpin(table, station(1), 2);
    assert_int_equal(switch_find(table, station(1), NOW), 1);
    switch_unpin(table, station(1), 1);
    assert_int_equal(switch_find(table, station(1), NOW), -1);
    route(table, 9, broadcast, station(1), NOW, &to);
    assert_int_equal(switch_find(table, station(1), NOW), 9);
}

/* Nobody's frames become everybody's because one port invents addresses. */
static void bounds_what_one_port_takes(void **state) {
    struct switch_table *table = *state;
    uint32_t to, known = 0, own = 0;

    for (uint32_t port = 0; port < 200; port++)
        route(table, port, broadcast, station(port), NOW, &to);
    for (uint32_t n = 0; n < 200000; n++)
        route(table, 250, broadcast, station(1000 + n), NOW, &to);
    for (uint32_t port = 0; port < 200; port++)
        known += switch_find(table, station(port), NOW) == (int)port;
    assert_int_equal(known, 200);
    assert_true(table->learned[250] <= SWITCH_PORT_QUOTA);
    for (uint32_t n = 0; n < 200000; n++)
        own += switch_find(table, station(1000 + n), NOW) == 250;
    assert_true(own > 0 && own <= SWITCH_PORT_QUOTA);
    /* What is stale gives its place to the port's new ones, once a second at most. */
    for (uint32_t n = 0; n < 10; n++)
        route(table, 250, broadcast, station(900000 + n), NOW + SWITCH_AGE_S + 1, &to);
    for (uint32_t n = 0; n < 10; n++)
        assert_int_equal(switch_find(table, station(900000 + n), NOW + SWITCH_AGE_S + 1), 250);
}

static void write_ipv4(uint8_t *frame, uint8_t protocol, uint16_t fragment, uint16_t port) {
    address(frame, station(1), station(2));
    frame[12] = 8;
    frame[14] = 0x45;
    frame[20] = (uint8_t)(fragment >> 8);
    frame[21] = (uint8_t)fragment;
    frame[23] = protocol;
    memset(frame + 26, 10, 8);
    frame[34] = (uint8_t)(port >> 8);
    frame[35] = (uint8_t)port;
}

/* How many of four queues are used by 64 ports. */
static uint32_t spread(uint8_t protocol, uint16_t fragment, bool tagged) {
    uint32_t used = 0;

    for (uint16_t port = 1; port <= 64; port++) {
        uint8_t frame[64] = {0};
        write_ipv4(frame, protocol, fragment, port);
        if (tagged) {
            memmove(frame + 16, frame + 12, 48);
            frame[12] = 0x81;
            frame[13] = 0;
        }
        uint32_t flow = switch_flow(frame, sizeof(frame));
        assert_int_equal(switch_flow(frame, sizeof(frame)), flow);
        used |= 1U << flow % 4;
    }
    return (uint32_t)__builtin_popcount(used);
}

static void tells_flows_apart_by_ports(void **state) {
    (void)state;
    assert_int_equal(spread(6, 0, false), 4);
    assert_int_equal(spread(17, 0x4000, true), 4);
    assert_int_equal(spread(17, 0x2000, false), 1); /* the fragments of a packet are one flow */
    assert_int_equal(spread(17, 0x0100, false), 1);
    assert_int_equal(spread(1, 0, false), 1); /* ICMP has no ports */
}

static void hashes_frames_of_any_length(void **state) {
    (void)state;
    srand(7);
    for (uint32_t i = 0; i < 200000; i++) {
        uint32_t len = (uint32_t)rand() % 65;
        uint8_t *frame = malloc(len == 0 ? 1 : len); /* of exactly its length, for the sanitizer */
        assert_non_null(frame);
        for (uint32_t k = 0; k < len; k++)
            frame[k] = (uint8_t)(rand() % 4 == 0 ? rand() : 0);
        if (len >= 14) {
            static const uint8_t types[4][2] = {{8, 0}, {0x86, 0xdd}, {0x81, 0}, {0x88, 0xa8}};
            memcpy(frame + 12, types[rand() % 4], 2);
            if (len >= 18 && rand() % 2)
                memcpy(frame + 16, types[rand() % 4], 2);
        }
        assert_int_equal(switch_flow(frame, len), switch_flow(frame, len));
        free(frame);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_addresses_as_they_are_on_the_wire),
        TEST(floods_until_it_knows_the_port),
        TEST(sends_nothing_back_to_its_port),
        TEST(follows_a_station_that_moves),
        TEST(forgets_what_is_silent),
        TEST(forgets_a_port),
        TEST(refuses_what_is_no_frame),
        TEST(lets_a_checked_port_send_from_its_own_address_alone),
        TEST(keeps_a_pinned_address_at_its_port),
        TEST(bounds_what_one_port_takes),
        cmocka_unit_test(tells_flows_apart_by_ports),
        cmocka_unit_test(hashes_frames_of_any_length),
    };

    return cmocka_run_group_tests_name("switch", tests, NULL, NULL);
}
