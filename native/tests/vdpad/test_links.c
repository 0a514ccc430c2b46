/* Links: which steps the main loop sees of what DPDK's threads report. */
#include "check.h"
#include "links.h"

#include <poll.h>
#include <pthread.h>

static struct links links;

static int start(void **state) {
    (void)state;
    return links_init(&links) == 0 && links_add(&links, "0000:82:00.2") == 0 &&
                   links_add(&links, "0000:82:00.3") == 0
               ? 0
               : -1;
}

static int stop(void **state) {
    (void)state;
    links_destroy(&links);
    return 0;
}

static void assert_change(enum link_state state) {
    struct link_change change;

    assert_true(links_next_change(&links, &change));
    assert_string_equal(change.address, "0000:82:00.2");
    assert_int_equal(change.state, state);
}

static enum link_state state_now(const char *address) {
    unsigned int queue_pairs;

    return links_state(&links, address, &queue_pairs);
}

static void set_pairs(unsigned int count, bool ready) {
    for (unsigned int ring = 0; ring < 2 * count; ring++)
        links_ring(&links, "0000:82:00.2", ring, ready);
}

/* The next change, and the only one, is that so many pairs are in use. */
static void assert_pairs(unsigned int queue_pairs) {
    struct link_change change;
    unsigned int now;

    assert_true(links_next_change(&links, &change));
    assert_int_equal(change.state, LINK_CONFIGURED);
    assert_int_equal(change.queue_pairs, queue_pairs);
    assert_int_equal(links_state(&links, "0000:82:00.2", &now), LINK_CONFIGURED);
    assert_int_equal(now, queue_pairs);
    assert_false(links_next_change(&links, &change));
}

static void assert_no_change(void) {
    struct link_change change;

    assert_false(links_next_change(&links, &change));
}

static bool woken(void) {
    struct pollfd poller = {.fd = links.event_fd, .events = POLLIN};
    uint64_t count;

    return poll(&poller, 1, 0) == 1 && read(links.event_fd, &count, sizeof(count)) == (ssize_t)sizeof(count);
}

static void test_life_of_a_front_end(void **state) {
    struct link_change change;

    (void)state;
    assert_no_change();
    assert_false(woken());
    links_connected(&links, "0000:82:00.2");
    assert_true(woken());
    assert_change(LINK_CONNECTED);
    assert_no_change();
    set_pairs(3, true);
    links_configured(&links, "0000:82:00.2", 7);
    assert_true(woken());
    assert_true(links_next_change(&links, &change));
    assert_int_equal(change.state, LINK_CONFIGURED);
    assert_int_equal(change.queue_pairs, 3);
    assert_int_equal(state_now("0000:82:00.2"), LINK_CONFIGURED);
    assert_int_equal(state_now("0000:82:00.3"), LINK_DISCONNECTED);
    links_unconfigured(&links, "0000:82:00.2", 7);
    assert_change(LINK_CONNECTED);
    links_disconnected(&links, "0000:82:00.2");
    assert_true(woken());
    assert_change(LINK_DISCONNECTED);
    assert_no_change();
    assert_int_equal(state_now("0000:82:00.2"), LINK_DISCONNECTED);
}

/*
 * Pairs that are in use change while the front end stays; rings of one that is not configured do not count.
 */
static void test_queue_pairs_in_use(void **state) {
    unsigned int pairs;

    (void)state;
    links_connected(&links, "0000:82:00.2");
    assert_change(LINK_CONNECTED);
    set_pairs(2, true);
    assert_no_change();
    links_state(&links, "0000:82:00.2", &pairs);
    assert_int_equal(pairs, 0);
    links_configured(&links, "0000:82:00.2", 7);
    assert_pairs(2);
    links_ring(&links, "0000:82:00.2", 3, true); /* as before */
    assert_no_change();
    links_ring(&links, "0000:82:00.2", 3, false); /* half a pair is none */
    assert_pairs(1);
    assert_true(woken());
    links_ring(&links, "0000:82:00.2", 4, true); /* two halves of different pairs are none either */
    assert_no_change();
    set_pairs(3, false);
    assert_pairs(0);
    set_pairs(128, true);
    assert_pairs(128);
    links_ring(&links, "0000:82:00.2", LINK_RINGS_MAX, true);
    links_ring(&links, "nowhere", 0, true);
    assert_no_change();
    links_unconfigured(&links, "0000:82:00.2", 7);
    assert_change(LINK_CONNECTED);
    assert_no_change();
    links_no_rings(&links, "nowhere");
    links_no_rings(&links, "0000:82:00.2");
    set_pairs(1, true);
    links_configured(&links, "0000:82:00.2", 8);
    assert_pairs(1);
}

static void test_steps_drawn_together(void **state) {
    (void)state;
    links_connected(&links, "0000:82:00.2");
    links_configured(&links, "0000:82:00.2", 7);
    assert_change(LINK_CONNECTED);
    assert_change(LINK_CONFIGURED);
    for (int i = 0; i < 1000; i++) {
        links_disconnected(&links, "0000:82:00.2");
        links_connected(&links, "0000:82:00.2");
        links_configured(&links, "0000:82:00.2", 7);
    }
    assert_change(LINK_DISCONNECTED);
    assert_change(LINK_CONNECTED);
    assert_change(LINK_CONFIGURED);
    assert_no_change();
    links_disconnected(&links, "0000:82:00.2");
    assert_change(LINK_DISCONNECTED);
    links_connected(&links, "0000:82:00.2");
    links_disconnected(&links, "0000:82:00.2");
    assert_no_change();
}

/* The first that is configured has the device, whatever others do. */
static void test_second_front_end(void **state) {
    uint64_t refusals[REFUSAL_COUNT];

    (void)state;
    links_connected(&links, "0000:82:00.2");
    links_connected(&links, "0000:82:00.2");
    links_configured(&links, "0000:82:00.2", 8);
    links_configured(&links, "0000:82:00.2", 7);
    assert_change(LINK_CONNECTED);
    assert_change(LINK_CONFIGURED);
    links_unconfigured(&links, "0000:82:00.2", 7);
    links_refused(&links, "0000:82:00.2", REFUSAL_SECOND);
    links_disconnected(&links, "0000:82:00.2");
    assert_no_change();
    links_unconfigured(&links, "0000:82:00.2", 8);
    assert_change(LINK_CONNECTED);
    links_disconnected(&links, "0000:82:00.2");
    assert_change(LINK_DISCONNECTED);
    links_connected(&links, "nowhere");
    links_refused(&links, "nowhere", REFUSAL_FORM);
    links_refusals(&links, "0000:82:00.2", refusals);
    assert_int_equal(refusals[REFUSAL_SECOND], 1);
    assert_int_equal(refusals[REFUSAL_FORM], 0);
    links_refusals(&links, "nowhere", refusals);
    assert_int_equal(refusals[REFUSAL_FORM], 0);
}

static void test_removal(void **state) {
    (void)state;
    links_connected(&links, "0000:82:00.2");
    assert_change(LINK_CONNECTED);
    assert_int_equal(links_remove(&links, "0000:82:00.2"), LINK_CONNECTED);
    links_disconnected(&links, "0000:82:00.2");
    links_configured(&links, "0000:82:00.2", 7);
    assert_no_change();
    assert_int_equal(links_remove(&links, "0000:82:00.2"), LINK_DISCONNECTED);
    assert_int_equal(links_remove(&links, "0000:82:00.3"), LINK_DISCONNECTED);
    for (int i = 0; i < DEVICES_MAX; i++)
        assert_int_equal(links_add(&links, "0000:82:00.2"), 0);
    assert_int_equal(links_add(&links, "0000:82:00.2"), -ENOSPC);
}

static void *report(void *context) {
    (void)context;
    for (int i = 0; i < 20000; i++) {
        links_connected(&links, "0000:82:00.2");
        links_configured(&links, "0000:82:00.2", 1);
        links_unconfigured(&links, "0000:82:00.2", 1);
        links_disconnected(&links, "0000:82:00.2");
    }
    return NULL;
}

/* Two of DPDK's threads report while the main loop looks and a device comes and goes. */
static void test_threads(void **state) {
    pthread_t threads[2];
    struct link_change change;

    (void)state;
    for (size_t i = 0; i < COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, report, NULL), 0);
    for (int i = 0; i < 5000; i++) {
        links_next_change(&links, &change);
        links_remove(&links, "0000:82:00.3");
        assert_int_equal(links_add(&links, "0000:82:00.3"), 0);
    }
    for (size_t i = 0; i < COUNT(threads); i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    while (links_next_change(&links, &change))
        ;
    assert_int_equal(state_now("0000:82:00.2"), LINK_DISCONNECTED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_life_of_a_front_end, start, stop),
        cmocka_unit_test_setup_teardown(test_queue_pairs_in_use, start, stop),
        cmocka_unit_test_setup_teardown(test_steps_drawn_together, start, stop),
        cmocka_unit_test_setup_teardown(test_second_front_end, start, stop),
        cmocka_unit_test_setup_teardown(test_removal, start, stop),
        cmocka_unit_test_setup_teardown(test_threads, start, stop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
