/*
 * The gate between front ends and DPDK: one thread that never waits for any of them.
 *
 * The gate owns the vhost-user sockets. DPDK reads its own ones with blocking calls, on one thread for all
 * devices, and obeys requests that no device offered. So it gets a private connection for each device, on
 * which only whole and judged messages arrive, one at a time, and on which its answers are always read.
 */
#ifndef VDPAD_GATE_H
#define VDPAD_GATE_H

#include "failure.h"
#include "links.h"
#include "log.h"
#include "pci_address.h"
#include "socket.h"
#include "vhost_user.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* Connections of one device that have not said a word. One more takes the place of the oldest. */
#define GATE_WAITING_MAX 4
/* What one front end may share, in bytes: of the 128 TiB that a process can map, each has a small part. */
#define GATE_MEMORY_MAX (UINT64_C(1) << 41)
/* How long a message may take, and the first one may be waited for. */
#define GATE_PATIENCE_MS 10000

/* What is behind the gate. Called on its thread, one call at a time. */
struct gate_back_end {
    void *context;
    /* Returns a connected stream socket, which the gate closes, or -errno. */
    int (*attach)(void *context, const char *address);
    /* After this the memory that was shared is not mapped any more. */
    void (*detach)(void *context, const char *address);
    /* The device is out of the gate. 0, or -errno with `failure` filled. */
    int (*leave)(void *context, const char *address, struct failure *failure);
};

struct gate_device;
struct gate_departure;

struct gate {
    const struct log *log;
    struct links *links;
    struct gate_back_end back_end;
    _Atomic int64_t patience_ms; /* changed by tests while the thread runs */
    pthread_t thread;
    int epoll_fd;
    int wake_fd;
    pthread_mutex_t mutex; /* over all that follows, up to `devices` */
    pthread_cond_t departed;
    bool stopping;
    struct gate_device *arrivals;
    struct gate_departure *departures;
    struct gate_device *devices; /* from here on the thread's own */
    struct gate_connection *dead;
};

/* A device as it comes to the gate. */
struct gate_entry {
    char address[PCI_ADDRESS_SIZE];
    char socket[SOCKET_PATH_SIZE];
    int listener; /* taken over; -1: the front end listens, and the gate connects to it */
    struct socket_file file;
    struct vhost_user_offer offer;
};

/* Starts the thread. 0 or -errno. */
int gate_start(struct gate *gate, const struct log *log, struct links *links,
               const struct gate_back_end *back_end);

/* Ends the thread, if it comes within `timeout_ms`; -ETIMEDOUT if it does not, and the gate has to stay. */
int gate_stop(struct gate *gate, int timeout_ms);

/* -ENOMEM, or -EBUSY while a device of that address is still on its way out. */
int gate_add(struct gate *gate, const struct gate_entry *entry);

/*
 * Takes the device out, and its socket's file away. Returns what `leave` did; -ETIMEDOUT if the back end has
 * not let go within `timeout_ms`, in which case it goes on on its own.
 */
int gate_remove(struct gate *gate, const char *address, int timeout_ms, struct failure *failure);

#endif
