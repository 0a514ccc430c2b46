/*
 * Packets in random chain layouts come back byte for byte, wait for receive buffers, and are dropped only if
 * none can hold them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest.h"
#include "loopback.h"

enum {
    HEADER = 12,
    TX_SLOTS = 3,
    TX_SLOT_BYTES = 66000,
    TX_PIECES = 8,
    RX_SLOTS = 60,
    RX_SLOT_BYTES = 4400,
    RX_PIECES = 4,
    RX_AREA = LEFT, /* crosses into RIGHT, as does its last slot */
    TX_AREA = RX_AREA + RX_SLOTS * RX_SLOT_BYTES,
};

struct fixture {
    struct guest guest;
    struct guest_ring tx, rx;
    struct packet packet;
};

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    guest_init(&f->guest);
    guest_ring_init(&f->guest, &f->tx, 32, 65500);
    guest_ring_init(&f->guest, &f->rx, 256, 65000);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;

    guest_free(&f->guest);
    free(f);
    return 0;
}

static struct loopback_result run_n(struct fixture *f, bool mergeable, uint32_t budget) {
    const struct packet_form form = {.header_len = HEADER, .mergeable = mergeable};

    return loopback_run(&f->packet, &f->tx.ring, &f->rx.ring, &form, budget);
}

static void copy_out(const struct guest *guest, uint64_t addr, uint8_t *to, uint32_t len) {
    for (uint32_t i = 0; i < len; i++)
        to[i] = *guest_host(guest, addr + i);
}

static void copy_in(const struct guest *guest, uint64_t addr, const uint8_t *from, uint32_t len) {
    for (uint32_t i = 0; i < len; i++)
        *guest_host(guest, addr + i) = from[i];
}

/*
 * Splits [addr, addr+len) into up to `pieces` descriptors from `first` on, linked in a random order.
 * Returns the head.
 */
static uint16_t lay_out(struct guest_ring *ring, uint32_t first, uint32_t pieces, uint64_t addr, uint32_t len,
                        uint16_t flags) {
    uint16_t order[TX_PIECES];
    uint32_t n = 1 + (uint32_t)rand() % pieces;

    if (n > len)
        n = len;
    for (uint32_t i = 0; i < n; i++)
        order[i] = (uint16_t)(first + i);
    for (uint32_t i = n - 1; i > 0; i--) {
        uint32_t j = (uint32_t)rand() % (i + 1);
        uint16_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (uint32_t i = 0; i < n; i++) {
        bool last = i == n - 1;
        uint32_t part = last ? len : 1 + (uint32_t)rand() % (len - (n - 1 - i));
        guest_set(ring, order[i], addr, part, (uint16_t)(flags | (last ? 0 : VRING_DESC_F_NEXT)),
                  last ? 0 : order[i + 1]);
        addr += part;
        len -= part;
    }
    return order[0];
}

/* What the model knows: sent packets in order, and what each slot holds. */
struct model {
    uint8_t packets[TX_SLOTS][TX_SLOT_BYTES];
    uint32_t lengths[TX_SLOTS];
    uint32_t expected, sent; /* packets received, packets offered */
    bool tx_busy[TX_SLOTS];
    uint32_t rx_bytes[RX_SLOTS]; /* 0: free */
    uint8_t received[TX_SLOT_BYTES];
};

static void offer_packet(struct fixture *f, struct model *m, uint32_t max) {
    uint32_t slot = m->sent % TX_SLOTS;
    /* Its place in the model is needed until it was received. */
    if (m->tx_busy[slot] || m->sent - m->expected == TX_SLOTS)
        return;
    uint32_t len = 1 + (uint32_t)rand() % max;
    for (uint32_t i = 0; i < len; i++)
        m->packets[slot][i] = (uint8_t)rand();
    m->lengths[slot] = len;
    uint64_t addr = TX_AREA + (uint64_t)slot * TX_SLOT_BYTES;
    memset(m->received, 0xee, HEADER); /* a header full of nonsense does not come through */
    copy_in(&f->guest, addr, m->received, HEADER);
    copy_in(&f->guest, addr + HEADER, m->packets[slot], len);
    m->tx_busy[slot] = true;
    m->sent++;
    guest_offer(&f->tx, lay_out(&f->tx, slot * TX_PIECES, TX_PIECES, addr, HEADER + len, 0));
}

static void offer_buffer(struct fixture *f, struct model *m, uint32_t min) {
    uint32_t slot = (uint32_t)rand() % RX_SLOTS;

    if (m->rx_bytes[slot] != 0)
        return;
    m->rx_bytes[slot] = min + (uint32_t)rand() % (RX_SLOT_BYTES - min + 1);
    guest_offer(&f->rx, lay_out(&f->rx, slot * RX_PIECES, RX_PIECES, RX_AREA + (uint64_t)slot * RX_SLOT_BYTES,
                                m->rx_bytes[slot], VRING_DESC_F_WRITE));
}

static void reap_sent(struct fixture *f, struct model *m) {
    struct vring_used_elem elem;

    while (guest_reap(&f->tx, &elem)) {
        assert_int_equal(elem.len, 0);
        assert_true(m->tx_busy[elem.id / TX_PIECES]);
        m->tx_busy[elem.id / TX_PIECES] = false;
    }
}

/* Takes one used receive buffer; its bytes are appended to the packet at m->received + at. */
static uint32_t take_buffer(struct fixture *f, struct model *m, const struct vring_used_elem *elem,
                            uint32_t at) {
    uint32_t slot = elem->id / RX_PIECES;

    assert_true(elem->len > 0 && elem->len <= m->rx_bytes[slot]);
    assert_true(at + elem->len <= sizeof(m->received));
    copy_out(&f->guest, RX_AREA + (uint64_t)slot * RX_SLOT_BYTES, m->received + at, elem->len);
    m->rx_bytes[slot] = 0;
    return at + elem->len;
}

static void reap_received(struct fixture *f, struct model *m) {
    static const uint8_t zero[10] = {0};
    struct vring_used_elem elem;

    while (guest_reap(&f->rx, &elem)) {
        uint32_t slot = m->expected % TX_SLOTS, taken = 1, len = take_buffer(f, m, &elem, 0);
        /* How many buffers there are is known when the header is complete. */
        while (len < HEADER || taken < (m->received[10] | (uint32_t)m->received[11] << 8)) {
            assert_true(guest_reap(&f->rx, &elem));
            len = take_buffer(f, m, &elem, len);
            taken++;
        }
        assert_true(m->expected < m->sent);
        assert_int_equal(len, HEADER + m->lengths[slot]);
        assert_memory_equal(m->received, zero, sizeof(zero));
        assert_memory_equal(m->received + HEADER, m->packets[slot], m->lengths[slot]);
        m->expected++;
    }
}

static void run_model(struct fixture *f, bool mergeable, uint32_t rounds, uint32_t max_packet,
                      uint32_t min_buffer) {
    struct model *m = calloc(1, sizeof(*m));
    uint64_t delivered = 0;

    assert_non_null(m);
    srand(20240607);
    for (uint32_t i = 0; i < rounds; i++) {
        if (rand() % 2)
            offer_packet(f, m, max_packet);
        /* Now too few receive buffers, now too many. */
        for (int k = rand() % (i % 200 < 100 ? 3 : 20); k > 0; k--)
            offer_buffer(f, m, min_buffer);
        struct loopback_result r = run_n(f, mergeable, 1 + (uint32_t)rand() % 3);
        assert_int_equal(r.dropped, 0);
        assert_null(f->tx.ring.fault);
        assert_null(f->rx.ring.fault);
        delivered += r.delivered;
        reap_sent(f, m);
        reap_received(f, m);
        assert_int_equal(delivered, m->expected);
    }
    assert_true(m->expected > rounds / 20);
    free(m);
}

static void loops_mergeable_packets(void **state) {
    run_model(*state, true, 20000, 9000, 200);
}

static void loops_packets_of_64_kib(void **state) {
    run_model(*state, true, 3000, 65536, 2000);
}

static void loops_packets_into_single_buffers(void **state) {
    run_model(*state, false, 20000, 4000, HEADER + 4000);
}

static void loops_into_tiny_buffers(void **state) {
    run_model(*state, true, 20000, 300, 1 + HEADER / 2);
}

static void send(struct fixture *f, uint32_t len) {
    guest_set(&f->tx, 0, TX_AREA, len, 0, 0);
    guest_offer(&f->tx, 0);
}

static void offer(struct fixture *f, uint16_t index, uint32_t len) {
    guest_set(&f->rx, index, RX_AREA + index * 4096U, len, VRING_DESC_F_WRITE, 0);
    guest_offer(&f->rx, index);
}

static void keeps_a_packet_until_there_are_buffers(void **state) {
    struct fixture *f = *state;
    struct vring_used_elem elem;

    send(f, HEADER + 100);
    assert_int_equal(run_n(f, true, 64).delivered, 0);
    offer(f, 0, 80); /* not enough yet */
    assert_int_equal(run_n(f, true, 64).delivered, 0);
    assert_false(guest_reap(&f->tx, &elem));
    assert_false(guest_reap(&f->rx, &elem));
    offer(f, 1, 80);
    struct loopback_result r = run_n(f, true, 64);
    assert_int_equal(r.delivered, 1);
    assert_int_equal(r.bytes, 100);
    assert_true(r.rx_interrupt && r.tx_interrupt);
    assert_true(guest_reap(&f->tx, &elem));
    assert_true(guest_reap(&f->rx, &elem));
    assert_int_equal(elem.len, 80);
    assert_true(guest_reap(&f->rx, &elem));
    assert_int_equal(elem.len, 32);
    assert_int_equal(guest_host(&f->guest, RX_AREA)[10], 2);
}

static void drops_what_a_single_buffer_cannot_hold(void **state) {
    struct fixture *f = *state;
    struct vring_used_elem elem;

    send(f, HEADER + 100);
    offer(f, 0, 100);
    struct loopback_result r = run_n(f, false, 64);
    assert_int_equal(r.delivered, 0);
    assert_int_equal(r.dropped, 1);
    assert_true(guest_reap(&f->tx, &elem));
    assert_false(guest_reap(&f->rx, &elem));
    /* The buffer is still there for a packet that fits. */
    send(f, HEADER + 50);
    assert_int_equal(run_n(f, false, 64).delivered, 1);
    assert_true(guest_reap(&f->rx, &elem));
    assert_int_equal(elem.len, HEADER + 50);
}

static void drops_what_the_whole_ring_cannot_hold(void **state) {
    struct fixture *f = *state;

    send(f, 1000);
    for (uint16_t i = 0; i < 256; i++) {
        guest_set(&f->rx, i, RX_AREA + i * 4U, 3, VRING_DESC_F_WRITE, 0);
        guest_offer(&f->rx, i);
    }
    assert_int_equal(run_n(f, true, 64).dropped, 1);
}

static void drops_a_packet_without_content(void **state) {
    struct fixture *f = *state;

    offer(f, 0, 100);
    send(f, HEADER);
    assert_int_equal(run_n(f, true, 64).dropped, 1);
}

static void breaks_on_a_packet_shorter_than_its_header(void **state) {
    struct fixture *f = *state;

    offer(f, 0, 100);
    send(f, HEADER - 1);
    assert_int_equal(run_n(f, true, 64).delivered, 0);
    assert_non_null(f->tx.ring.fault);
    assert_null(f->rx.ring.fault);
}

static void keeps_the_packet_when_the_receive_ring_breaks(void **state) {
    struct fixture *f = *state;
    struct vring_used_elem elem;

    send(f, HEADER + 100);
    offer(f, 0, 10);
    guest_set(&f->rx, 1, HOLE, 100, VRING_DESC_F_WRITE, 0);
    guest_offer(&f->rx, 1);
    assert_int_equal(run_n(f, true, 64).delivered, 0);
    assert_non_null(f->rx.ring.fault);
    assert_null(f->tx.ring.fault);
    assert_false(guest_reap(&f->tx, &elem));
}

static void stops_at_its_budget(void **state) {
    struct fixture *f = *state;

    for (uint16_t i = 0; i < 20; i++) {
        offer(f, i, 200);
        send(f, HEADER + 1);
    }
    assert_int_equal(run_n(f, true, 7).delivered, 7);
    assert_int_equal(run_n(f, true, 64).delivered, 13);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(loops_mergeable_packets),
        TEST(loops_packets_of_64_kib),
        TEST(loops_packets_into_single_buffers),
        TEST(loops_into_tiny_buffers),
        TEST(keeps_a_packet_until_there_are_buffers),
        TEST(drops_what_a_single_buffer_cannot_hold),
        TEST(drops_what_the_whole_ring_cannot_hold),
        TEST(drops_a_packet_without_content),
        TEST(breaks_on_a_packet_shorter_than_its_header),
        TEST(keeps_the_packet_when_the_receive_ring_breaks),
        TEST(stops_at_its_budget),
    };

    return cmocka_run_group_tests_name("loopback", tests, NULL, NULL);
}
