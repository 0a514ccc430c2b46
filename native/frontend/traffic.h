/* A run: paced sending, receiving and counting on all queues, until it is enough. */
#ifndef VDPA_FRONT_TRAFFIC_H
#define VDPA_FRONT_TRAFFIC_H

#include <signal.h>
#include <stdbool.h>

#include "options.h"
#include "port.h"
#include "report.h"

/* Runs to the end that `options` or `*stop` give. Sets whether everything came back intact. 0 or -errno. */
int traffic_run(const struct port *port, const struct options *options, const struct report *report,
                const volatile sig_atomic_t *stop, bool *intact);

#endif
