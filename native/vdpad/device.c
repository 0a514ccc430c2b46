/* The vDPA devices that are served: plugged into DPDK, each behind its own vhost-user socket. */
#include "device.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <rte_dev.h>
#include <rte_vdpa.h>
#include <rte_vhost.h>

/* DPDK hands its callbacks a vhost id and no context: the one way back to the state of main. */
static struct devices *served;

static bool socket_of(int vhost_id, char socket[SOCKET_PATH_SIZE]) {
    return rte_vhost_get_ifname(vhost_id, socket, SOCKET_PATH_SIZE) == 0;
}

static int on_connection(int vhost_id) {
    char socket[SOCKET_PATH_SIZE];
    char address[PCI_ADDRESS_SIZE] = "";
    int error;

    if (!socket_of(vhost_id, socket))
        return -1;
    error = links_connected(&served->links, socket, address);
    if (error == -EBUSY)
        log_line(served->log, LEVEL_WARNING,
                 "%s: a second front end is refused: the first one uses the device", address);
    return error;
}

static int on_device(int vhost_id) {
    char socket[SOCKET_PATH_SIZE];

    if (socket_of(vhost_id, socket))
        links_configured(&served->links, socket, vhost_id, rte_vhost_get_vring_num(vhost_id) / 2U);
    return 0;
}

static void on_device_gone(int vhost_id) {
    char socket[SOCKET_PATH_SIZE];

    if (socket_of(vhost_id, socket))
        links_unconfigured(&served->links, socket, vhost_id);
}

static void on_connection_gone(int vhost_id) {
    char socket[SOCKET_PATH_SIZE];

    if (socket_of(vhost_id, socket))
        links_disconnected(&served->links, socket, vhost_id);
}

static const struct rte_vhost_device_ops callbacks = {
    .new_device = on_device,
    .destroy_device = on_device_gone,
    .new_connection = on_connection,
    .destroy_connection = on_connection_gone,
};

int devices_init(struct devices *devices, const struct log *log, struct eal *eal,
                 const struct device_settings *settings) {
    *devices = (struct devices){.log = log, .eal = eal, .settings = *settings};
    served = devices;
    return links_init(&devices->links);
}

static size_t index_of(const struct devices *devices, const char *address) {
    size_t i = 0;

    while (i < devices->count && strcmp(devices->entries[i]->address, address) != 0)
        i++;
    return i;
}

const struct device *devices_find(const struct devices *devices, const char *address) {
    size_t i = index_of(devices, address);

    return i == devices->count ? NULL : devices->entries[i];
}

/* DPDK's own words are in its log; the functions return a bare number at best. */
static int refused_by_dpdk(struct devices *devices, struct failure *failure, int error, const char *what,
                           const char *address) {
    char said[256];

    if (error >= 0)
        error = -EIO;
    eal_first_error(devices->eal, said, sizeof(said));
    return failure_set(failure, error, FAILURE_DPDK, "DPDK refused to %s %s: %s (%s)", what, address,
                       said[0] == '\0' ? strerror(-error) : said, failure_errno_name(error));
}

static const char *bus_of(const struct devices *devices) {
    return devices->settings.simulate ? "vdev" : "pci";
}

static int plug(struct devices *devices, const struct device_request *request, struct failure *failure) {
    int error;

    if (devices->settings.simulate) {
        char name[32];
        char *arguments = NULL;

        (void)snprintf(name, sizeof(name), "vdpa_sim%u", devices->simulated++);
        if (asprintf(&arguments, "addr=%s%s%s", request->address, request->devargs[0] == '\0' ? "" : ",",
                     request->devargs) < 0)
            return failure_set(failure, -ENOMEM, FAILURE_DPDK, "out of memory");
        error = rte_eal_hotplug_add("vdev", name, arguments);
        free(arguments);
    } else {
        error = rte_eal_hotplug_add("pci", request->address, request->devargs);
    }
    /* A device that could not be unplugged earlier is still there: as good as new. */
    if (error == 0 || error == -EEXIST)
        return 0;
    return refused_by_dpdk(devices, failure, error, "plug", request->address);
}

/* A software device has the PCI address as its name once it is plugged. */
static int unplug(struct devices *devices, const char *address, struct failure *failure) {
    int error = rte_eal_hotplug_remove(bus_of(devices), address);

    return error == 0 ? 0 : refused_by_dpdk(devices, failure, error, "unplug", address);
}

/* What does not change while the device is plugged. */
static int describe(struct device *device, struct rte_vdpa_device *vdpa) {
    const struct rte_device *generic = rte_vdpa_get_rte_device(vdpa);
    const struct rte_driver *driver = generic == NULL ? NULL : rte_dev_driver(generic);
    const char *name = driver == NULL ? NULL : rte_driver_name(driver);

    (void)snprintf(device->driver, sizeof(device->driver), "%s", name == NULL ? "unknown" : name);
    device->numa_node = generic == NULL ? -1 : rte_dev_numa_node(generic);
    if (rte_vdpa_get_queue_num(vdpa, &device->queue_pairs) != 0 ||
        rte_vdpa_get_features(vdpa, &device->features) != 0 ||
        rte_vdpa_get_protocol_features(vdpa, &device->protocol_features) != 0)
        return -EIO;
    return 0;
}

static const char *type_of(const char *socket) {
    uint32_t type;

    if (rte_vhost_driver_get_vdpa_dev_type(socket, &type) != 0)
        return "unknown";
    return type == RTE_VHOST_VDPA_DEVICE_TYPE_NET   ? "net"
           : type == RTE_VHOST_VDPA_DEVICE_TYPE_BLK ? "blk"
                                                    : "unknown";
}

static int refuse_socket(struct failure *failure, int error, const char *socket, const char *reason) {
    return failure_set(failure, error, FAILURE_SOCKET, "socket %s %s", socket, reason);
}

/* The socket was made with access for this user alone; now it gets the access that was asked for. */
static int open_to_front_ends(const struct device_settings *settings, const char *socket,
                              struct failure *failure) {
    if ((settings->socket_owner != (uid_t)-1 || settings->socket_group != (gid_t)-1) &&
        lchown(socket, settings->socket_owner, settings->socket_group) != 0) {
        int error = -errno;

        return failure_set(failure, error, FAILURE_SOCKET,
                           "socket %s cannot be given to its owner and group: %s", socket, strerror(-error));
    }
    if (chmod(socket, settings->socket_mode) != 0) {
        int error = -errno;

        return failure_set(failure, error, FAILURE_SOCKET, "socket %s cannot get mode %04o: %s", socket,
                           (unsigned int)settings->socket_mode, strerror(-error));
    }
    return 0;
}

/* DPDK binds by the umask: nobody else can connect before open_to_front_ends(). */
static int start_listening(const struct device_settings *settings, const char *socket) {
    mode_t mask = umask((mode_t)(0177 | (~settings->socket_mode & 0777)));
    int error = rte_vhost_driver_start(socket);

    (void)umask(mask);
    return error;
}

/*
 * After a start that failed, to unregister would delete whatever is at the path: allowed unless somebody
 * listens there, which then is not us. The registration of such a path is left alone for ever; DPDK has no
 * other way.
 */
static void unregister_unstarted(const struct devices *devices, const char *socket) {
    const enum socket_life life = socket_probe(socket);

    if (devices->settings.vhost_client || life == SOCKET_ABSENT || life == SOCKET_STALE) {
        (void)rte_vhost_driver_unregister(socket);
        return;
    }
    (void)rte_vhost_driver_detach_vdpa_device(socket);
    log_line(devices->log, LEVEL_ERROR,
             "socket %s was taken by another process: it can be used again after a restart", socket);
}

static int check_socket(const struct devices *devices, const char *socket, struct failure *failure) {
    const char *problem = socket_path_problem(socket);
    char reason[256];
    int error;

    if (problem != NULL)
        return failure_set(failure, -EINVAL, FAILURE_SOCKET, "socket '%.150s' %s", socket, problem);
    for (size_t i = 0; i < devices->count; i++) {
        if (strcmp(devices->entries[i]->socket, socket) == 0)
            return failure_set(failure, -EADDRINUSE, FAILURE_SOCKET,
                               "socket %s is in use: it is the one of %s", socket,
                               devices->entries[i]->address);
    }
    if (devices->settings.vhost_client)
        error = socket_check_client(socket, reason, sizeof(reason));
    else
        error = socket_claim(socket, reason, sizeof(reason));
    return error == 0 ? 0 : refuse_socket(failure, error, socket, reason);
}

/* Registers, connects to the device, and starts; on failure nothing is registered. */
static int serve(struct devices *devices, struct device *device, struct rte_vdpa_device *vdpa,
                 struct failure *failure) {
    const uint64_t flags = devices->settings.vhost_client ? RTE_VHOST_USER_CLIENT : 0;
    const char *socket = device->socket;
    int error;

    if (rte_vhost_driver_register(socket, flags) != 0)
        return refused_by_dpdk(devices, failure, -EIO, "register the socket of", device->address);
    error = links_add(&devices->links, device->address, socket);
    if (error != 0) {
        error = failure_set(failure, error, FAILURE_TABLE_FULL, "no room for another socket");
        goto unregister;
    }
    if (rte_vhost_driver_callback_register(socket, &callbacks) != 0 ||
        rte_vhost_driver_attach_vdpa_device(socket, vdpa) != 0) {
        error = refused_by_dpdk(devices, failure, -EIO, "attach its socket to", device->address);
        goto remove_link;
    }
    device->type = type_of(socket);
    if (start_listening(&devices->settings, socket) != 0) {
        error = refused_by_dpdk(devices, failure, -EIO, "start the socket of", device->address);
        goto remove_link;
    }
    if (devices->settings.vhost_client)
        return 0;
    error = open_to_front_ends(&devices->settings, socket, failure);
    if (error == 0)
        return 0;
    (void)rte_vhost_driver_unregister(socket);
    (void)links_remove(&devices->links, socket);
    return error;

remove_link:
    (void)links_remove(&devices->links, socket);
unregister:
    unregister_unstarted(devices, socket);
    return error;
}

int devices_add(struct devices *devices, const struct device_request *request, struct failure *failure) {
    struct rte_vdpa_device *vdpa;
    struct device *device = NULL;
    struct failure ignored;
    int error;

    eal_forget_error(devices->eal);
    if (devices_find(devices, request->address) != NULL)
        return failure_set(failure, -EEXIST, FAILURE_DEVICE_EXISTS, "device %s exists already",
                           request->address);
    if (devices->count == DEVICES_MAX)
        return failure_set(failure, -ENOSPC, FAILURE_TABLE_FULL,
                           "no room for %s: there are %d devices already", request->address, DEVICES_MAX);
    /* DPDK would find out too, but then it blocks for a second. */
    if (!devices->settings.vhost_client && links_load(&devices->links) >= DEVICES_MAX)
        return failure_set(failure, -ENOSPC, FAILURE_TABLE_FULL,
                           "no room for %s: there are %d sockets and front ends already", request->address,
                           DEVICES_MAX);
    error = check_socket(devices, request->socket, failure);
    if (error != 0)
        return error;
    device = calloc(1, sizeof(*device));
    if (device == NULL)
        return failure_set(failure, -ENOMEM, FAILURE_DPDK, "out of memory");
    (void)snprintf(device->address, sizeof(device->address), "%s", request->address);
    (void)snprintf(device->socket, sizeof(device->socket), "%s", request->socket);
    error = plug(devices, request, failure);
    if (error != 0)
        goto free_device;
    vdpa = rte_vdpa_find_device_by_name(device->address);
    if (vdpa == NULL) {
        error = failure_set(
            failure, -ENODEV, FAILURE_DPDK,
            "no driver made a vDPA device of %s: devargs such as class=vdpa may be needed (ENODEV)",
            device->address);
        goto unplug;
    }
    error = describe(device, vdpa);
    if (error != 0) {
        error = refused_by_dpdk(devices, failure, error, "describe", device->address);
        goto unplug;
    }
    error = serve(devices, device, vdpa, failure);
    if (error != 0)
        goto unplug;
    devices->entries[devices->count++] = device;
    return 0;

unplug:
    (void)unplug(devices, device->address, &ignored);
free_device:
    free(device);
    return error;
}

int devices_remove(struct devices *devices, const char *address, enum link_state *announced,
                   struct failure *failure) {
    size_t i = index_of(devices, address);
    struct device *device;
    int error;

    if (i == devices->count)
        return failure_set(failure, -ENODEV, FAILURE_NO_DEVICE, "no device %s", address);
    eal_forget_error(devices->eal);
    device = devices->entries[i];
    /* This order: to unplug a device whose socket is still registered makes the next front end crash the
     * process. */
    if (rte_vhost_driver_unregister(device->socket) != 0)
        log_line(devices->log, LEVEL_ERROR, "%s: DPDK does not know its socket %s", address, device->socket);
    *announced = links_remove(&devices->links, device->socket);
    error = unplug(devices, device->address, failure);
    devices->count--;
    memmove(&devices->entries[i], &devices->entries[i + 1], (devices->count - i) * sizeof(struct device *));
    free(device);
    return error;
}

void devices_destroy(struct devices *devices) {
    enum link_state announced;
    struct failure failure;

    while (devices->count > 0) {
        char address[PCI_ADDRESS_SIZE];

        (void)snprintf(address, sizeof(address), "%s", devices->entries[devices->count - 1]->address);
        if (devices_remove(devices, address, &announced, &failure) != 0)
            log_line(devices->log, LEVEL_WARNING, "%s: %s", address, failure.text);
    }
    links_destroy(&devices->links);
}

int devices_stats(const struct device *device, devices_visit_stat *visit, void *context,
                  struct failure *failure) {
    struct rte_vdpa_device *vdpa = rte_vdpa_find_device_by_name(device->address);
    struct rte_vdpa_stat_name *names = NULL;
    struct rte_vdpa_stat *stats = NULL;
    int count = vdpa == NULL ? -ENODEV : rte_vdpa_get_stats_names(vdpa, NULL, 0);
    int error = 0;

    if (count == -ENOTSUP || count == 0)
        return failure_set(failure, -ENOTSUP, FAILURE_NOT_SUPPORTED,
                           "statistics are not supported by driver %s", device->driver);
    if (count > 0) {
        names = calloc((size_t)count, sizeof(*names));
        stats = calloc((size_t)count, sizeof(*stats));
        if (names == NULL || stats == NULL)
            error = -ENOMEM;
        else
            count = rte_vdpa_get_stats_names(vdpa, names, (unsigned int)count);
    }
    if (error == 0 && count < 0)
        error = count;
    for (uint32_t queue = 0; error == 0 && queue < 2 * device->queue_pairs; queue++) {
        /* A queue that is not in use may have none. */
        int got = rte_vdpa_get_stats(vdpa, (uint16_t)queue, stats, (unsigned int)count);

        for (int i = 0; i < got && i < count; i++) {
            if (stats[i].id < (uint64_t)count) {
                names[stats[i].id].name[RTE_VDPA_STATS_NAME_SIZE - 1] = '\0';
                visit(context, queue, names[stats[i].id].name, stats[i].value);
            }
        }
    }
    if (error != 0)
        error = failure_set(failure, error, FAILURE_DPDK, "DPDK cannot read the statistics of %s (%s)",
                            device->address, failure_errno_name(error));
    free(stats);
    free(names);
    return error;
}
