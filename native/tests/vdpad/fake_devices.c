/* Devices that are made up, in the place of device.c and eal.c: no DPDK is needed. */
#include "fake_devices.h"

#include "check.h"

struct fake_next fake_next;

const char *eal_version(void) {
    return "22.11.0";
}

const struct device *devices_find(const struct devices *devices, const char *address) {
    for (size_t i = 0; i < devices->count; i++) {
        if (strcmp(devices->entries[i]->address, address) == 0)
            return devices->entries[i];
    }
    return NULL;
}

int devices_add(struct devices *devices, const struct device_request *request, struct failure *failure) {
    struct device *device;

    if (devices_find(devices, request->address) != NULL)
        return failure_set(failure, -EEXIST, FAILURE_DEVICE_EXISTS, "device %s exists already",
                           request->address);
    if (fake_next.add_error != 0)
        return failure_set(failure, fake_next.add_error, FAILURE_SOCKET, "no add");
    device = calloc(1, sizeof(*device));
    assert_non_null(device);
    *device = (struct device){.type = "net",
                              .driver = "made_up",
                              .queue_pairs = 2,
                              .features = UINT64_MAX,
                              .vhost_client = request->vhost_client};
    if (!request->vhost_client)
        device->file = fake_next.file;
    snprintf(device->address, sizeof(device->address), "%s", request->address);
    snprintf(device->socket, sizeof(device->socket), "%s", request->socket);
    snprintf(fake_next.devargs, sizeof(fake_next.devargs), "%s", request->devargs);
    assert_int_equal(links_add(&devices->links, request->address), 0);
    devices->entries[devices->count++] = device;
    return 0;
}

int devices_remove(struct devices *devices, const char *address, enum link_state *announced,
                   struct failure *failure) {
    if (devices_find(devices, address) == NULL)
        return failure_set(failure, -ENODEV, FAILURE_NO_DEVICE, "no device %s", address);
    /* There is one at most. */
    free(devices->entries[--devices->count]);
    links_remove(&devices->links, address);
    *announced = fake_next.announced;
    return fake_next.remove_error == 0
               ? 0
               : failure_set(failure, fake_next.remove_error, FAILURE_DPDK, "no unplug");
}

int devices_stats(const struct device *device, devices_visit_stat *visit, void *context,
                  struct failure *failure) {
    (void)device;
    if (fake_next.stats_error != 0)
        return failure_set(failure, fake_next.stats_error, FAILURE_NOT_SUPPORTED, "no stats");
    visit(context, 0, "packets", 1);
    visit(context, 0, "bytes", UINT64_MAX);
    visit(context, 3, "packets", 2);
    return 0;
}
