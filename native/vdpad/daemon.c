/* The daemon's main loop: the control end, the signals, and what DPDK's threads hand over. */
#include "daemon.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define MAPPING_RETRY_MS 200

/* How long a reply to `shutdown` waits for a peer that does not read. */
#define LAST_REPLY_MS 1000

static int collect_mapping(const struct devices *devices, struct mapping *mapping) {
    mapping->count = devices->count;
    mapping->entries = calloc(devices->count + 1, sizeof(*mapping->entries));
    if (mapping->entries == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < devices->count; i++) {
        memcpy(mapping->entries[i].address, devices->entries[i]->address, PCI_ADDRESS_SIZE);
        memcpy(mapping->entries[i].socket, devices->entries[i]->socket, SOCKET_PATH_SIZE);
    }
    return 0;
}

bool daemon_write_mapping(struct daemon *daemon) {
    char problem[sizeof(daemon->mapping_problem)] = "out of memory";
    struct mapping mapping;
    int error;

    if (daemon->options->socket_list == NULL)
        return true;
    error = collect_mapping(&daemon->devices, &mapping);
    if (error == 0)
        error = mapping_file_replace(&daemon->mapping_file, &mapping, problem, sizeof(problem));
    mapping_free(&mapping);
    if (error != 0 && strcmp(problem, daemon->mapping_problem) != 0) {
        log_line(daemon->log, LEVEL_WARNING, "mapping file %s cannot be written, trying again: %s",
                 daemon->mapping_file.path, problem);
        snprintf(daemon->mapping_problem, sizeof(daemon->mapping_problem), "%s", problem);
    }
    if (error == 0 && daemon->mapping_problem[0] != '\0') {
        log_line(daemon->log, LEVEL_INFO, "mapping file %s is written again", daemon->mapping_file.path);
        daemon->mapping_problem[0] = '\0';
    }
    daemon->mapping_stale = error != 0;
    return error == 0;
}

static const char *const link_words[] = {
    [LINK_DISCONNECTED] = "disconnected",
    [LINK_CONNECTED] = "connected",
    [LINK_CONFIGURED] = "configured",
};

void daemon_announce(struct daemon *daemon, const struct link_change *change) {
    const char *word = link_words[change->state];
    json_t *params;
    char method[32];

    if (change->state == LINK_CONFIGURED)
        log_line(daemon->log, LEVEL_INFO, "%s: front end %s, %u queue pairs in use", change->address, word,
                 change->queue_pairs);
    else
        log_line(daemon->log, LEVEL_INFO, "%s: front end %s", change->address, word);
    if (daemon->options->control_fd < 0)
        return;
    snprintf(method, sizeof(method), "device.%s", word);
    params = json_pack("{s:s}", "device", change->address);
    if (change->state == LINK_CONFIGURED && params != NULL)
        json_object_set_new(params, "queue_pairs", json_integer((json_int_t)change->queue_pairs));
    if (control_notify(&daemon->control, method, params) != 0)
        log_line(daemon->log, LEVEL_WARNING, "%s: out of memory: device.%s is not reported", change->address,
                 word);
}

/* Takes what DPDK's threads have noted. A peer that does not read gets it later, drawn together. */
static void announce_changes(struct daemon *daemon) {
    bool by_hand = daemon->options->control_fd < 0;
    struct link_change change;

    while ((by_hand || control_has_room(&daemon->control)) &&
           links_next_change(&daemon->devices.links, &change))
        daemon_announce(daemon, &change);
}

static void drain(int fd) {
    uint64_t count;

    while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
}

static void take_signal(struct daemon *daemon) {
    struct signalfd_siginfo info;

    if (read(daemon->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
        return;
    log_line(daemon->log, LEVEL_INFO, "stopping: %s", strsignal((int)info.ssi_signo));
    daemon->stopping = true;
}

static int step_control(struct daemon *daemon) {
    int error = control_step(&daemon->control);

    if (error != 0) {
        log_line(daemon->log, LEVEL_ERROR, "the control socket fails: %s", strerror(-error));
    } else if (daemon->control.ended) {
        log_line(daemon->log, LEVEL_INFO, "stopping: the control end has closed");
        daemon->stopping = true;
    }
    return error;
}

enum { POLL_SIGNAL, POLL_LINKS, POLL_CONTROL, POLL_COUNT };

static int step(struct daemon *daemon) {
    bool by_hand = daemon->options->control_fd < 0;
    struct pollfd pollers[POLL_COUNT] = {
        [POLL_SIGNAL] = {.fd = daemon->signal_fd, .events = POLLIN},
        [POLL_LINKS] = {.fd = daemon->devices.links.event_fd, .events = POLLIN},
        [POLL_CONTROL] = {.fd = by_hand ? -1 : daemon->control.fd},
    };
    int ready;

    if (!by_hand)
        pollers[POLL_CONTROL].events = control_events(&daemon->control);
    ready = poll(pollers, POLL_COUNT, daemon->mapping_stale ? MAPPING_RETRY_MS : -1);
    if (ready < 0)
        return errno == EINTR ? 0 : -errno;
    if (pollers[POLL_SIGNAL].revents != 0)
        take_signal(daemon);
    if (pollers[POLL_LINKS].revents != 0)
        drain(daemon->devices.links.event_fd);
    announce_changes(daemon);
    if (daemon->mapping_stale && ready == 0)
        daemon_write_mapping(daemon);
    return by_hand ? 0 : step_control(daemon);
}

/* An argument "ADDRESS[,DEVARGS]", whose address is known to be one. */
static int add_by_hand(struct daemon *daemon, int number) {
    const char *argument = daemon->options->devices[number];
    int length = (int)strcspn(argument, ",");
    char text[PCI_ADDRESS_SIZE];
    char address[PCI_ADDRESS_SIZE];
    char socket[2 * SOCKET_PATH_SIZE];
    struct device_request request = {
        .address = address, .socket = socket, .vhost_client = daemon->options->vhost_client};
    struct failure failure;

    snprintf(text, sizeof(text), "%.*s", length, argument);
    pci_address_normalise(text, address);
    snprintf(socket, sizeof(socket), "%s/vdpa-%d", daemon->options->socket_dir, number);
    request.devargs = argument[length] == ',' ? argument + length + 1 : "";
    if (devices_add(&daemon->devices, &request, &failure) != 0) {
        log_line(daemon->log, LEVEL_ERROR, "%s: not added: %s", address, failure.text);
        return -EIO;
    }
    log_line(daemon->log, LEVEL_INFO, "%s: served at %s", address, socket);
    daemon_write_mapping(daemon);
    return 0;
}

int daemon_run(struct daemon *daemon) {
    int error = 0;

    for (int i = 0; i < daemon->options->device_count && error == 0; i++)
        error = add_by_hand(daemon, i);
    while (error == 0 && !daemon->stopping)
        error = step(daemon);
    if (daemon->options->control_fd >= 0 && !daemon->control.ended)
        control_flush(&daemon->control, LAST_REPLY_MS);
    return error;
}
