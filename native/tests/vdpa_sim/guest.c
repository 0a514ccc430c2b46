/* A guest for the tests: memory in several regions, and the driver side of a split ring. */
#include "guest.h"

#include <stdlib.h>
#include <string.h>

static void add_region(struct guest *guest, uint64_t addr, uint64_t size) {
    uint8_t *host = aligned_alloc(4096, size);

    if (host == NULL)
        abort();
    memset(host, 0, size);
    guest->memory.regions[guest->memory.count++] =
        (struct ring_region){.guest_addr = addr, .size = size, .host = host};
}

void guest_init(struct guest *guest) {
    *guest = (struct guest){0};
    add_region(guest, RINGS, RINGS_SIZE);
    add_region(guest, LEFT, DATA_SIZE);
    add_region(guest, RIGHT, DATA_SIZE);
}

void guest_free(struct guest *guest) {
    for (uint32_t i = 0; i < guest->memory.count; i++)
        free(guest->memory.regions[i].host);
}

uint8_t *guest_host(const struct guest *guest, uint64_t addr) {
    for (uint32_t i = 0; i < guest->memory.count; i++)
        if (addr - guest->memory.regions[i].guest_addr < guest->memory.regions[i].size)
            return guest->memory.regions[i].host + (addr - guest->memory.regions[i].guest_addr);
    abort();
}

static void *take(struct guest *guest, size_t size) {
    void *at = guest->memory.regions[0].host + guest->rings_used;

    guest->rings_used += (uint32_t)((size + 63) / 64 * 64);
    if (guest->rings_used > RINGS_SIZE)
        abort();
    return at;
}

void guest_ring_init(struct guest *guest, struct guest_ring *ring, uint32_t size, uint16_t start) {
    ring->size = size;
    ring->desc = take(guest, size * sizeof(*ring->desc));
    ring->avail = take(guest, sizeof(*ring->avail) + (size + 1) * sizeof(ring->avail->ring[0]));
    ring->used = take(guest, sizeof(*ring->used) + size * sizeof(ring->used->ring[0]) + sizeof(uint16_t));
    ring->offered = ring->seen_used = start;
    ring->avail->idx = start;
    ring->used->idx = start;
    if (ring_init(&ring->ring, ring->desc, ring->avail, ring->used, size, &guest->memory, start, start) != 0)
        abort();
}

uint16_t *guest_used_event(struct guest_ring *ring) {
    return &ring->avail->ring[ring->size];
}

uint16_t *guest_avail_event(struct guest_ring *ring) {
    return (uint16_t *)&ring->used->ring[ring->size];
}

void guest_set(struct guest_ring *ring, uint32_t index, uint64_t addr, uint32_t len, uint16_t flags,
               uint16_t next) {
    ring->desc[index] = (struct vring_desc){.addr = addr, .len = len, .flags = flags, .next = next};
}

void guest_offer(struct guest_ring *ring, uint16_t head) {
    ring->avail->ring[ring->offered & (ring->size - 1)] = head;
    ring->offered++;
    __atomic_store_n(&ring->avail->idx, ring->offered, __ATOMIC_RELEASE);
}

int guest_reap(struct guest_ring *ring, struct vring_used_elem *elem) {
    if (__atomic_load_n(&ring->used->idx, __ATOMIC_ACQUIRE) == ring->seen_used)
        return 0;
    const struct vring_used_elem *at = &ring->used->ring[ring->seen_used & (ring->size - 1)];
    elem->id = __atomic_load_n(&at->id, __ATOMIC_RELAXED);
    elem->len = __atomic_load_n(&at->len, __ATOMIC_RELAXED);
    ring->seen_used++;
    return 1;
}
