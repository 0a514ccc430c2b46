/* The life of one connection: its descriptors, its time, and its end, refused or not. */
#include "gate_parts.h"

#include "fault.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LOG_EVERY_MS 10000

int64_t gate_now_ms(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int gate_watch(struct gate *gate, int fd, struct source *source, uint32_t events, bool anew) {
    struct epoll_event event = {.events = events, .data.ptr = source};

    if (!anew && source->events == events)
        return 0;
    source->events = events;
    return epoll_ctl(gate->epoll_fd, anew ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) == 0 ? 0 : -errno;
}

void gate_connection_drop(struct gate_connection *connection) {
    for (size_t i = 0; i < connection->descriptor_count; i++)
        descriptor_close(connection->descriptors[i].fd, connection->device->debt);
    connection->descriptor_count = 0;
}

static void release_shares(struct shares *shares) {
    for (size_t i = 0; i < shares->count; i++)
        fault_unshare(shares->slots[i]);
    shares->count = 0;
}

void gate_shares_replace(struct shares *old, struct shares *next) {
    release_shares(old);
    *old = *next;
    next->count = 0;
}

void gate_connection_enter(struct gate_connection *connection, enum phase phase) {
    connection->phase = phase;
    connection->done = 0;
    connection->since_ms = gate_now_ms();
    if (phase == RECEIVING || phase == AWAITING)
        memset(&connection->message, 0, sizeof(connection->message));
}

void gate_connection_close(struct gate *gate, struct gate_connection *connection) {
    struct gate_device *device = connection->device;
    struct gate_connection **link = &device->connections;

    while (*link != connection)
        link = &(*link)->next;
    *link = connection->next;
    gate_channel_close(gate, connection);
    if (connection->back >= 0) {
        gate->back_end.detach(gate->back_end.context, device->entry.address);
        close(connection->back);
        device->served = NULL;
    }
    release_shares(&connection->memory_shares);
    release_shares(&connection->log_shares);
    release_shares(&connection->next_shares);
    gate_connection_drop(connection);
    epoll_ctl(gate->epoll_fd, EPOLL_CTL_DEL, connection->front, NULL);
    shutdown(connection->front, SHUT_RDWR);
    descriptor_close(connection->front, device->debt);
    if (!connection->spoke)
        device->waiting--;
    links_disconnected(gate->links, device->entry.address);
    connection->device = NULL;
    connection->next = gate->dead;
    gate->dead = connection;
}

void gate_connection_refuse(struct gate *gate, struct gate_connection *connection, enum refusal refusal) {
    struct gate_device *device = connection->device;
    const int64_t now = gate_now_ms();

    links_refused(gate->links, device->entry.address, refusal);
    if (device->logged_ms[refusal] != 0 && now - device->logged_ms[refusal] < LOG_EVERY_MS) {
        device->unlogged[refusal]++;
    } else {
        char more[48] = "";

        if (device->unlogged[refusal] > 0)
            snprintf(more, sizeof(more), " (and %u more since the last line)", device->unlogged[refusal]);
        log_line(gate->log, LEVEL_WARNING, "%s: a front end is refused: %s%s", device->entry.address,
                 refusal_text(refusal), more);
        device->logged_ms[refusal] = now;
        device->unlogged[refusal] = 0;
    }
    gate_connection_close(gate, connection);
}

static bool is_hit(const struct shares *shares) {
    for (size_t i = 0; i < shares->count; i++) {
        if (fault_hit(shares->slots[i]))
            return true;
    }
    return false;
}

void gate_connection_check(struct gate *gate, struct gate_connection *connection, int64_t now) {
    if (is_hit(&connection->memory_shares) || is_hit(&connection->log_shares) ||
        is_hit(&connection->next_shares)) {
        gate_connection_refuse(gate, connection, REFUSAL_TRUNCATED);
        return;
    }
    if (connection->channel.inner >= 0 && connection->channel.unanswered > 0 &&
        now - connection->channel.asked_ms >= gate->patience_ms) {
        gate_channel_refuse(gate, connection);
        return;
    }
    /* A front end that listens itself may take its time. */
    if (connection->phase == RECEIVING && now - connection->since_ms >= gate->patience_ms &&
        (connection->done > 0 || (!connection->spoke && connection->device->entry.listener >= 0)))
        gate_connection_refuse(gate, connection, REFUSAL_SILENT);
}
