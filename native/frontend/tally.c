/* The account of one queue: which sequence numbers went out and which came back. */
#include "tally.h"

#include <string.h>

static uint64_t *word_of(struct tally *tally, uint64_t sequence) {
    return &tally->seen[sequence % TALLY_WINDOW / 64];
}

static uint64_t bit_of(uint64_t sequence) {
    return UINT64_C(1) << (sequence % 64);
}

/* Forgets what the window's places meant before they stood for the numbers from `next` to `sequence`. */
static void advance(struct tally *tally, uint64_t sequence) {
    if (sequence - tally->next >= TALLY_WINDOW) {
        memset(tally->seen, 0, sizeof(tally->seen));
    } else {
        for (uint64_t s = tally->next; s <= sequence; s++)
            *word_of(tally, s) &= ~bit_of(s);
    }
    tally->next = sequence + 1;
}

void tally_receive(struct tally *tally, uint64_t sequence) {
    if (sequence >= tally->sent) {
        tally->corrupt++;
        return;
    }
    if (sequence >= tally->next) {
        advance(tally, sequence);
    } else if (tally->next - sequence > TALLY_WINDOW || (*word_of(tally, sequence) & bit_of(sequence)) != 0) {
        tally->duplicated++;
        return;
    } else {
        tally->reordered++;
    }
    *word_of(tally, sequence) |= bit_of(sequence);
    tally->received++;
}

uint64_t tally_lost(const struct tally *tally) {
    return tally->next - tally->received;
}

uint64_t tally_in_flight(const struct tally *tally) {
    return tally->sent - tally->next;
}

void tally_add(struct tally *sum, const struct tally *from) {
    sum->sent += from->sent;
    sum->received += from->received;
    sum->duplicated += from->duplicated;
    sum->reordered += from->reordered;
    sum->corrupt += from->corrupt;
    sum->tx_full += from->tx_full;
    sum->next += from->next;
}
