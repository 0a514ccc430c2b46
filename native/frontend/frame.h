/*
 * The test frames: written with a sequence number and a
 * payload that follows from it, and checked on return.
 */
#ifndef VDPA_FRONT_FRAME_H
#define VDPA_FRONT_FRAME_H

#include <stdint.h>

enum { FRAME_MIN = 64, FRAME_MAX = 1500, FRAME_MAC = 6 };

struct frame_id {
    uint64_t stream; /* of this run, so that frames of another are not taken for ours */
    uint64_t sequence;
    uint16_t queue;
};

enum frame_check { FRAME_OK, FRAME_FOREIGN, FRAME_CORRUPT };

/* Fills `len` bytes, FRAME_MIN or more, with an Ethernet frame. */
void frame_write(uint8_t *frame, uint32_t len, const uint8_t to[FRAME_MAC], const uint8_t from[FRAME_MAC],
                 const struct frame_id *id);

/* Addresses a frame to where it came from, from `mac`. */
void frame_turn(uint8_t *frame, const uint8_t mac[FRAME_MAC]);

/*
 * Checks a received frame of a stream whose frames have `expected_len` bytes. Sets queue and sequence if
 * it is FRAME_OK.
 */
enum frame_check frame_read(const uint8_t *frame, uint32_t len, uint32_t expected_len, uint64_t stream,
                            struct frame_id *id);

#endif
