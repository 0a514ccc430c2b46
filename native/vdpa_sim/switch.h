/* The rules of a learning Ethernet switch: which port a frame goes to, without the ports themselves. */
#ifndef VDPA_SIM_SWITCH_H
#define VDPA_SIM_SWITCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    SWITCH_PORTS = 256,           /* the functions of one PCI bus */
    SWITCH_UPLINK = SWITCH_PORTS, /* one more, behind which there are many stations */
    SWITCH_WAYS = 8,
    SWITCH_BUCKETS = 4096,
    SWITCH_AGE_S = 300,         /* IEEE 802.1D's default */
    SWITCH_PORT_QUOTA = 64,     /* addresses learned at one port */
    SWITCH_UPLINK_QUOTA = 8192, /* and at the uplink: together they are fewer than the table has places */
    SWITCH_HEADER = 14,         /* of an Ethernet frame */
};

/* The addresses, least significant byte last on the wire; 0 is no address of a station. */
typedef uint64_t mac_t;

/*
 * Addresses and their ports. Any thread may use any function at any time; nobody waits for another. A port
 * replaces entries of its own and stale ones alone, so that it cannot make the others' frames be flooded.
 */
struct switch_table {
    uint64_t secret[2]; /* of the hash, so that nobody can aim at a bucket */
    struct {
        _Atomic uint64_t keys[SWITCH_WAYS]; /* address, port, and whether it is pinned; 0: free */
        _Atomic uint32_t seen[SWITCH_WAYS]; /* when, in seconds */
    } buckets[SWITCH_BUCKETS];
    _Atomic uint32_t learned[SWITCH_PORTS + 1]; /* entries of each port */
    _Atomic uint32_t swept[SWITCH_PORTS + 1];   /* when a port's stale entries were last looked for */
};

/* `table` is zeroed. `secret` is random. */
void switch_init(struct switch_table *table, const uint64_t secret[2]);

/* An address in the order of the wire. */
mac_t switch_mac(const uint8_t bytes[6]);

/* Whether it can be the address of one station: neither of a group nor zero. */
bool switch_is_station(mac_t mac);

/* The port of an address at `now_s`, or -1. */
int switch_find(struct switch_table *table, mac_t mac, uint32_t now_s);

/* Notes that the address is at that port, if it is no other port's by switch_pin and there is room. */
void switch_learn(struct switch_table *table, mac_t mac, uint32_t port, uint32_t now_s);

/* Gives the address to that port alone, until switch_unpin. -EEXIST: it is another port's; -ENOSPC. */
int switch_pin(struct switch_table *table, mac_t mac, uint32_t port);
void switch_unpin(struct switch_table *table, mac_t mac, uint32_t port);

/* Forgets what was learned at a port. */
void switch_forget(struct switch_table *table, uint32_t port);

enum switch_route {
    SWITCH_REFUSE, /* it is no frame, or of a source that it must not have */
    SWITCH_FLOOD,  /* to all other ports */
    SWITCH_ONE,    /* to one other port */
    SWITCH_STAY,   /* its destination is at the port it came from */
};

/*
 * Where a frame goes that came in at `port`, of which `head` are the first `len` bytes. Learns its source.
 * `only` is the one source that the port may have, or 0. *to is the port of SWITCH_ONE.
 */
enum switch_route switch_route(struct switch_table *table, uint32_t port, mac_t only, const uint8_t *head,
                               uint32_t len, uint32_t now_s, uint32_t *to);

/* A number that all frames of one flow have in common: of addresses, and of ports where there are any. */
uint32_t switch_flow(const uint8_t *head, uint32_t len);

#endif
