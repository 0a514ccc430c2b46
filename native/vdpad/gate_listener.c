/* The sockets of the devices: who is let in, and how many that are silent. */
#include "gate_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* With more closes than these that have not come back, the device lets no front end in. */
#define DEBT_MAX 4
/* How often it is logged at most what keeps vdpad from a front end's socket. */
#define UNREACHABLE_EVERY_MS 10000

static struct gate_connection *oldest_silent(const struct gate_device *device) {
    struct gate_connection *oldest = NULL;

    for (struct gate_connection *c = device->connections; c != NULL; c = c->next) {
        if (!c->spoke)
            oldest = c;
    }
    return oldest;
}

static void admit(struct gate *gate, struct gate_device *device, int fd) {
    struct gate_connection *connection = calloc(1, sizeof(*connection));

    if (connection == NULL) {
        descriptor_close(fd, device->debt);
        return;
    }
    connection->device = device;
    connection->front = fd;
    connection->back = -1;
    connection->channel.inner = -1;
    connection->front_source = (struct source){.kind = SOURCE_FRONT, .owner = connection};
    connection->next = device->connections;
    device->connections = connection;
    device->waiting++;
    gate_connection_enter(connection, RECEIVING);
    links_connected(gate->links, device->entry.address);
    if (gate_watch(gate, fd, &connection->front_source, EPOLLIN, true) != 0)
        gate_connection_close(gate, connection);
    else if (device->waiting > GATE_WAITING_MAX)
        gate_connection_refuse(gate, oldest_silent(device), REFUSAL_CROWD);
}

bool gate_listener_in_debt(const struct gate_device *device) {
    return debt_pending(device->debt) >= DEBT_MAX;
}

/* No front end is let in for a while. */
static void rest(struct gate *gate, struct gate_device *device) {
    device->tried_ms = gate_now_ms();
    gate_watch(gate, device->entry.listener, &device->source, 0, false);
}

/* One at a time, as with messages. */
void gate_listener_accept(struct gate *gate, struct gate_device *device) {
    int fd;

    if (gate_listener_in_debt(device)) {
        rest(gate, device);
        return;
    }
    fd = accept4(device->entry.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        admit(gate, device, fd);
    else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
        rest(gate, device);
}

/* What a front end that is about to come does not explain; once, and seldom if it changes. */
static void log_unreachable(const struct gate *gate, struct gate_device *device, int error) {
    if (error == device->unreachable || error == -ENOENT || error == -ECONNREFUSED || error == -EAGAIN ||
        (device->unreachable != 0 && device->tried_ms - device->unreachable_ms < UNREACHABLE_EVERY_MS))
        return;
    device->unreachable = error;
    device->unreachable_ms = device->tried_ms;
    if (error == -EACCES)
        log_line(gate->log, LEVEL_WARNING,
                 "%s: socket %s of the front end may not be written: give it mode 0777, or vdpad "
                 "CAP_DAC_OVERRIDE",
                 device->entry.address, device->entry.socket);
    else
        log_line(gate->log, LEVEL_WARNING, "%s: socket %s of the front end cannot be connected to: %s",
                 device->entry.address, device->entry.socket, strerror(-error));
}

void gate_listener_connect(struct gate *gate, struct gate_device *device, int64_t now) {
    int fd;

    if (device->connections != NULL || gate_listener_in_debt(device) || now - device->tried_ms < GATE_TICK_MS)
        return;
    device->tried_ms = now;
    fd = socket_connect(device->entry.socket);
    if (fd >= 0)
        admit(gate, device, fd);
    else
        log_unreachable(gate, device, fd);
}
