/* A run: paced sending, receiving and counting on all queues, until it is enough. */
#include "traffic.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/types.h>
#include <time.h>

#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include "tally.h"

enum { PAUSE_NS = 200 * 1000 };

static const double drain_s = 1.0;
static const double max_debt_s = 0.01; /* what a stall may leave to be caught up with */

struct run {
    const struct port *port;
    const struct options *options;
    const struct report *report;
    struct tally *tallies;
    uint64_t stream;
    uint64_t sent, received, foreign;
    double started_s;
    uint16_t next_queue; /* the next to send on */
    double owed;         /* packets that the rate allows, as of paced_s */
    double paced_s;
    double last_received_s; /* or when sending began */
    double longest_silence_s;
    bool link_up;
    bool recovering; /* an outage began and nothing has come since */
    double outage_began_s;
    uint32_t outages;
    double interval_s; /* when the last interval line was due */
    uint64_t interval_received;
};

static double now_s(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t remaining(const struct run *run) {
    return run->options->packets == 0 ? UINT64_MAX : run->options->packets - run->sent;
}

/*
 * Sends up to `count` frames on a queue.
 * Returns how many the ring took; only those use up sequence numbers.
 */
static uint16_t send_burst(struct run *run, uint16_t queue, uint16_t count) {
    struct tally *tally = &run->tallies[queue];
    struct rte_mbuf *mbufs[PORT_BURST];

    if (count == 0 || rte_pktmbuf_alloc_bulk(run->port->pool, mbufs, count) != 0)
        return 0;
    for (uint16_t i = 0; i < count; i++) {
        const struct frame_id id = {.stream = run->stream, .sequence = tally->sent + i, .queue = queue};
        void *frame = rte_pktmbuf_append(mbufs[i], (uint16_t)run->options->size_bytes);
        frame_write(frame, run->options->size_bytes, run->options->has_to ? run->options->to : run->port->mac,
                    run->port->mac, &id);
    }
    uint16_t taken = rte_eth_tx_burst(run->port->id, queue, mbufs, count);
    if (taken < count)
        rte_pktmbuf_free_bulk(&mbufs[taken], count - taken);
    tally->tx_full += (uint64_t)(count - taken);
    tally->sent += taken;
    run->sent += taken;
    return taken;
}

/* How many packets the rate allows now. */
static uint64_t due(struct run *run, double now) {
    const uint32_t rate = run->options->rate_pps;
    double limit = rate * max_debt_s > PORT_BURST ? rate * max_debt_s : PORT_BURST;

    if (rate == 0)
        return (uint64_t)PORT_BURST * run->options->queues;
    run->owed += (now - run->paced_s) * rate;
    run->paced_s = now;
    if (run->owed > limit)
        run->owed = limit;
    return (uint64_t)run->owed;
}

/* Sends what is due, in turn on all queues, until none takes any more. Returns whether any was sent. */
static bool send_due(struct run *run, double now) {
    uint64_t left = due(run, now);
    uint16_t refused = 0;
    bool any = false;

    if (left > remaining(run))
        left = remaining(run);
    while (left > 0 && refused < run->options->queues) {
        uint16_t count = left < PORT_BURST ? (uint16_t)left : PORT_BURST;
        uint16_t taken = send_burst(run, run->next_queue, count);
        run->next_queue = (uint16_t)((run->next_queue + 1) % run->options->queues);
        refused = taken == count ? 0 : (uint16_t)(refused + 1);
        left -= taken;
        run->owed -= taken;
        any = any || taken > 0;
    }
    return any;
}

static void receive_one(struct run *run, const struct rte_mbuf *mbuf, uint16_t queue) {
    struct frame_id id;
    /* Frames are shorter than a buffer, so what comes in several pieces is none of ours unharmed. */
    enum frame_check check = frame_read(rte_pktmbuf_mtod(mbuf, const uint8_t *), mbuf->data_len,
                                        run->options->size_bytes, run->stream, &id);

    if (check == FRAME_FOREIGN) {
        run->foreign++;
    } else if (check == FRAME_CORRUPT || id.queue >= run->options->queues) {
        run->tallies[queue].corrupt++;
    } else {
        struct tally *tally = &run->tallies[id.queue];
        uint64_t before = tally->received;
        tally_receive(tally, id.sequence);
        run->received += tally->received - before;
    }
}

/* Frames of others: sent back, or only counted. */
static void receive_others(struct run *run, struct rte_mbuf **mbufs, uint16_t count, uint16_t queue) {
    uint16_t taken = 0;

    run->received += count;
    run->foreign += count;
    if (run->options->mode == MODE_ECHO) {
        for (uint16_t i = 0; i < count; i++)
            frame_turn(rte_pktmbuf_mtod(mbufs[i], uint8_t *), run->port->mac);
        taken = rte_eth_tx_burst(run->port->id, queue, mbufs, count);
        run->tallies[queue].sent += taken;
        run->tallies[queue].tx_full += (uint64_t)(count - taken);
        run->sent += taken;
    }
    if (taken < count)
        rte_pktmbuf_free_bulk(&mbufs[taken], (unsigned int)(count - taken));
}

static bool receive_all(struct run *run) {
    struct rte_mbuf *mbufs[PORT_BURST];
    bool any = false;

    for (uint16_t q = 0; q < run->options->queues; q++) {
        uint16_t count = rte_eth_rx_burst(run->port->id, q, mbufs, PORT_BURST);
        if (run->options->mode != MODE_SEND) {
            receive_others(run, mbufs, count, q);
        } else if (count > 0) {
            for (uint16_t i = 0; i < count; i++)
                receive_one(run, mbufs[i], q);
            rte_pktmbuf_free_bulk(mbufs, count);
        }
        any = any || count > 0;
    }
    return any;
}

static void note_silence(struct run *run, double now) {
    if (now - run->last_received_s > run->longest_silence_s)
        run->longest_silence_s = now - run->last_received_s;
}

static void follow_link(struct run *run, double now, bool received) {
    bool up = port_link_up(run->port);

    if (received && run->recovering && up) {
        run->recovering = false;
        report_recovered(run->report, now - run->started_s, (now - run->outage_began_s) * 1e3);
    }
    if (up == run->link_up)
        return;
    run->link_up = up;
    report_link(run->report, now - run->started_s, up);
    if (!up) {
        run->outages++;
        run->recovering = true;
        run->outage_began_s = run->last_received_s;
    }
}

static void report_if_due(struct run *run, double now) {
    double past = now - run->interval_s;

    if (past < run->options->interval_s)
        return;
    report_interval(run->report, now - run->started_s, run->sent, run->received,
                    (double)(run->received - run->interval_received) / past);
    run->interval_s = now;
    run->interval_received = run->received;
}

/* One round of the loop. Returns whether anything moved. */
static bool turn(struct run *run, bool sending) {
    double now = now_s();
    bool received = receive_all(run);

    follow_link(run, now, received);
    if (received) {
        if (sending)
            note_silence(run, now);
        run->last_received_s = now;
    }
    bool sent = sending && send_due(run, now);
    report_if_due(run, now);
    return sent || received;
}

static void rest(const struct run *run, bool moved) {
    if (run->options->rate_pps > 0)
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
    else if (!moved)
        sched_yield();
}

int traffic_run(const struct port *port, const struct options *options, const struct report *report,
                const volatile sig_atomic_t *stop, bool *intact) {
    struct run run = {.port = port, .options = options, .report = report, .link_up = true};
    double start = now_s(), end;

    run.tallies = calloc(options->queues, sizeof(*run.tallies));
    if (run.tallies == NULL)
        return -ENOMEM;
    if (getrandom(&run.stream, sizeof(run.stream), 0) != (ssize_t)sizeof(run.stream))
        run.stream = (uint64_t)(start * 1e9);
    run.started_s = run.paced_s = run.last_received_s = run.interval_s = start;

    while (!*stop && remaining(&run) > 0 && (options->seconds_s <= 0 || now_s() - start < options->seconds_s))
        rest(&run, turn(&run, options->mode == MODE_SEND));
    end = now_s();
    note_silence(&run, end);
    while (run.received < run.sent && now_s() - end < drain_s)
        rest(&run, turn(&run, false));

    *intact = report_done(report, &(struct report_totals){
                                      .queues = options->queues,
                                      .tallies = run.tallies,
                                      .foreign = run.foreign,
                                      .outages = run.outages,
                                      .longest_silence_ms = run.longest_silence_s * 1e3,
                                      .seconds = end - start,
                                  });
    *intact = *intact || options->mode != MODE_SEND;
    free(run.tallies);
    return 0;
}
