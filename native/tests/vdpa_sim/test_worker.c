/*
 * The worker's thread: it loops packets on kicks, sleeps otherwise, survives broken rings and hostile
 * descriptors, and always stops.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"
#include "worker.h"

enum { SIZE = 256, BURST = 200, HEADER = 12, FRAME = 60, PAIRS = 2, QUEUES = 2 * PAIRS, WAIT_MS = 5000 };

struct fixture {
    struct guest guest;
    struct guest_ring rings[QUEUES];
    int kickfds[QUEUES], callfds[QUEUES];
    _Atomic uint32_t broken; /* one bit per queue */
    struct worker worker;
};

static void note_broken(void *context, uint32_t queue, const char *fault) {
    struct fixture *f = context;

    if (fault != NULL)
        atomic_fetch_or(&f->broken, 1U << queue);
}

static int start_queue(struct fixture *f, uint32_t q) {
    struct guest_ring *r = &f->rings[q];
    const struct worker_ring ring = {
        .desc = r->desc,
        .avail = r->avail,
        .used = r->used,
        .size = r->size,
        .next_avail = f->worker.queues[q].ring.next_avail,
        .next_used = f->worker.queues[q].ring.next_used,
        .kickfd = f->kickfds[q],
        .callfd = f->callfds[q],
    };

    return worker_queue_start(&f->worker, q, &ring);
}

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));
    struct worker_config config = {.pairs = PAIRS, .form = {.header_len = HEADER, .mergeable = true}};

    assert_non_null(f);
    guest_init(&f->guest);
    worker_init(&f->worker, "sim-test", note_broken, f);
    config.memory = f->guest.memory;
    assert_int_equal(worker_start(&f->worker, &config), 0);
    for (uint32_t q = 0; q < QUEUES; q++) {
        guest_ring_init(&f->guest, &f->rings[q], SIZE, 0);
        f->kickfds[q] = eventfd(0, EFD_NONBLOCK);
        f->callfds[q] = eventfd(0, 0);
        assert_int_equal(start_queue(f, q), 0);
    }
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;

    worker_stop(&f->worker);
    for (uint32_t q = 0; q < QUEUES; q++) {
        close(f->kickfds[q]);
        close(f->callfds[q]);
    }
    guest_free(&f->guest);
    free(f);
    return 0;
}

/*
 * As a driver does it: only if the device asks for kicks.
 * So a kick that it forgot to ask for hangs the test.
 */
static void kick(struct fixture *f, uint32_t q) {
    const uint64_t one = 1;

    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!(__atomic_load_n(&f->rings[q].used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY))
        assert_int_equal(write(f->kickfds[q], &one, sizeof(one)), sizeof(one));
}

static void offer_buffers(struct fixture *f, uint32_t pair, uint16_t count) {
    struct guest_ring *rx = &f->rings[2 * pair];

    for (uint16_t i = 0; i < count; i++) {
        uint16_t at = rx->offered % SIZE;
        guest_set(rx, at, RIGHT + pair * 0x20000 + at * 128U, 128, VRING_DESC_F_WRITE, 0);
        guest_offer(rx, at);
    }
}

static void send_packets(struct fixture *f, uint32_t pair, uint16_t count) {
    struct guest_ring *tx = &f->rings[2 * pair + 1];

    for (uint16_t i = 0; i < count; i++) {
        uint16_t at = tx->offered % SIZE;
        guest_set(tx, at, LEFT + pair * 0x20000 + at * 128U, HEADER + FRAME, 0, 0);
        guest_offer(tx, at);
    }
}

/* Waits for an interrupt of the queue. */
static bool wait_call(struct fixture *f, uint32_t q, int timeout_ms) {
    struct pollfd p = {.fd = f->callfds[q], .events = POLLIN};
    uint64_t n;

    return poll(&p, 1, timeout_ms) == 1 && read(f->callfds[q], &n, sizeof(n)) == sizeof(n);
}

static uint16_t reap_all(struct fixture *f, uint32_t q) {
    struct vring_used_elem elem;
    uint16_t n = 0;

    while (guest_reap(&f->rings[q], &elem))
        n++;
    return n;
}

static void expect_packets(struct fixture *f, uint32_t pair, uint16_t count) {
    uint16_t n = 0;

    while (n < count) {
        if (!wait_call(f, 2 * pair, WAIT_MS))
            fail_msg("%u of %u packets", n, count);
        n = (uint16_t)(n + reap_all(f, 2 * pair));
    }
    assert_int_equal(n, count);
}

static void nap(void) {
    nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
}

/* The counters follow the packets by a moment. */
static void wait_count(_Atomic uint64_t *counter, uint64_t value) {
    for (int i = 0; atomic_load(counter) < value && i < WAIT_MS; i++)
        nap();
    assert_int_equal(atomic_load(counter), value);
}

static void loops_on_kicks(void **state) {
    struct fixture *f = *state;

    for (int i = 0; i < 2000; i++) {
        uint32_t pair = (uint32_t)i % PAIRS;
        uint16_t n = (uint16_t)(1 + i % 10);
        offer_buffers(f, pair, n);
        send_packets(f, pair, n);
        kick(f, 2 * pair + 1);
        expect_packets(f, pair, n);
        reap_all(f, 2 * pair + 1);
    }
    for (uint32_t q = 0; q < QUEUES; q++)
        wait_count(&f->worker.queues[q].stats.packets, q < 2 ? 2000 / 10 * 25 : 2000 / 10 * 30);
    wait_count(&f->worker.queues[1].stats.bytes, 2000 / 10 * 25 * FRAME);
    assert_int_equal(f->worker.queues[1].stats.dropped + f->worker.queues[0].stats.errors, 0);
    assert_true(f->worker.queues[1].stats.kicks > 0 && f->worker.queues[0].stats.interrupts > 0);
    stats_reset(&f->worker.queues[1].stats);
    assert_int_equal(f->worker.queues[1].stats.packets, 0);
}

/* As a driver with VIRTIO_RING_F_EVENT_IDX does it: kicks and interrupts are wanted at a number of an entry.
 */
static void loops_on_events(void **state) {
    struct fixture *f = *state;
    const struct worker_config config = {.pairs = PAIRS,
                                         .form = {.header_len = HEADER, .mergeable = true},
                                         .rings = {.event_idx = true},
                                         .memory = f->guest.memory};
    const uint64_t one = 1;

    worker_stop(&f->worker);
    assert_int_equal(worker_start(&f->worker, &config), 0);
    for (uint32_t q = 0; q < QUEUES; q++)
        assert_int_equal(start_queue(f, q), 0);
    for (uint32_t i = 0; i < 2000; i++) {
        uint16_t count = (uint16_t)(1 + i % 10), got = 0, before = f->rings[1].offered;
        offer_buffers(f, 0, count);
        send_packets(f, 0, count);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (vring_need_event(__atomic_load_n(guest_avail_event(&f->rings[1]), __ATOMIC_RELAXED),
                             f->rings[1].offered, before))
            assert_int_equal(write(f->kickfds[1], &one, sizeof(one)), sizeof(one));
        while (got < count) {
            __atomic_store_n(guest_used_event(&f->rings[0]), f->rings[0].seen_used, __ATOMIC_RELAXED);
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            uint16_t more = reap_all(f, 0);
            got = (uint16_t)(got + more);
            if (more == 0 && !wait_call(f, 0, WAIT_MS))
                fail_msg("%u of %u packets in round %u", got, count, i);
        }
        reap_all(f, 1);
    }
}

static void is_woken_by_receive_buffers(void **state) {
    struct fixture *f = *state;

    send_packets(f, 0, 5);
    kick(f, 1);
    assert_false(wait_call(f, 0, 50));
    offer_buffers(f, 0, 5);
    kick(f, 0);
    expect_packets(f, 0, 5);
}

/* The time the worker's thread has run. */
static double cpu_s(struct fixture *f) {
    clockid_t clock;
    struct timespec t;

    assert_int_equal(pthread_getcpuclockid(f->worker.thread, &clock), 0);
    assert_int_equal(clock_gettime(clock, &t), 0);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void sleeps_when_there_is_nothing_to_do(void **state) {
    struct fixture *f = *state;
    double before;
    int i = 0;

    send_packets(f, 0, 5); /* waiting for buffers is sleeping, too */
    kick(f, 1);
    /* Settled: kicks are wanted again. */
    while (__atomic_load_n(&f->rings[1].used->flags, __ATOMIC_RELAXED) != 0 && i++ < WAIT_MS)
        nap();
    assert_false(wait_call(f, 0, 20));
    before = cpu_s(f);
    assert_false(wait_call(f, 0, 300));
    assert_true(cpu_s(f) - before < 0.003);
}

static void wait_broken(struct fixture *f, uint32_t queues) {
    for (int i = 0; atomic_load(&f->broken) != queues; i++) {
        if (i == WAIT_MS)
            fail_msg("broken queues: %x, not %x", atomic_load(&f->broken), queues);
        nap();
    }
}

static void goes_on_beside_a_broken_queue_and_revives_it(void **state) {
    struct fixture *f = *state;
    struct guest_ring *tx = &f->rings[1];

    offer_buffers(f, 0, 10);
    guest_set(tx, 0, HOLE, 100, 0, 0);
    guest_offer(tx, 0);
    kick(f, 1);
    wait_broken(f, 1U << 1);
    kick(f, 1);
    offer_buffers(f, 1, 10);
    send_packets(f, 1, 10);
    kick(f, 3);
    expect_packets(f, 1, 10);
    assert_int_equal(f->worker.queues[1].stats.errors, 1); /* once, however often it is kicked */

    worker_queue_stop(&f->worker, 1);
    guest_set(tx, 0, LEFT, HEADER + FRAME, 0, 0);
    assert_int_equal(start_queue(f, 1), 0);
    expect_packets(f, 0, 1);
}

static void leaves_a_stopped_queue_alone(void **state) {
    struct fixture *f = *state;

    worker_queue_stop(&f->worker, 1);
    offer_buffers(f, 0, 5);
    send_packets(f, 0, 5);
    kick(f, 1);
    assert_false(wait_call(f, 0, 50));
    assert_int_equal(f->rings[1].used->idx, 0);
    /* What was sent meanwhile goes out when the queue starts, without another kick. */
    assert_int_equal(start_queue(f, 1), 0);
    expect_packets(f, 0, 5);
}

static void is_not_held_up_by_a_full_call_counter(void **state) {
    struct fixture *f = *state;
    const uint64_t full = UINT64_MAX - 1;

    assert_int_equal(write(f->callfds[0], &full, sizeof(full)), sizeof(full));
    /* What comes after the interrupt that has no place is delivered too. */
    for (int round = 0; round < 2; round++) {
        uint16_t got = 0;

        offer_buffers(f, 0, 5);
        send_packets(f, 0, 5);
        kick(f, 1);
        for (int i = 0; (got = (uint16_t)(got + reap_all(f, 0))) < 5; i++) {
            assert_true(i < WAIT_MS);
            nap();
        }
    }
    worker_stop(&f->worker); /* returns */
}

/* The guest shares the file description of its callfd: what the worker set there, it can take away. */
static void is_not_held_up_by_a_call_counter_that_blocks(void **state) {
    struct fixture *f = *state;
    const uint64_t full = UINT64_MAX - 1;
    uint64_t n;

    for (int round = 0; round < 2; round++) {
        assert_int_equal(fcntl(f->callfds[0], F_SETFL, 0), 0);
        assert_int_equal(write(f->callfds[0], &full, sizeof(full)), sizeof(full));
        offer_buffers(f, 0, 5);
        send_packets(f, 0, 5);
        kick(f, 1);
        for (int i = 0; reap_all(f, 0) == 0; i++) {
            assert_true(i < WAIT_MS);
            nap();
        }
        if (round == 0) {
            worker_queue_stop(&f->worker, 0); /* returns */
            assert_int_equal(read(f->callfds[0], &n, sizeof(n)), sizeof(n));
            assert_int_equal(start_queue(f, 0), 0);
        }
    }
    worker_stop(&f->worker); /* returns */
}

static void interrupts_nobody_who_does_not_ask(void **state) {
    struct fixture *f = *state;

    f->rings[0].avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
    offer_buffers(f, 0, 5);
    send_packets(f, 0, 5);
    kick(f, 1);
    assert_true(wait_call(f, 1, WAIT_MS));
    assert_int_equal(reap_all(f, 0), 5);
    assert_false(wait_call(f, 0, 0));
}

/* A process that died in the middle of a burst has left kicks turned off. */
static void asks_for_kicks_when_a_queue_starts(void **state) {
    struct fixture *f = *state;

    for (uint32_t q = 0; q < QUEUES; q++) {
        worker_queue_stop(&f->worker, q);
        __atomic_store_n(&f->rings[q].used->flags, (uint16_t)VRING_USED_F_NO_NOTIFY, __ATOMIC_SEQ_CST);
        assert_int_equal(start_queue(f, q), 0);
        assert_int_equal(__atomic_load_n(&f->rings[q].used->flags, __ATOMIC_SEQ_CST), 0);
    }
}

/* While packets move, kicks would only cost both ends. */
static void spares_kicks_during_a_burst(void **state) {
    struct fixture *f = *state;
    time_t end = time(NULL) + WAIT_MS / 1000;
    bool spared = false;

    while (!spared) {
        assert_true(time(NULL) <= end);
        offer_buffers(f, 0, 1);
        send_packets(f, 0, 1);
        kick(f, 1);
        while (reap_all(f, 0) == 0)
            assert_true(time(NULL) <= end);
        for (int i = 0; i < 1000 && !spared; i++)
            spared =
                (__atomic_load_n(&f->rings[1].used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY) != 0;
    }
}

void __real_ring_want_kicks(struct ring *ring, bool wanted);
void __wrap_ring_want_kicks(struct ring *ring, bool wanted);

/* Whose driver offers a burst just before the worker asks for kicks; the linker has the worker call this. */
static _Atomic(struct fixture *) late;

void __wrap_ring_want_kicks(struct ring *ring, bool wanted) {
    struct fixture *f = atomic_load(&late);

    if (f != NULL && wanted && ring == &f->worker.queues[1].ring) {
        atomic_store(&late, NULL);
        send_packets(f, 0, BURST - 1);
    }
    __real_ring_want_kicks(ring, wanted);
}

/* No kick comes for what is offered before kicks are asked for, and one look does not take all of it. */
static void looks_again_after_asking_for_kicks(void **state) {
    struct fixture *f = *state;

    for (int i = 0; i < 20; i++) {
        offer_buffers(f, 0, BURST);
        send_packets(f, 0, 1);
        atomic_store(&late, f);
        kick(f, 1);
        expect_packets(f, 0, BURST);
        assert_null(atomic_load(&late));
        reap_all(f, 1);
    }
}

/*
 * A driver offers more than one pass moves, at the moment in which the worker is about to sleep: what it sees
 * of it is the reason to go on, for no kick comes.
 */
static void does_not_sleep_over_a_burst(void **state) {
    struct fixture *f = *state;

    for (uint32_t i = 0; i < 20000; i++) {
        offer_buffers(f, 0, BURST);
        send_packets(f, 0, 1);
        kick(f, 1);
        expect_packets(f, 0, 1);
        for (volatile uint32_t wait = i * 7 % 3000; wait > 0; wait--)
            ;
        send_packets(f, 0, BURST - 1);
        kick(f, 1);
        expect_packets(f, 0, BURST - 1);
        reap_all(f, 1);
    }
}

static void changes_queues_under_traffic(void **state) {
    struct fixture *f = *state;

    for (int i = 0; i < 500; i++) {
        offer_buffers(f, 0, 8);
        send_packets(f, 0, 8);
        kick(f, 1);
        worker_queue_stop(&f->worker, i % 2 == 0 ? 0 : 1);
        assert_int_equal(start_queue(f, i % 2 == 0 ? 0 : 1), 0);
        expect_packets(f, 0, 8);
        reap_all(f, 1);
    }
}

struct traffic {
    struct fixture *f;
    atomic_bool stop;
    atomic_uint rounds;
};

static void *send_without_end(void *context) {
    struct traffic *traffic = context;

    while (!atomic_load(&traffic->stop)) {
        offer_buffers(traffic->f, 1, 8);
        send_packets(traffic->f, 1, 8);
        kick(traffic->f, 3);
        for (uint16_t n = 0; n < 8 && !atomic_load(&traffic->stop);)
            n = (uint16_t)(n + reap_all(traffic->f, 2));
        reap_all(traffic->f, 3);
        atomic_fetch_add(&traffic->rounds, 1);
    }
    return NULL;
}

/* The worker has the lock nearly all the time: a change of a queue has to get it all the same. */
static void changes_queues_while_it_never_rests(void **state) {
    struct traffic traffic = {.f = *state};
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, send_without_end, &traffic), 0);
    for (int i = 0; i < 1000; i++) {
        worker_queue_stop(&traffic.f->worker, 0);
        assert_int_equal(start_queue(traffic.f, 0), 0);
    }
    while (atomic_load(&traffic.rounds) == 0)
        nap();
    atomic_store(&traffic.stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

struct change {
    struct fixture *f;
    atomic_bool done;
};

static void *stop_a_queue(void *context) {
    struct change *change = context;

    worker_queue_stop(&change->f->worker, 0);
    atomic_store(&change->done, true);
    return NULL;
}

/* While a change waits for a reader, no other reader comes before it. */
static void a_change_goes_before_readers(void **state) {
    struct fixture *f = *state;
    struct change change = {.f = f};
    const time_t end = time(NULL) + WAIT_MS / 1000;
    pthread_t thread;
    bool first = false;
    bool early;

    assert_int_equal(pthread_rwlock_rdlock(&f->worker.queues_lock), 0);
    assert_int_equal(pthread_create(&thread, NULL, stop_a_queue, &change), 0);
    while (!first && time(NULL) <= end) {
        first = pthread_rwlock_tryrdlock(&f->worker.queues_lock) != 0;
        if (!first)
            pthread_rwlock_unlock(&f->worker.queues_lock);
    }
    early = atomic_load(&change.done);
    pthread_rwlock_unlock(&f->worker.queues_lock);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(first);
    assert_false(early);
}

static atomic_uint crowded_percent;

static void note_crowded(void *context, unsigned int percent) {
    (void)context;
    atomic_store(&crowded_percent, percent);
}

/* A front end that polls on the only CPU of the worker: that is reported, with the share of time that is
 * lost. */
static void says_that_it_waits_for_a_cpu(void **state) {
    struct fixture *f = *state;
    struct traffic traffic = {.f = f};
    const time_t end = time(NULL) + 12 * WAIT_MS / 1000;
    pthread_t thread;
    cpu_set_t cpus;

    atomic_store(&crowded_percent, 0);
    assert_int_equal(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
    for (size_t cpu = 0, found = 0; cpu < CPU_SETSIZE; cpu++) {
        found += CPU_ISSET(cpu, &cpus) ? 1 : 0;
        if (found > 1)
            CPU_CLR(cpu, &cpus);
    }
    f->worker.crowded = note_crowded;
    assert_int_equal(pthread_setaffinity_np(f->worker.thread, sizeof(cpus), &cpus), 0);
    assert_int_equal(pthread_create(&thread, NULL, send_without_end, &traffic), 0);
    assert_int_equal(pthread_setaffinity_np(thread, sizeof(cpus), &cpus), 0);
    while (atomic_load(&crowded_percent) == 0 && time(NULL) <= end)
        usleep(10000);
    atomic_store(&traffic.stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_in_range(atomic_load(&crowded_percent), 25, 100);
}

static void refuses_what_it_cannot_serve(void **state) {
    struct fixture *f = *state;
    struct worker_config config = {.pairs = PAIRS, .memory = f->guest.memory};
    int kickfd = f->kickfds[0];

    assert_int_equal(start_queue(f, 0), -EBUSY);
    assert_int_equal(worker_start(&f->worker, &config), -EBUSY);
    worker_queue_stop(&f->worker, 0);
    f->kickfds[0] = -1;
    assert_int_equal(start_queue(f, 0), -EBADF);
    f->kickfds[0] = open("/proc/self/cmdline", O_RDONLY); /* cannot be waited for */
    assert_true(f->kickfds[0] >= 0);
    assert_int_equal(start_queue(f, 0), -EPERM);
    close(f->kickfds[0]);
    f->kickfds[0] = kickfd;
    f->rings[0].size = 63;
    assert_int_equal(start_queue(f, 0), -EINVAL);
    f->rings[0].size = SIZE;
    assert_int_equal(start_queue(f, 0), 0);
    assert_int_equal(worker_queue_start(&f->worker, QUEUES, &(struct worker_ring){0}), -EINVAL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(loops_on_kicks),
        TEST(loops_on_events),
        TEST(is_woken_by_receive_buffers),
        TEST(sleeps_when_there_is_nothing_to_do),
        TEST(goes_on_beside_a_broken_queue_and_revives_it),
        TEST(leaves_a_stopped_queue_alone),
        TEST(is_not_held_up_by_a_full_call_counter),
        TEST(is_not_held_up_by_a_call_counter_that_blocks),
        TEST(interrupts_nobody_who_does_not_ask),
        TEST(asks_for_kicks_when_a_queue_starts),
        TEST(spares_kicks_during_a_burst),
        TEST(looks_again_after_asking_for_kicks),
        TEST(does_not_sleep_over_a_burst),
        TEST(changes_queues_under_traffic),
        TEST(changes_queues_while_it_never_rests),
        TEST(a_change_goes_before_readers),
        TEST(says_that_it_waits_for_a_cpu),
        TEST(refuses_what_it_cannot_serve),
    };

    return cmocka_run_group_tests_name("worker", tests, NULL, NULL);
}
