/* Devices that are made up, in the place of device.c and eal.c: no DPDK is needed. */
#ifndef VDPAD_TESTS_FAKE_DEVICES_H
#define VDPAD_TESTS_FAKE_DEVICES_H

#include "device.h"

/* What the devices do next; all zero: what is asked. */
struct fake_next {
    int add_error;
    int remove_error;
    enum link_state announced;
    int stats_error;
    struct socket_file file;
    char devargs[64];
};

extern struct fake_next fake_next;

#endif
