/* One packet: taken from a TX ring, and copied into the RX ring of any device. */
#include "packet.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include <linux/virtio_net.h>

enum { ETHERNET = 18 }; /* bytes of a header with a VLAN tag */

/* A place to write to in a ring_buffer. */
struct cursor {
    const struct ring_span *span;
    uint32_t offset;
};

/* The caller has made sure that there is room for `len` bytes. */
static void scatter(struct cursor *at, const uint8_t *data, uint32_t len) {
    while (len > 0) {
        uint32_t room = at->span->len - at->offset;
        uint32_t part = len < room ? len : room;
        /* A guest may well offer a buffer that overlaps the packet. */
        memmove(at->span->base + at->offset, data, part);
        data += part;
        len -= part;
        at->offset += part;
        if (at->offset == at->span->len) {
            at->span++;
            at->offset = 0;
        }
    }
}

int packet_take(struct packet *packet, struct ring *tx, const struct packet_form *form, uint16_t *head) {
    packet->from.bytes = 0;
    packet->from.count = 0;
    packet->head_len = 0;
    int rc = ring_pop(tx, RING_READ, &packet->from, head);
    if (rc <= 0)
        return rc;
    if (packet->from.bytes < form->header_len)
        return ring_break(tx, "a packet is shorter than its virtio-net header");
    packet->header_len = form->header_len;
    packet->bytes = (uint32_t)packet->from.bytes - form->header_len;
    return 1;
}

void packet_set(struct packet *packet, uint8_t *base, uint32_t bytes, uint32_t header_len) {
    packet->from.bytes = bytes;
    packet->from.count = 1;
    packet->from.spans[0] = (struct ring_span){.base = base, .len = bytes};
    packet->head_len = 0;
    packet->header_len = header_len;
    packet->bytes = bytes - header_len;
}

uint32_t packet_pieces(struct packet *packet, struct iovec *pieces, uint32_t most) {
    const struct ring_buffer *from = &packet->from;
    const struct ring_span whole = {.base = packet->whole, .len = sizeof(packet->whole)};
    const bool fits = from->count < most;
    struct cursor at = {.span = &whole, .offset = 0};
    uint32_t skip = packet->header_len + packet->head_len, count = 1;

    pieces[0] = (struct iovec){.iov_base = packet->head, .iov_len = packet->head_len};
    for (uint32_t i = 0; i < from->count; i++) {
        const struct ring_span *span = &from->spans[i];
        uint32_t skipped = skip < span->len ? skip : span->len;
        skip -= skipped;
        if (skipped == span->len)
            continue;
        if (fits)
            pieces[count++] =
                (struct iovec){.iov_base = span->base + skipped, .iov_len = span->len - skipped};
        else
            scatter(&at, span->base + skipped, span->len - skipped);
    }
    if (!fits)
        pieces[count++] = (struct iovec){.iov_base = packet->whole, .iov_len = at.offset};
    return count;
}

bool packet_is_too_long(const struct packet *packet, const struct packet_form *form) {
    return form->mtu != 0 && packet->bytes > form->mtu + ETHERNET;
}

void packet_read_head(struct packet *packet) {
    uint32_t wanted = packet->bytes < PACKET_HEAD ? packet->bytes : PACKET_HEAD;
    uint32_t skip = packet->header_len, got = 0;

    for (const struct ring_span *span = packet->from.spans; got < wanted; span++) {
        uint32_t skipped = skip < span->len ? skip : span->len;
        uint32_t part = span->len - skipped < wanted - got ? span->len - skipped : wanted - got;
        memcpy(packet->head + got, span->base + skipped, part);
        got += part;
        skip -= skipped;
    }
    packet->head_len = wanted;
}

/* Nearly every packet: one piece of memory goes into one other. */
static void copy_whole(const struct packet *packet, const struct virtio_net_hdr_v1 *header,
                       uint32_t header_len) {
    uint8_t *to = packet->to.spans[0].base;
    const uint8_t *from = packet->from.spans[0].base + packet->header_len;
    const uint32_t judged = packet->head_len;

    memcpy(to, header, header_len);
    to += header_len;
    if (judged > 0)
        memcpy(to, packet->head, judged);
    if (packet->bytes > judged)
        memmove(to + judged, from + judged, packet->bytes - judged);
}

/* Copies the packet with a header of our own: no offload was negotiated, so the sender's says nothing. */
static void copy(const struct packet *packet, uint32_t header_len, uint16_t buffers) {
    const struct ring_buffer *from = &packet->from;
    const struct virtio_net_hdr_v1 header = {.num_buffers = htole16(buffers)};
    struct cursor at = {.span = packet->to.spans, .offset = 0};
    uint32_t skip = packet->header_len + packet->head_len;

    if (from->count == 1 && packet->to.count == 1) {
        copy_whole(packet, &header, header_len);
        return;
    }
    scatter(&at, (const uint8_t *)&header, header_len);
    scatter(&at, packet->head, packet->head_len);
    for (uint32_t i = 0; i < from->count; i++) {
        uint32_t skipped = skip < from->spans[i].len ? skip : from->spans[i].len;
        scatter(&at, from->spans[i].base + skipped, from->spans[i].len - skipped);
        skip -= skipped;
    }
}

/* Takes RX buffers for `needed` bytes; *count is how many. Takes none unless the answer is delivered. */
static enum packet_delivery gather(struct packet *packet, struct ring *rx, uint64_t needed, bool mergeable,
                                   uint16_t *count) {
    struct ring_buffer *to = &packet->to;
    int rc = 0;
    uint16_t n = 0;

    to->bytes = 0;
    to->count = 0;
    while (to->bytes < needed) {
        uint64_t before = to->bytes;
        rc = ring_pop(rx, RING_WRITE, to, &packet->chains[n].head);
        if (rc <= 0)
            break;
        packet->chains[n++].bytes = (uint32_t)(to->bytes - before);
        if (!mergeable)
            break;
    }
    *count = n;
    if (to->bytes >= needed)
        return PACKET_DELIVERED;
    ring_unpop(rx, n);
    if (rc == -EPROTO)
        return PACKET_NOT_YET;
    /* All that the ring can ever offer at once has been seen, and it was too small. */
    return (!mergeable && n == 1) || rc == -ENOBUFS || n >= rx->size ? PACKET_NEVER : PACKET_NOT_YET;
}

enum packet_delivery packet_deliver(struct packet *packet, struct ring *rx, const struct packet_form *form) {
    const uint32_t needed = form->header_len + packet->bytes;
    uint32_t left = needed;
    uint16_t count;
    enum packet_delivery delivery;

    if (packet_is_too_long(packet, form))
        return PACKET_NEVER;
    delivery = gather(packet, rx, needed, form->mergeable, &count);
    if (delivery != PACKET_DELIVERED)
        return delivery;
    copy(packet, form->header_len, count);
    for (uint16_t i = 0; i < count; i++) {
        uint32_t written = left < packet->chains[i].bytes ? left : packet->chains[i].bytes;
        ring_push(rx, packet->chains[i].head, written);
        left -= written;
    }
    return PACKET_DELIVERED;
}
