/* DPDK's environment abstraction layer: started with arguments of our own, its log lines turned into ours. */
#ifndef VDPAD_EAL_H
#define VDPAD_EAL_H

#include "failure.h"
#include "log.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

struct eal_settings {
    bool hugepages;
    bool simulate;
    unsigned int cpu;
    const char *file_prefix;
};

struct eal {
    const struct log *log;
    FILE *stream;
    bool started;
    pthread_mutex_t mutex; /* guards `error`: any of DPDK's threads may log */
    char error[256];
};

/*
 * Signals are to be blocked before: the threads that this starts inherit the mask. 0, or -errno with
 * `failure` filled.
 */
int eal_start(struct eal *eal, const struct log *log, const struct eal_settings *settings,
              struct failure *failure);
void eal_stop(struct eal *eal);

/* "22.11.11" */
const char *eal_version(void);

/* What DPDK logged first as an error since eal_forget_error(), or "" if nothing. */
void eal_forget_error(struct eal *eal);
void eal_first_error(struct eal *eal, char *text, size_t size);

#endif
