/* The counters of one virtqueue. */
#ifndef VDPA_SIM_STATS_H
#define VDPA_SIM_STATS_H

#include <stdatomic.h>
#include <stdint.h>

/* Written by the workers, read and reset by anybody. */
struct queue_stats {
    _Atomic uint64_t
        packets; /* loopback: delivered, on the TX and on the RX queue; switch: sent, delivered */
    _Atomic uint64_t bytes;
    _Atomic uint64_t dropped;
    _Atomic uint64_t errors; /* times the ring was found broken */
    _Atomic uint64_t kicks;
    _Atomic uint64_t interrupts;
};

static inline void stats_add(_Atomic uint64_t *counter, uint64_t n) {
    if (n > 0)
        atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline void stats_reset(struct queue_stats *stats) {
    atomic_store(&stats->packets, 0);
    atomic_store(&stats->bytes, 0);
    atomic_store(&stats->dropped, 0);
    atomic_store(&stats->errors, 0);
    atomic_store(&stats->kicks, 0);
    atomic_store(&stats->interrupts, 0);
}

#endif
