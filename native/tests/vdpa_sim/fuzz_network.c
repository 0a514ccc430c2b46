/*
 * Feeds random rings to two devices of a network, each on a thread of its own, while a third and a fourth
 * thread rewrite them. Passes if neither device crashes or writes outside what its receiver has, and if both
 * make progress. Run it under the sanitizers.
 *
 * Usage: fuzz_network [--seconds S] [--seed N]
 */
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "mutate.h"
#include "network.h"

enum { HEADER = 12, FRAME = 64 };

/* A port whose front end is hostile. */
struct hostile {
    struct guest guest;
    struct guest_ring tx, rx;
    struct packet packet;
    struct queue_stats stats; /* of its RX ring */
    struct bell bell;
    pthread_mutex_t reopening;
    struct hostile *other;
    struct sender sender;
    uint64_t seed;
    uint64_t rounds, sent, refused, broken_tx, broken_rx;
    uint64_t mutations;
};

static atomic_bool done;

static void *mutator(void *context) {
    struct hostile *h = context;
    uint64_t seed = h->seed ^ UINT64_C(0xabcdef), n = 0;

    while (!atomic_load_explicit(&done, memory_order_relaxed)) {
        mutate_ring(&h->tx, false, &seed);
        mutate_ring(&h->rx, true, &seed);
        n++;
    }
    h->mutations = n;
    return NULL;
}

static void revive(struct hostile *h, struct guest_ring *ring) {
    uint16_t at = ring->ring.next_used;

    if (ring_init(&ring->ring, ring->desc, ring->avail, ring->used, MUTATE_SIZE, &h->guest.memory, at, at) !=
            0 ||
        ring_negotiate(&ring->ring, &mutate_features) != 0)
        abort();
}

static void open_rx(struct hostile *h, bool mergeable) {
    const struct outlet_ring to = {
        .ring = &h->rx.ring,
        .form = {.header_len = HEADER, .mergeable = mergeable, .mtu = mergeable ? 0 : 1000},
        .stats = &h->stats,
        .bell = &h->bell};

    network_open(h->sender.network, h->sender.port, 0, &to);
}

/* The ring's indexes are the network's while it is open. */
static void offer_rx(struct hostile *h, uint64_t *seed) {
    struct outlet *outlet = &h->sender.network->ports[h->sender.port].outlets[0];

    pthread_mutex_lock(&outlet->lock);
    mutate_offer(&h->rx, seed);
    pthread_mutex_unlock(&outlet->lock);
}

/* Whichever thread runs does it: a port whose own thread waits for a processor would be closed all the time.
 */
static void reopen(struct hostile *h, uint64_t *seed) {
    if (pthread_mutex_trylock(&h->reopening) != 0)
        return;
    network_close(h->sender.network, h->sender.port, 0);
    h->broken_rx += h->rx.ring.fault != NULL;
    revive(h, &h->rx);
    open_rx(h, mutate_next(seed) % 2 == 0);
    pthread_mutex_unlock(&h->reopening);
}

/* Addresses of all kinds, so that frames are flooded, sent to the other one, and kept. */
static void write_frames(struct hostile *h) {
    for (uint32_t i = 0; i < 4; i++) {
        uint8_t *at = guest_host(&h->guest, LEFT + mutate_next(&h->seed) % (DATA_SIZE - FRAME));
        uint8_t kind = (uint8_t)(mutate_next(&h->seed) % 3);
        memset(at, kind == 2 ? 0xff : 2, 12);
        at[5] = kind;
        at[11] = (uint8_t)h->sender.port;
    }
}

static void *device(void *context) {
    struct hostile *h = context;

    for (h->rounds = 0; !atomic_load_explicit(&done, memory_order_relaxed); h->rounds++) {
        for (int k = 0; k < 4; k++) {
            mutate_descriptor(&h->tx.desc[mutate_next(&h->seed) % MUTATE_SIZE], false, &h->seed);
            mutate_descriptor(&h->other->rx.desc[mutate_next(&h->seed) % MUTATE_SIZE], true, &h->seed);
        }
        write_frames(h);
        mutate_offer(&h->tx, &h->seed);
        offer_rx(h->other, &h->seed);
        struct network_result r = network_run(&h->sender, &h->packet, &h->tx.ring, 64);
        h->sent += r.sent;
        h->refused += r.dropped;
        if (h->tx.ring.fault != NULL) {
            h->broken_tx++;
            revive(h, &h->tx);
        }
        if ((atomic_exchange(&h->other->bell.rung, 0) & BELL_BROKEN(0)) || h->rounds % 64 == 0)
            reopen(h->other, &h->seed);
    }
    return NULL;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"seconds", required_argument, NULL, 's'},
                                            {"seed", required_argument, NULL, 'r'},
                                            {NULL, 0, NULL, 0}};
    static struct hostile ports[2];
    struct network *network = network_join(1);
    pthread_t threads[4];
    double seconds = 20;
    uint64_t seed = 20240607;
    bool passed = true;
    int opt;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (opt == 's')
            seconds = strtod(optarg, NULL);
        else if (opt == 'r')
            seed = strtoull(optarg, NULL, 10) | 1;
        else
            return 2;
    }
    printf("seed %" PRIu64 "\n", seed);
    fflush(stdout);
    if (network == NULL)
        return 1;
    for (uint32_t i = 0; i < 2; i++) {
        struct hostile *h = &ports[i];
        h->seed = seed + 2 * i;
        h->other = &ports[1 - i];
        pthread_mutex_init(&h->reopening, NULL);
        h->sender = (struct sender){.network = network, .port = i, .form = {.header_len = HEADER}};
        h->bell.fd = eventfd(0, EFD_NONBLOCK);
        guest_init(&h->guest);
        /* Wherever a packet lies, its addresses are those of one station, which moves from port to port. */
        memset(guest_host(&h->guest, LEFT), 2, DATA_SIZE);
        memset(guest_host(&h->guest, RIGHT), 2, DATA_SIZE);
        guest_ring_init(&h->guest, &h->tx, MUTATE_SIZE, 0);
        guest_ring_init(&h->guest, &h->rx, MUTATE_SIZE, 0);
        open_rx(h, true);
    }
    for (uint32_t i = 0; i < 2; i++) {
        struct hostile *h = &ports[i];
        if (pthread_create(&threads[2 * i], NULL, device, h) != 0 ||
            pthread_create(&threads[2 * i + 1], NULL, mutator, h) != 0)
            return 1;
    }
    nanosleep(&(struct timespec){.tv_sec = (time_t)seconds}, NULL);
    atomic_store(&done, true);
    for (uint32_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < 2; i++) {
        struct hostile *h = &ports[i];
        network_close(network, i, 0);
        printf("port %" PRIu32 ": %" PRIu64 " rounds against %" PRIu64 " mutations: %" PRIu64
               " sent, %" PRIu64 " refused, %" PRIu64 " received, %" PRIu64 " dropped, rings broken %" PRIu64
               " and %" PRIu64 " times\n",
               i, h->rounds, h->mutations, h->sent, h->refused, h->stats.packets, h->stats.dropped,
               h->broken_tx, h->broken_rx);
        passed = passed && h->sent > 0 && h->stats.packets > 0 && h->broken_tx > 0 && h->broken_rx > 0;
        guest_free(&h->guest);
        close(h->bell.fd);
    }
    network_leave(network);
    return passed ? 0 : 1;
}
