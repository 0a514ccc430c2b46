/* Who is connected to which device: written by DPDK's threads, read by the main loop, which hears of it by an
 * eventfd. */
#ifndef VDPAD_LINKS_H
#define VDPAD_LINKS_H

#include "pci_address.h"
#include "socket.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

/* DPDK's event loop has 1024 places, for sockets and connections together, and takes one for itself. */
#define DEVICES_MAX 1023

enum link_state { LINK_DISCONNECTED, LINK_CONNECTED, LINK_CONFIGURED };

struct link {
    char address[PCI_ADDRESS_SIZE];
    char socket[SOCKET_PATH_SIZE];
    unsigned int connections;
    int owner;                 /* the vhost id whose rings the device serves, or -1 */
    unsigned int queue_pairs;  /* of the owner */
    bool dropped;              /* was disconnected since the last look */
    enum link_state announced; /* what links_next_change() told last */
};

struct links {
    pthread_mutex_t mutex;
    int event_fd; /* readable when links_next_change() may have something */
    size_t count;
    struct link *entries[DEVICES_MAX];
};

/* A step of one device: the state that it is in now. */
struct link_change {
    char address[PCI_ADDRESS_SIZE];
    enum link_state state;
    unsigned int queue_pairs;
};

int links_init(struct links *links);
void links_destroy(struct links *links);

/* By the main loop, before the socket listens. -ENOMEM, -ENOSPC. */
int links_add(struct links *links, const char *address, const char *socket);
/* By the main loop, after the socket is gone; returns the state that was announced last. */
enum link_state links_remove(struct links *links, const char *socket);
enum link_state links_state(struct links *links, const char *socket);
/* How many sockets and connections there are together. */
size_t links_load(struct links *links);

/*
 * Takes the next step to announce; false when there is none. What came and went between two looks is told as
 * one step, so a front end that reconnects without end cannot fill anybody's memory.
 */
bool links_next_change(struct links *links, struct link_change *change);

/*
 * By DPDK's threads. links_connected() is -EBUSY while another front end has the device: a second one would
 * get no traffic, or take the device away from the first. `address` (may be NULL) tells the device for a log
 * line.
 */
int links_connected(struct links *links, const char *socket, char address[PCI_ADDRESS_SIZE]);
void links_configured(struct links *links, const char *socket, int vhost_id, unsigned int queue_pairs);
void links_unconfigured(struct links *links, const char *socket, int vhost_id);
void links_disconnected(struct links *links, const char *socket, int vhost_id);

#endif
