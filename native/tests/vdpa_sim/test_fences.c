/*
 * The two places where device and guest each write one word and read the other's: without a full fence on
 * both sides, both can miss the other. Many rounds on two processors show a fence that is missing; on one
 * processor there is nothing to see.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "guest.h"

enum { SIZE = 8, ROUNDS = 1500000, SPINS = 2000, SECONDS = 5 };

struct fixture {
    struct guest guest;
    struct guest_ring ring;
    struct ring_buffer buffer;
    bool (*device)(struct fixture *f); /* whether the device has noticed the guest */
    _Alignas(64) atomic_uint round;
    _Alignas(64) atomic_uint answered;
    atomic_bool stop;
    bool noticed;
};

/* The other side may wait for this processor. */
static void wait_for(const struct fixture *f, const atomic_uint *counter, uint32_t value) {
    for (uint32_t spins = 0;
         atomic_load_explicit(counter, memory_order_acquire) != value && !atomic_load(&f->stop); spins++)
        if (spins % SPINS == SPINS - 1)
            sched_yield();
}

static void *run_device(void *context) {
    struct fixture *f = context;

    for (uint32_t round = 1; !atomic_load(&f->stop); round++) {
        wait_for(f, &f->round, round);
        if (atomic_load(&f->stop))
            break;
        f->noticed = f->device(f);
        atomic_store_explicit(&f->answered, round, memory_order_release);
    }
    return NULL;
}

/* Shows a used entry, and looks whether the guest wants an interrupt. */
static bool publish(struct fixture *f) {
    ring_push(&f->ring.ring, 0, 0);
    return ring_publish(&f->ring.ring);
}

/* Asks for kicks, and looks whether something is available already. */
static bool ask_for_kicks(struct fixture *f) {
    uint16_t head;

    ring_want_kicks(&f->ring.ring, true);
    f->buffer.count = 0;
    f->buffer.bytes = 0;
    return ring_pop(&f->ring.ring, RING_READ, &f->buffer, &head) == 1;
}

/*
 * `prepare` comes before each round, `guest` at the same
 * time as the device; it says whether it saw the device.
 */
static void play(bool (*device)(struct fixture *f), void (*prepare)(struct fixture *f),
                 bool (*guest)(struct fixture *f)) {
    struct fixture *f = aligned_alloc(64, (sizeof(*f) + 63) / 64 * 64);
    const time_t end = time(NULL) + SECONDS;
    uint32_t missed = 0;
    pthread_t thread;

    assert_non_null(f);
    *f = (struct fixture){.device = device};
    guest_init(&f->guest);
    guest_ring_init(&f->guest, &f->ring, SIZE, 0);
    guest_set(&f->ring, 0, LEFT, 64, 0, 0);
    assert_int_equal(pthread_create(&thread, NULL, run_device, f), 0);
    for (uint32_t round = 1; round <= ROUNDS && missed == 0 && time(NULL) <= end; round++) {
        prepare(f);
        atomic_store_explicit(&f->round, round, memory_order_release);
        /* The device is on its way: both at once, sooner or later. */
        for (uint32_t i = 0; i < round % 512; i++)
            atomic_signal_fence(memory_order_seq_cst);
        bool seen = guest(f);
        wait_for(f, &f->answered, round);
        missed += !seen && !f->noticed;
    }
    atomic_store(&f->stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(missed, 0);
    guest_free(&f->guest);
    free(f);
}

static void spare_interrupts(struct fixture *f) {
    __atomic_store_n(&f->ring.avail->flags, (uint16_t)VRING_AVAIL_F_NO_INTERRUPT, __ATOMIC_SEQ_CST);
    f->ring.seen_used = f->ring.used->idx;
}

static bool want_interrupt(struct fixture *f) {
    __atomic_store_n(&f->ring.avail->flags, (uint16_t)0, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(&f->ring.used->idx, __ATOMIC_RELAXED) != f->ring.seen_used;
}

static void used_entry_or_interrupt(void **state) {
    (void)state;
    play(publish, spare_interrupts, want_interrupt);
}

static void spare_kicks(struct fixture *f) {
    ring_want_kicks(&f->ring.ring, false);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static bool offer(struct fixture *f) {
    guest_offer(&f->ring, 0);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return (__atomic_load_n(&f->ring.used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY) == 0;
}

/* What was missed in one round is found in the next: the device takes one of them at most. */
static bool take_all(struct fixture *f) {
    bool taken = ask_for_kicks(f);
    uint16_t head;

    while (taken && f->ring.ring.next_avail != f->ring.ring.seen_avail) {
        f->buffer.count = 0;
        f->buffer.bytes = 0;
        if (ring_pop(&f->ring.ring, RING_READ, &f->buffer, &head) != 1)
            break;
    }
    return taken;
}

static void available_entry_or_kick(void **state) {
    (void)state;
    play(take_all, spare_kicks, offer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(used_entry_or_interrupt),
        cmocka_unit_test(available_entry_or_kick),
    };

    return cmocka_run_group_tests_name("fences", tests, NULL, NULL);
}
