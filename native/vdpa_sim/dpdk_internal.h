/*
 * The few DPDK driver structures that distributions do not ship headers for, declared for the releases whose
 * layout they match.
 */
#ifndef VDPA_SIM_DPDK_INTERNAL_H
#define VDPA_SIM_DPDK_INTERNAL_H

#include <stdint.h>
#include <sys/queue.h>

#include <rte_dev.h>
#include <rte_devargs.h>
#include <rte_vdpa.h>
#include <rte_version.h>

#if RTE_VERSION < RTE_VERSION_NUM(22, 11, 0, 0) || RTE_VERSION >= RTE_VERSION_NUM(26, 11, 0, 0)
#error "vdpa_sim knows the driver structures of DPDK 22.11 to 26.07 only: build against one of those"
#endif

struct rte_bus;

struct rte_driver {
    TAILQ_ENTRY(rte_driver) next;
    const char *name;
    const char *alias;
};

struct rte_device {
    TAILQ_ENTRY(rte_device) next;
    const char *name;
    const char *bus_info;
    const struct rte_driver *driver;
    const struct rte_bus *bus;
    int numa_node;
    struct rte_devargs *devargs;
};

struct rte_vdev_device {
    TAILQ_ENTRY(rte_vdev_device) next;
    struct rte_device device;
};

struct rte_vdev_driver {
    TAILQ_ENTRY(rte_vdev_driver) next;
    struct rte_driver driver;
    int (*probe)(struct rte_vdev_device *vdev);
    int (*remove)(struct rte_vdev_device *vdev);
    int (*dma_map)(struct rte_vdev_device *vdev, void *addr, uint64_t iova, size_t len);
    int (*dma_unmap)(struct rte_vdev_device *vdev, void *addr, uint64_t iova, size_t len);
    uint32_t drv_flags;
};

struct rte_vdpa_dev_ops {
    int (*get_queue_num)(struct rte_vdpa_device *dev, uint32_t *queue_num);
    int (*get_features)(struct rte_vdpa_device *dev, uint64_t *features);
    int (*get_protocol_features)(struct rte_vdpa_device *dev, uint64_t *features);
    int (*dev_conf)(int vid);
    int (*dev_close)(int vid);
    int (*dev_cleanup)(int vid);
    int (*set_vring_state)(int vid, int vring, int state);
    int (*set_features)(int vid);
    int (*migration_done)(int vid);
    int (*get_vfio_group_fd)(int vid);
    int (*get_vfio_device_fd)(int vid);
    int (*get_notify_area)(int vid, int qid, uint64_t *offset, uint64_t *size);
    int (*get_stats_names)(struct rte_vdpa_device *dev, struct rte_vdpa_stat_name *names, unsigned int size);
    int (*get_stats)(struct rte_vdpa_device *dev, int qid, struct rte_vdpa_stat *stats, unsigned int n);
    int (*reset_stats)(struct rte_vdpa_device *dev, int qid);
    int (*get_config)(int vid, uint8_t *config, uint32_t size);
    int (*set_config)(int vid, uint8_t *config, uint32_t offset, uint32_t size, uint32_t flags);
    int (*get_dev_type)(struct rte_vdpa_device *dev, uint32_t *type);
};

void rte_vdev_register(struct rte_vdev_driver *driver);
struct rte_vdpa_device *rte_vdpa_register_device(struct rte_device *dev, struct rte_vdpa_dev_ops *ops);
int rte_vdpa_unregister_device(struct rte_vdpa_device *dev);

#endif
