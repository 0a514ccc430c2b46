/* One packet: taken from a TX ring, and copied into the RX ring of any device. */
#ifndef VDPA_SIM_PACKET_H
#define VDPA_SIM_PACKET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "ring.h"

/* Addresses, a VLAN tag, IPv6 and the ports behind it. */
enum { PACKET_HEAD = 64 };

/* How a front end has its packets, as it was negotiated. */
struct packet_form {
    uint32_t header_len; /* of the virtio-net header, 10 or 12 */
    bool mergeable;      /* one packet may be spread over several RX buffers */
    uint32_t mtu;        /* bytes of a frame behind its Ethernet header, either way; 0: no limit */
};

/* Large, so it lives with its worker and not on a stack. */
struct packet {
    struct ring_buffer from; /* the sender's chain, its virtio-net header first */
    uint32_t header_len;     /* of that header */
    uint32_t bytes;          /* of the frame behind it */
    /* The frame's first bytes as they were read once: what was judged is what is delivered. */
    uint32_t head_len;
    uint8_t head[PACKET_HEAD];
    uint8_t whole[RING_MAX_PACKET]; /* for packet_pieces */
    /* From here on for packet_deliver alone. */
    struct ring_buffer to;
    struct {
        uint16_t head;
        uint32_t bytes;
    } chains[RING_MAX_SPANS];
};

/*
 * Takes the next packet from a TX ring; *head is to be given back by ring_push. 1: taken, maybe without any
 * frame behind its header; 0: there is none; -EPROTO: the guest broke the ring.
 */
int packet_take(struct packet *packet, struct ring *tx, const struct packet_form *form, uint16_t *head);

/* Whether the frame is longer than that side's MTU allows. A VLAN tag does not count, as on a NIC. */
bool packet_is_too_long(const struct packet *packet, const struct packet_form *form);

/* Makes it a packet of `bytes` in this process's own memory, a virtio-net header first. */
void packet_set(struct packet *packet, uint8_t *base, uint32_t bytes, uint32_t header_len);

/* Where the frame is, its head as it was judged, in at most `most` pieces, two or more. Returns how many. */
uint32_t packet_pieces(struct packet *packet, struct iovec *pieces, uint32_t most);

/* Reads the frame's head, for a packet that is judged by it. */
void packet_read_head(struct packet *packet);

enum packet_delivery {
    PACKET_DELIVERED,
    PACKET_NOT_YET, /* not enough buffers now, or the ring is broken: see its fault */
    PACKET_NEVER,   /* no buffer of this ring can hold it, or its MTU forbids it */
};

/*
 * Copies the packet into buffers of an RX ring, with a virtio-net header of its own. Unless it is delivered,
 * no buffer is used.
 */
enum packet_delivery packet_deliver(struct packet *packet, struct ring *rx, const struct packet_form *form);

#endif
