/* Devices that are a network: frames reach who they are for, in order, and nobody suffers from a receiver
 * that is slow, broken, hostile or gone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>

#include "guest.h"
#include "network.h"
#include "worker.h"

enum {
    SIZE = 64,
    FRAME = 60,
    SLOT = 256,
    PAIRS = 2,
    QUEUES = 2 * PAIRS,
    STATIONS = 3,
    WAIT_MS = 20000,
    ROUNDS = 200,
};

static const mac_t broadcast = 0xffffffffffff;

struct station {
    struct guest guest;
    struct guest_ring rings[QUEUES];
    uint16_t tx_done[PAIRS]; /* sent frames that came back */
    int kickfds[QUEUES], callfds[QUEUES];
    _Atomic uint32_t broken; /* one bit per queue */
    struct worker worker;
    struct worker_config config;
    uint32_t port;
};

struct fixture {
    struct network *network;
    struct station *stations[STATIONS];
};

static void nap(void) {
    nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
}

static mac_t mac(uint32_t station) {
    return UINT64_C(0x020000000000) + station;
}

static void note_broken(void *context, uint32_t queue, const char *fault) {
    struct station *s = context;

    if (fault != NULL)
        atomic_fetch_or(&s->broken, 1U << queue);
}

static void start_queue(struct station *s, uint32_t q) {
    struct guest_ring *r = &s->rings[q];
    const struct worker_ring ring = {
        .desc = r->desc,
        .avail = r->avail,
        .used = r->used,
        .size = r->size,
        .next_avail = s->worker.queues[q].ring.next_avail,
        .next_used = s->worker.queues[q].ring.next_used,
        .kickfd = s->kickfds[q],
        .callfd = s->callfds[q],
    };

    assert_int_equal(worker_queue_start(&s->worker, q, &ring), 0);
}

/* As a front end that connects: with memory and rings of its own. */
static void plug(struct station *s) {
    guest_init(&s->guest);
    memset(&s->worker.queues, 0, sizeof(s->worker.queues));
    s->config.memory = s->guest.memory;
    assert_int_equal(worker_start(&s->worker, &s->config), 0);
    for (uint32_t q = 0; q < QUEUES; q++) {
        guest_ring_init(&s->guest, &s->rings[q], SIZE, 0);
        s->kickfds[q] = eventfd(0, EFD_NONBLOCK);
        s->callfds[q] = eventfd(0, 0);
        start_queue(s, q);
    }
    memset(s->tx_done, 0, sizeof(s->tx_done));
}

/* Its memory is gone afterwards, as the sanitizer sees. */
static void unplug(struct station *s) {
    worker_stop(&s->worker);
    for (uint32_t q = 0; q < QUEUES; q++) {
        close(s->kickfds[q]);
        close(s->callfds[q]);
    }
    guest_free(&s->guest);
}

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    f->network = network_join(7);
    assert_non_null(f->network);
    for (uint32_t i = 0; i < STATIONS; i++) {
        struct station *s = f->stations[i] = calloc(1, sizeof(*s));
        assert_non_null(s);
        s->port = 100 * i; /* in several words of the bitmap */
        s->config = (struct worker_config){.pairs = PAIRS,
                                           .form = {.header_len = 12, .mergeable = true},
                                           .network = f->network,
                                           .port = s->port};
        worker_init(&s->worker, "sim-test", note_broken, s);
        plug(s);
    }
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;

    for (uint32_t i = 0; i < STATIONS; i++) {
        unplug(f->stations[i]);
        free(f->stations[i]);
    }
    network_leave(f->network);
    free(f);
    return 0;
}

static void kick(struct station *s, uint32_t q) {
    const uint64_t one = 1;

    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!(__atomic_load_n(&s->rings[q].used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY))
        assert_int_equal(write(s->kickfds[q], &one, sizeof(one)), sizeof(one));
}

static uint64_t place(uint32_t q, uint16_t at) {
    return (q % 2 == 0 ? RIGHT : LEFT) + (q / 2) * 0x20000U + at * (uint64_t)SLOT;
}

/* A receive buffer in the next place of the ring; a driver never needs to kick for it. */
static void offer(struct station *s, uint32_t pair, uint16_t count) {
    struct guest_ring *rx = &s->rings[2 * pair];

    for (uint16_t i = 0; i < count; i++) {
        uint16_t at = rx->offered % SIZE;
        guest_set(rx, at, place(2 * pair, at), SLOT, VRING_DESC_F_WRITE, 0);
        guest_offer(rx, at);
    }
}

static void offer_all(struct station *s) {
    for (uint32_t pair = 0; pair < PAIRS; pair++)
        offer(s, pair, SIZE);
}

/* A frame of IPv4 and UDP: `flow` is its port, `number` its content. */
static void write_frame(uint8_t *frame, mac_t to, mac_t from, uint16_t flow, uint32_t number) {
    memset(frame, 0, FRAME);
    for (int i = 0; i < 6; i++) {
        frame[i] = (uint8_t)(to >> (40 - 8 * i));
        frame[6 + i] = (uint8_t)(from >> (40 - 8 * i));
    }
    frame[12] = 8;
    frame[14] = 0x45;
    frame[23] = 17;
    memcpy(frame + 34, &flow, sizeof(flow));
    memcpy(frame + 56, &number, sizeof(number));
}

static void reap_sent(struct station *s, uint32_t pair) {
    struct vring_used_elem elem;

    while (guest_reap(&s->rings[2 * pair + 1], &elem))
        s->tx_done[pair]++;
}

/* Sends one frame, without a kick. */
static void put(struct station *s, uint32_t pair, mac_t to, mac_t from, uint16_t flow, uint32_t number,
                uint32_t len) {
    struct guest_ring *tx = &s->rings[2 * pair + 1];
    uint16_t at = tx->offered % SIZE;
    uint8_t *host = guest_host(&s->guest, place(2 * pair + 1, at));

    memset(host, 0xee,
           s->config.form.header_len); /* no offload was negotiated: nothing of it comes through */
    write_frame(host + s->config.form.header_len, to, from, flow, number);
    guest_set(tx, at, place(2 * pair + 1, at), s->config.form.header_len + len, 0, 0);
    guest_offer(tx, at);
}

/* Waits until everything that was offered for sending has been taken. */
static void wait_sent(struct station *s, uint32_t pair) {
    for (int i = 0; s->tx_done[pair] != s->rings[2 * pair + 1].offered; i++) {
        assert_true(i < WAIT_MS);
        reap_sent(s, pair);
        nap();
    }
}

static void send_one(struct station *s, mac_t to, mac_t from, uint32_t number) {
    put(s, 0, to, from, 1, number, FRAME);
    kick(s, 1);
    wait_sent(s, 0);
}

/* What came into an RX ring, which is offered again; returns whether anything did. */
static bool receive(struct station *s, uint32_t pair, uint16_t *flow, uint32_t *number) {
    struct guest_ring *rx = &s->rings[2 * pair];
    struct vring_used_elem elem;

    if (!guest_reap(rx, &elem))
        return false;
    const uint8_t *host = guest_host(&s->guest, rx->desc[elem.id].addr);
    assert_int_equal(elem.len, s->config.form.header_len + FRAME);
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(host[i], 0);
    memcpy(flow, host + s->config.form.header_len + 34, sizeof(*flow));
    memcpy(number, host + s->config.form.header_len + 56, sizeof(*number));
    guest_set(rx, rx->offered % SIZE, place(2 * pair, rx->offered % SIZE), SLOT, VRING_DESC_F_WRITE, 0);
    guest_offer(rx, rx->offered % SIZE);
    return true;
}

/* The next frame, of whatever queue; -1: there is none. */
static int64_t next(struct station *s) {
    uint16_t flow;
    uint32_t number;

    for (uint32_t pair = 0; pair < PAIRS; pair++)
        if (receive(s, pair, &flow, &number))
            return number;
    return -1;
}

static void expect(struct station *s, uint32_t number) {
    int64_t got = -1;

    for (int i = 0; got < 0; i++) {
        assert_true(i < WAIT_MS);
        got = next(s);
        if (got < 0)
            nap();
    }
    assert_int_equal(got, number);
}

static uint64_t dropped_at(struct station *s) {
    return atomic_load(&s->worker.queues[0].stats.dropped) + atomic_load(&s->worker.queues[2].stats.dropped);
}

static void delivers_to_one_and_floods_to_all_others(void **state) {
    struct station **s = ((struct fixture *)*state)->stations;

    for (uint32_t i = 0; i < STATIONS; i++)
        offer_all(s[i]);
    send_one(s[0], mac(1), mac(0), 1); /* nobody knows mac(1) yet */
    expect(s[1], 1);
    expect(s[2], 1);
    send_one(s[1], mac(0), mac(1), 2);
    expect(s[0], 2);
    send_one(s[0], mac(1), mac(0), 3);
    expect(s[1], 3);
    send_one(s[2], broadcast, mac(2), 4);
    expect(s[0], 4);
    expect(s[1], 4);
    send_one(s[0], mac(0), mac(0), 5); /* at its own port */
    for (uint32_t i = 0; i < STATIONS; i++)
        assert_int_equal(next(s[i]), -1);
    assert_int_equal(atomic_load(&s[0]->worker.queues[1].stats.packets), 3);
    assert_int_equal(atomic_load(&s[0]->worker.queues[1].stats.bytes), 3 * FRAME);
}

static void drops_what_is_no_frame_or_not_its_own(void **state) {
    struct station **s = ((struct fixture *)*state)->stations;

    unplug(s[0]);
    s[0]->config.only = mac(0);
    plug(s[0]);
    offer_all(s[1]);
    put(s[0], 0, broadcast, mac(0), 1, 8, FRAME);
    put(s[0], 0, broadcast, mac(0), 1, 1, 13); /* although from and to where the one before it is */
    put(s[0], 0, broadcast, mac(0), 1, 1, 0);
    put(s[0], 0, broadcast, broadcast, 1, 1, FRAME);
    put(s[0], 0, broadcast, mac(5), 1, 1, FRAME);
    put(s[0], 0, broadcast, mac(0), 1, 9, FRAME);
    kick(s[0], 1);
    wait_sent(s[0], 0);
    expect(s[1], 8);
    expect(s[1], 9);
    assert_int_equal(next(s[1]), -1);
    for (int i = 0; atomic_load(&s[0]->worker.queues[1].stats.dropped) < 4 && i < WAIT_MS; i++)
        nap();
    assert_int_equal(atomic_load(&s[0]->worker.queues[1].stats.dropped), 4);
}

/* A front end that offers no buffers costs its own frames. */
static void goes_on_beside_a_receiver_without_room(void **state) {
    struct station **s = ((struct fixture *)*state)->stations;

    offer_all(s[1]);
    for (uint32_t n = 0; n < ROUNDS; n++) {
        send_one(s[0], broadcast, mac(0), n);
        expect(s[1], n);
    }
    assert_int_equal(dropped_at(s[2]), ROUNDS);
    assert_int_equal(dropped_at(s[1]), 0);
}

static void wait_broken(struct station *s, uint32_t queues) {
    for (int i = 0; atomic_load(&s->broken) != queues; i++) {
        assert_true(i < WAIT_MS);
        nap();
    }
}

static void goes_on_beside_a_broken_receiver_and_revives_it(void **state) {
    struct station **s = ((struct fixture *)*state)->stations;

    offer_all(s[1]);
    for (uint32_t pair = 0; pair < PAIRS; pair++) {
        guest_set(&s[2]->rings[2 * pair], 0, HOLE, SLOT, VRING_DESC_F_WRITE, 0);
        guest_offer(&s[2]->rings[2 * pair], 0);
    }
    for (uint32_t n = 0; n < 50; n++) {
        send_one(s[0], broadcast, mac(0), n);
        expect(s[1], n);
    }
    /* One flow goes to one queue, and to the other one when that is broken. */
    wait_broken(s[2], 1 | 4);
    for (uint32_t pair = 0; pair < PAIRS; pair++) {
        for (int i = 0; atomic_load(&s[2]->worker.queues[2 * pair].stats.errors) == 0 && i < WAIT_MS; i++)
            nap();
        assert_int_equal(atomic_load(&s[2]->worker.queues[2 * pair].stats.errors), 1);
        worker_queue_stop(&s[2]->worker, 2 * pair);
        guest_set(&s[2]->rings[2 * pair], 0, place(2 * pair, 0), SLOT, VRING_DESC_F_WRITE, 0);
        start_queue(s[2], 2 * pair);
    }
    send_one(s[0], broadcast, mac(0), 77);
    expect(s[1], 77);
    expect(s[2], 77);
}

/* Its own worker waits for it, and no other. */
static void is_not_held_up_by_a_receiver_whose_call_counter_blocks(void **state) {
    struct station **s = ((struct fixture *)*state)->stations;
    const uint64_t full = UINT64_MAX - 1;

    for (uint32_t q = 0; q < QUEUES; q++) {
        assert_int_equal(fcntl(s[2]->callfds[q], F_SETFL, 0), 0);
        assert_int_equal(write(s[2]->callfds[q], &full, sizeof(full)), sizeof(full));
    }
    offer_all(s[1]);
    offer_all(s[2]);
    for (uint32_t n = 0; n < ROUNDS; n++) {
        send_one(s[0], broadcast, mac(0), n);
        expect(s[1], n);
        expect(s[2], n);
    }
    worker_queue_stop(&s[2]->worker, 0); /* returns */
    start_queue(s[2], 0);
}

static bool called(struct station *s, uint32_t q, int timeout_ms) {
    struct pollfd p = {.fd = s->callfds[q], .events = POLLIN};
    uint64_t n;

    return poll(&p, 1, timeout_ms) == 1 && read(s->callfds[q], &n, sizeof(n)) == sizeof(n);
}

static void interrupts_who_asks_for_it(void **state) {
    struct station **s = ((struct fixture *)*state)->stations;

    for (uint32_t i = 1; i < STATIONS; i++)
        worker_queue_stop(&s[i]->worker, 2); /* one queue is left for all flows */
    offer(s[1], 0, SIZE);
    offer(s[2], 0, SIZE);
    __atomic_store_n(&s[2]->rings[0].avail->flags, (uint16_t)VRING_AVAIL_F_NO_INTERRUPT, __ATOMIC_SEQ_CST);
    for (uint32_t n = 0; n < ROUNDS; n++) {
        send_one(s[0], broadcast, mac(0), n);
        assert_true(called(s[1], 0, WAIT_MS)); /* each time: none is forgotten */
        expect(s[1], n);
        expect(s[2], n);
    }
    assert_false(called(s[2], 0, 0));
}

/* The receiver has other features than the sender. */
static void gives_each_receiver_its_own_header(void **state) {
    struct station **s = ((struct fixture *)*state)->stations;

    unplug(s[1]);
    s[1]->config.form.header_len = 10;
    s[1]->config.form.mergeable = false;
    plug(s[1]);
    offer_all(s[0]);
    offer_all(s[1]);
    for (uint32_t n = 0; n < 20; n++) {
        send_one(s[0], broadcast, mac(0), n);
        expect(s[1], n);
        send_one(s[1], broadcast, mac(1), n);
        expect(s[0], n);
    }
}

/* A frame of 60 bytes has 42 behind a header with a VLAN tag. */
static void drops_what_is_longer_than_the_mtu_of_either_side(void **state) {
    struct station **s = ((struct fixture *)*state)->stations;

    unplug(s[1]);
    unplug(s[2]);
    s[1]->config.form.mtu = 41;
    s[2]->config.form.mtu = 42;
    plug(s[1]);
    plug(s[2]);
    for (uint32_t i = 0; i < STATIONS; i++)
        offer_all(s[i]);
    send_one(s[0], broadcast, mac(0), 1);
    expect(s[2], 1);
    assert_int_equal(next(s[1]), -1);
    assert_int_equal(dropped_at(s[1]), 1);
    send_one(s[1], broadcast, mac(1), 2);
    send_one(s[2], broadcast, mac(2), 3);
    expect(s[0], 3);
    assert_int_equal(atomic_load(&s[1]->worker.queues[1].stats.dropped), 1);
    assert_int_equal(atomic_load(&s[2]->worker.queues[1].stats.dropped), 0);
}

enum { FLOWS = 16, EACH = 300 };

static void keeps_the_order_within_a_flow(void **state) {
    struct station **s = ((struct fixture *)*state)->stations;
    uint32_t sent[FLOWS] = {0}, got[FLOWS] = {0}, queues[FLOWS] = {0}, used = 0, total = 0;

    offer_all(s[1]);
    send_one(s[1], broadcast, mac(1), 0);
    for (int idle = 0; total < FLOWS * EACH;) {
        uint32_t before = total;
        for (uint16_t flow = 0; flow < FLOWS; flow++) {
            uint32_t pair = flow % PAIRS, under_way = 0;
            for (uint32_t i = 0; i < FLOWS; i++)
                under_way += sent[i] - got[i];
            if (sent[flow] == EACH || under_way >= SIZE / 2)
                continue;
            put(s[0], pair, mac(1), mac(0), flow, sent[flow]++, FRAME);
            kick(s[0], 2 * pair + 1);
            reap_sent(s[0], pair);
        }
        for (uint32_t pair = 0; pair < PAIRS; pair++) {
            uint16_t flow;
            uint32_t number;
            while (receive(s[1], pair, &flow, &number)) {
                assert_true(flow < FLOWS);
                assert_int_equal(number, got[flow]++);
                queues[flow] |= 1U << pair;
                total++;
            }
        }
        if (total == before) {
            assert_true(idle++ < WAIT_MS);
            nap();
        }
    }
    for (uint32_t flow = 0; flow < FLOWS; flow++) {
        assert_int_equal(__builtin_popcount(queues[flow]), 1);
        used |= queues[flow];
    }
    assert_int_equal(used, 3);
    assert_int_equal(dropped_at(s[1]), 0);
}

static void knows_networks_by_their_number(void **state) {
    struct fixture *f = *state;
    struct network *other = network_join(8);

    assert_non_null(other);
    assert_ptr_not_equal(other, f->network);
    assert_ptr_equal(network_join(7), f->network);
    assert_ptr_equal(network_join(8), other);
    network_leave(f->network);
    network_leave(other);
    assert_ptr_equal(network_join(8), other);
    network_leave(other);
    network_leave(other);
}

/* The devices of another network hear nothing. */
static void keeps_networks_apart(void **state) {
    struct fixture *f = *state;
    struct station **s = f->stations;
    struct network *other = network_join(8);

    assert_non_null(other);
    unplug(s[2]);
    s[2]->config.network = other;
    plug(s[2]);
    for (uint32_t i = 0; i < STATIONS; i++)
        offer_all(s[i]);
    for (uint32_t n = 0; n < 20; n++) {
        send_one(s[0], broadcast, mac(0), n);
        expect(s[1], n);
        send_one(s[0], mac(2), mac(0), n);
        expect(s[1], n);
        send_one(s[2], broadcast, mac(2), n);
        send_one(s[2], mac(0), mac(2), n);
    }
    for (uint32_t i = 0; i < STATIONS; i++)
        assert_int_equal(next(s[i]), -1);
    unplug(s[2]);
    s[2]->config.network = f->network;
    plug(s[2]);
    network_leave(other);
}

struct flooder {
    struct station *station;
    uint32_t number;
    atomic_bool *stop;
};

/* Floods and sends to the one that comes and goes. */
static void *flood(void *context) {
    struct flooder *flooder = context;
    struct station *s = flooder->station;

    for (uint32_t n = 0; !atomic_load(flooder->stop); n++) {
        for (uint32_t pair = 0; pair < PAIRS; pair++) {
            reap_sent(s, pair);
            if ((uint16_t)(s->rings[2 * pair + 1].offered - s->tx_done[pair]) == SIZE)
                continue;
            put(s, pair, n % 2 == 0 ? broadcast : mac(2), mac(flooder->number), (uint16_t)n, n, FRAME);
            kick(s, 2 * pair + 1);
            while (next(s) >= 0)
                ;
        }
    }
    return NULL;
}

/* While two others send to it from their workers. Once more, each time with memory of its own. */
static void comes_and_goes_under_traffic(void **state) {
    struct station **s = ((struct fixture *)*state)->stations;
    struct flooder flooders[2];
    pthread_t threads[2];
    atomic_bool stop = false;
    uint32_t served = 0;

    for (uint32_t i = 0; i < 2; i++) {
        flooders[i] = (struct flooder){.station = s[i], .number = i, .stop = &stop};
        offer_all(s[i]);
        assert_int_equal(pthread_create(&threads[i], NULL, flood, &flooders[i]), 0);
    }
    for (uint32_t round = 0; round < ROUNDS; round++) {
        offer_all(s[2]);
        put(s[2], 0, broadcast, mac(2), 1, 1, FRAME);
        kick(s[2], 1);
        for (int i = 0; round % 4 == 0 && i < WAIT_MS; i++) {
            if (next(s[2]) >= 0) {
                served++;
                break;
            }
            nap();
        }
        if (round % 2 == 0) {
            unplug(s[2]);
            plug(s[2]);
        } else {
            for (uint32_t q = 0; q < QUEUES; q++) {
                worker_queue_stop(&s[2]->worker, q);
                start_queue(s[2], q);
            }
            unplug(s[2]);
            plug(s[2]);
        }
    }
    atomic_store(&stop, true);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_equal(served, ROUNDS / 4);
    assert_int_equal(atomic_load(&s[0]->broken) | atomic_load(&s[1]->broken) | atomic_load(&s[2]->broken), 0);
}

static double cpu_s(struct station *s) {
    clockid_t clock;
    struct timespec t;

    assert_int_equal(pthread_getcpuclockid(s->worker.thread, &clock), 0);
    assert_int_equal(clock_gettime(clock, &t), 0);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void sleeps_when_there_is_nothing_to_do(void **state) {
    struct station **s = ((struct fixture *)*state)->stations;
    double before = 0, after = 0;

    send_one(s[0], broadcast, mac(0), 1);
    for (int i = 0; __atomic_load_n(&s[0]->rings[1].used->flags, __ATOMIC_RELAXED) != 0; i++) {
        assert_true(i < WAIT_MS);
        nap();
    }
    for (uint32_t i = 0; i < 20; i++)
        nap();
    for (uint32_t i = 0; i < STATIONS; i++)
        before += cpu_s(s[i]);
    for (uint32_t i = 0; i < 300; i++)
        nap();
    for (uint32_t i = 0; i < STATIONS; i++)
        after += cpu_s(s[i]);
    assert_true(after - before < 0.003);
}

static char tap[] = "up0"; /* one for each test */

/* Makes a tap that stays, of this user, and a socket of its other end, as the host has it. */
static int make_outside(void) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    int fd = open("/dev/net/tun", O_RDWR), outside = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));

    assert_true(fd >= 0 && outside >= 0);
    tap[2]++;
    memcpy(request.ifr_name, tap, sizeof(tap));
    assert_int_equal(ioctl(fd, TUNSETIFF, &request), 0);
    assert_int_equal(ioctl(fd, TUNSETPERSIST, 1), 0);
    assert_int_equal(ioctl(fd, TUNSETOWNER, geteuid()), 0);
    close(fd);
    request.ifr_flags = IFF_UP;
    assert_int_equal(ioctl(outside, SIOCSIFFLAGS, &request), 0);
    at.sll_ifindex = (int)if_nametoindex(tap);
    assert_int_equal(bind(outside, (const struct sockaddr *)&at, sizeof(at)), 0);
    return outside;
}

/* Waits until the tap carries, too. */
static void connect_uplink(struct network *network, int outside) {
    char problem[256] = "";
    const cpu_set_t cpus = {0};
    struct ifreq request = {0};

    if (network_connect(network, tap, &cpus, NULL, problem, sizeof(problem)) != 0)
        fail_msg("%s", problem);
    memcpy(request.ifr_name, tap, sizeof(tap));
    for (int i = 0; !(request.ifr_flags & IFF_RUNNING); i++) {
        assert_true(i < WAIT_MS);
        assert_int_equal(ioctl(outside, SIOCGIFFLAGS, &request), 0);
        nap();
    }
}

/* The next frame of a station that goes out; what the kernel sends by itself is passed over. */
static uint32_t next_outside(int outside, uint8_t *frame, size_t size) {
    struct pollfd poll_fd = {.fd = outside, .events = POLLIN};
    uint32_t number;

    do {
        assert_int_equal(poll(&poll_fd, 1, WAIT_MS), 1);
        assert_true(recv(outside, frame, size, 0) >= FRAME);
    } while (frame[6] != 2 || frame[10] != 0);
    memcpy(&number, frame + 56, sizeof(number));
    return number;
}

static void exchanges_frames_with_the_outside(void **state) {
    struct fixture *f = *state;
    struct station **s = f->stations;
    int outside = make_outside();
    uint8_t frame[2048];

    connect_uplink(f->network, outside);
    connect_uplink(f->network, outside); /* another device of the same switch names it too */
    for (uint32_t i = 0; i < STATIONS; i++)
        offer_all(s[i]);
    for (uint32_t n = 0; n < ROUNDS; n++) {
        send_one(s[0], broadcast, mac(0), n);
        assert_int_equal(next_outside(outside, frame, sizeof(frame)), n);
        expect(s[1], n);
        expect(s[2], n);
        /* A known station is sent to alone, also from the outside; s[1] never hears of the answer. */
        write_frame(frame, mac(0), mac(9), 1, ROUNDS + n);
        assert_int_equal(send(outside, frame, FRAME, 0), FRAME);
        expect(s[0], ROUNDS + n);
        write_frame(frame, broadcast, mac(9), 1, n); /* and does not go back to where it came from */
        assert_int_equal(send(outside, frame, FRAME, 0), FRAME);
        for (uint32_t i = 0; i < STATIONS; i++)
            expect(s[i], n);
        send_one(s[2], mac(9), mac(2), 2 * ROUNDS + n);
        assert_int_equal(next_outside(outside, frame, sizeof(frame)), 2 * ROUNDS + n);
        assert_int_equal(next(s[1]), -1);
    }
    close(outside);
}

/* More pieces than a call of the kernel is given: each byte of the frame is one. */
static void sends_out_a_frame_of_many_pieces(void **state) {
    struct fixture *f = *state;
    struct station *s = f->stations[0];
    struct guest_ring *tx = &s->rings[1];
    uint8_t frame[2048], *host = guest_host(&s->guest, LEFT);
    int outside = make_outside();

    connect_uplink(f->network, outside);
    write_frame(host + 12, broadcast, mac(0), 1, 4711);
    memset(host + 12 + FRAME, 0xa5, 40);
    for (uint16_t i = 0; i < 51; i++)
        guest_set(tx, i, LEFT + 2U * i + (i == 0 ? 0 : 10), i == 0 ? 12 : 2, i == 50 ? 0 : VRING_DESC_F_NEXT,
                  (uint16_t)(i + 1));
    guest_offer(tx, 0);
    kick(s, 1);
    wait_sent(s, 0);
    assert_int_equal(next_outside(outside, frame, sizeof(frame)), 4711);
    assert_memory_equal(frame, host + 12, FRAME + 40);
    close(outside);
}

/* Frames come in from the outside and go out while front ends come and go. */
static void comes_and_goes_under_traffic_of_the_outside(void **state) {
    struct fixture *f = *state;
    struct station **s = f->stations;
    int outside = make_outside();
    uint8_t frame[FRAME];

    connect_uplink(f->network, outside);
    for (uint32_t i = 0; i < STATIONS; i++)
        offer_all(s[i]);
    for (uint32_t round = 0; round < 40; round++) {
        for (uint32_t n = 0; n < 20; n++) {
            write_frame(frame, n % 2 == 0 ? broadcast : mac(n % STATIONS), mac(9), 1, n);
            assert_int_equal(send(outside, frame, FRAME, 0), FRAME);
            put(s[0], 0, mac(9), mac(0), 1, n, FRAME);
            kick(s[0], 1);
        }
        unplug(s[1 + round % 2]);
        plug(s[1 + round % 2]);
        offer_all(s[1 + round % 2]);
        wait_sent(s[0], 0);
        for (uint32_t i = 0; i < STATIONS; i++)
            while (next(s[i]) >= 0)
                continue;
    }
    assert_true(atomic_load(&s[0]->worker.queues[0].stats.packets) > 0);
    close(outside);
}

/* 0 or -errno. */
static int write_text(const char *path, const char *text) {
    const ssize_t size = (ssize_t)strlen(text);
    int fd = open(path, O_WRONLY);

    if (fd < 0)
        return -errno;
    int rc = write(fd, text, (size_t)size) == size ? 0 : -EIO;
    close(fd);
    return rc;
}

/* A namespace of the network of its own, so that no tap of this machine is touched. Its kernel sends nothing
 * by itself: without IPv6 it has nothing to say. */
static bool leave_the_network(void) {
    char map[64];
    int rc;

    snprintf(map, sizeof(map), "%u %u 1", (unsigned int)geteuid(), (unsigned int)geteuid());
    if (unshare(CLONE_NEWNET) != 0 &&
        (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0 || write_text("/proc/self/uid_map", map) != 0))
        return false;
    rc = write_text("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    return rc == 0 || rc == -ENOENT;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(delivers_to_one_and_floods_to_all_others),
        TEST(drops_what_is_no_frame_or_not_its_own),
        TEST(goes_on_beside_a_receiver_without_room),
        TEST(goes_on_beside_a_broken_receiver_and_revives_it),
        TEST(is_not_held_up_by_a_receiver_whose_call_counter_blocks),
        TEST(interrupts_who_asks_for_it),
        TEST(gives_each_receiver_its_own_header),
        TEST(drops_what_is_longer_than_the_mtu_of_either_side),
        TEST(keeps_the_order_within_a_flow),
        TEST(knows_networks_by_their_number),
        TEST(keeps_networks_apart),
        TEST(comes_and_goes_under_traffic),
        TEST(sleeps_when_there_is_nothing_to_do),
        TEST(exchanges_frames_with_the_outside),
        TEST(sends_out_a_frame_of_many_pieces),
        TEST(comes_and_goes_under_traffic_of_the_outside),
    };

    if (!leave_the_network()) {
        perror("the tests need a network namespace of their own: run them as root");
        return 1;
    }

    return cmocka_run_group_tests_name("network", tests, NULL, NULL);
}
