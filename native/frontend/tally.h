/* The account of one queue: which sequence numbers went out and which came back. */
#ifndef VDPA_FRONT_TALLY_H
#define VDPA_FRONT_TALLY_H

#include <stdint.h>

/*
 * How far behind the newest a frame may come and still
 * be distinguished from a duplicate; far more than all rings hold.
 */
enum { TALLY_WINDOW = 65536 };

struct tally {
    uint64_t sent;     /* sequence numbers 0 to sent-1 are out */
    uint64_t received; /* distinct ones that came back intact */
    uint64_t duplicated;
    uint64_t reordered; /* received after a later one */
    uint64_t corrupt;
    uint64_t tx_full; /* frames that the TX ring did not take and that were offered again later: no loss */
    uint64_t next;    /* one more than the highest received */
    uint64_t seen[TALLY_WINDOW / 64];
};

/* Accounts for an intact frame. One that was never sent counts as corrupt. */
void tally_receive(struct tally *tally, uint64_t sequence);

/* Frames that did not come back although a later one did. */
uint64_t tally_lost(const struct tally *tally);

/* Frames after the last received: under way, or lost if nothing comes any more. */
uint64_t tally_in_flight(const struct tally *tally);

/* Adds the counters of `from`. */
void tally_add(struct tally *sum, const struct tally *from);

#endif
