/*
 * The devices of one PF and VLAN as a network: each is a port of one switch, and its worker copies what it
 * sends into the receivers' rings.
 *
 * A worker holds the lock of one outlet at a time, and waits for nothing while it does: no front end can make
 * it. A ring that is taken away is marked as closed first, so that who wants its lock gets it after the
 * present burst at most.
 */
#include "network.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

static struct network *networks;

struct network *network_join(uint64_t id) {
    uint64_t secret[2];
    struct network *network = networks;

    while (network != NULL && network->id != id)
        network = network->next;
    if (network != NULL) {
        network->users++;
        return network;
    }
    if (getrandom(secret, sizeof(secret), 0) != (ssize_t)sizeof(secret))
        return NULL;
    network = aligned_alloc(_Alignof(struct network), sizeof(*network));
    if (network == NULL)
        return NULL;
    memset(network, 0, sizeof(*network));
    switch_init(&network->table, secret);
    for (uint32_t port = 0; port < SWITCH_PORTS; port++)
        for (uint32_t pair = 0; pair < NETWORK_MAX_PAIRS; pair++)
            pthread_mutex_init(&network->ports[port].outlets[pair].lock, NULL);
    network->id = id;
    network->users = 1;
    network->next = networks;
    networks = network;
    return network;
}

void network_leave(struct network *network) {
    struct network **at = &networks;

    if (--network->users > 0)
        return;
    while (*at != network)
        at = &(*at)->next;
    *at = network->next;
    if (atomic_load(&network->uplink) != NULL)
        uplink_close(atomic_load(&network->uplink));
    free(network->incoming);
    for (uint32_t port = 0; port < SWITCH_PORTS; port++)
        for (uint32_t pair = 0; pair < NETWORK_MAX_PAIRS; pair++)
            pthread_mutex_destroy(&network->ports[port].outlets[pair].lock);
    free(network);
}

void network_open(struct network *network, uint32_t port, uint32_t pair, const struct outlet_ring *to) {
    struct outlet *outlet = &network->ports[port].outlets[pair];

    pthread_mutex_lock(&outlet->lock);
    outlet->to = *to;
    pthread_mutex_unlock(&outlet->lock);
    atomic_fetch_or(&network->ports[port].open, UINT32_C(1) << pair);
    atomic_fetch_or(&network->up[port / 64], UINT64_C(1) << port % 64);
}

void network_close(struct network *network, uint32_t port, uint32_t pair) {
    struct outlet *outlet = &network->ports[port].outlets[pair];
    uint32_t bit = UINT32_C(1) << pair;

    if ((atomic_fetch_and(&network->ports[port].open, ~bit) & ~bit) == 0) {
        atomic_fetch_and(&network->up[port / 64], ~(UINT64_C(1) << port % 64));
        switch_forget(&network->table, port);
    }
    pthread_mutex_lock(&outlet->lock);
    outlet->to = (struct outlet_ring){0};
    pthread_mutex_unlock(&outlet->lock);
}

static void ring_bell(struct bell *bell, uint32_t what) {
    const uint64_t one = 1;

    /* Rung already, the worker is on its way. A counter that is full is readable too. */
    if (atomic_fetch_or(&bell->rung, what) == 0 && write(bell->fd, &one, sizeof(one)) < 0)
        return;
}

/* What is being done to one outlet, whose lock is held. */
struct lease {
    struct port *port;
    struct outlet *outlet; /* NULL: none is held */
    uint32_t pair;
    uint32_t packets;
    uint32_t dropped;
    uint64_t bytes;
};

static void lease_end(struct lease *lease) {
    struct outlet_ring *to;
    uint32_t what = 0;

    if (lease->outlet == NULL)
        return;
    to = &lease->outlet->to;
    if (lease->packets > 0 && ring_publish(to->ring))
        what |= BELL_FILLED(lease->pair);
    stats_add(&to->stats->packets, lease->packets);
    stats_add(&to->stats->bytes, lease->bytes);
    stats_add(&to->stats->dropped, lease->dropped);
    if (to->ring->fault != NULL &&
        (atomic_fetch_and(&lease->port->open, ~(UINT32_C(1) << lease->pair)) & UINT32_C(1) << lease->pair))
        what |= BELL_BROKEN(lease->pair);
    if (what != 0)
        ring_bell(to->bell, what);
    pthread_mutex_unlock(&lease->outlet->lock);
    *lease = (struct lease){0};
}

/* The outlet is held afterwards, unless it has been closed. */
static bool lease_begin(struct lease *lease, struct port *port, uint32_t pair) {
    struct outlet *outlet = &port->outlets[pair];

    if (lease->outlet == outlet)
        return true;
    lease_end(lease);
    pthread_mutex_lock(&outlet->lock);
    if (outlet->to.ring == NULL) {
        pthread_mutex_unlock(&outlet->lock);
        return false;
    }
    lease->port = port;
    lease->outlet = outlet;
    lease->pair = pair;
    return true;
}

/* The queue pair of a flow, of those in `open`, which is not empty. */
static uint32_t choose_pair(uint32_t open, const struct packet *packet) {
    uint32_t skip = 0;

    if ((open & (open - 1)) != 0)
        skip = switch_flow(packet->head, packet->head_len) % (uint32_t)__builtin_popcount(open);
    for (; skip > 0; skip--)
        open &= open - 1;
    return (uint32_t)__builtin_ctz(open);
}

enum { ADDRESSES = 12 }; /* bytes of the two addresses at a frame's start */

/* The route of the frames of a run; those between the same two stations follow each other. */
struct way {
    bool known;
    uint8_t addresses[ADDRESSES];
    enum switch_route route;
    uint32_t to;
};

/* Frames of one port, one after the other. */
struct run {
    const struct sender *sender;
    struct lease lease;
    struct way way;
    uint32_t now;
    uint32_t lost; /* what the uplink did not take */
};

/* Returns whether there was anybody to deliver to. */
static bool deliver(struct run *run, uint32_t number, struct packet *packet) {
    struct port *port = &run->sender->network->ports[number];
    struct lease *lease = &run->lease;
    uint32_t open = atomic_load_explicit(&port->open, memory_order_relaxed);

    if (open == 0 || !lease_begin(lease, port, choose_pair(open, packet)))
        return false;
    const struct outlet_ring *to = &lease->outlet->to;
    if (packet_deliver(packet, to->ring, &to->form) == PACKET_DELIVERED) {
        lease->packets++;
        lease->bytes += packet->bytes;
    } else {
        lease->dropped++;
    }
    return true;
}

/* To the outside, while no outlet is held. Returns whether there is one. */
static bool deliver_up(struct run *run, struct packet *packet) {
    struct uplink *uplink = atomic_load_explicit(&run->sender->network->uplink, memory_order_acquire);

    if (uplink == NULL || run->sender->port == SWITCH_UPLINK)
        return false;
    lease_end(&run->lease);
    if (!uplink_send(uplink, packet))
        run->lost++;
    return true;
}

/* Returns the number of receivers. */
static uint32_t flood(struct run *run, struct packet *packet) {
    const struct sender *sender = run->sender;
    uint32_t receivers = deliver_up(run, packet) ? 1 : 0;

    for (uint32_t i = 0; i < SWITCH_PORTS / 64; i++) {
        uint64_t up = atomic_load_explicit(&sender->network->up[i], memory_order_relaxed);
        for (; up != 0; up &= up - 1) {
            uint32_t port = i * 64 + (uint32_t)__builtin_ctzll(up);
            if (port != sender->port && deliver(run, port, packet))
                receivers++;
        }
    }
    return receivers;
}

static uint32_t now_s(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint32_t)t.tv_sec;
}

static void find_way(struct run *run, const struct packet *packet) {
    const struct sender *sender = run->sender;
    const bool whole = packet->head_len >= SWITCH_HEADER;
    struct way *way = &run->way;

    if (whole && way->known && memcmp(way->addresses, packet->head, ADDRESSES) == 0)
        return;
    way->route = switch_route(&sender->network->table, sender->port, sender->only, packet->head,
                              packet->head_len, run->now, &way->to);
    way->known = whole;
    memcpy(way->addresses, packet->head, ADDRESSES);
}

/* Brings a packet to all who are to have it. Returns whether it was one for the switch; *work: the copies. */
static bool forward(struct run *run, struct packet *packet, uint32_t *work) {
    packet_read_head(packet);
    if (packet_is_too_long(packet, &run->sender->form))
        return false;
    find_way(run, packet);
    if (run->way.route == SWITCH_FLOOD)
        *work += flood(run, packet);
    else if (run->way.route == SWITCH_ONE && run->way.to == SWITCH_UPLINK)
        (void)deliver_up(run, packet);
    else if (run->way.route == SWITCH_ONE)
        (void)deliver(run, run->way.to, packet);
    return run->way.route != SWITCH_REFUSE;
}

struct network_result network_run(const struct sender *sender, struct packet *packet, struct ring *tx,
                                  uint32_t budget) {
    struct network_result result = {0};
    struct run run = {.sender = sender, .now = now_s()};

    /* Each copy counts, so that a run is short however many receivers there are. */
    for (uint32_t work = 0; work < budget; work++) {
        uint16_t head;
        if (packet_take(packet, tx, &sender->form, &head) <= 0)
            break;
        bool sent = forward(&run, packet, &work);
        ring_push(tx, head, 0);
        if (!sent) {
            result.dropped++;
        } else {
            result.sent++;
            result.bytes += packet->bytes;
        }
    }
    lease_end(&run.lease);
    result.lost = run.lost;
    /* Received before sent: if the process is killed in between, a packet comes twice rather than never. */
    if (result.sent + result.dropped > 0)
        result.interrupt = ring_publish(tx);
    return result;
}

enum { UPLINK_BUDGET = 64 };

/* A turn of the uplink: what came in from the outside. */
static void take_in(void *context) {
    struct network *network = context;
    const struct sender outside = {.network = network, .port = SWITCH_UPLINK, .form = uplink_form};
    struct run run = {.sender = &outside, .now = now_s()};
    struct uplink *uplink = atomic_load(&network->uplink);

    for (uint32_t work = 0; work < UPLINK_BUDGET && uplink_take(uplink, network->incoming); work++)
        (void)forward(&run, network->incoming, &work);
    lease_end(&run.lease);
}

int network_connect(struct network *network, const char *tap, const cpu_set_t *cpus, uplink_report_fn *report,
                    char *problem, size_t size) {
    const struct uplink_config config = {
        .tap = tap, .cpus = *cpus, .ready = take_in, .context = network, .report = report};
    struct uplink *uplink = atomic_load(&network->uplink);
    int rc;

    if (uplink != NULL && strcmp(uplink_tap(uplink), tap) == 0)
        return 0;
    if (uplink != NULL) {
        snprintf(problem, size, "uplink=%s is a second one for its switch, which has %s: give both the same",
                 tap, uplink_tap(uplink));
        return -EEXIST;
    }
    network->incoming = malloc(sizeof(*network->incoming));
    if (network->incoming == NULL) {
        snprintf(problem, size, "out of memory");
        return -ENOMEM;
    }
    rc = uplink_open(&uplink, &config, problem, size);
    if (rc != 0) {
        free(network->incoming);
        network->incoming = NULL;
        return rc;
    }
    atomic_store(&network->uplink, uplink);
    return 0;
}
