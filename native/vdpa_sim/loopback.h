/* Moves packets from the TX ring of a queue pair into its RX ring. */
#ifndef VDPA_SIM_LOOPBACK_H
#define VDPA_SIM_LOOPBACK_H

#include <stdbool.h>
#include <stdint.h>

#include "packet.h"
#include "ring.h"

/* What one run did. */
struct loopback_result {
    uint32_t delivered; /* packets copied to the RX ring */
    uint32_t dropped;   /* packets that no RX buffer can ever hold, without content, or beyond the MTU */
    uint64_t bytes;     /* of the delivered packets, without their virtio-net headers */
    bool tx_interrupt;  /* the front end wants to hear of its sent packets */
    bool rx_interrupt;  /* the front end wants to hear of its received packets */
};

/*
 * Moves up to `budget` packets. A packet without an RX buffer yet stays where it is. Stops early
 * when a ring turns out broken (ring->fault). `packet` is room for one.
 */
struct loopback_result loopback_run(struct packet *packet, struct ring *tx, struct ring *rx,
                                    const struct packet_form *form, uint32_t budget);

#endif
