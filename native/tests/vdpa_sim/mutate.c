/* A guest that writes into its rings what no driver writes, for the fuzzers. */
#include "mutate.h"

#include <stdbool.h>

const struct ring_features mutate_features = {.indirect = true, .event_idx = true};

/* xorshift64*: small, and the same everywhere. */
uint64_t mutate_next(uint64_t *seed) {
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return *seed * UINT64_C(0x2545f4914f6cdd1d);
}

/* A packet may lie in the rings; its bytes then race with the second thread by intention, which is not what a
 * race detector is to find. */
#ifdef __SANITIZE_THREAD__
#define IN_RINGS LEFT
#else
#define IN_RINGS RINGS
#endif

/* Mostly what a guest might mean, sometimes the edges, sometimes noise. */
static uint64_t address(uint64_t *seed) {
    static const uint64_t edges[] = {0,        LEFT, LEFT - 1,   RIGHT - 1, RIGHT,
                                     HOLE - 1, HOLE, UINT64_MAX, IN_RINGS};
    uint64_t r = mutate_next(seed);

    if (r % 16 == 0)
        return edges[r / 16 % (sizeof(edges) / sizeof(edges[0]))];
    if (r % 16 == 1)
        return mutate_next(seed);
    return LEFT + mutate_next(seed) % (2 * DATA_SIZE - 2048);
}

static uint32_t length(uint64_t *seed) {
    static const uint32_t edges[] = {0,          1,        11, 12, 13, RING_MAX_PACKET, RING_MAX_PACKET + 1,
                                     UINT32_MAX, INT32_MAX};
    uint64_t r = mutate_next(seed);

    if (r % 16 == 0)
        return edges[r / 16 % (sizeof(edges) / sizeof(edges[0]))];
    return 13 + (uint32_t)(mutate_next(seed) % 2000);
}

/* Atomic, for the device reads at the same time. */
void mutate_descriptor(struct vring_desc *desc, bool writable, uint64_t *seed) {
    uint64_t r = mutate_next(seed);
    uint16_t flags = writable ? VRING_DESC_F_WRITE : 0;

    if (r % 3 == 0)
        flags |= VRING_DESC_F_NEXT;
    if (r % 64 == 1)
        flags ^= (uint16_t)(r >> 32);
    /* A table lies in the data, which is full of addresses that lead nowhere, or in the ring itself. */
    if (r % 16 == 2) {
        __atomic_store_n(&desc->addr, (r >> 8) % 2 == 0 ? IN_RINGS : LEFT + 16 * (r >> 16 & 0xff),
                         __ATOMIC_RELAXED);
        __atomic_store_n(&desc->len, 16 * (1 + (uint32_t)(r >> 24) % MUTATE_SIZE), __ATOMIC_RELAXED);
        __atomic_store_n(&desc->flags, (uint16_t)VRING_DESC_F_INDIRECT, __ATOMIC_RELAXED);
        return;
    }
    __atomic_store_n(&desc->addr, address(seed), __ATOMIC_RELAXED);
    __atomic_store_n(&desc->len, length(seed), __ATOMIC_RELAXED);
    __atomic_store_n(&desc->flags, flags, __ATOMIC_RELAXED);
    __atomic_store_n(&desc->next, (uint16_t)(r % 50 == 0 ? r >> 16 : r % MUTATE_SIZE), __ATOMIC_RELAXED);
}

void mutate_ring(struct guest_ring *ring, bool writable, uint64_t *seed) {
    uint64_t r = mutate_next(seed);
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
        __atomic_store_n(&ring->avail->ring[r / 40 % MUTATE_SIZE], value, __ATOMIC_RELAXED);
        break;
    default:
        if (r % 2)
            __atomic_store_n(&ring->avail->ring[r / 40 % MUTATE_SIZE], (uint16_t)(value % MUTATE_SIZE),
                             __ATOMIC_RELAXED);
        else
            mutate_descriptor(&ring->desc[r / 40 % MUTATE_SIZE], writable, seed);
    }
}

void mutate_offer(struct guest_ring *ring, uint64_t *seed) {
    uint16_t idx = (uint16_t)(ring->ring.next_avail + mutate_next(seed) % (MUTATE_SIZE + 1));

    __atomic_store_n(&ring->avail->idx, idx, __ATOMIC_RELEASE);
}
