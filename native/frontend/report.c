/* What vdpa-front reports on stdout: one event a line, as JSON or in words. */
#include "report.h"

#include <inttypes.h>

void report_ready(const struct report *report, uint16_t queues, const uint8_t mac[FRAME_MAC]) {
    fprintf(report->out,
            report->text ? "ready: %u queue pairs, MAC address %02x:%02x:%02x:%02x:%02x:%02x\n"
                         : "{\"event\":\"ready\",\"queues\":%u,\"mac\":\"%02x:%02x:%02x:%02x:%02x:%02x\"}\n",
            queues, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
    fflush(report->out);
}

void report_interval(const struct report *report, double t_s, uint64_t sent, uint64_t received,
                     double rate_pps) {
    fprintf(report->out,
            report->text ? "after %.1f s: %" PRIu64 " sent, %" PRIu64 " received back, %.0f a second\n"
                         : "{\"event\":\"interval\",\"t_s\":%.3f,\"sent\":%" PRIu64 ",\"received\":%" PRIu64
                           ",\"rate_pps\":%.0f}\n",
            t_s, sent, received, rate_pps);
    fflush(report->out);
}

void report_link(const struct report *report, double t_s, bool up) {
    if (report->text)
        fprintf(report->out, "after %.1f s: the back end is %s\n", t_s, up ? "back" : "gone");
    else
        fprintf(report->out, "{\"event\":\"link\",\"up\":%s,\"t_s\":%.3f}\n", up ? "true" : "false", t_s);
    fflush(report->out);
}

void report_recovered(const struct report *report, double t_s, double after_ms) {
    fprintf(report->out,
            report->text ? "after %.1f s: packets come back again, after %.1f ms without\n"
                         : "{\"event\":\"recovered\",\"t_s\":%.3f,\"recovered_after_ms\":%.1f}\n",
            t_s, after_ms);
    fflush(report->out);
}

static void print_counters(const struct report *report, const struct tally *t) {
    fprintf(report->out,
            report->text ? "%" PRIu64 " sent, %" PRIu64 " received back, %" PRIu64 " lost, %" PRIu64
                           " duplicated, %" PRIu64 " reordered, %" PRIu64 " corrupt, %" PRIu64
                           " still under way; the ring was full %" PRIu64 " times"
                         : "\"sent\":%" PRIu64 ",\"received\":%" PRIu64 ",\"lost\":%" PRIu64
                           ",\"duplicated\":%" PRIu64 ",\"reordered\":%" PRIu64 ",\"corrupt\":%" PRIu64
                           ",\"in_flight\":%" PRIu64 ",\"tx_full\":%" PRIu64,
            t->sent, t->received, tally_lost(t), t->duplicated, t->reordered, t->corrupt, tally_in_flight(t),
            t->tx_full);
}

bool report_done(const struct report *report, const struct report_totals *totals) {
    struct tally sum = {0};

    for (uint16_t q = 0; q < totals->queues; q++)
        tally_add(&sum, &totals->tallies[q]);
    double rate = totals->seconds > 0 ? (double)sum.received / totals->seconds : 0;
    if (report->text) {
        for (uint16_t q = 0; q < totals->queues; q++) {
            fprintf(report->out, "queue %u: ", q);
            print_counters(report, &totals->tallies[q]);
            fputc('\n', report->out);
        }
        fputs("done: ", report->out);
        print_counters(report, &sum);
        fprintf(report->out,
                "; %" PRIu64
                " foreign; longest silence %.1f ms; %u outages; %.0f packets a second over %.3f s\n",
                totals->foreign, totals->longest_silence_ms, totals->outages, rate, totals->seconds);
    } else {
        fputs("{\"event\":\"done\",", report->out);
        print_counters(report, &sum);
        fprintf(report->out,
                ",\"foreign\":%" PRIu64 ",\"longest_silence_ms\":%.1f,\"outages\":%u,\"seconds\":%.3f"
                ",\"rate_pps\":%.0f,\"per_queue\":[",
                totals->foreign, totals->longest_silence_ms, totals->outages, totals->seconds, rate);
        for (uint16_t q = 0; q < totals->queues; q++) {
            fprintf(report->out, "%s{\"queue\":%u,", q > 0 ? "," : "", q);
            print_counters(report, &totals->tallies[q]);
            fputc('}', report->out);
        }
        fputs("]}\n", report->out);
    }
    fflush(report->out);
    return sum.sent > 0 && sum.received == sum.sent && sum.corrupt == 0;
}
