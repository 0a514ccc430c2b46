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
#include "mutate.h"

enum { HEADER = 12 };

struct fuzz {
    struct guest guest;
    struct guest_ring tx, rx;
    struct packet packet;
    atomic_bool done;
    uint64_t mutations; /* of the second thread, read after it has ended */
    uint64_t seed;
};

static void *mutator(void *arg) {
    struct fuzz *f = arg;
    uint64_t seed = f->seed ^ UINT64_C(0xabcdef), n = 0;

    while (!atomic_load_explicit(&f->done, memory_order_relaxed)) {
        mutate_ring(&f->tx, false, &seed);
        mutate_ring(&f->rx, true, &seed);
        n++;
    }
    f->mutations = n;
    return NULL;
}

static void revive(struct fuzz *f, struct guest_ring *ring) {
    uint16_t at = ring->ring.next_used;

    if (ring_init(&ring->ring, ring->desc, ring->avail, ring->used, MUTATE_SIZE, &f->guest.memory, at, at) !=
            0 ||
        ring_negotiate(&ring->ring, &mutate_features) != 0)
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
    guest_ring_init(&f.guest, &f.tx, MUTATE_SIZE, 0);
    guest_ring_init(&f.guest, &f.rx, MUTATE_SIZE, 0);
    if (pthread_create(&thread, NULL, mutator, &f) != 0)
        return 1;
    for (i = 0; i < iterations && (i % 1024 != 0 || difftime(time(NULL), start) < seconds); i++) {
        for (int k = 0; k < 4; k++) {
            mutate_descriptor(&f.tx.desc[mutate_next(&seed) % MUTATE_SIZE], false, &seed);
            mutate_descriptor(&f.rx.desc[mutate_next(&seed) % MUTATE_SIZE], true, &seed);
        }
        mutate_offer(&f.tx, &seed);
        mutate_offer(&f.rx, &seed);
        const struct packet_form form = {.header_len = HEADER,
                                         .mergeable = mutate_next(&seed) % 2 == 0,
                                         .mtu = mutate_next(&seed) % 2 == 0 ? 1000 : 0};
        struct loopback_result r = loopback_run(&f.packet, &f.tx.ring, &f.rx.ring, &form, 64);
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
