/* A tap device of Linux that was made beforehand: opened without any capability, read and written by frame.
 */
#ifndef VDPA_SIM_TAP_H
#define VDPA_SIM_TAP_H

#include <stddef.h>

/*
 * Opens a tap device of this network namespace, for frames behind a virtio-net header of TAP_HEADER bytes,
 * little endian. Returns a descriptor that never blocks, or -errno, with what is wrong and what to do in
 * `problem`.
 */
enum { TAP_HEADER = 10 };
int tap_open(const char *name, char *problem, size_t size);

#endif
