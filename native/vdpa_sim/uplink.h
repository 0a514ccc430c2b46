/* A switch's port to the outside: a tap device, and the thread that waits for what comes in by it. */
#ifndef VDPA_SIM_UPLINK_H
#define VDPA_SIM_UPLINK_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>

#include "packet.h"

struct uplink;

/* Called from the uplink's thread while frames may be there: to take some by uplink_take. */
typedef void uplink_ready_fn(void *context);

/* What became of an uplink that was open: `problem`, or NULL: it is back. Called from the uplink's thread. */
typedef void uplink_report_fn(const char *tap, const char *problem);

struct uplink_config {
    const char *tap;
    cpu_set_t cpus; /* where the thread may run; none: where its creator may */
    uplink_ready_fn *ready;
    void *context;
    uplink_report_fn *report;
};

/* Opens the tap and starts the thread. 0, or -errno with what is wrong and what to do in `problem`. */
int uplink_open(struct uplink **uplink, const struct uplink_config *config, char *problem, size_t size);

/* Ends the thread. No other one may use the uplink by then. */
void uplink_close(struct uplink *uplink);

const char *uplink_tap(const struct uplink *uplink);

/* How its packets are. */
extern const struct packet_form uplink_form;

/* For the uplink's thread: the next frame. Returns whether there was one. */
bool uplink_take(struct uplink *uplink, struct packet *packet);

/* For any thread: sends a frame out, without waiting. Returns whether it was taken. */
bool uplink_send(struct uplink *uplink, struct packet *packet);

#endif
