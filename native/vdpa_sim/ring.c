/*
 * The device side of a virtio split ring whose other side is not trusted.
 *
 * The guest may change any byte of the ring at any time, so each field is read exactly once, by an atomic
 * load, and only the copy is checked and used.
 */
#include "ring.h"

#include <errno.h>
#include <stddef.h>

#define READ_ONCE(field) __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define WRITE_ONCE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)

int ring_memory_check(const struct ring_memory *memory) {
    if (memory->count == 0 || memory->count > RING_MAX_REGIONS)
        return -EINVAL;
    for (uint32_t i = 0; i < memory->count; i++) {
        const struct ring_region *r = &memory->regions[i];
        if (r->size == 0 || r->host == NULL || r->guest_addr + (r->size - 1) < r->guest_addr ||
            (uintptr_t)r->host + (r->size - 1) < (uintptr_t)r->host)
            return -EINVAL;
    }
    return 0;
}

static bool inside(const struct ring_memory *memory, const void *host, uint64_t len) {
    for (uint32_t i = 0; i < memory->count; i++) {
        const struct ring_region *r = &memory->regions[i];
        uint64_t offset = (uintptr_t)host - (uintptr_t)r->host;
        if (offset < r->size && len <= r->size - offset)
            return true;
    }
    return false;
}

int ring_init(struct ring *ring, struct vring_desc *desc, struct vring_avail *avail, struct vring_used *used,
              uint32_t size, const struct ring_memory *memory, uint16_t next_avail, uint16_t next_used) {
    if (size == 0 || size > RING_MAX_SIZE || (size & (size - 1)) != 0)
        return -EINVAL;
    if ((uintptr_t)desc % VRING_DESC_ALIGN_SIZE != 0 || (uintptr_t)avail % VRING_AVAIL_ALIGN_SIZE != 0 ||
        (uintptr_t)used % VRING_USED_ALIGN_SIZE != 0)
        return -EINVAL;
    if (!inside(memory, desc, size * sizeof(*desc)) ||
        !inside(memory, avail, sizeof(*avail) + size * sizeof(avail->ring[0])) ||
        !inside(memory, used, sizeof(*used) + size * sizeof(used->ring[0])))
        return -EINVAL;
    *ring = (struct ring){
        .desc = desc,
        .avail = avail,
        .used = used,
        .size = size,
        .memory = memory,
        .next_avail = next_avail,
        .seen_avail = next_avail,
        .next_used = next_used,
        .published = next_used,
    };
    return 0;
}

/* The word behind the available entries, in which the guest says when it wants an interrupt. */
static const uint16_t *used_event(const struct ring *ring) {
    return &ring->avail->ring[ring->size];
}

/* The word behind the used entries, in which the device says when it wants a kick. */
static uint16_t *avail_event(const struct ring *ring) {
    return (uint16_t *)&ring->used->ring[ring->size];
}

int ring_negotiate(struct ring *ring, const struct ring_features *features) {
    if (features->event_idx && (!inside(ring->memory, used_event(ring), sizeof(uint16_t)) ||
                                !inside(ring->memory, avail_event(ring), sizeof(uint16_t))))
        return -EINVAL;
    ring->features = *features;
    return 0;
}

int ring_break(struct ring *ring, const char *fault) {
    ring->fault = fault;
    return -EPROTO;
}

/* Appends guest memory to `buffer`, in several spans where it crosses into an adjacent region. */
static int append(struct ring *ring, struct ring_buffer *buffer, bool alone, uint64_t addr, uint32_t len) {
    while (len > 0) {
        const struct ring_region *r = NULL;
        for (uint32_t i = 0; i < ring->memory->count; i++) {
            r = &ring->memory->regions[i];
            if (addr - r->guest_addr < r->size)
                break;
            r = NULL;
        }
        if (r == NULL)
            return ring_break(ring, "a descriptor points outside the guest's memory");
        uint64_t offset = addr - r->guest_addr;
        uint32_t part = len <= r->size - offset ? len : (uint32_t)(r->size - offset);
        if (part < len && addr + part < addr)
            return ring_break(ring, "a descriptor wraps around the end of the address space");
        if (buffer->count == RING_MAX_SPANS)
            return alone ? ring_break(ring, "a descriptor chain has too many pieces") : -ENOBUFS;
        buffer->spans[buffer->count++] = (struct ring_span){.base = r->host + offset, .len = part};
        addr += part;
        len -= part;
    }
    return 0;
}

/* A table of descriptors: the ring's own, or an indirect one. */
struct table {
    const struct vring_desc *desc;
    uint32_t size;
    bool indirect; /* and so no way to a further one, wherever it lies */
};

/* Goes over to the indirect table at a guest address, which must lie in one region. */
static int enter(struct ring *ring, struct table *table, uint64_t addr, uint32_t len, uint16_t flags) {
    if (!ring->features.indirect)
        return ring_break(ring, "an indirect descriptor was not negotiated");
    if (table->indirect)
        return ring_break(ring, "an indirect descriptor is in an indirect table");
    if (flags & VRING_DESC_F_NEXT)
        return ring_break(ring, "an indirect descriptor is not the last one of its chain");
    if (len == 0 || len % sizeof(struct vring_desc) != 0 || len / sizeof(struct vring_desc) > ring->size)
        return ring_break(ring, "an indirect table has a wrong length");
    for (uint32_t i = 0; i < ring->memory->count; i++) {
        const struct ring_region *r = &ring->memory->regions[i];
        uint64_t offset = addr - r->guest_addr;
        if (offset >= r->size)
            continue;
        if (len > r->size - offset || (uintptr_t)(r->host + offset) % _Alignof(struct vring_desc) != 0)
            break;
        *table = (struct table){.desc = (const void *)(r->host + offset),
                                .size = len / (uint32_t)sizeof(struct vring_desc),
                                .indirect = true};
        return 0;
    }
    return ring_break(ring, "an indirect table is not aligned, or not within a region of the guest's memory");
}

static int walk(struct ring *ring, enum ring_direction direction, struct ring_buffer *buffer, uint16_t head) {
    uint64_t bytes = 0;
    struct table table = {.desc = ring->desc, .size = ring->size};
    uint32_t index = head;
    bool alone = buffer->count == 0;

    for (uint32_t steps = 0;; steps++) {
        if (index >= table.size)
            return ring_break(ring, "a descriptor index is out of range");
        if (steps >= table.size)
            return ring_break(ring, "a descriptor chain loops");
        uint64_t addr = READ_ONCE(table.desc[index].addr);
        uint32_t len = READ_ONCE(table.desc[index].len);
        uint16_t flags = READ_ONCE(table.desc[index].flags);
        uint16_t next = READ_ONCE(table.desc[index].next);

        if (flags & VRING_DESC_F_INDIRECT) {
            int rc = enter(ring, &table, addr, len, flags);
            if (rc != 0)
                return rc;
            index = 0;
            steps = UINT32_MAX; /* none of the table's yet */
            continue;
        }
        if (((flags & VRING_DESC_F_WRITE) != 0) != (direction == RING_WRITE))
            return ring_break(ring, direction == RING_WRITE ? "a receive descriptor is not writable"
                                                            : "a transmit descriptor is not readable");
        if (len == 0)
            return ring_break(ring, "a descriptor is empty");
        if (direction == RING_READ && len > RING_MAX_PACKET - bytes)
            return ring_break(ring, "a packet is longer than any MTU allows");
        /* A receive chain may be larger than any packet: what lies beyond is never written. */
        if (bytes < RING_MAX_PACKET) {
            if (len > RING_MAX_PACKET - bytes)
                len = (uint32_t)(RING_MAX_PACKET - bytes);
            int rc = append(ring, buffer, alone, addr, len);
            if (rc != 0)
                return rc;
            bytes += len;
        }
        if (!(flags & VRING_DESC_F_NEXT))
            break;
        index = next;
    }
    buffer->bytes += bytes;
    return 0;
}

int ring_pop(struct ring *ring, enum ring_direction direction, struct ring_buffer *buffer, uint16_t *head) {
    if (ring->fault != NULL)
        return -EPROTO;
    if (ring->seen_avail == ring->next_avail) {
        /* Pairs with the guest's release of avail->idx: its descriptors are visible after this load. */
        uint16_t idx = __atomic_load_n(&ring->avail->idx, __ATOMIC_ACQUIRE);
        if ((uint16_t)(idx - ring->next_avail) > ring->size)
            return ring_break(ring, "the available index jumps by more than the ring's size");
        ring->seen_avail = idx;
        if (idx == ring->next_avail)
            return 0;
    }
    uint16_t taken = READ_ONCE(ring->avail->ring[ring->next_avail & (ring->size - 1)]);
    uint32_t count = buffer->count;
    int rc = walk(ring, direction, buffer, taken);
    if (rc != 0) {
        buffer->count = count;
        return rc;
    }
    ring->next_avail++;
    *head = taken;
    return 1;
}

void ring_unpop(struct ring *ring, uint16_t count) {
    ring->next_avail = (uint16_t)(ring->next_avail - count);
}

void ring_push(struct ring *ring, uint16_t head, uint32_t written) {
    struct vring_used_elem *elem = &ring->used->ring[ring->next_used & (ring->size - 1)];

    WRITE_ONCE(elem->id, head);
    WRITE_ONCE(elem->len, written);
    ring->next_used++;
}

bool ring_publish(struct ring *ring) {
    __atomic_store_n(&ring->used->idx, ring->next_used, __ATOMIC_RELEASE);
    /*
     * The guest clears the flag, then looks at used->idx:
     * without a full fence both sides could miss each other.
     */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint16_t before = ring->published;
    ring->published = ring->next_used;
    if (ring->features.event_idx)
        return vring_need_event(READ_ONCE(*used_event(ring)), ring->next_used, before);
    return !(READ_ONCE(ring->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
}

void ring_want_kicks(struct ring *ring, bool wanted) {
    /* With events: at the next entry, or at one that the guest has passed already. */
    if (ring->features.event_idx)
        WRITE_ONCE(*avail_event(ring), (uint16_t)(wanted ? ring->next_avail : ring->next_avail - 1));
    else
        WRITE_ONCE(ring->used->flags, (uint16_t)(wanted ? 0 : VRING_USED_F_NO_NOTIFY));
    if (wanted)
        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* before the caller looks at avail->idx once more */
}
