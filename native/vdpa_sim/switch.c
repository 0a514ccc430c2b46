/* The rules of a learning Ethernet switch: which port a frame goes to, without the ports themselves. */
#include "switch.h"

#include <errno.h>
#include <string.h>

/* A key: 48 bits of address, one that says pinned, the port's number plus one. */
#define PORT_MASK UINT64_C(0x7fff)
#define PINNED UINT64_C(0x8000)
#define MAC_SHIFT 16

static uint64_t make_key(mac_t mac, uint32_t port, bool pinned) {
    return mac << MAC_SHIFT | (pinned ? PINNED : 0) | (port + 1);
}

static mac_t mac_of(uint64_t key) {
    return key >> MAC_SHIFT;
}

static uint32_t port_of(uint64_t key) {
    return (uint32_t)(key & PORT_MASK) - 1;
}

static uint64_t mix(uint64_t x) {
    x ^= x >> 32;
    x *= UINT64_C(0x9e3779b97f4a7c15);
    return x ^ x >> 29;
}

static uint32_t bucket_of(const struct switch_table *table, mac_t mac) {
    return (uint32_t)(mix((mac + table->secret[0]) * (table->secret[1] | 1)) % SWITCH_BUCKETS);
}

void switch_init(struct switch_table *table, const uint64_t secret[2]) {
    table->secret[0] = secret[0];
    table->secret[1] = secret[1];
}

mac_t switch_mac(const uint8_t bytes[6]) {
    mac_t mac = 0;

    for (int i = 0; i < 6; i++)
        mac = mac << 8 | bytes[i];
    return mac;
}

static bool is_group(mac_t mac) {
    return (mac >> 40 & 1) != 0;
}

bool switch_is_station(mac_t mac) {
    return mac != 0 && !is_group(mac);
}

static uint64_t key_at(const struct switch_table *table, uint32_t bucket, uint32_t way) {
    return atomic_load_explicit(&table->buckets[bucket].keys[way], memory_order_acquire);
}

/* Clocks of several threads may differ by a moment. */
static bool is_stale(uint32_t seen_s, uint32_t now_s) {
    return (int32_t)(now_s - seen_s) > SWITCH_AGE_S;
}

/* An entry that another thread changes meanwhile may be taken for younger than it is, for one frame. */
static bool has_aged(const struct switch_table *table, uint32_t bucket, uint32_t way, uint64_t key,
                     uint32_t now_s) {
    return (key & PINNED) == 0 &&
           is_stale(atomic_load_explicit(&table->buckets[bucket].seen[way], memory_order_relaxed), now_s);
}

int switch_find(struct switch_table *table, mac_t mac, uint32_t now_s) {
    const uint32_t bucket = bucket_of(table, mac);

    for (uint32_t way = 0; way < SWITCH_WAYS; way++) {
        uint64_t key = key_at(table, bucket, way);
        if (key != 0 && mac_of(key) == mac && !has_aged(table, bucket, way, key, now_s))
            return (int)port_of(key);
    }
    return -1;
}

/* Puts `key` in the place of `old`, unless that has changed. Either may be 0. */
static bool replace(struct switch_table *table, uint32_t bucket, uint32_t way, uint64_t old, uint64_t key) {
    if (!atomic_compare_exchange_strong(&table->buckets[bucket].keys[way], &old, key))
        return false;
    if (old != 0)
        atomic_fetch_sub_explicit(&table->learned[port_of(old)], 1, memory_order_relaxed);
    if (key != 0)
        atomic_fetch_add_explicit(&table->learned[port_of(key)], 1, memory_order_relaxed);
    return true;
}

/* Takes out a port's entries: all that are not pinned, or only the stale ones. */
static void sweep(struct switch_table *table, uint32_t port, bool all, uint32_t now_s) {
    for (uint32_t bucket = 0; bucket < SWITCH_BUCKETS; bucket++)
        for (uint32_t way = 0; way < SWITCH_WAYS; way++) {
            uint64_t key = key_at(table, bucket, way);
            if (key != 0 && port_of(key) == port && (key & PINNED) == 0 &&
                (all || has_aged(table, bucket, way, key, now_s)))
                replace(table, bucket, way, key, 0);
        }
}

void switch_forget(struct switch_table *table, uint32_t port) {
    sweep(table, port, true, 0);
}

/* Whether the port may have one entry more. What of its own is stale goes first, once a second at most. */
static bool has_quota(struct switch_table *table, uint32_t port, uint32_t now_s) {
    const uint32_t quota = port == SWITCH_UPLINK ? SWITCH_UPLINK_QUOTA : SWITCH_PORT_QUOTA;

    if (atomic_load_explicit(&table->learned[port], memory_order_relaxed) < quota)
        return true;
    if (atomic_exchange_explicit(&table->swept[port], now_s, memory_order_relaxed) == now_s)
        return false;
    sweep(table, port, false, now_s);
    return atomic_load_explicit(&table->learned[port], memory_order_relaxed) < quota;
}

/* The way for a new entry of a port: a free one, else a stale one, else one of its own; -1: none. */
static int choose_way(struct switch_table *table, uint32_t bucket, uint32_t port, bool quota, uint32_t now_s,
                      uint64_t *old) {
    int stale = -1, own = -1;
    uint64_t stale_key = 0, own_key = 0;

    for (uint32_t way = 0; way < SWITCH_WAYS; way++) {
        uint64_t key = key_at(table, bucket, way);
        if (key == 0 && quota) {
            *old = 0;
            return (int)way;
        }
        if (key == 0 || (key & PINNED) != 0)
            continue;
        if (port_of(key) == port && own < 0) {
            own = (int)way;
            own_key = key;
        }
        if (quota && stale < 0 && has_aged(table, bucket, way, key, now_s)) {
            stale = (int)way;
            stale_key = key;
        }
    }
    *old = stale >= 0 ? stale_key : own_key;
    return stale >= 0 ? stale : own;
}

static void put(struct switch_table *table, uint32_t bucket, uint32_t way, uint64_t old, uint64_t key,
                uint32_t now_s) {
    /* First, so that a new entry is never found with an old time. */
    atomic_store_explicit(&table->buckets[bucket].seen[way], now_s, memory_order_relaxed);
    replace(table, bucket, way, old, key);
}

void switch_learn(struct switch_table *table, mac_t mac, uint32_t port, uint32_t now_s) {
    const uint32_t bucket = bucket_of(table, mac);
    uint64_t old;

    for (uint32_t way = 0; way < SWITCH_WAYS; way++) {
        uint64_t key = key_at(table, bucket, way);
        if (key == 0 || mac_of(key) != mac)
            continue;
        if ((key & PINNED) != 0)
            return;
        if (port_of(key) != port) {
            if (has_quota(table, port, now_s))
                put(table, bucket, way, key, make_key(mac, port, false), now_s);
        } else if (atomic_load_explicit(&table->buckets[bucket].seen[way], memory_order_relaxed) != now_s) {
            atomic_store_explicit(&table->buckets[bucket].seen[way], now_s, memory_order_relaxed);
        }
        return;
    }
    int way = choose_way(table, bucket, port, has_quota(table, port, now_s), now_s, &old);
    if (way >= 0)
        put(table, bucket, (uint32_t)way, old, make_key(mac, port, false), now_s);
}

/* A pinned entry may take the place of any learned one: there are no more of them than devices. */
int switch_pin(struct switch_table *table, mac_t mac, uint32_t port) {
    const uint32_t bucket = bucket_of(table, mac);
    const uint64_t pinned = make_key(mac, port, true);
    int chosen = -1;

    for (uint32_t way = 0; way < SWITCH_WAYS; way++) {
        uint64_t key = key_at(table, bucket, way);
        if ((key & PINNED) != 0 && mac_of(key) == mac)
            return key == pinned ? 0 : -EEXIST;
    }
    for (uint32_t way = 0; way < SWITCH_WAYS; way++) {
        uint64_t key = key_at(table, bucket, way);
        if (key != 0 && mac_of(key) == mac)
            replace(table, bucket, way, key, 0);
    }
    while (chosen < 0) {
        for (uint32_t way = 0; way < SWITCH_WAYS && chosen < 0; way++)
            if (key_at(table, bucket, way) == 0)
                chosen = (int)way;
        for (uint32_t way = 0; way < SWITCH_WAYS && chosen < 0; way++)
            if ((key_at(table, bucket, way) & PINNED) == 0)
                chosen = (int)way;
        if (chosen < 0)
            return -ENOSPC;
        /* Lost against a frame that was learned just now: once more. */
        uint64_t key = key_at(table, bucket, (uint32_t)chosen);
        if ((key & PINNED) != 0 || !replace(table, bucket, (uint32_t)chosen, key, pinned))
            chosen = -1;
    }
    return 0;
}

void switch_unpin(struct switch_table *table, mac_t mac, uint32_t port) {
    const uint32_t bucket = bucket_of(table, mac);

    for (uint32_t way = 0; way < SWITCH_WAYS; way++)
        if (key_at(table, bucket, way) == make_key(mac, port, true))
            replace(table, bucket, way, make_key(mac, port, true), 0);
}

enum switch_route switch_route(struct switch_table *table, uint32_t port, mac_t only, const uint8_t *head,
                               uint32_t len, uint32_t now_s, uint32_t *to) {
    mac_t destination, source;
    int found;

    if (len < SWITCH_HEADER)
        return SWITCH_REFUSE;
    destination = switch_mac(head);
    source = switch_mac(head + 6);
    if (!switch_is_station(source) || (only != 0 && source != only))
        return SWITCH_REFUSE;
    switch_learn(table, source, port, now_s);
    if (is_group(destination))
        return SWITCH_FLOOD;
    found = switch_find(table, destination, now_s);
    if (found < 0)
        return SWITCH_FLOOD;
    *to = (uint32_t)found;
    return *to == port ? SWITCH_STAY : SWITCH_ONE;
}

static uint16_t big16(const uint8_t *at) {
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t word(const uint8_t *at) {
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static bool has_ports(uint8_t protocol) {
    return protocol == 6 || protocol == 17 || protocol == 132; /* TCP, UDP, SCTP */
}

uint32_t switch_flow(const uint8_t *head, uint32_t len) {
    uint32_t at = SWITCH_HEADER, ports = 0;
    uint64_t hash;
    uint16_t type;

    if (len < SWITCH_HEADER)
        return 0;
    hash = mix(word(head) ^ (uint64_t)word(head + 8) << 32) ^ word(head + 4);
    type = big16(head + 12);
    while ((type == 0x8100 || type == 0x88a8) && at + 4 <= len) {
        type = big16(head + at + 2);
        at += 4;
    }
    if (type == 0x0800 && at + 20 <= len) {
        hash = mix(hash ^ word(head + at + 12) ^ (uint64_t)word(head + at + 16) << 32);
        /* All fragments of a packet go one way, and only the first one has ports. */
        if (has_ports(head[at + 9]) && (big16(head + at + 6) & 0x3fff) == 0)
            ports = at + (head[at] & 15U) * 4;
    } else if (type == 0x86dd && at + 40 <= len) {
        for (uint32_t i = 8; i < 40; i += 4)
            hash = mix(hash ^ word(head + at + i));
        if (has_ports(head[at + 6]))
            ports = at + 40;
    }
    if (ports != 0 && ports + 4 <= len)
        hash = mix(hash ^ word(head + ports));
    return (uint32_t)(mix(hash) >> 16);
}
