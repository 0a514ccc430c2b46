/* The vhost-user protocol as a front end speaks it: messages, and which of them a device lets through. */
#ifndef VDPAD_VHOST_USER_H
#define VDPAD_VHOST_USER_H

#include "descriptor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    VHOST_USER_HEADER_SIZE = 12,
    VHOST_USER_REGIONS_MAX = 8, /* DPDK's own limit */
    VHOST_USER_PAYLOAD_MAX = 8 + 32 * VHOST_USER_REGIONS_MAX,
};

enum {
    VHOST_USER_VERSION_MASK = 3,
    VHOST_USER_VERSION = 1,
    VHOST_USER_REPLY = 1 << 2,
    VHOST_USER_NEED_REPLY = 1 << 3,
};

enum vhost_user_request {
    VHOST_USER_GET_FEATURES = 1,
    VHOST_USER_SET_FEATURES = 2,
    VHOST_USER_SET_OWNER = 3,
    VHOST_USER_SET_MEM_TABLE = 5,
    VHOST_USER_SET_LOG_BASE = 6,
    VHOST_USER_SET_LOG_FD = 7,
    VHOST_USER_SET_VRING_NUM = 8,
    VHOST_USER_SET_VRING_ADDR = 9,
    VHOST_USER_SET_VRING_BASE = 10,
    VHOST_USER_GET_VRING_BASE = 11,
    VHOST_USER_SET_VRING_KICK = 12,
    VHOST_USER_SET_VRING_CALL = 13,
    VHOST_USER_SET_VRING_ERR = 14,
    VHOST_USER_GET_PROTOCOL_FEATURES = 15,
    VHOST_USER_SET_PROTOCOL_FEATURES = 16,
    VHOST_USER_GET_QUEUE_NUM = 17,
    VHOST_USER_SET_VRING_ENABLE = 18,
    VHOST_USER_SEND_RARP = 19,
    VHOST_USER_NET_SET_MTU = 20,
    VHOST_USER_SET_BACKEND_REQ_FD = 21,
    VHOST_USER_SET_STATUS = 39,
    VHOST_USER_GET_STATUS = 40,
};

/* The bits of the protocol features that stand for requests. */
enum {
    VHOST_USER_FEATURE_LOG_SHMFD = 1,
    VHOST_USER_FEATURE_RARP = 2,
    VHOST_USER_FEATURE_MTU = 4,
    VHOST_USER_FEATURE_BACKEND_REQ = 5,
    VHOST_USER_FEATURE_BACKEND_SEND_FD = 10,
    VHOST_USER_FEATURE_HOST_NOTIFIER = 11,
    VHOST_USER_FEATURE_STATUS = 16,
};

/* As on the wire, in the byte order of this machine; both ends are on it. */
struct vhost_user_message {
    uint32_t request;
    uint32_t flags;
    uint32_t size; /* of the payload */
    union {
        uint8_t bytes[VHOST_USER_PAYLOAD_MAX];
        uint64_t number;
    } payload;
} __attribute__((packed, aligned(4)));

struct vhost_user_region {
    uint64_t guest_address;
    uint64_t size;
    uint64_t user_address;
    uint64_t offset;
};

struct vhost_user_memory {
    uint32_t count;
    uint32_t padding;
    struct vhost_user_region regions[VHOST_USER_REGIONS_MAX];
};

/* What a device offered, and so what may be asked of it. */
struct vhost_user_offer {
    uint64_t protocol_features;
    uint32_t rings;
};

/* Why a front end was refused. */
enum refusal {
    REFUSAL_NONE,
    REFUSAL_REQUEST,
    REFUSAL_FORM,
    REFUSAL_DESCRIPTORS,
    REFUSAL_MEMORY,
    REFUSAL_RING,
    REFUSAL_BACK_END,
    REFUSAL_TRUNCATED,
    REFUSAL_SECOND,
    REFUSAL_CROWD,
    REFUSAL_SILENT,
    REFUSAL_CHANNEL,
    REFUSAL_COUNT
};

/* A name for counters: "request", "form", ... */
const char *refusal_name(enum refusal refusal);
/* A text for people. */
const char *refusal_text(enum refusal refusal);

/*
 * Whether a whole message may reach the device; changes nothing. `memory` is what the front end
 * shares so far.
 */
enum refusal vhost_user_judge(const struct vhost_user_offer *offer, const struct vhost_user_memory *memory,
                              const struct vhost_user_message *message, const struct descriptor *descriptors,
                              size_t count);

/* Whether the device answers the request itself, without being asked for an acknowledgement. */
bool vhost_user_is_answered(uint32_t request);

/* The memory table of a message that was judged. */
void vhost_user_memory_of(const struct vhost_user_message *message, struct vhost_user_memory *memory);

/* Whether DPDK would take both tables for one, and keep the first one's memory. */
bool vhost_user_memory_same(const struct vhost_user_memory *a, const struct vhost_user_memory *b);

#endif
