/* A guest for the tests: memory in several regions, and the driver side of a split ring. */
#ifndef VDPA_SIM_TEST_GUEST_H
#define VDPA_SIM_TEST_GUEST_H

#include <stdint.h>

#include "ring.h"

/*
 * Guest addresses. RINGS holds the rings;
 * LEFT and RIGHT adjoin for the guest but not in this process; a hole follows.
 */
enum {
    RINGS = 0x100000,
    RINGS_SIZE = 1024 * 1024,
    LEFT = 0x40000000,
    RIGHT = 0x40040000,
    DATA_SIZE = 0x40000,
    HOLE = RIGHT + DATA_SIZE,
};

struct guest {
    struct ring_memory memory;
    uint32_t rings_used;
};

/* Each region is its own allocation of exactly its size, so that the sanitizer sees a byte too many. */
void guest_init(struct guest *guest);
void guest_free(struct guest *guest);

/* Where the guest's address is in this process; it has to be inside a region. */
uint8_t *guest_host(const struct guest *guest, uint64_t addr);

struct guest_ring {
    struct ring ring; /* the device side, for tests without a worker */
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint32_t size;
    uint16_t offered;
    uint16_t seen_used;
};

/* Lays out a ring in RINGS whose indexes start at `start`. */
void guest_ring_init(struct guest *guest, struct guest_ring *ring, uint32_t size, uint16_t start);

/* The words of VIRTIO_RING_F_EVENT_IDX. */
uint16_t *guest_used_event(struct guest_ring *ring);
uint16_t *guest_avail_event(struct guest_ring *ring);

void guest_set(struct guest_ring *ring, uint32_t index, uint64_t addr, uint32_t len, uint16_t flags,
               uint16_t next);
void guest_offer(struct guest_ring *ring, uint16_t head);

/* Copies the next used entry. Returns whether there was one. */
int guest_reap(struct guest_ring *ring, struct vring_used_elem *elem);

#endif
