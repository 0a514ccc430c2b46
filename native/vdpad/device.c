/* The vDPA devices that are served: plugged into DPDK, each behind its own vhost-user socket. */
#include "device.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_vdpa.h>
#include <rte_vhost.h>

/* DPDK hands its callbacks a vhost id and no context: the one way back to the state of main. */
static struct devices *served;

/*
 * The private sockets between the gate and DPDK: "<private directory>/<pid>@<address>". A file is there for
 * the moment in which DPDK connects.
 */
#define PRIVATE_MARK '@'

static int private_path(const char *address, char path[SOCKET_PATH_SIZE]) {
    int length = snprintf(path, SOCKET_PATH_SIZE, "%s/%ld%c%s", served->directory.path, (long)getpid(),
                          PRIVATE_MARK, address);

    return length < 0 || length >= SOCKET_PATH_SIZE ? -ENAMETOOLONG : 0;
}

/* DPDK knows a device by its private path. */
static bool address_of(int vhost_id, char address[PCI_ADDRESS_SIZE]) {
    char path[SOCKET_PATH_SIZE];
    const char *mark;

    if (rte_vhost_get_ifname(vhost_id, path, sizeof(path)) != 0)
        return false;
    mark = strrchr(path, PRIVATE_MARK);
    if (mark == NULL)
        return false;
    snprintf(address, PCI_ADDRESS_SIZE, "%s", mark + 1);
    return true;
}

static int on_device(int vhost_id) {
    char address[PCI_ADDRESS_SIZE];

    if (address_of(vhost_id, address))
        links_configured(&served->links, address, vhost_id);
    return 0;
}

static void on_device_gone(int vhost_id) {
    char address[PCI_ADDRESS_SIZE];

    if (address_of(vhost_id, address))
        links_unconfigured(&served->links, address, vhost_id);
}

/*
 * vhost calls a ring ready that is set up and enabled; it says so before and after it calls the device new.
 */
static int on_ring(int vhost_id, uint16_t ring, int ready) {
    char address[PCI_ADDRESS_SIZE];

    if (address_of(vhost_id, address))
        links_ring(&served->links, address, ring, ready != 0);
    return 0;
}

static int on_connection(int vhost_id) {
    char address[PCI_ADDRESS_SIZE];

    if (address_of(vhost_id, address))
        links_no_rings(&served->links, address);
    return 0;
}

static const struct rte_vhost_device_ops callbacks = {
    .new_connection = on_connection,
    .vring_state_changed = on_ring,
    .new_device = on_device,
    .destroy_device = on_device_gone,
};

static int listen_privately(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int error = -ENOENT;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -errno;
    snprintf(name.sun_path, sizeof(name.sun_path), "%s", path);
    for (int i = 0; i < 100 && error == -ENOENT; i++) {
        error = private_directory_make(&served->directory);
        unlink(path);
        if (error == 0 && bind(fd, (const struct sockaddr *)&name, sizeof(name)) != 0)
            error = -errno;
    }
    if (error == 0 && listen(fd, 1) != 0)
        error = -errno;
    if (error != 0) {
        close(fd);
        return error;
    }
    return fd;
}

/* The connection that DPDK has just made, and no other. */
static int accept_own(int listener) {
    struct ucred peer;
    socklen_t size = sizeof(peer);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0)
        return -errno;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid != getpid()) {
        close(fd);
        return -EPERM;
    }
    return fd;
}

static int attach(void *context, const char *address) {
    struct devices *devices = context;
    struct rte_vdpa_device *vdpa = rte_vdpa_find_device_by_name(address);
    char path[SOCKET_PATH_SIZE];
    int error = vdpa == NULL ? -ENODEV : private_path(address, path);
    int listener;
    int fd = -1;

    if (error != 0)
        return error;
    listener = listen_privately(path);
    if (listener < 0) {
        log_line(devices->log, LEVEL_ERROR, "%s: no private socket %s: %s", address, path,
                 strerror(-listener));
        return listener;
    }
    errno = 0;
    if (rte_vhost_driver_register(path, RTE_VHOST_USER_CLIENT | RTE_VHOST_USER_NO_RECONNECT) != 0) {
        error = errno == EMFILE ? -EMFILE : -EIO;
        goto close_listener;
    }
    if (rte_vhost_driver_callback_register(path, &callbacks) != 0 ||
        rte_vhost_driver_attach_vdpa_device(path, vdpa) != 0 || rte_vhost_driver_start(path) != 0)
        error = -EIO;
    if (error == 0) {
        fd = accept_own(listener);
        error = fd < 0 ? fd : 0;
    }
    if (error != 0)
        rte_vhost_driver_unregister(path);
close_listener:
    unlink(path);
    private_directory_remove(&devices->directory);
    close(listener);
    return error == 0 ? fd : error;
}

static void detach(void *context, const char *address) {
    char path[SOCKET_PATH_SIZE];

    (void)context;
    if (private_path(address, path) == 0)
        rte_vhost_driver_unregister(path);
}

static int leave(void *context, const char *address, struct failure *failure);

/*
 * DPDK 24.11 ends its vhost thread with the last socket that is registered, which takes a second, and starts
 * it anew with the next one: for each device that is described, and each front end that comes alone. This
 * name, to which nothing ever connects, stays registered until the process ends.
 */
#define KEPT_NAME "kept"

static int keep_vhost(void) {
    char path[SOCKET_PATH_SIZE];
    int error = private_path(KEPT_NAME, path);

    if (error == 0 &&
        rte_vhost_driver_register(path, RTE_VHOST_USER_CLIENT | RTE_VHOST_USER_NO_RECONNECT) != 0)
        error = -EIO;
    return error;
}

int devices_init(struct devices *devices, const struct log *log, struct eal *eal,
                 const struct device_settings *settings) {
    /* EAL has none where another user made the directory above it; the sockets' own is always there. */
    const char *const places[] = {rte_eal_get_runtime_dir(), "/tmp", settings->socket_dir};
    const struct gate_back_end back_end = {
        .context = devices, .attach = attach, .detach = detach, .leave = leave};
    int error;

    *devices =
        (struct devices){.log = log, .eal = eal, .settings = *settings, .hotplug = PTHREAD_MUTEX_INITIALIZER};
    served = devices;
    error = private_directory_choose(&devices->directory, places, sizeof(places) / sizeof(places[0]));
    if (error != 0) {
        log_line(log, LEVEL_ERROR,
                 "no directory for private sockets can be made below /tmp or --socket-dir: %s",
                 strerror(-error));
        return error;
    }
    error = keep_vhost();
    if (error != 0) {
        log_line(log, LEVEL_ERROR, "DPDK refused to register a vhost socket: %s", strerror(-error));
        return error;
    }
    error = links_init(&devices->links);
    if (error != 0)
        return error;
    error = gate_start(&devices->gate, log, &devices->links, &back_end);
    if (error != 0)
        links_destroy(&devices->links);
    return error;
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

        snprintf(name, sizeof(name), "vdpa_sim%u", devices->simulated++);
        if (asprintf(&arguments, "addr=%s%s%s%s", request->address,
                     devices->settings.simulate_switch ? ",network=switch" : "",
                     request->devargs[0] == '\0' ? "" : ",", request->devargs) < 0)
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

/* A plug or unplug of another device that takes long is not waited for. */
static int lock_hotplug(struct devices *devices, const char *address, struct failure *failure) {
    struct timespec end;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec++;
    if (pthread_mutex_timedlock(&devices->hotplug, &end) == 0)
        return 0;
    return failure_set(failure, -EBUSY, FAILURE_DPDK, "DPDK is busy with another device than %s: try again",
                       address);
}

static int plug_locked(struct devices *devices, const struct device_request *request,
                       struct failure *failure) {
    int error = lock_hotplug(devices, request->address, failure);

    if (error != 0)
        return error;
    error = plug(devices, request, failure);
    pthread_mutex_unlock(&devices->hotplug);
    return error;
}

/* On the gate's thread, which may wait. */
static int leave(void *context, const char *address, struct failure *failure) {
    struct devices *devices = context;
    int error;

    pthread_mutex_lock(&devices->hotplug);
    error = unplug(devices, address, failure);
    pthread_mutex_unlock(&devices->hotplug);
    return error;
}

/*
 * What DPDK says of a device behind a socket. A private connection is made for it as for a front end, so that
 * what stands in the way of one shows now.
 */
static int describe_socket(struct devices *devices, struct device *device) {
    uint32_t type = UINT32_MAX;
    char path[SOCKET_PATH_SIZE];
    int error = 0;
    int fd = attach(devices, device->address);

    if (fd < 0)
        return fd;
    if (private_path(device->address, path) != 0 ||
        rte_vhost_driver_get_protocol_features(path, &device->offer.protocol_features) != 0 ||
        rte_vhost_driver_get_vdpa_dev_type(path, &type) != 0)
        error = -EIO;
    detach(devices, device->address);
    close(fd);
    device->type = type == RTE_VHOST_VDPA_DEVICE_TYPE_NET   ? "net"
                   : type == RTE_VHOST_VDPA_DEVICE_TYPE_BLK ? "blk"
                                                            : "unknown";
    return error;
}

/* What does not change while the device is plugged. */
static int describe(struct devices *devices, struct device *device, struct rte_vdpa_device *vdpa) {
    const struct rte_device *generic = rte_vdpa_get_rte_device(vdpa);
    const struct rte_driver *driver = generic == NULL ? NULL : rte_dev_driver(generic);
    const char *name = driver == NULL ? NULL : rte_driver_name(driver);
    int error;

    snprintf(device->driver, sizeof(device->driver), "%s", name == NULL ? "unknown" : name);
    device->numa_node = generic == NULL ? -1 : rte_dev_numa_node(generic);
    if (rte_vdpa_get_queue_num(vdpa, &device->queue_pairs) != 0 ||
        rte_vdpa_get_features(vdpa, &device->features) != 0 ||
        rte_vdpa_get_protocol_features(vdpa, &device->protocol_features) != 0)
        return -EIO;
    error = describe_socket(devices, device);
    device->offer.rings = 2 * device->queue_pairs;
    return error;
}

static int refuse_socket(struct failure *failure, int error, const char *socket, const char *reason) {
    return failure_set(failure, error, FAILURE_SOCKET, "socket %s %s", socket, reason);
}

static int check_socket(const struct devices *devices, const struct device_request *request,
                        struct failure *failure) {
    const char *socket = request->socket;
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
    if (request->vhost_client)
        error = socket_check_client(socket, reason, sizeof(reason));
    else
        error = socket_claim(socket, reason, sizeof(reason));
    return error == 0 ? 0 : refuse_socket(failure, error, socket, reason);
}

/* Opens the socket and hands it to the gate; on failure nothing is left of it. */
static int serve(struct devices *devices, struct device *device, struct failure *failure) {
    struct gate_entry entry = {.listener = -1, .offer = device->offer};
    char reason[256];
    int error;

    snprintf(entry.address, sizeof(entry.address), "%s", device->address);
    snprintf(entry.socket, sizeof(entry.socket), "%s", device->socket);
    error = links_add(&devices->links, device->address);
    if (error != 0)
        return failure_set(failure, error, FAILURE_TABLE_FULL, "no room for another socket");
    if (!device->vhost_client) {
        entry.listener =
            socket_listen(entry.socket, &devices->settings.access, &entry.file, reason, sizeof(reason));
        if (entry.listener < 0) {
            error = refuse_socket(failure, entry.listener, entry.socket, reason);
            goto remove_link;
        }
    }
    device->file = entry.file;
    error = gate_add(&devices->gate, &entry);
    if (error == 0)
        return 0;
    error = failure_set(failure, error, FAILURE_DPDK, "%s cannot be served: %s", device->address,
                        error == -EBUSY ? "DPDK has not let its last use go yet" : strerror(-error));
    if (entry.listener >= 0) {
        socket_remove(entry.socket, &entry.file);
        close(entry.listener);
    }
remove_link:
    links_remove(&devices->links, device->address);
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
        return failure_set(
            failure, -ENOSPC, FAILURE_TABLE_FULL,
            "no room for %s: there are %d devices already, the most that DPDK can serve at once",
            request->address, DEVICES_MAX);
    error = check_socket(devices, request, failure);
    if (error != 0)
        return error;
    device = calloc(1, sizeof(*device));
    if (device == NULL)
        return failure_set(failure, -ENOMEM, FAILURE_DPDK, "out of memory");
    snprintf(device->address, sizeof(device->address), "%s", request->address);
    snprintf(device->socket, sizeof(device->socket), "%s", request->socket);
    device->vhost_client = request->vhost_client;
    error = plug_locked(devices, request, failure);
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
    error = describe(devices, device, vdpa);
    if (error == -EMFILE) {
        char reason[256];

        socket_explain(reason, sizeof(reason), "cannot be connected to DPDK", error);
        refuse_socket(failure, error, device->socket, reason);
        goto unplug;
    }
    if (error != 0) {
        error = refused_by_dpdk(devices, failure, error, "describe", device->address);
        goto unplug;
    }
    error = serve(devices, device, failure);
    if (error != 0)
        goto unplug;
    devices->entries[devices->count++] = device;
    return 0;

unplug:
    leave(devices, device->address, &ignored);
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
    /*
     * The gate detaches before it unplugs: to unplug a device whose socket is still registered makes the next
     * front end crash the process.
     */
    error = gate_remove(&devices->gate, device->address, DEVICE_REMOVE_MS, failure);
    *announced = links_remove(&devices->links, device->address);
    devices->count--;
    memmove(&devices->entries[i], &devices->entries[i + 1], (devices->count - i) * sizeof(struct device *));
    free(device);
    return error;
}

int devices_destroy(struct devices *devices) {
    enum link_state announced;
    struct failure failure;
    int error;

    while (devices->count > 0) {
        char address[PCI_ADDRESS_SIZE];

        snprintf(address, sizeof(address), "%s", devices->entries[devices->count - 1]->address);
        error = devices_remove(devices, address, &announced, &failure);
        if (error != 0)
            log_line(devices->log, LEVEL_WARNING, "%s: %s", address, failure.text);
        /* The others would only wait for the same. */
        if (error == -ETIMEDOUT)
            return error;
    }
    if (gate_stop(&devices->gate, DEVICE_REMOVE_MS) != 0)
        return -ETIMEDOUT;
    links_destroy(&devices->links);
    return 0;
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
