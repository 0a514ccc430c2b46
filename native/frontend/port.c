/* The virtio-user port: EAL, the connection to the back end, bursts and the state of the link. */
#include "port.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_log.h>
#include <rte_mbuf.h>

#define VDEV "net_virtio_user0"

enum {
    RING_SIZE = 1024,
    RETRY_NS = 20 * 1000 * 1000, /* between two attempts to connect */
};

static uint32_t mbufs(const struct options *options) {
    return options->queues * 2U * RING_SIZE + 1024;
}

static uint32_t memory_mb(const struct options *options) {
    return 16 + mbufs(options) / 1024 * 3;
}

/* Whether the kernel has enough free 2 MB pages. */
static bool hugepages_free(uint32_t mb) {
    unsigned long pages = 0;
    FILE *file = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");

    if (file == NULL)
        return false;
    if (fscanf(file, "%lu", &pages) != 1)
        pages = 0;
    fclose(file);
    return pages >= mb / 2;
}

static int first_cpu(void) {
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        for (unsigned int i = 0; i < CPU_SETSIZE; i++)
            if (CPU_ISSET(i, &set))
                return (int)i;
    return 0;
}

int port_init_eal(const struct options *options) {
    uint32_t mb = memory_mb(options);
    bool huge = options->memory == MEMORY_HUGEPAGES || (options->memory == MEMORY_AUTO && hugepages_free(mb));
    char lcore[16], mem[16], prefix[48];
    /* EAL wants strings it may write to. */
    char name[] = "vdpa-front", l[] = "-l", m[] = "-m", no_pci[] = "--no-pci",
         no_telemetry[] = "--no-telemetry";
    char log_level[] = "--log-level=lib.eal:warning", in_memory[] = "--in-memory";
    char single_file[] = "--single-file-segments", no_huge[] = "--no-huge", no_shconf[] = "--no-shconf";
    char *argv[] = {name,
                    l,
                    lcore,
                    m,
                    mem,
                    prefix,
                    no_pci,
                    no_telemetry,
                    log_level,
                    huge ? in_memory : no_huge,
                    huge ? single_file : no_shconf,
                    NULL};

    snprintf(lcore, sizeof(lcore), "%d", options->lcore >= 0 ? options->lcore : first_cpu());
    snprintf(mem, sizeof(mem), "%u", mb);
    snprintf(prefix, sizeof(prefix), "--file-prefix=vdpa-front-%ld", (long)getpid());
    rte_openlog_stream(stderr); /* not to syslog */
    if (rte_eal_init((int)RTE_DIM(argv) - 1, argv) < 0) {
        int rc = rte_errno > 0 ? -rte_errno : -EIO;
        fprintf(stderr, "error: cannot start DPDK with %s memory: %s; try --memory none\n",
                huge ? "hugepage" : "normal", strerror(-rc));
        return rc;
    }
    return 0;
}

void port_cleanup_eal(void) {
    char dir[4096];

    snprintf(dir, sizeof(dir), "%s", rte_eal_get_runtime_dir());
    rte_eal_cleanup();
    rmdir(dir); /* EAL leaves it, one for each run; never mind if it does not exist */
}

/*
 * Removes a socket that a killed front end has left. -EADDRINUSE if it is in use, or it is not a socket.
 */
static int remove_stale(const char *path) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct stat st;
    int rc = 0;

    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : -errno;
    if (!S_ISSOCK(st.st_mode))
        return -EADDRINUSE;
    /* Of another type, so that its owner notices nothing; alive even if it does not listen yet. */
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 || errno != ECONNREFUSED)
        rc = -EADDRINUSE;
    else if (unlink(path) != 0 && errno != ENOENT)
        rc = -errno;
    close(fd);
    return rc;
}

static bool is_socket(const char *path) {
    struct stat st;

    return stat(path, &st) == 0 && S_ISSOCK(st.st_mode);
}

/* The driver connects, or in server mode waits in accept(), while the device is plugged in. */
static int connect_back_end(const struct options *options, const volatile sig_atomic_t *expired,
                            const volatile sig_atomic_t *stop) {
    char args[256];

    if (options->server) {
        int rc = remove_stale(options->path);
        if (rc != 0) {
            fprintf(stderr, "error: cannot create the socket %s: %s; choose another path\n", options->path,
                    strerror(-rc));
            return rc;
        }
    }
    snprintf(args, sizeof(args), "path=%s,queues=%u,queue_size=%d,server=%d%s%s", options->path,
             options->queues, RING_SIZE, options->server,
             options->mac == NULL ? "" : ",mac=", options->mac == NULL ? "" : options->mac);
    for (;;) {
        if ((options->server || is_socket(options->path)) && rte_eal_hotplug_add("vdev", VDEV, args) == 0)
            return 0;
        if (options->server) /* the driver does not remove it when it gives up */
            remove_stale(options->path);
        if (*stop)
            return -EINTR;
        if (*expired)
            return -ETIMEDOUT;
        nanosleep(&(struct timespec){.tv_nsec = RETRY_NS}, NULL);
    }
}

static int start_queues(struct port *port, const struct options *options) {
    struct rte_eth_conf conf = {.intr_conf.lsc = 1};
    struct rte_ether_addr mac;
    int rc = rte_eth_dev_get_port_by_name(VDEV, &port->id);

    if (rc == 0)
        rc = rte_eth_dev_configure(port->id, options->queues, options->queues, &conf);
    for (uint16_t q = 0; rc == 0 && q < options->queues; q++) {
        rc = rte_eth_rx_queue_setup(port->id, q, RING_SIZE, (unsigned int)SOCKET_ID_ANY, NULL, port->pool);
        if (rc == 0)
            rc = rte_eth_tx_queue_setup(port->id, q, RING_SIZE, (unsigned int)SOCKET_ID_ANY, NULL);
    }
    if (rc == 0)
        rc = rte_eth_dev_start(port->id);
    if (rc != 0)
        return rc;
    port->started = true;
    rc = rte_eth_macaddr_get(port->id, &mac);
    memcpy(port->mac, mac.addr_bytes, sizeof(port->mac));
    return rc;
}

/* With link interrupts on, this reads what EAL's interrupt thread has found; it does not ask the back end. */
bool port_link_up(const struct port *port) {
    struct rte_eth_link link;

    return rte_eth_link_get_nowait(port->id, &link) == 0 && link.link_status == RTE_ETH_LINK_UP;
}

int port_open(struct port *port, const struct options *options, const volatile sig_atomic_t *expired,
              const volatile sig_atomic_t *stop) {
    int rc;

    port->pool =
        rte_pktmbuf_pool_create("frames", mbufs(options), 256, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
    if (port->pool == NULL) {
        rc = -rte_errno;
        fprintf(stderr, "error: no memory for %u packets: %s\n", mbufs(options), strerror(-rc));
        return rc;
    }
    rc = connect_back_end(options, expired, stop);
    if (rc != 0)
        return rc;
    port->plugged = true;
    rc = start_queues(port, options);
    if (rc != 0)
        fprintf(stderr, "error: cannot start %u queues on %s: %s\n", options->queues, options->path,
                strerror(-rc));
    return rc;
}

void port_close(struct port *port) {
    if (port->started)
        rte_eth_dev_stop(port->id);
    if (port->plugged)
        rte_eal_hotplug_remove("vdev", VDEV);
    if (port->pool != NULL)
        rte_mempool_free(port->pool);
}
