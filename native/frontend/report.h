/* What vdpa-front reports on stdout: one event a line, as JSON or in words. */
#ifndef VDPA_FRONT_REPORT_H
#define VDPA_FRONT_REPORT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "frame.h"
#include "tally.h"

struct report {
    FILE *out;
    bool text;
};

/* The end of a run. */
struct report_totals {
    uint16_t queues;
    const struct tally *tallies; /* one per queue */
    uint64_t foreign;            /* frames that were not ours */
    uint32_t outages;
    double longest_silence_ms; /* between two receptions while sending */
    double seconds;            /* of sending */
};

void report_ready(const struct report *report, uint16_t queues, const uint8_t mac[FRAME_MAC]);
void report_interval(const struct report *report, double t_s, uint64_t sent, uint64_t received,
                     double rate_pps);
void report_link(const struct report *report, double t_s, bool up);
void report_recovered(const struct report *report, double t_s, double after_ms);

/* Returns whether everything that was sent came back intact. */
bool report_done(const struct report *report, const struct report_totals *totals);

#endif
