/* The daemon as a whole: its parts, its main loop and its requests. */
#ifndef VDPAD_DAEMON_H
#define VDPAD_DAEMON_H

#include "control.h"
#include "device.h"
#include "log.h"
#include "mapping_file.h"
#include "options.h"

#include <stdbool.h>

struct daemon {
    const struct log *log;
    const struct options *options;
    bool hugepages; /* what --memory came to */
    int signal_fd;  /* readable when the process is asked to stop */
    bool stopping;
    struct devices devices;
    struct mapping_file mapping_file;
    bool mapping_stale;        /* the file is not what it should be: written again every MAPPING_RETRY_MS */
    char mapping_problem[640]; /* why, as logged last */
    struct control control;
};

/* Serves until asked to stop. 0, or -errno after a failure that was logged. */
int daemon_run(struct daemon *daemon);

/* Writes the mapping of the devices that there are; false if it has to be tried again. */
bool daemon_write_mapping(struct daemon *daemon);

/* Logs one step of a device's link, and reports it to the control end. */
void daemon_announce(struct daemon *daemon, const struct link_change *change);

/* The requests of the control end; their context is a struct daemon. */
extern const struct control_method daemon_methods[];

#endif
