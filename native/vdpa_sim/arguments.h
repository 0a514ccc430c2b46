/* The device arguments of a software device, read and checked. */
#ifndef VDPA_SIM_ARGUMENTS_H
#define VDPA_SIM_ARGUMENTS_H

#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <rte_ether.h>
#include <rte_pci.h>

#include "switch.h"

struct arguments {
    struct rte_pci_addr address;
    uint32_t pairs;
    bool network;  /* a port of the network of its bus and VLAN; else it gives back what it is sent */
    uint16_t vlan; /* 0: none */
    mac_t mac;     /* 0: not given */
    uint16_t mtu;  /* 0: not given */
    char uplink[IF_NAMESIZE]; /* the tap of its switch; empty: not given */
    bool spoof_check;
    bool like_mlx5; /* offer no feature that DPDK's mlx5 driver does not */
};

/* Fills `arguments` from "addr=...[,key=value]...". -EINVAL, with what is wrong and what to do in `problem`.
 */
int arguments_parse(struct arguments *arguments, const char *text, char *problem, size_t size);

#endif
