/* The requests of the control end, and their results as JSON. */
#include "daemon.h"
#include "eal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Raised when a request or a result changes in a way that an older agent would misread. */
#define PROTOCOL 2

#define DEVARGS_MAX 512

/* JSON's integers here are signed; DPDK's numbers of 64 bits are cut off, not turned negative. */
static json_t *number_from(uint64_t value) {
    return json_integer(value > (uint64_t)INT64_MAX ? INT64_MAX : (json_int_t)value);
}

/* A string; JSON that has a zero inside of one was refused as a whole. */
static const char *text_param(const json_t *params, const char *key, struct failure *failure) {
    const char *text = json_string_value(json_object_get(params, key));

    if (text == NULL)
        failure_set(failure, -EINVAL, FAILURE_BAD_PARAMS, "%s is missing or not a string", key);
    return text;
}

static int address_param(const json_t *params, char address[PCI_ADDRESS_SIZE], struct failure *failure) {
    const char *text = text_param(params, "device", failure);

    if (text == NULL)
        return -EINVAL;
    if (pci_address_normalise(text, address) != 0)
        return failure_set(failure, -EINVAL, FAILURE_BAD_PARAMS,
                           "device '%.80s' is not a PCI address such as 0000:82:00.2", text);
    return 0;
}

/* Which end opens the socket; the default where nothing is said. */
static int mode_param(const json_t *params, struct device_request *request, struct failure *failure) {
    const char *text;

    if (json_object_get(params, "mode") == NULL)
        return 0;
    text = text_param(params, "mode", failure);
    if (text == NULL)
        return -EINVAL;
    request->vhost_client = strcmp(text, "client") == 0;
    if (!request->vhost_client && strcmp(text, "server") != 0)
        return failure_set(failure, -EINVAL, FAILURE_BAD_PARAMS, "mode '%.80s' is neither server nor client",
                           text);
    return 0;
}

/* By reason, without those that never happened. */
static json_t *refusals_object(struct daemon *daemon, const char *address) {
    uint64_t refusals[REFUSAL_COUNT];
    json_t *object = json_object();

    links_refusals(&daemon->devices.links, address, refusals);
    for (int i = REFUSAL_NONE + 1; i < REFUSAL_COUNT; i++) {
        if (refusals[i] > 0)
            json_object_set_new(object, refusal_name((enum refusal)i), number_from(refusals[i]));
    }
    return object;
}

static json_t *device_object(struct daemon *daemon, const struct device *device) {
    unsigned int queue_pairs;
    enum link_state state = links_state(&daemon->devices.links, device->address, &queue_pairs);
    json_t *object =
        json_pack("{s:s,s:s,s:s,s:s,s:b,s:b,s:I,s:s,s:I,s:o,s:o,s:s,s:i,s:o}", "device", device->address,
                  "socket", device->socket, "mode", device->vhost_client ? "client" : "server", "state",
                  "started", "connected", state != LINK_DISCONNECTED, "configured", state == LINK_CONFIGURED,
                  "queue_pairs_in_use", (json_int_t)queue_pairs, "driver", device->driver, "queue_pairs",
                  (json_int_t)device->queue_pairs, "features", number_from(device->features),
                  "protocol_features", number_from(device->protocol_features), "type", device->type,
                  "numa_node", device->numa_node, "refusals", refusals_object(daemon, device->address));

    /* A string: JSON's integers are signed, and an inode may have 64 bits. */
    if (object != NULL && device->file.inode != 0) {
        char file[64];

        snprintf(file, sizeof(file), "%llu:%llu", (unsigned long long)device->file.device,
                 (unsigned long long)device->file.inode);
        json_object_set_new(object, "socket_file", json_string(file));
    }
    return object;
}

/* The change itself stands, whatever became of the file: the reply says so, and it is tried again. */
static json_t *with_mapping(struct daemon *daemon, json_t *result) {
    if (!daemon_write_mapping(daemon) && result != NULL) {
        json_object_set_new(result, "mapping_written", json_false());
        json_object_set_new(result, "mapping_problem", json_string(daemon->mapping_problem));
    }
    return result;
}

static json_t *method_version(void *context, const json_t *params, struct failure *failure) {
    const struct daemon *daemon = context;

    (void)params;
    (void)failure;
    return json_pack("{s:s,s:s,s:i,s:I,s:s,s:s,s:b}", "version", VDPAD_VERSION, "dpdk", eal_version(),
                     "protocol", PROTOCOL, "pid", (json_int_t)getpid(), "vhost_mode",
                     daemon->options->vhost_client ? "client" : "server", "memory",
                     daemon->hugepages ? "hugepages" : "none", "simulate", daemon->options->simulate);
}

static json_t *method_add(void *context, const json_t *params, struct failure *failure) {
    struct daemon *daemon = context;
    char address[PCI_ADDRESS_SIZE];
    struct device_request request = {
        .address = address, .devargs = "", .vhost_client = daemon->options->vhost_client};

    if (address_param(params, address, failure) != 0 || mode_param(params, &request, failure) != 0)
        return NULL;
    request.socket = text_param(params, "socket", failure);
    if (request.socket == NULL)
        return NULL;
    if (json_object_get(params, "devargs") != NULL) {
        request.devargs = text_param(params, "devargs", failure);
        if (request.devargs == NULL)
            return NULL;
    }
    if (strlen(request.devargs) > DEVARGS_MAX) {
        failure_set(failure, -EINVAL, FAILURE_BAD_PARAMS, "devargs is longer than %d bytes", DEVARGS_MAX);
        return NULL;
    }
    if (devices_add(&daemon->devices, &request, failure) != 0) {
        log_line(daemon->log, LEVEL_WARNING, "%s: not added: %s", address, failure->text);
        return NULL;
    }
    log_line(daemon->log, LEVEL_INFO, "%s: served at %s", address, request.socket);
    return with_mapping(daemon, device_object(daemon, devices_find(&daemon->devices, address)));
}

static json_t *method_remove(void *context, const json_t *params, struct failure *failure) {
    struct daemon *daemon = context;
    struct link_change change = {.state = LINK_DISCONNECTED};
    enum link_state announced = LINK_DISCONNECTED;
    int error;

    if (address_param(params, change.address, failure) != 0)
        return NULL;
    error = devices_remove(&daemon->devices, change.address, &announced, failure);
    if (error != 0 && failure->code == FAILURE_NO_DEVICE)
        return NULL;
    if (announced != LINK_DISCONNECTED)
        daemon_announce(daemon, &change);
    log_line(daemon->log, error == 0 ? LEVEL_INFO : LEVEL_WARNING, "%s: removed%s%s", change.address,
             error == 0 ? "" : ", but ", error == 0 ? "" : failure->text);
    if (error != 0) {
        daemon_write_mapping(daemon);
        return NULL;
    }
    return with_mapping(daemon, json_pack("{s:s}", "device", change.address));
}

static json_t *method_list(void *context, const json_t *params, struct failure *failure) {
    struct daemon *daemon = context;
    json_t *list = json_array();

    (void)params;
    (void)failure;
    for (size_t i = 0; i < daemon->devices.count && list != NULL; i++)
        json_array_append_new(list, device_object(daemon, daemon->devices.entries[i]));
    return json_pack("{s:o}", "devices", list);
}

/* Counters come ordered by queue; a queue without any does not come. */
static void add_stat(void *context, unsigned int queue, const char *name, uint64_t value) {
    json_t *queues = context;
    json_t *last = json_array_get(queues, json_array_size(queues) - 1);

    if (json_integer_value(json_object_get(last, "queue")) != (json_int_t)queue || last == NULL) {
        last = json_pack("{s:I,s:{}}", "queue", (json_int_t)queue, "stats");
        json_array_append_new(queues, last);
    }
    json_object_set_new(json_object_get(last, "stats"), name, number_from(value));
}

static json_t *method_stats(void *context, const json_t *params, struct failure *failure) {
    struct daemon *daemon = context;
    char address[PCI_ADDRESS_SIZE];
    const struct device *device;
    json_t *queues;

    if (address_param(params, address, failure) != 0)
        return NULL;
    device = devices_find(&daemon->devices, address);
    if (device == NULL) {
        failure_set(failure, -ENODEV, FAILURE_NO_DEVICE, "no device %s", address);
        return NULL;
    }
    queues = json_array();
    if (queues == NULL)
        return NULL;
    if (devices_stats(device, add_stat, queues, failure) != 0) {
        json_decref(queues);
        return NULL;
    }
    return json_pack("{s:s,s:o,s:o}", "device", address, "queues", queues, "refusals",
                     refusals_object(daemon, address));
}

/* For when another process removed or changed the file. */
static json_t *method_write(void *context, const json_t *params, struct failure *failure) {
    (void)params;
    (void)failure;
    return with_mapping(context, json_object());
}

static json_t *method_shutdown(void *context, const json_t *params, struct failure *failure) {
    struct daemon *daemon = context;

    (void)params;
    (void)failure;
    daemon->stopping = true;
    daemon->control.stopped = true;
    return json_object();
}

const struct control_method daemon_methods[] = {
    {"version", method_version},      {"device.add", method_add},
    {"device.remove", method_remove}, {"device.list", method_list},
    {"device.stats", method_stats},   {"mapping.write", method_write},
    {"shutdown", method_shutdown},    {NULL, NULL},
};
