/* Who is connected to which device: written by DPDK's threads, read by the main loop, which hears of it by an
 * eventfd. */
#include "links.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int links_init(struct links *links) {
    int error;

    *links = (struct links){.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (links->event_fd < 0)
        return -errno;
    error = pthread_mutex_init(&links->mutex, NULL);
    if (error != 0)
        (void)close(links->event_fd);
    return -error;
}

void links_destroy(struct links *links) {
    for (size_t i = 0; i < links->count; i++)
        free(links->entries[i]);
    links->count = 0;
    (void)pthread_mutex_destroy(&links->mutex);
    (void)close(links->event_fd);
}

static void lock(struct links *links) {
    (void)pthread_mutex_lock(&links->mutex);
}

static void unlock(struct links *links) {
    (void)pthread_mutex_unlock(&links->mutex);
}

/* Locks and finds; NULL for a socket that is not (or no longer) ours. */
static struct link *lock_link(struct links *links, const char *socket) {
    lock(links);
    for (size_t i = 0; i < links->count; i++) {
        if (strcmp(links->entries[i]->socket, socket) == 0)
            return links->entries[i];
    }
    return NULL;
}

static enum link_state state_of(const struct link *link) {
    if (link->connections == 0)
        return LINK_DISCONNECTED;
    return link->owner < 0 ? LINK_CONNECTED : LINK_CONFIGURED;
}

/* An eventfd that is full is readable already, so a failed write loses nothing. */
static void unlock_and_wake(struct links *links) {
    const uint64_t one = 1;
    ssize_t put;

    unlock(links);
    do {
        put = write(links->event_fd, &one, sizeof(one));
    } while (put < 0 && errno == EINTR);
}

int links_add(struct links *links, const char *address, const char *socket) {
    struct link *link = calloc(1, sizeof(*link));
    int error = link == NULL ? -ENOMEM : 0;

    if (error == 0) {
        link->owner = -1;
        (void)snprintf(link->address, sizeof(link->address), "%s", address);
        (void)snprintf(link->socket, sizeof(link->socket), "%s", socket);
        lock(links);
        if (links->count == DEVICES_MAX)
            error = -ENOSPC;
        else
            links->entries[links->count++] = link;
        unlock(links);
    }
    if (error != 0)
        free(link);
    return error;
}

enum link_state links_remove(struct links *links, const char *socket) {
    enum link_state announced = LINK_DISCONNECTED;

    lock(links);
    for (size_t i = 0; i < links->count; i++) {
        if (strcmp(links->entries[i]->socket, socket) == 0) {
            announced = links->entries[i]->announced;
            free(links->entries[i]);
            links->entries[i] = links->entries[--links->count];
            break;
        }
    }
    unlock(links);
    return announced;
}

enum link_state links_state(struct links *links, const char *socket) {
    const struct link *link = lock_link(links, socket);
    enum link_state state = link == NULL ? LINK_DISCONNECTED : state_of(link);

    unlock(links);
    return state;
}

size_t links_load(struct links *links) {
    size_t load;

    lock(links);
    load = links->count;
    for (size_t i = 0; i < links->count; i++)
        load += links->entries[i]->connections;
    unlock(links);
    return load;
}

/* One step from what was announced towards what is: a drop is told even if the front end is back already. */
static bool step(struct link *link) {
    enum link_state state = state_of(link);

    if (link->dropped && link->announced != LINK_DISCONNECTED)
        state = LINK_DISCONNECTED;
    else if (state == LINK_CONFIGURED && link->announced == LINK_DISCONNECTED)
        state = LINK_CONNECTED;
    link->dropped = false;
    if (state == link->announced)
        return false;
    link->announced = state;
    return true;
}

bool links_next_change(struct links *links, struct link_change *change) {
    bool found = false;

    lock(links);
    for (size_t i = 0; i < links->count && !found; i++) {
        struct link *link = links->entries[i];

        found = step(link);
        if (found) {
            *change = (struct link_change){.state = link->announced, .queue_pairs = link->queue_pairs};
            (void)snprintf(change->address, sizeof(change->address), "%s", link->address);
        }
    }
    unlock(links);
    return found;
}

int links_connected(struct links *links, const char *socket, char address[PCI_ADDRESS_SIZE]) {
    struct link *link = lock_link(links, socket);
    int error = 0;

    if (link == NULL)
        error = -ENOENT;
    else if (link->owner >= 0)
        error = -EBUSY;
    else
        link->connections++;
    if (link != NULL && address != NULL)
        (void)snprintf(address, PCI_ADDRESS_SIZE, "%s", link->address);
    unlock_and_wake(links);
    return error;
}

void links_configured(struct links *links, const char *socket, int vhost_id, unsigned int queue_pairs) {
    struct link *link = lock_link(links, socket);

    if (link != NULL && link->owner < 0) {
        link->owner = vhost_id;
        link->queue_pairs = queue_pairs;
    }
    unlock_and_wake(links);
}

void links_unconfigured(struct links *links, const char *socket, int vhost_id) {
    struct link *link = lock_link(links, socket);

    if (link != NULL && link->owner == vhost_id)
        link->owner = -1;
    unlock_and_wake(links);
}

void links_disconnected(struct links *links, const char *socket, int vhost_id) {
    struct link *link = lock_link(links, socket);

    if (link != NULL && link->connections > 0) {
        link->connections--;
        if (link->owner == vhost_id)
            link->owner = -1;
        link->dropped = link->connections == 0 || link->dropped;
    }
    unlock_and_wake(links);
}
