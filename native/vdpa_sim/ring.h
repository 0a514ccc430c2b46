/*
 * The device side of a virtio split ring whose other side is not trusted:
 * every index, length and address is checked.
 */
#ifndef VDPA_SIM_RING_H
#define VDPA_SIM_RING_H

#include <stdbool.h>
#include <stdint.h>

#include <linux/virtio_ring.h>

enum {
    RING_MAX_REGIONS = 64,
    RING_MAX_SIZE = 32768,
    RING_MAX_SPANS = 1024, /* pieces of one packet */
    RING_MAX_MTU = 65535,
    /* Bytes of one packet: those of the largest MTU, an Ethernet header with a tag, a virtio-net header. */
    RING_MAX_PACKET = RING_MAX_MTU + 18 + 12,
};

/* One piece of the guest's memory, as this process has it mapped. */
struct ring_region {
    uint64_t guest_addr;
    uint64_t size;
    uint8_t *host;
};

struct ring_memory {
    uint32_t count;
    struct ring_region regions[RING_MAX_REGIONS];
};

/* What was negotiated about rings. */
struct ring_features {
    bool indirect;  /* VIRTIO_RING_F_INDIRECT_DESC */
    bool event_idx; /* VIRTIO_RING_F_EVENT_IDX */
};

struct ring {
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint32_t size;
    const struct ring_memory *memory;
    uint16_t next_avail; /* the next entry of avail to take */
    uint16_t seen_avail; /* avail->idx as last read and checked */
    uint16_t next_used;  /* the next entry of used to write */
    uint16_t published;  /* next_used as the guest saw it last */
    struct ring_features features;
    const char *fault; /* what the guest broke, or NULL; nothing is taken from a broken ring */
};

/* Whether the device reads the guest's buffers (its TX ring) or writes them (its RX ring). */
enum ring_direction { RING_READ, RING_WRITE };

struct ring_span {
    uint8_t *base;
    uint32_t len;
};

/* The memory of one or more descriptor chains, in order. */
struct ring_buffer {
    uint64_t bytes;
    uint32_t count;
    struct ring_span spans[RING_MAX_SPANS];
};

/* 0, or -EINVAL if a region is empty, unmapped or wraps around. */
int ring_memory_check(const struct ring_memory *memory);

/*
 * Starts a ring at the given indexes, without any feature. -EINVAL if its size is not a power of two or it
 * lies outside `memory`, to which it refers from then on.
 */
int ring_init(struct ring *ring, struct vring_desc *desc, struct vring_avail *avail, struct vring_used *used,
              uint32_t size, const struct ring_memory *memory, uint16_t next_avail, uint16_t next_used);

/* Before the first use of a ring: what was negotiated. -EINVAL if the events lie outside its memory. */
int ring_negotiate(struct ring *ring, const struct ring_features *features);

/*
 * Appends the next available chain to `buffer`. 1: taken, *head is to be given back by ring_push; 0: nothing
 * available; -ENOBUFS: no room for it in a buffer which already holds chains, not taken; -EPROTO: the guest
 * broke the ring, see ring->fault.
 */
int ring_pop(struct ring *ring, enum ring_direction direction, struct ring_buffer *buffer, uint16_t *head);

/* Gives back the last `count` popped chains as if they had not been popped. */
void ring_unpop(struct ring *ring, uint16_t count);

/* Marks the ring as broken, for violations that only the caller can see. Returns -EPROTO. */
int ring_break(struct ring *ring, const char *fault);

/* Writes a used entry; the guest sees it after ring_publish. */
void ring_push(struct ring *ring, uint16_t head, uint32_t written);

/* Shows all pushed entries to the guest. Returns whether the guest wants an interrupt for them. */
bool ring_publish(struct ring *ring);

/*
 * Asks the guest for kicks, or asks it to spare them.
 * When asking for them, check for work once more afterwards.
 */
void ring_want_kicks(struct ring *ring, bool wanted);

#endif
