/*
 * The devices of one PF and VLAN as a network: each is a port of one switch, and its worker copies what it
 * sends into the receivers' rings.
 */
#ifndef VDPA_SIM_NETWORK_H
#define VDPA_SIM_NETWORK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "packet.h"
#include "ring.h"
#include "stats.h"
#include "switch.h"
#include "uplink.h"

enum { NETWORK_MAX_PAIRS = 8 };

/*
 * How a worker hears of what others did to its RX rings. It alone interrupts its front end, which can make
 * that wait.
 */
struct bell {
    _Atomic uint32_t rung; /* per queue pair: BELL_FILLED, BELL_BROKEN */
    int fd;                /* an eventfd that never blocks */
};

#define BELL_FILLED(pair) (UINT32_C(1) << (pair))
#define BELL_BROKEN(pair) (UINT32_C(1) << (NETWORK_MAX_PAIRS + (pair)))

/* An RX ring that packets can be delivered to. */
struct outlet_ring {
    struct ring *ring;
    struct packet_form form;
    struct queue_stats *stats;
    struct bell *bell;
};

/* The place of an RX ring, which is there whether the ring is or not. */
struct outlet {
    pthread_mutex_t lock; /* over `to` and all that it points to */
    struct outlet_ring to;
} __attribute__((aligned(64)));

struct port {
    struct outlet outlets[NETWORK_MAX_PAIRS];
    _Atomic uint32_t open; /* one bit per outlet with a working ring */
};

struct network {
    struct switch_table table;
    struct port ports[SWITCH_PORTS];
    _Atomic uint64_t up[SWITCH_PORTS / 64]; /* ports with any outlet open */
    _Atomic(struct uplink *) uplink;        /* NULL: none */
    struct packet *incoming;                /* the uplink's */
    uint64_t id;
    uint32_t users;
    struct network *next;
};

/*
 * The network of that number, made if it is the first use of it; NULL: no memory. network_leave() frees it
 * after its last use. Both are for one thread at a time.
 */
struct network *network_join(uint64_t id);
void network_leave(struct network *network);

/*
 * Gives the network an uplink, which it keeps as long as it is there. 0: it has that one; -EEXIST: it has
 * another; else as uplink_open. For one thread at a time.
 */
int network_connect(struct network *network, const char *tap, const cpu_set_t *cpus, uplink_report_fn *report,
                    char *problem, size_t size);

/*
 * Lets packets into an RX ring, which is then the network's until network_close returns. Both are for one
 * thread of the port at a time.
 */
void network_open(struct network *network, uint32_t port, uint32_t pair, const struct outlet_ring *to);
void network_close(struct network *network, uint32_t port, uint32_t pair);

/* A device as it sends. */
struct sender {
    struct network *network;
    uint32_t port;
    mac_t only; /* the one source address that it may have, or 0 */
    struct packet_form form;
};

struct network_result {
    uint32_t sent;    /* frames that the switch took, whether anybody received them or not */
    uint32_t dropped; /* what is no frame, is beyond the MTU, has a source that it must not have */
    uint32_t lost;    /* of the sent ones: what the uplink did not take */
    uint64_t bytes;   /* of the sent ones, without their virtio-net headers */
    bool interrupt;   /* the front end wants to hear of its sent packets */
};

/*
 * Takes packets from a TX ring and delivers them, until `budget` packets and copies for all ports are done.
 * What a receiver has no room for is dropped and counted there. `packet` is room for one.
 */
struct network_result network_run(const struct sender *sender, struct packet *packet, struct ring *tx,
                                  uint32_t budget);

#endif
