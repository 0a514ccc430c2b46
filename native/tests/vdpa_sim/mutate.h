/* A guest that writes into its rings what no driver writes, for the fuzzers. */
#ifndef VDPA_SIM_TEST_MUTATE_H
#define VDPA_SIM_TEST_MUTATE_H

#include <stdbool.h>
#include <stdint.h>

#include "guest.h"

/* Of each ring. */
enum { MUTATE_SIZE = 16 };

/* All that a ring may have: with more to obey, more can go wrong. */
extern const struct ring_features mutate_features;

/* The next number of a seed, which is not 0. */
uint64_t mutate_next(uint64_t *seed);

/* Mostly what a driver might mean. Any thread may do this at any time. */
void mutate_descriptor(struct vring_desc *desc, bool writable, uint64_t *seed);

/* One word of a ring, its indexes and flags included. Any thread may do this at any time. */
void mutate_ring(struct guest_ring *ring, bool writable, uint64_t *seed);

/* Makes up to a ring of entries available to the device. For the thread of the device. */
void mutate_offer(struct guest_ring *ring, uint64_t *seed);

#endif
