/*
 * SIGBUS: survived where a front end truncated memory that it shares, logged and fatal everywhere else.
 *
 * State is global here: a signal handler has no other.
 */
#ifndef VDPAD_FAULT_H
#define VDPAD_FAULT_H

#include "descriptor.h"

#include <stdbool.h>

/*
 * Takes SIGBUS; the cause goes to `log_fd` before the process ends of it.
 * `wake_fd`, an eventfd or -1, is written to when fault_hit() has something to say. 0 or -errno.
 */
int fault_install(int log_fd, int wake_fd);

/* Names a file that a front end shares, before it is mapped. Returns a slot, or -ENOSPC. */
int fault_share(const struct descriptor *file);
/* Once it is no longer mapped. */
void fault_unshare(int slot);
/* Whether the file was found truncated; its mapping then holds zeros of this process alone. */
bool fault_hit(int slot);

#endif
