/*
 * The DPDK driver `vdpa_sim`: a vDPA network device in software, named like a PCI address, that loops packets
 * back or exchanges them with the others of its PF.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_common.h>
#include <rte_log.h>
#include <rte_pci.h>
#include <rte_vdpa.h>
#include <rte_vhost.h>

#include "arguments.h"
#include "dpdk_internal.h"
#include "worker.h"

#define FEATURE(bit) (UINT64_C(1) << (bit))

struct sim {
    TAILQ_ENTRY(sim) next;
    char address[sizeof("00000000:00:00.0") + 4];
    struct rte_vdev_device *vdev;
    struct rte_vdpa_device *vdpa;
    uint32_t pairs;
    uint32_t mtu;            /* the device's, or 0 */
    bool like_mlx5;          /* offers no more than DPDK's mlx5 driver does */
    int vid;                 /* the front end being served, or -1 */
    int waiting;             /* the last one that was refused meanwhile, or -1 */
    struct network *network; /* NULL: it loops packets back */
    uint32_t port;
    mac_t mac;  /* pinned to the port, or 0 */
    mac_t only; /* the one source that it may send from, or 0 */
    struct worker worker;
};

/* DPDK's callbacks carry no context of ours, so the devices are found through this. */
static struct {
    pthread_mutex_t lock; /* over everything here, and over each device's start and stop */
    TAILQ_HEAD(, sim) sims;
    uint32_t ready[RTE_MAX_VHOST_DEVICE]; /* per vid, the virtqueues that vhost calls ready */
    cpu_set_t cpus;                       /* what the process may use, taken before EAL pins its threads */
} driver = {.lock = PTHREAD_MUTEX_INITIALIZER, .sims = TAILQ_HEAD_INITIALIZER(driver.sims)};

static int log_type;

#define LOG(level, ...) rte_log(RTE_LOG_##level, (uint32_t)log_type, "VDPA_SIM: " __VA_ARGS__)

static struct sim *find(const struct rte_vdpa_device *vdpa) {
    for (struct sim *sim = TAILQ_FIRST(&driver.sims); sim != NULL; sim = TAILQ_NEXT(sim, next))
        if (sim->vdpa == vdpa)
            return sim;
    return NULL;
}

static struct sim *find_by_vid(int vid) {
    const struct rte_vdpa_device *vdpa = rte_vhost_get_vdpa_device(vid);

    return vdpa == NULL ? NULL : find(vdpa);
}

static int get_queue_num(struct rte_vdpa_device *vdpa, uint32_t *queue_num) {
    pthread_mutex_lock(&driver.lock);
    struct sim *sim = find(vdpa);
    if (sim != NULL)
        *queue_num = sim->pairs;
    pthread_mutex_unlock(&driver.lock);
    return sim == NULL ? -ENODEV : 0;
}

static int get_features(struct rte_vdpa_device *vdpa, uint64_t *features) {
    pthread_mutex_lock(&driver.lock);
    const struct sim *sim = find(vdpa);
    if (sim != NULL) {
        *features =
            FEATURE(VIRTIO_F_VERSION_1) | FEATURE(VIRTIO_NET_F_MTU) | FEATURE(VHOST_USER_F_PROTOCOL_FEATURES);
        if (sim->pairs > 1)
            *features |= FEATURE(VIRTIO_NET_F_MQ);
        if (!sim->like_mlx5)
            *features |= FEATURE(VIRTIO_NET_F_MRG_RXBUF) | FEATURE(VIRTIO_RING_F_INDIRECT_DESC) |
                         FEATURE(VIRTIO_RING_F_EVENT_IDX);
    }
    pthread_mutex_unlock(&driver.lock);
    return sim == NULL ? -ENODEV : 0;
}

static int get_protocol_features(struct rte_vdpa_device *vdpa, uint64_t *features) {
    RTE_SET_USED(vdpa);
    *features = FEATURE(VHOST_USER_PROTOCOL_F_MQ) | FEATURE(VHOST_USER_PROTOCOL_F_REPLY_ACK) |
                FEATURE(VHOST_USER_PROTOCOL_F_NET_MTU);
    return 0;
}

static void report_broken(void *context, uint32_t queue, const char *fault) {
    const struct sim *sim = context;

    LOG(WARNING, "%s: virtqueue %" PRIu32 " is no longer served: %s; restart the front end\n", sim->address,
        queue, fault);
}

static void report_crowded(void *context, unsigned int percent) {
    const struct sim *sim = context;

    LOG(WARNING,
        "%s: its thread waited for a CPU %u %% of the time: give front ends that poll CPUs that the agent "
        "does "
        "not use, by whole CPUs of a Guaranteed pod, or by CPUAffinity= of the agent's unit\n",
        sim->address, percent);
}

static void start_queue(struct sim *sim, uint16_t index) {
    struct rte_vhost_vring vring;
    struct worker_ring ring;
    int rc = -EINVAL;

    if (rte_vhost_get_vhost_vring(sim->vid, index, &vring) == 0 &&
        rte_vhost_get_vring_base(sim->vid, index, &ring.next_avail, &ring.next_used) == 0) {
        ring.desc = vring.desc;
        ring.avail = vring.avail;
        ring.used = vring.used;
        ring.size = vring.size;
        ring.kickfd = vring.kickfd;
        ring.callfd = vring.callfd;
        rc = worker_queue_start(&sim->worker, index, &ring);
    }
    if (rc != 0)
        LOG(WARNING, "%s: virtqueue %u is not served: %s; check how the front end sets it up\n", sim->address,
            index, strerror(-rc));
}

/* Leaves the indexes with vhost, which hands them to the front end or to the next start. */
static void stop_queue(struct sim *sim, uint16_t index) {
    struct worker_queue *queue = &sim->worker.queues[index];

    if (!queue->started)
        return;
    worker_queue_stop(&sim->worker, index);
    rte_vhost_set_vring_base(sim->vid, index, queue->ring.next_avail, queue->ring.next_used);
}

static int get_memory(int vid, struct ring_memory *memory) {
    struct rte_vhost_memory *table = NULL;

    if (rte_vhost_get_mem_table(vid, &table) != 0)
        return -EINVAL;
    if (table->nregions > RING_MAX_REGIONS) {
        free(table);
        return -E2BIG;
    }
    memory->count = table->nregions;
    for (uint32_t i = 0; i < table->nregions; i++)
        memory->regions[i] = (struct ring_region){
            .guest_addr = table->regions[i].guest_phys_addr,
            .size = table->regions[i].size,
            .host = (uint8_t *)(uintptr_t)table->regions[i].host_user_addr,
        };
    free(table);
    return 0;
}

/* The least of what the device and the front end say. 0: neither says anything. */
static uint32_t choose_mtu(const struct sim *sim, int vid) {
    uint16_t wanted;

    if (rte_vhost_get_mtu(vid, &wanted) != 0 || wanted == 0)
        return sim->mtu;
    if (sim->mtu == 0 || wanted <= sim->mtu)
        return wanted;
    LOG(WARNING,
        "%s: the front end has an MTU of %u, longer packets than mtu=%" PRIu32 " allows are dropped: give "
        "it that one, as by QEMU's host_mtu\n",
        sim->address, wanted, sim->mtu);
    return sim->mtu;
}

static int configure(struct sim *sim, int vid) {
    struct worker_config config = {.pairs = sim->pairs,
                                   .cpus = driver.cpus,
                                   .network = sim->network,
                                   .port = sim->port,
                                   .only = sim->only};
    uint64_t features;
    int rc;

    if (sim->vid >= 0) {
        /* vhost tries again at each of its messages. */
        if (sim->waiting != vid)
            LOG(WARNING, "%s: a second front end is kept waiting: disconnect the first one\n", sim->address);
        sim->waiting = vid;
        return -EBUSY;
    }
    if (rte_vhost_get_negotiated_features(vid, &features) != 0)
        return -EINVAL;
    config.rings.indirect = (features & FEATURE(VIRTIO_RING_F_INDIRECT_DESC)) != 0;
    config.rings.event_idx = (features & FEATURE(VIRTIO_RING_F_EVENT_IDX)) != 0;
    config.form.mergeable = (features & FEATURE(VIRTIO_NET_F_MRG_RXBUF)) != 0;
    config.form.mtu = choose_mtu(sim, vid);
    config.form.header_len = features & (FEATURE(VIRTIO_NET_F_MRG_RXBUF) | FEATURE(VIRTIO_F_VERSION_1))
                                 ? sizeof(struct virtio_net_hdr_mrg_rxbuf)
                                 : sizeof(struct virtio_net_hdr);
    rc = get_memory(vid, &config.memory);
    if (rc == 0)
        rc = worker_start(&sim->worker, &config);
    if (rc != 0) {
        LOG(ERR, "%s: cannot serve the front end: %s\n", sim->address, strerror(-rc));
        return rc;
    }
    sim->vid = vid;
    sim->waiting = -1;
    for (uint16_t i = 0; i < 2 * sim->pairs; i++)
        if (driver.ready[vid] & (1U << i))
            start_queue(sim, i);
    LOG(INFO, "%s: serving a front end\n", sim->address);
    return 0;
}

static int dev_conf(int vid) {
    pthread_mutex_lock(&driver.lock);
    struct sim *sim = find_by_vid(vid);
    int rc = sim == NULL ? -ENODEV : configure(sim, vid);
    pthread_mutex_unlock(&driver.lock);
    return rc;
}

/* Also called for a front end whose dev_conf failed. */
static int dev_close(int vid) {
    pthread_mutex_lock(&driver.lock);
    struct sim *sim = find_by_vid(vid);
    if (sim != NULL && sim->vid == vid) {
        for (uint16_t i = 0; i < 2 * sim->pairs; i++)
            stop_queue(sim, i);
        worker_stop(&sim->worker);
        sim->vid = -1;
        LOG(INFO, "%s: stopped serving the front end\n", sim->address);
    }
    pthread_mutex_unlock(&driver.lock);
    return 0;
}

/* The connection is gone: its vid will be given to another one. */
static int dev_cleanup(int vid) {
    pthread_mutex_lock(&driver.lock);
    driver.ready[vid] = 0;
    pthread_mutex_unlock(&driver.lock);
    return 0;
}

/* May come before dev_conf; vhost does not repeat it then, so it is remembered. */
static int set_vring_state(int vid, int vring, int state) {
    pthread_mutex_lock(&driver.lock);
    struct sim *sim = find_by_vid(vid);
    bool ours = sim != NULL && vring >= 0 && (uint32_t)vring < 2 * sim->pairs;
    /* Front ends do not all ask how many there are. Said for the first of them only. */
    if (sim != NULL && state && (uint32_t)vring == 2 * sim->pairs)
        LOG(WARNING,
            "%s: virtqueues from %d on are not served: give the front end %" PRIu32 " queue pairs at most\n",
            sim->address, vring, sim->pairs);
    if (ours && state)
        driver.ready[vid] |= 1U << vring;
    else if (ours)
        driver.ready[vid] &= ~(1U << vring);
    if (ours && sim->vid == vid) {
        stop_queue(sim, (uint16_t)vring);
        if (state)
            start_queue(sim, (uint16_t)vring);
    }
    pthread_mutex_unlock(&driver.lock);
    return ours ? 0 : -EINVAL;
}

/* Read in dev_conf; vhost refuses changes after that. */
static int set_features(int vid) {
    RTE_SET_USED(vid);
    return 0;
}

static const char *const stat_names[] = {"packets", "bytes", "dropped", "errors", "kicks", "interrupts"};

static int get_stats_names(struct rte_vdpa_device *vdpa, struct rte_vdpa_stat_name *names,
                           unsigned int size) {
    RTE_SET_USED(vdpa);
    if (names != NULL)
        for (unsigned int i = 0; i < size && i < RTE_DIM(stat_names); i++)
            snprintf(names[i].name, sizeof(names[i].name), "%s", stat_names[i]);
    return (int)RTE_DIM(stat_names);
}

static struct queue_stats *stats_of(struct rte_vdpa_device *vdpa, int queue) {
    struct sim *sim = find(vdpa);

    return sim == NULL || queue < 0 || (uint32_t)queue >= 2 * sim->pairs ? NULL
                                                                         : &sim->worker.queues[queue].stats;
}

static int get_stats(struct rte_vdpa_device *vdpa, int queue, struct rte_vdpa_stat *stats, unsigned int n) {
    pthread_mutex_lock(&driver.lock);
    struct queue_stats *from = stats_of(vdpa, queue);
    if (from != NULL) {
        const uint64_t values[RTE_DIM(stat_names)] = {from->packets, from->bytes, from->dropped,
                                                      from->errors,  from->kicks, from->interrupts};
        n = RTE_MIN(n, (unsigned int)RTE_DIM(values));
        for (unsigned int i = 0; i < n; i++)
            stats[i] = (struct rte_vdpa_stat){.id = i, .value = values[i]};
    }
    pthread_mutex_unlock(&driver.lock);
    return from == NULL ? -EINVAL : (int)n;
}

static int reset_stats(struct rte_vdpa_device *vdpa, int queue) {
    pthread_mutex_lock(&driver.lock);
    struct queue_stats *stats = stats_of(vdpa, queue);
    if (stats != NULL)
        stats_reset(stats);
    pthread_mutex_unlock(&driver.lock);
    return stats == NULL ? -EINVAL : 0;
}

static struct rte_vdpa_dev_ops ops = {
    .get_queue_num = get_queue_num,
    .get_features = get_features,
    .get_protocol_features = get_protocol_features,
    .dev_conf = dev_conf,
    .dev_close = dev_close,
    .dev_cleanup = dev_cleanup,
    .set_vring_state = set_vring_state,
    .set_features = set_features,
    .get_stats_names = get_stats_names,
    .get_stats = get_stats,
    .reset_stats = reset_stats,
};

static void report_uplink(const char *tap, const char *problem) {
    if (problem != NULL)
        LOG(WARNING, "uplink %s: %s\n", tap, problem);
    else
        LOG(NOTICE, "uplink %s: it is back\n", tap);
}

/* Makes the device a port of its network; the functions of one PF and VLAN are one. */
static int join_network(struct sim *sim, const struct arguments *arguments) {
    const struct rte_pci_addr *address = &arguments->address;
    char problem[256];
    int rc = 0;

    if (!arguments->network)
        return 0;
    sim->network = network_join(((uint64_t)address->domain << 8 | address->bus) << 12 | arguments->vlan);
    if (sim->network == NULL)
        return -ENOMEM;
    sim->port = (uint32_t)address->devid << 3 | address->function;
    sim->only = arguments->spoof_check ? arguments->mac : 0;
    if (arguments->uplink[0] != '\0')
        rc = network_connect(sim->network, arguments->uplink, &driver.cpus, report_uplink, problem,
                             sizeof(problem));
    if (rc == 0 && arguments->mac != 0) {
        rc = switch_pin(&sim->network->table, arguments->mac, sim->port);
        snprintf(problem, sizeof(problem),
                 "its mac is that of another device of this network: give each its own");
    }
    if (rc == 0) {
        sim->mac = arguments->mac;
        return 0;
    }
    LOG(ERR, "%s: %s\n", sim->address, problem);
    network_leave(sim->network);
    return -EINVAL;
}

static void leave_network(struct sim *sim) {
    if (sim->network == NULL)
        return;
    if (sim->mac != 0)
        switch_unpin(&sim->network->table, sim->mac, sim->port);
    network_leave(sim->network);
}

/*
 * The device is renamed in its devargs, which is where its name lives: a new pointer in its place would make
 * the bus's next scan find devargs without a device, and add a second one to them.
 */
static void rename_device(struct rte_vdev_device *vdev, const char *name) {
    snprintf(vdev->device.devargs->name, sizeof(vdev->device.devargs->name), "%s", name);
    vdev->device.name = vdev->device.devargs->name;
}

static int probe(struct rte_vdev_device *vdev) {
    struct sim *sim;
    struct arguments arguments;
    char thread_name[sizeof(sim->worker.name)], plugged_as[RTE_DEV_NAME_MAX_LEN], problem[256];
    int rc;

    if (vdev->device.devargs == NULL)
        return -EINVAL;
    sim = calloc(1, sizeof(*sim));
    if (sim == NULL)
        return -ENOMEM;
    sim->vdev = vdev;
    sim->vid = -1;
    sim->waiting = -1;
    rc = arguments_parse(&arguments, vdev->device.devargs->args == NULL ? "" : vdev->device.devargs->args,
                         problem, sizeof(problem));
    if (rc != 0) {
        LOG(ERR, "%s\n", problem);
        goto fail;
    }
    sim->pairs = arguments.pairs;
    sim->mtu = arguments.mtu;
    sim->like_mlx5 = arguments.like_mlx5;
    rte_pci_device_name(&arguments.address, sim->address, sizeof(sim->address));
    /* Without the domain: a thread's name has 15 characters. */
    snprintf(thread_name, sizeof(thread_name), "sim-%s", strchr(sim->address, ':') + 1);
    worker_init(&sim->worker, thread_name, report_broken, sim);
    sim->worker.crowded = report_crowded;

    snprintf(plugged_as, sizeof(plugged_as), "%s", vdev->device.name);
    rename_device(vdev, sim->address);
    pthread_mutex_lock(&driver.lock);
    sim->vdpa = rte_vdpa_register_device(&vdev->device, &ops);
    if (sim->vdpa == NULL) {
        LOG(ERR, "%s: cannot be registered: remove the device of that address first\n", sim->address);
        rc = -EBUSY; /* EAL takes -EEXIST for success */
        goto unlock;
    }
    rc = join_network(sim, &arguments);
    if (rc != 0) {
        rte_vdpa_unregister_device(sim->vdpa);
        goto unlock;
    }
    TAILQ_INSERT_TAIL(&driver.sims, sim, next);
    pthread_mutex_unlock(&driver.lock);
    return 0;

unlock:
    pthread_mutex_unlock(&driver.lock);
    rename_device(vdev, plugged_as);
fail:
    free(sim);
    return rc;
}

static int remove_device(struct rte_vdev_device *vdev) {
    struct sim *sim;
    int rc = -ENODEV;

    pthread_mutex_lock(&driver.lock);
    for (sim = TAILQ_FIRST(&driver.sims); sim != NULL && sim->vdev != vdev;)
        sim = TAILQ_NEXT(sim, next);
    if (sim != NULL && sim->vid >= 0) {
        LOG(ERR, "%s: cannot be removed while it serves a front end: unregister its socket first\n",
            sim->address);
        rc = -EBUSY;
    } else if (sim != NULL) {
        TAILQ_REMOVE(&driver.sims, sim, next);
        rte_vdpa_unregister_device(sim->vdpa);
        leave_network(sim);
        free(sim);
        rc = 0;
    }
    pthread_mutex_unlock(&driver.lock);
    return rc;
}

static struct rte_vdev_driver vdev_driver = {
    .driver = {.name = "vdpa_sim"},
    .probe = probe,
    .remove = remove_device,
};

RTE_INIT(vdpa_sim_register) {
    sched_getaffinity(0, sizeof(driver.cpus), &driver.cpus);
    log_type = rte_log_register_type_and_pick_level("vdpa.sim", RTE_LOG_INFO);
    rte_vdev_register(&vdev_driver);
}
