/* The thread that serves the virtqueues of one software device and sleeps while there is nothing to do. */
#ifndef VDPA_SIM_WORKER_H
#define VDPA_SIM_WORKER_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "network.h"
#include "packet.h"
#include "ring.h"
#include "stats.h"

enum { WORKER_MAX_PAIRS = NETWORK_MAX_PAIRS, WORKER_MAX_QUEUES = 2 * WORKER_MAX_PAIRS };

struct worker_queue {
    struct ring ring; /* the network's while it is an RX ring that was opened there */
    bool started;
    bool reported; /* a broken ring is reported once */
    int kickfd;
    int callfd; /* -1: the front end wants no interrupts */
    struct queue_stats stats;
};

/* Called from the worker's thread with a ring that the guest broke. */
typedef void worker_broken_fn(void *context, uint32_t queue, const char *fault);

/* Called from the worker's thread when it has to wait for a CPU: for so many percent of its time, at least.
 */
typedef void worker_crowded_fn(void *context, unsigned int percent);

/* How to serve the queues, fixed while the worker runs. */
struct worker_config {
    uint32_t pairs;
    struct packet_form form;
    struct ring_features rings;
    struct ring_memory memory;
    struct network *network; /* where packets go; NULL: back to where they came from */
    uint32_t port;           /* the device's in the network */
    mac_t only;              /* the one source address that it may send from, or 0 */
    cpu_set_t cpus;          /* where the thread may run; none: where its creator may */
};

struct worker {
    char name[16];
    bool running;
    struct worker_config config;
    pthread_t thread;
    pthread_rwlock_t queues_lock; /* the worker reads, a change of the queues writes, and writers go first */
    atomic_bool stop;
    int epfd;
    struct bell bell; /* wakes the thread; other workers ring it */
    worker_broken_fn *broken;
    worker_crowded_fn *crowded; /* NULL: nobody is told */
    void *context;
    uint32_t passes;
    uint64_t ran_ns, waited_ns; /* of the thread, when the share was looked at last */
    time_t told_s;              /* when `crowded` was called last, on the monotonic clock */
    struct packet packet;
    struct worker_queue queues[WORKER_MAX_QUEUES];
};

/* A ring as the front end has set it up. */
struct worker_ring {
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint32_t size;
    uint16_t next_avail;
    uint16_t next_used;
    int kickfd;
    int callfd;
};

/* Zeroes the worker. `name` is the thread's, cut to 15 characters. */
void worker_init(struct worker *worker, const char *name, worker_broken_fn *broken, void *context);

/* Starts the thread without any queue. 0 or -errno. */
int worker_start(struct worker *worker, const struct worker_config *config);

/* Stops the thread and all queues. When it returns, guest memory is no longer touched. */
void worker_stop(struct worker *worker);

/*
 * Starts or stops one queue of a running worker; 0 or -errno. The file descriptors are
 * duplicated. When worker_queue_stop returns, the ring is not touched any more; its indexes stay
 * readable in queues[queue].ring.
 */
int worker_queue_start(struct worker *worker, uint32_t queue, const struct worker_ring *ring);
void worker_queue_stop(struct worker *worker, uint32_t queue);

#endif
