/*
 * Who is connected to which device: written by the gate and DPDK's threads, read by the main loop, which
 * an eventfd wakes.
 */
#include "links.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define EVEN_BITS UINT64_C(0x5555555555555555)

int links_init(struct links *links) {
    int error;

    *links = (struct links){.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (links->event_fd < 0)
        return -errno;
    error = pthread_mutex_init(&links->mutex, NULL);
    if (error != 0)
        close(links->event_fd);
    return -error;
}

void links_destroy(struct links *links) {
    for (size_t i = 0; i < links->count; i++)
        free(links->entries[i]);
    links->count = 0;
    pthread_mutex_destroy(&links->mutex);
    close(links->event_fd);
}

static void lock(struct links *links) {
    pthread_mutex_lock(&links->mutex);
}

static void unlock(struct links *links) {
    pthread_mutex_unlock(&links->mutex);
}

/* Locks and finds; NULL for a device that is not (or no longer) ours. */
static struct link *lock_link(struct links *links, const char *address) {
    lock(links);
    for (size_t i = 0; i < links->count; i++) {
        if (strcmp(links->entries[i]->address, address) == 0)
            return links->entries[i];
    }
    return NULL;
}

static enum link_state state_of(const struct link *link) {
    if (link->connections == 0)
        return LINK_DISCONNECTED;
    return link->owner < 0 ? LINK_CONNECTED : LINK_CONFIGURED;
}

/* Pairs whose rings are both ready; a device without a configured front end has none in use. */
static unsigned int pairs_of(const struct link *link) {
    unsigned int pairs = 0;

    if (state_of(link) != LINK_CONFIGURED)
        return 0;
    for (size_t i = 0; i < LINK_RINGS_MAX / 64; i++)
        pairs += (unsigned int)__builtin_popcountll(link->ready[i] & link->ready[i] >> 1 & EVEN_BITS);
    return pairs;
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

int links_add(struct links *links, const char *address) {
    struct link *link = calloc(1, sizeof(*link));
    int error = link == NULL ? -ENOMEM : 0;

    if (error == 0) {
        link->owner = -1;
        snprintf(link->address, sizeof(link->address), "%s", address);
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

enum link_state links_remove(struct links *links, const char *address) {
    enum link_state announced = LINK_DISCONNECTED;

    lock(links);
    for (size_t i = 0; i < links->count; i++) {
        if (strcmp(links->entries[i]->address, address) == 0) {
            announced = links->entries[i]->announced;
            free(links->entries[i]);
            links->entries[i] = links->entries[--links->count];
            break;
        }
    }
    unlock(links);
    return announced;
}

enum link_state links_state(struct links *links, const char *address, unsigned int *queue_pairs) {
    const struct link *link = lock_link(links, address);
    enum link_state state = link == NULL ? LINK_DISCONNECTED : state_of(link);

    *queue_pairs = link == NULL ? 0 : pairs_of(link);
    unlock(links);
    return state;
}

void links_refusals(struct links *links, const char *address, uint64_t refusals[REFUSAL_COUNT]) {
    const struct link *link = lock_link(links, address);

    for (int i = 0; i < REFUSAL_COUNT; i++)
        refusals[i] = link == NULL ? 0 : link->refusals[i];
    unlock(links);
}

/*
 * One step from what was announced towards what is:
 * a drop is reported even if the front end is back already.
 */
static bool step(struct link *link) {
    enum link_state state = state_of(link);
    unsigned int pairs;

    if (link->dropped && link->announced != LINK_DISCONNECTED)
        state = LINK_DISCONNECTED;
    else if (state == LINK_CONFIGURED && link->announced == LINK_DISCONNECTED)
        state = LINK_CONNECTED;
    link->dropped = false;
    pairs = state == LINK_CONFIGURED ? pairs_of(link) : 0;
    if (state == link->announced && pairs == link->announced_pairs)
        return false;
    link->announced = state;
    link->announced_pairs = pairs;
    return true;
}

bool links_next_change(struct links *links, struct link_change *change) {
    bool found = false;

    lock(links);
    for (size_t i = 0; i < links->count && !found; i++) {
        struct link *link = links->entries[i];

        found = step(link);
        if (found) {
            *change = (struct link_change){.state = link->announced, .queue_pairs = link->announced_pairs};
            snprintf(change->address, sizeof(change->address), "%s", link->address);
        }
    }
    unlock(links);
    return found;
}

void links_connected(struct links *links, const char *address) {
    struct link *link = lock_link(links, address);

    if (link != NULL)
        link->connections++;
    unlock_and_wake(links);
}

void links_refused(struct links *links, const char *address, enum refusal refusal) {
    struct link *link = lock_link(links, address);

    if (link != NULL)
        link->refusals[refusal]++;
    unlock(links);
}

void links_configured(struct links *links, const char *address, int vhost_id) {
    struct link *link = lock_link(links, address);

    if (link != NULL && link->owner < 0)
        link->owner = vhost_id;
    unlock_and_wake(links);
}

void links_unconfigured(struct links *links, const char *address, int vhost_id) {
    struct link *link = lock_link(links, address);

    if (link != NULL && link->owner == vhost_id)
        link->owner = -1;
    unlock_and_wake(links);
}

void links_ring(struct links *links, const char *address, unsigned int ring, bool ready) {
    struct link *link = lock_link(links, address);

    if (link != NULL && ring < LINK_RINGS_MAX) {
        const uint64_t bit = UINT64_C(1) << ring % 64;

        if (ready)
            link->ready[ring / 64] |= bit;
        else
            link->ready[ring / 64] &= ~bit;
    }
    unlock_and_wake(links);
}

void links_no_rings(struct links *links, const char *address) {
    struct link *link = lock_link(links, address);

    if (link != NULL)
        memset(link->ready, 0, sizeof(link->ready));
    unlock_and_wake(links);
}

void links_disconnected(struct links *links, const char *address) {
    struct link *link = lock_link(links, address);

    if (link != NULL && link->connections > 0) {
        link->connections--;
        link->dropped = link->connections == 0 || link->dropped;
    }
    unlock_and_wake(links);
}
