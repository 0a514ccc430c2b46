/* The device arguments of a software device, read and checked. */
#include "arguments.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_kvargs.h>

#include "worker.h"

enum { DEFAULT_PAIRS = 4, VLAN_MAX = 4094, MTU_MIN = 68 /* virtio's, and IPv4's */ };

#define KEYS                                                                                                 \
    "addr=<PCI address>[,queues=<pairs>][,network=loopback|switch][,vlan=<1 to "                             \
    "4094>][,mac=<MAC>][,spoofcheck=0|1][,uplink=<tap>][,mtu=<68 to 65535>][,profile=all|mlx5]"

struct reader {
    struct arguments *arguments;
    char *problem;
    size_t size;
};

static int wrong(const struct reader *reader, const char *key, const char *value, const char *remedy) {
    snprintf(reader->problem, reader->size, "%s=%s %s", key, value, remedy);
    return -EINVAL;
}

static int read_network(const struct reader *reader, const char *key, const char *value) {
    reader->arguments->network = strcmp(value, "switch") == 0;
    if (!reader->arguments->network && strcmp(value, "loopback") != 0)
        return wrong(reader, key, value, "is neither loopback nor switch");
    return 0;
}

/* A whole number of digits alone, from `least` to `most`. */
static int read_number(const char *value, unsigned long least, unsigned long most, uint16_t *number) {
    char *end;
    unsigned long given = strtoul(value, &end, 10);

    if (value[0] < '0' || value[0] > '9' || *end != '\0' || given < least || given > most)
        return -EINVAL;
    *number = (uint16_t)given;
    return 0;
}

static int read_vlan(const struct reader *reader, const char *key, const char *value) {
    if (read_number(value, 1, VLAN_MAX, &reader->arguments->vlan) != 0)
        return wrong(reader, key, value, "is no VLAN: give 1 to 4094");
    return 0;
}

static int read_mtu(const struct reader *reader, const char *key, const char *value) {
    if (read_number(value, MTU_MIN, RING_MAX_MTU, &reader->arguments->mtu) != 0)
        return wrong(reader, key, value, "is no MTU: give 68 to 65535 bytes");
    return 0;
}

static int read_uplink(const struct reader *reader, const char *key, const char *value) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    const size_t length = strlen(value);

    if (length == 0 || length >= sizeof(reader->arguments->uplink) || value[0] == '.' ||
        strspn(value, allowed) != length)
        return wrong(reader, key, value,
                     "is not the name of a tap: give one of 1 to 15 letters, digits, '-', '_' and '.'");
    memcpy(reader->arguments->uplink, value, length + 1);
    return 0;
}

static int read_mac(const struct reader *reader, const char *key, const char *value) {
    struct rte_ether_addr mac;

    if (rte_ether_unformat_addr(value, &mac) != 0 || !switch_is_station(switch_mac(mac.addr_bytes)))
        return wrong(reader, key, value, "is not the address of a station: give one like 02:00:00:00:00:01");
    reader->arguments->mac = switch_mac(mac.addr_bytes);
    return 0;
}

static int read_one(const char *key, const char *given, void *context) {
    const struct reader *reader = context;
    const char *value = given == NULL ? "" : given;
    struct arguments *arguments = reader->arguments;

    if (strcmp(key, "addr") == 0) {
        if (rte_pci_addr_parse(value, &arguments->address) != 0)
            return wrong(reader, key, value, "is not a PCI address: give one like 0000:82:00.2");
    } else if (strcmp(key, "queues") == 0) {
        if (value[0] < '1' || value[0] > '0' + WORKER_MAX_PAIRS || value[1] != '\0')
            return wrong(reader, key, value, "is out of range: give 1 to 8 queue pairs");
        arguments->pairs = (uint32_t)(value[0] - '0');
    } else if (strcmp(key, "network") == 0) {
        return read_network(reader, key, value);
    } else if (strcmp(key, "vlan") == 0) {
        return read_vlan(reader, key, value);
    } else if (strcmp(key, "mtu") == 0) {
        return read_mtu(reader, key, value);
    } else if (strcmp(key, "uplink") == 0) {
        return read_uplink(reader, key, value);
    } else if (strcmp(key, "mac") == 0) {
        return read_mac(reader, key, value);
    } else if (strcmp(key, "profile") == 0) {
        arguments->like_mlx5 = strcmp(value, "mlx5") == 0;
        if (!arguments->like_mlx5 && strcmp(value, "all") != 0)
            return wrong(reader, key, value, "is neither all nor mlx5");
    } else {
        if (strcmp(value, "0") != 0 && strcmp(value, "1") != 0)
            return wrong(reader, key, value, "is neither 0 nor 1");
        arguments->spoof_check = value[0] == '1';
    }
    return 0;
}

int arguments_parse(struct arguments *arguments, const char *text, char *problem, size_t size) {
    static const char *const keys[] = {"addr",       "queues", "network", "vlan",    "mac",
                                       "spoofcheck", "uplink", "mtu",     "profile", NULL};
    struct reader reader = {.arguments = arguments, .problem = problem, .size = size};
    struct rte_kvargs *kvargs = rte_kvargs_parse(text, keys);
    bool addressed;
    int rc;

    *arguments = (struct arguments){.pairs = DEFAULT_PAIRS};
    snprintf(problem, size, "cannot read the arguments '%s': give " KEYS, text);
    if (kvargs == NULL)
        return -EINVAL;
    rc = rte_kvargs_process(kvargs, NULL, read_one, &reader);
    addressed = rte_kvargs_count(kvargs, "addr") > 0;
    rte_kvargs_free(kvargs);
    if (rc != 0)
        return -EINVAL;
    if (!addressed)
        snprintf(problem, size, "addr is missing in '%s': give " KEYS, text);
    else if (!arguments->network && (arguments->vlan != 0 || arguments->mac != 0 || arguments->spoof_check ||
                                     arguments->uplink[0] != '\0'))
        snprintf(problem, size, "vlan, mac, spoofcheck and uplink are those of a switch: add network=switch");
    else if (arguments->spoof_check && arguments->mac == 0)
        snprintf(problem, size, "spoofcheck=1 needs the address that may send: add mac=<MAC>");
    else
        return 0;
    return -EINVAL;
}
