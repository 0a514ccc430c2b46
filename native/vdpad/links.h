/*
 * Who is connected to which device: written by the gate and DPDK's threads, read by the main loop, which
 * an eventfd wakes.
 */
#ifndef VDPAD_LINKS_H
#define VDPAD_LINKS_H

#include "pci_address.h"
#include "vhost_user.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * DPDK's event loop has 1,024 places and takes one for itself. A device takes none for its socket, which is
 * the gate's, and one while it is served: so all of them can be in use at once.
 */
#define DEVICES_MAX 1023

/* The rings of one device: VHOST_MAX_VRING of DPDK's lib/vhost/vhost.h. */
#define LINK_RINGS_MAX 256

enum link_state { LINK_DISCONNECTED, LINK_CONNECTED, LINK_CONFIGURED };

struct link {
    char address[PCI_ADDRESS_SIZE];
    unsigned int connections;
    int owner;                           /* the vhost id whose rings the device serves, or -1 */
    uint64_t ready[LINK_RINGS_MAX / 64]; /* the rings that are set up and enabled, a bit each */
    bool dropped;                        /* was disconnected since the last look */
    enum link_state announced;           /* what links_next_change() reported last */
    unsigned int announced_pairs;        /* likewise */
    uint64_t refusals[REFUSAL_COUNT];
};

struct links {
    pthread_mutex_t mutex;
    int event_fd; /* readable when links_next_change() may have something */
    size_t count;
    struct link *entries[DEVICES_MAX];
};

/*
 * A step of one device: the state that it is in now, and the queue pairs that are in use if it is configured.
 */
struct link_change {
    char address[PCI_ADDRESS_SIZE];
    enum link_state state;
    unsigned int queue_pairs;
};

int links_init(struct links *links);
void links_destroy(struct links *links);

/* By the main loop, before the socket listens. -ENOMEM, -ENOSPC. */
int links_add(struct links *links, const char *address);
/* By the main loop, after the socket is gone; returns the state that was announced last. */
enum link_state links_remove(struct links *links, const char *address);
/* `queue_pairs` becomes the number of those that are in use: 0 unless the front end is configured. */
enum link_state links_state(struct links *links, const char *address, unsigned int *queue_pairs);
/* How many front ends were refused, by reason. */
void links_refusals(struct links *links, const char *address, uint64_t refusals[REFUSAL_COUNT]);

/*
 * Takes the next step to announce; false when there is none. What came and went between two looks is one
 * step, so a front end that reconnects without end cannot fill the memory of vdpad or of the agent.
 */
bool links_next_change(struct links *links, struct link_change *change);

/* By the gate. */
void links_connected(struct links *links, const char *address);
void links_disconnected(struct links *links, const char *address);
void links_refused(struct links *links, const char *address, enum refusal refusal);

/* By DPDK's threads. A second owner is not taken, and only the owner can give the device back. */
void links_configured(struct links *links, const char *address, int vhost_id);
void links_unconfigured(struct links *links, const char *address, int vhost_id);
/* A front end sets a ring up and enables it, or stops or disables it. */
void links_ring(struct links *links, const char *address, unsigned int ring, bool ready);
/* Another front end comes, none of whose rings is ready yet. */
void links_no_rings(struct links *links, const char *address);

#endif
