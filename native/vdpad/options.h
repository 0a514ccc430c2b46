/* The command line: what was asked for, checked. */
#ifndef VDPAD_OPTIONS_H
#define VDPAD_OPTIONS_H

#include "log.h"

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

enum memory_mode { MEMORY_AUTO, MEMORY_HUGEPAGES, MEMORY_NONE };

struct options {
    int control_fd; /* -1: run by hand, `devices` as arguments */
    const char *socket_dir;
    const char *socket_list; /* NULL: no mapping file is written */
    mode_t socket_mode;
    uid_t socket_owner; /* (uid_t)-1: unchanged */
    gid_t socket_group; /* (gid_t)-1: unchanged */
    bool vhost_client;
    enum memory_mode memory;
    bool simulate;
    bool simulate_switch;    /* the software devices of one PF are a network */
    const char *file_prefix; /* NULL: the one of all such processes */
    unsigned int cpu;
    enum log_level log_level;
    char **devices; /* each "ADDRESS[,DEVARGS]" */
    int device_count;
};

enum options_verdict { OPTIONS_RUN, OPTIONS_HELP, OPTIONS_VERSION, OPTIONS_WRONG };

/*
 * Parses `argv`, to which the result refers. For OPTIONS_WRONG, `problem` gets the option, its value and
 * what it has to be.
 */
enum options_verdict options_parse(int argc, char **argv, struct options *options, char *problem,
                                   size_t size);

void options_print_help(FILE *stream);

#endif
