/* Moves packets from the TX ring of a queue pair into its RX ring. */
#include "loopback.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include <linux/virtio_net.h>

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

/* Copies the packet with a header of our own: no offload was negotiated, so the sender's says nothing. */
static void copy_packet(const struct ring_buffer *from, struct ring_buffer *to, uint32_t header_len,
                        uint16_t buffers) {
    struct virtio_net_hdr_v1 header = {.num_buffers = htole16(buffers)};
    struct cursor at = {.span = to->spans, .offset = 0};
    uint32_t skip = header_len;

    scatter(&at, (const uint8_t *)&header, header_len);
    for (uint32_t i = 0; i < from->count; i++) {
        uint32_t skipped = skip < from->spans[i].len ? skip : from->spans[i].len;
        scatter(&at, from->spans[i].base + skipped, from->spans[i].len - skipped);
        skip -= skipped;
    }
}

enum gathered { GATHERED, NOT_YET, NEVER };

/*
 * Takes RX buffers for the packet in `from`;
 * *count is how many. Takes none unless the answer is GATHERED.
 */
static enum gathered gather(struct loopback *lb, struct ring *rx, bool mergeable, uint16_t *count) {
    int rc = 0;
    uint16_t n = 0;

    lb->to.bytes = 0;
    lb->to.count = 0;
    while (lb->to.bytes < lb->from.bytes) {
        uint64_t before = lb->to.bytes;
        rc = ring_pop(rx, RING_WRITE, &lb->to, &lb->chains[n].head);
        if (rc <= 0)
            break;
        lb->chains[n++].bytes = (uint32_t)(lb->to.bytes - before);
        if (!mergeable)
            break;
    }
    *count = n;
    if (lb->to.bytes >= lb->from.bytes)
        return GATHERED;
    ring_unpop(rx, n);
    if (rc == -EPROTO)
        return NOT_YET;
    /* All that the ring can ever offer at once has been seen, and it was too small. */
    return (!mergeable && n == 1) || rc == -ENOBUFS || n >= rx->size ? NEVER : NOT_YET;
}

struct loopback_result loopback_run(struct loopback *lb, struct ring *tx, struct ring *rx,
                                    uint32_t header_len, bool mergeable, uint32_t budget) {
    struct loopback_result result = {0};

    while (result.delivered + result.dropped < budget) {
        uint16_t tx_head, count;
        lb->from.bytes = 0;
        lb->from.count = 0;
        if (ring_pop(tx, RING_READ, &lb->from, &tx_head) <= 0)
            break;
        if (lb->from.bytes < header_len) {
            ring_break(tx, "a packet is shorter than its virtio-net header");
            break;
        }
        if (lb->from.bytes == header_len) {
            result.dropped++;
            ring_push(tx, tx_head, 0);
            continue;
        }
        enum gathered gathered = gather(lb, rx, mergeable, &count);
        if (gathered == NOT_YET) {
            ring_unpop(tx, 1);
            break;
        }
        if (gathered == NEVER) {
            result.dropped++;
            ring_push(tx, tx_head, 0);
            continue;
        }
        copy_packet(&lb->from, &lb->to, header_len, count);
        uint32_t left = (uint32_t)lb->from.bytes;
        for (uint16_t i = 0; i < count; i++) {
            uint32_t written = left < lb->chains[i].bytes ? left : lb->chains[i].bytes;
            ring_push(rx, lb->chains[i].head, written);
            left -= written;
        }
        ring_push(tx, tx_head, 0);
        result.delivered++;
        result.bytes += lb->from.bytes - header_len;
    }
    /* Received before sent: if the process is killed in between, a packet comes twice rather than never. */
    if (result.delivered > 0)
        result.rx_interrupt = ring_publish(rx);
    if (result.delivered + result.dropped > 0)
        result.tx_interrupt = ring_publish(tx);
    return result;
}
