/*
 * The test frames: written with a sequence number and a
 * payload that follows from it, and checked on return.
 */
#include "frame.h"

#include <stddef.h>
#include <string.h>

/* Ethertype "local experimental 1" of IEEE 802; the rest is host order, as both ends are this program. */
struct head {
    uint8_t to[FRAME_MAC];
    uint8_t from[FRAME_MAC];
    uint8_t ethertype[2];
    uint16_t queue;
    uint32_t magic;
    uint32_t reserved;
    uint64_t stream;
    uint64_t sequence;
};

static const uint8_t ethertype[2] = {0x88, 0xb5};
#define MAGIC UINT32_C(0x76445061)

/* A mixing step with good diffusion; any flipped bit of the identity changes every word of the payload. */
static uint64_t mix(uint64_t x) {
    x ^= x >> 32;
    x *= UINT64_C(0x9e3779b97f4a7c15);
    x ^= x >> 29;
    x *= UINT64_C(0xd1342543de82ef95);
    return x ^ (x >> 32);
}

static uint64_t seed(const struct frame_id *id) {
    return mix(id->stream + mix(id->sequence + ((uint64_t)id->queue << 48)));
}

void frame_write(uint8_t *frame, uint32_t len, const uint8_t to[FRAME_MAC], const uint8_t from[FRAME_MAC],
                 const struct frame_id *id) {
    struct head head = {.queue = id->queue, .magic = MAGIC, .stream = id->stream, .sequence = id->sequence};
    uint64_t word = seed(id);

    memcpy(head.to, to, FRAME_MAC);
    memcpy(head.from, from, FRAME_MAC);
    memcpy(head.ethertype, ethertype, sizeof(ethertype));
    memcpy(frame, &head, sizeof(head));
    for (uint32_t at = sizeof(head); at < len; at += sizeof(word)) {
        uint32_t part = len - at < sizeof(word) ? len - at : (uint32_t)sizeof(word);
        memcpy(frame + at, &word, part);
        word += UINT64_C(0x9e3779b97f4a7c15);
    }
}

void frame_turn(uint8_t *frame, const uint8_t mac[FRAME_MAC]) {
    memcpy(frame, frame + FRAME_MAC, FRAME_MAC);
    memcpy(frame + FRAME_MAC, mac, FRAME_MAC);
}

enum frame_check frame_read(const uint8_t *frame, uint32_t len, uint32_t expected_len, uint64_t stream,
                            struct frame_id *id) {
    struct head head;
    uint64_t word;

    if (len < sizeof(head))
        return FRAME_FOREIGN;
    memcpy(&head, frame, sizeof(head));
    if (memcmp(head.ethertype, ethertype, sizeof(ethertype)) != 0 || head.magic != MAGIC ||
        head.stream != stream)
        return FRAME_FOREIGN;
    if (len != expected_len || head.reserved != 0)
        return FRAME_CORRUPT;
    *id = (struct frame_id){.stream = stream, .sequence = head.sequence, .queue = head.queue};
    word = seed(id);
    for (uint32_t at = sizeof(head); at < len; at += sizeof(word)) {
        uint32_t part = len - at < sizeof(word) ? len - at : (uint32_t)sizeof(word);
        if (memcmp(frame + at, &word, part) != 0)
            return FRAME_CORRUPT;
        word += UINT64_C(0x9e3779b97f4a7c15);
    }
    return FRAME_OK;
}
