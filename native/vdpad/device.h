/* The vDPA devices that are served: plugged into DPDK, each behind its own vhost-user socket. */
#ifndef VDPAD_DEVICE_H
#define VDPAD_DEVICE_H

#include "eal.h"
#include "failure.h"
#include "gate.h"
#include "links.h"
#include "log.h"
#include "pci_address.h"
#include "private_directory.h"
#include "socket.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define DEVICE_REMOVE_MS 900

struct device {
    char address[PCI_ADDRESS_SIZE];
    char socket[SOCKET_PATH_SIZE];
    char driver[64];
    const char *type;
    uint32_t queue_pairs;
    uint64_t features;
    uint64_t protocol_features;
    struct vhost_user_offer offer;
    int numa_node;
    bool vhost_client;       /* the front end owns the socket, and the gate connects to it again and again */
    struct socket_file file; /* of the socket; zeros where the front end makes it */
};

/* How every device of this process is plugged and served. */
struct device_settings {
    bool simulate;        /* a software device in place of each */
    bool simulate_switch; /* those of one PCI bus are ports of one switch, and not loopbacks */
    struct socket_access access;
    const char *socket_dir;
};

/* What was asked for; the address is normalised, `devargs` may be empty. */
struct device_request {
    const char *address;
    const char *devargs;
    const char *socket;
    bool vhost_client;
};

struct devices {
    const struct log *log;
    struct eal *eal;
    struct device_settings settings;
    struct private_directory directory;
    struct links links;
    struct gate gate;
    pthread_mutex_t hotplug; /* DPDK plugs and unplugs one device at a time */
    unsigned int simulated;  /* software devices ever made: each needs a name of its own */
    size_t count;
    struct device *entries[DEVICES_MAX]; /* in order of addition */
};

int devices_init(struct devices *devices, const struct log *log, struct eal *eal,
                 const struct device_settings *settings);
/*
 * Removes every device, the last first.
 * -ETIMEDOUT if DPDK holds on to one: its threads still use `devices`.
 */
int devices_destroy(struct devices *devices);

/* NULL if `address` is not one of ours. */
const struct device *devices_find(const struct devices *devices, const char *address);

/* 0, or -errno with `failure` filled and nothing left behind. */
int devices_add(struct devices *devices, const struct device_request *request, struct failure *failure);

/*
 * Removes the device from the table in any case; -errno with `failure` filled if DPDK did not let it go, or
 * has not yet after DEVICE_REMOVE_MS. `announced` gets the state of its link that was reported last.
 */
int devices_remove(struct devices *devices, const char *address, enum link_state *announced,
                   struct failure *failure);

/* Calls `visit` with each counter of each virtqueue that has any. */
typedef void devices_visit_stat(void *context, unsigned int queue, const char *name, uint64_t value);
int devices_stats(const struct device *device, devices_visit_stat *visit, void *context,
                  struct failure *failure);

#endif
