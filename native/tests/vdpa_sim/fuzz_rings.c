/*
 * Feeds random rings to the loopback while a second thread rewrites them, the index and flags included.
 * Passes if the device neither crashes nor writes outside what the guest has, and if it makes progress. Run
 * it under the sanitizers.
 *
 * Usage: fuzz_rings [--seconds S] [--iterations N] [--seed N]
 */
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "guest.h"
#include "loopback.h"

enum { SIZE = 16, HEADER = 12 };

struct fuzz {
    struct guest guest;
    struct guest_ring tx, rx;
    struct loopback loopback;
    atomic_bool done;
    uint64_t mutations; /* of the second thread, read after it has ended */
    uint64_t seed;
};

/* xorshift64*: small, and the same everywhere. */
static uint64_t next(uint64_t *seed) {
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return *seed * UINT64_C(0x2545f4914f6cdd1d);
}

/*
 * A packet may lie in the rings; its bytes then race with the second thread by intention, which is not what a
 * race detector is to find.
 */
#ifdef __SANITIZE_THREAD__
#define IN_RINGS LEFT
#else
#define IN_RINGS RINGS
#endif

/* Mostly what a guest might mean, sometimes the edges, sometimes noise. */
static uint64_t address(uint64_t *seed) {
    static const uint64_t edges[] = {0,        LEFT, LEFT - 1,   RIGHT - 1, RIGHT,
                                     HOLE - 1, HOLE, UINT64_MAX, IN_RINGS};
    uint64_t r = next(seed);

    if (r % 16 == 0)
        return edges[r / 16 % (sizeof(edges) / sizeof(edges[0]))];
    if (r % 16 == 1)
        return next(seed);
    return LEFT + next(seed) % (2 * DATA_SIZE - 2048);
}

static uint32_t length(uint64_t *seed) {
    static const uint32_t edges[] = {0,          1,        11, 12, 13, RING_MAX_PACKET, RING_MAX_PACKET + 1,
                                     UINT32_MAX, INT32_MAX};
    uint64_t r = next(seed);

    if (r % 16 == 0)
        return edges[r / 16 % (sizeof(edges) / sizeof(edges[0]))];
    return 13 + (uint32_t)(next(seed) % 2000);
}

/* Atomic, for the device reads at the same time. */
static void mutate_descriptor(struct vring_desc *desc, bool writable, uint64_t *seed) {
    uint64_t r = next(seed);
    uint16_t flags = writable ? VRING_DESC_F_WRITE : 0;

    if (r % 3 == 0)
        flags |= VRING_DESC_F_NEXT;
    if (r % 64 == 1)
        flags ^= (uint16_t)(r >> 32);
    __atomic_store_n(&desc->addr, address(seed), __ATOMIC_RELAXED);
    __atomic_store_n(&desc->len, length(seed), __ATOMIC_RELAXED);
    __atomic_store_n(&desc->flags, flags, __ATOMIC_RELAXED);
    __atomic_store_n(&desc->next, (uint16_t)(r % 50 == 0 ? r >> 16 : r % SIZE), __ATOMIC_RELAXED);
}

static void mutate(struct guest_ring *ring, bool writable, uint64_t *seed) {
    uint64_t r = next(seed);
    uint16_t value = (uint16_t)(r >> 48);

    switch (r % 40) {
    case 0:
        __atomic_store_n(&ring->avail->idx, value, __ATOMIC_RELEASE);
        break;
    case 1:
        __atomic_store_n(&ring->avail->flags, value, __ATOMIC_RELAXED);
        break;
    case 2:
        __atomic_store_n(&ring->used->idx, value,
                         __ATOMIC_RELAXED); /* the device's own, yet in the guest's memory */
        break;
    case 3:
        __atomic_store_n(&ring->avail->ring[r / 40 % SIZE], value, __ATOMIC_RELAXED);
        break;
    default:
        if (r % 2)
            __atomic_store_n(&ring->avail->ring[r / 40 % SIZE], (uint16_t)(value % SIZE), __ATOMIC_RELAXED);
        else
            mutate_descriptor(&ring->desc[r / 40 % SIZE], writable, seed);
    }
}

static void *mutator(void *arg) {
    struct fuzz *f = arg;
    uint64_t seed = f->seed ^ UINT64_C(0xabcdef), n = 0;

    while (!atomic_load_explicit(&f->done, memory_order_relaxed)) {
        mutate(&f->tx, false, &seed);
        mutate(&f->rx, true, &seed);
        n++;
    }
    f->mutations = n;
    return NULL;
}

static void offer(struct guest_ring *ring, uint64_t *seed) {
    uint16_t idx = (uint16_t)(ring->ring.next_avail + next(seed) % (SIZE + 1));

    __atomic_store_n(&ring->avail->idx, idx, __ATOMIC_RELEASE);
}

static void revive(struct fuzz *f, struct guest_ring *ring) {
    uint16_t at = ring->ring.next_used;

    if (ring_init(&ring->ring, ring->desc, ring->avail, ring->used, SIZE, &f->guest.memory, at, at) != 0)
        abort();
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"seconds", required_argument, NULL, 's'},
                                            {"iterations", required_argument, NULL, 'n'},
                                            {"seed", required_argument, NULL, 'r'},
                                            {NULL, 0, NULL, 0}};
    static struct fuzz f;
    double seconds = 20;
    uint64_t iterations = UINT64_MAX, i, moved = 0, dropped = 0, broken = 0, seed = 20240607;
    time_t start = time(NULL);
    pthread_t thread;
    int opt;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (opt == 's')
            seconds = strtod(optarg, NULL);
        else if (opt == 'n')
            iterations = strtoull(optarg, NULL, 10);
        else if (opt == 'r')
            seed = strtoull(optarg, NULL, 10);
        else
            return 2;
    }
    if (seed == 0) /* the generator would stay at 0 */
        seed = 1;
    printf("seed %" PRIu64 "\n", seed);
    fflush(stdout);
    f.seed = seed;
    guest_init(&f.guest);
    guest_ring_init(&f.guest, &f.tx, SIZE, 0);
    guest_ring_init(&f.guest, &f.rx, SIZE, 0);
    if (pthread_create(&thread, NULL, mutator, &f) != 0)
        return 1;
    for (i = 0; i < iterations && (i % 1024 != 0 || difftime(time(NULL), start) < seconds); i++) {
        for (int k = 0; k < 4; k++) {
            mutate_descriptor(&f.tx.desc[next(&seed) % SIZE], false, &seed);
            mutate_descriptor(&f.rx.desc[next(&seed) % SIZE], true, &seed);
        }
        offer(&f.tx, &seed);
        offer(&f.rx, &seed);
        struct loopback_result r =
            loopback_run(&f.loopback, &f.tx.ring, &f.rx.ring, HEADER, next(&seed) % 2 == 0, 64);
        moved += r.delivered;
        dropped += r.dropped;
        for (int k = 0; k < 2; k++) {
            struct guest_ring *ring = k == 0 ? &f.tx : &f.rx;
            if (ring->ring.fault != NULL) {
                broken++;
                revive(&f, ring);
            }
        }
    }
    atomic_store(&f.done, true);
    pthread_join(thread, NULL);
    guest_free(&f.guest);
    printf("%" PRIu64 " rounds against %" PRIu64 " mutations: %" PRIu64 " packets moved, %" PRIu64
           " dropped, %" PRIu64 " times broken\n",
           i, f.mutations, moved, dropped, broken);
    return moved > 0 && broken > 0 ? 0 : 1;
}
