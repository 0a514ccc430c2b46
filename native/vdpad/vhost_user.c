/* The vhost-user protocol as a front end speaks it: messages, and which of them a device lets through. */
#include "vhost_user.h"

#include <string.h>

#define PAGE ((uint64_t)4096)
#define RING_SIZE_MAX 32768U

_Static_assert(offsetof(struct vhost_user_message, payload) == VHOST_USER_HEADER_SIZE,
               "the header has no holes");
_Static_assert(sizeof(struct vhost_user_memory) == VHOST_USER_PAYLOAD_MAX, "the memory table has no holes");

struct ring_state {
    uint32_t index;
    uint32_t number;
};

struct ring_addresses {
    uint32_t index;
    uint32_t flags;
    uint64_t descriptors;
    uint64_t used;
    uint64_t available;
    uint64_t log;
};

/* The low byte is the ring's index; this bit says that no descriptor comes with it. */
#define RING_WITHOUT_DESCRIPTOR ((uint64_t)1 << 8)
#define RING_INDEX ((uint64_t)0xff)

static const char *const names[REFUSAL_COUNT] = {
    [REFUSAL_REQUEST] = "request",     [REFUSAL_FORM] = "form",       [REFUSAL_DESCRIPTORS] = "descriptors",
    [REFUSAL_MEMORY] = "memory",       [REFUSAL_RING] = "ring",       [REFUSAL_BACK_END] = "back_end",
    [REFUSAL_TRUNCATED] = "truncated", [REFUSAL_SECOND] = "second",   [REFUSAL_CROWD] = "crowd",
    [REFUSAL_SILENT] = "silent",       [REFUSAL_CHANNEL] = "channel",
};

static const char *const texts[REFUSAL_COUNT] = {
    [REFUSAL_REQUEST] = "it asked for what the device does not offer",
    [REFUSAL_FORM] = "its message has a wrong version, size or flag",
    [REFUSAL_DESCRIPTORS] =
        "it passed descriptors of a wrong number or kind: memory has to be a memfd or a file "
        "of tmpfs or hugetlbfs, open for reading and writing; notifications have to be eventfds",
    [REFUSAL_MEMORY] = "its memory regions overlap, overflow, are not aligned to pages or exceed their files",
    [REFUSAL_RING] = "a virtqueue has an index, a size or an address out of range",
    [REFUSAL_BACK_END] = "DPDK refused a message or ended the connection",
    [REFUSAL_TRUNCATED] = "it truncated the memory that it shares",
    [REFUSAL_SECOND] = "another front end has the device: disconnect the first one",
    [REFUSAL_CROWD] = "too many connections wait at this socket without a word",
    [REFUSAL_SILENT] = "it did not send a whole message in time",
    [REFUSAL_CHANNEL] =
        "it does not answer what the device asks of it; its host notifiers are off from now on",
};

const char *refusal_name(enum refusal refusal) {
    return names[refusal];
}

const char *refusal_text(enum refusal refusal) {
    return texts[refusal];
}

/* What a request has to bring, and what the device has to have offered. */
struct rule {
    bool known;
    uint8_t size;        /* of the payload, at least */
    uint8_t feature;     /* the bit of the protocol features plus one; zero: always there */
    uint8_t descriptors; /* exactly; the table of memory and rings have rules of their own */
};

static const struct rule rules[] = {
    [VHOST_USER_GET_FEATURES] = {.known = true},
    [VHOST_USER_SET_FEATURES] = {.known = true, .size = 8},
    [VHOST_USER_SET_OWNER] = {.known = true},
    [VHOST_USER_SET_MEM_TABLE] = {.known = true, .size = 8},
    [VHOST_USER_SET_LOG_BASE] = {true, 16, VHOST_USER_FEATURE_LOG_SHMFD + 1, 1},
    [VHOST_USER_SET_LOG_FD] = {true, 0, VHOST_USER_FEATURE_LOG_SHMFD + 1, 1},
    [VHOST_USER_SET_VRING_NUM] = {.known = true, .size = 8},
    [VHOST_USER_SET_VRING_ADDR] = {.known = true, .size = 40},
    [VHOST_USER_SET_VRING_BASE] = {.known = true, .size = 8},
    [VHOST_USER_GET_VRING_BASE] = {.known = true, .size = 8},
    [VHOST_USER_SET_VRING_KICK] = {.known = true, .size = 8},
    [VHOST_USER_SET_VRING_CALL] = {.known = true, .size = 8},
    [VHOST_USER_SET_VRING_ERR] = {.known = true, .size = 8},
    [VHOST_USER_GET_PROTOCOL_FEATURES] = {.known = true},
    [VHOST_USER_SET_PROTOCOL_FEATURES] = {.known = true, .size = 8},
    [VHOST_USER_GET_QUEUE_NUM] = {.known = true},
    [VHOST_USER_SET_VRING_ENABLE] = {.known = true, .size = 8},
    [VHOST_USER_SEND_RARP] = {true, 8, VHOST_USER_FEATURE_RARP + 1, 0},
    [VHOST_USER_NET_SET_MTU] = {true, 8, VHOST_USER_FEATURE_MTU + 1, 0},
    [VHOST_USER_SET_BACKEND_REQ_FD] = {true, 0, VHOST_USER_FEATURE_BACKEND_REQ + 1, 1},
    [VHOST_USER_SET_STATUS] = {true, 8, VHOST_USER_FEATURE_STATUS + 1, 0},
    [VHOST_USER_GET_STATUS] = {true, 0, VHOST_USER_FEATURE_STATUS + 1, 0},
};

static bool ends_within(uint64_t start, uint64_t size, uint64_t limit) {
    return start <= limit && size <= limit - start;
}

static bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size) {
    return a < b + b_size && b < a + a_size;
}

static enum refusal judge_memory(const struct vhost_user_message *message,
                                 const struct descriptor *descriptors, size_t count) {
    struct vhost_user_memory memory;

    vhost_user_memory_of(message, &memory);
    if (memory.count == 0 || memory.count > VHOST_USER_REGIONS_MAX)
        return REFUSAL_MEMORY;
    if (message->size < 8 + memory.count * sizeof(memory.regions[0]))
        return REFUSAL_FORM;
    if (count != memory.count)
        return REFUSAL_DESCRIPTORS;
    for (uint32_t i = 0; i < memory.count; i++) {
        const struct vhost_user_region *a = &memory.regions[i];

        if (descriptors[i].kind != DESCRIPTOR_MEMORY)
            return REFUSAL_DESCRIPTORS;
        if (a->size == 0 || (a->size | a->offset | a->guest_address | a->user_address) % PAGE != 0 ||
            !ends_within(a->offset, a->size, descriptors[i].size) ||
            !ends_within(a->guest_address, a->size, UINT64_MAX) ||
            !ends_within(a->user_address, a->size, UINT64_MAX))
            return REFUSAL_MEMORY;
        for (uint32_t j = 0; j < i; j++) {
            const struct vhost_user_region *b = &memory.regions[j];

            if (overlap(a->guest_address, a->size, b->guest_address, b->size) ||
                overlap(a->user_address, a->size, b->user_address, b->size))
                return REFUSAL_MEMORY;
        }
    }
    return REFUSAL_NONE;
}

static bool is_shared(const struct vhost_user_memory *memory, uint64_t address, uint64_t size) {
    for (uint32_t i = 0; i < memory->count; i++) {
        const struct vhost_user_region *region = &memory->regions[i];

        if (address >= region->user_address &&
            ends_within(address - region->user_address, size, region->size))
            return true;
    }
    return false;
}

/*
 * The sizes of the rings depend on what was negotiated:
 * their starts are checked here, their ends by the device.
 */
static enum refusal judge_addresses(const struct vhost_user_offer *offer,
                                    const struct vhost_user_memory *memory,
                                    const struct vhost_user_message *message) {
    struct ring_addresses addresses;

    memcpy(&addresses, message->payload.bytes, sizeof(addresses));
    if (addresses.index >= offer->rings || addresses.descriptors % 16 != 0 || addresses.available % 2 != 0 ||
        addresses.used % 4 != 0 || !is_shared(memory, addresses.descriptors, 16) ||
        !is_shared(memory, addresses.available, 4) || !is_shared(memory, addresses.used, 4))
        return REFUSAL_RING;
    return REFUSAL_NONE;
}

static enum refusal judge_notifier(const struct vhost_user_offer *offer,
                                   const struct vhost_user_message *message,
                                   const struct descriptor *descriptors, size_t count) {
    const uint64_t value = message->payload.number;

    if ((value & ~(RING_INDEX | RING_WITHOUT_DESCRIPTOR)) != 0 || (value & RING_INDEX) >= offer->rings)
        return REFUSAL_RING;
    if (count != ((value & RING_WITHOUT_DESCRIPTOR) != 0 ? 0 : 1))
        return REFUSAL_DESCRIPTORS;
    return count == 0 || descriptors[0].kind == DESCRIPTOR_EVENT ? REFUSAL_NONE : REFUSAL_DESCRIPTORS;
}

static enum refusal judge_state(const struct vhost_user_offer *offer,
                                const struct vhost_user_message *message) {
    struct ring_state state;

    memcpy(&state, message->payload.bytes, sizeof(state));
    if (state.index >= offer->rings)
        return REFUSAL_RING;
    switch (message->request) {
    case VHOST_USER_SET_VRING_NUM:
        /* A packed ring may have any size; the device knows which kind it is. */
        return state.number == 0 || state.number > RING_SIZE_MAX ? REFUSAL_RING : REFUSAL_NONE;
    case VHOST_USER_SET_VRING_ENABLE:
        return state.number > 1 ? REFUSAL_RING : REFUSAL_NONE;
    default:
        return REFUSAL_NONE;
    }
}

static enum refusal judge_log(const struct vhost_user_message *message, const struct descriptor *descriptor) {
    uint64_t range[2];

    memcpy(range, message->payload.bytes, sizeof(range));
    if (descriptor->kind != DESCRIPTOR_MEMORY)
        return REFUSAL_DESCRIPTORS;
    if (range[0] == 0 || range[1] % PAGE != 0 || !ends_within(range[1], range[0], descriptor->size))
        return REFUSAL_MEMORY;
    return REFUSAL_NONE;
}

enum refusal vhost_user_judge(const struct vhost_user_offer *offer, const struct vhost_user_memory *memory,
                              const struct vhost_user_message *message, const struct descriptor *descriptors,
                              size_t count) {
    const size_t known = sizeof(rules) / sizeof(rules[0]);
    const struct rule *rule = message->request < known ? &rules[message->request] : NULL;

    if (rule == NULL || !rule->known ||
        (rule->feature != 0 && (offer->protocol_features >> (rule->feature - 1) & 1) == 0))
        return REFUSAL_REQUEST;
    if ((message->flags & VHOST_USER_VERSION_MASK) != VHOST_USER_VERSION ||
        (message->flags & VHOST_USER_REPLY) != 0 || message->size < rule->size)
        return REFUSAL_FORM;
    switch (message->request) {
    case VHOST_USER_SET_MEM_TABLE:
        return judge_memory(message, descriptors, count);
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
    case VHOST_USER_SET_VRING_ERR:
        return judge_notifier(offer, message, descriptors, count);
    default:
        break;
    }
    if (count != rule->descriptors)
        return REFUSAL_DESCRIPTORS;
    switch (message->request) {
    case VHOST_USER_SET_VRING_NUM:
    case VHOST_USER_SET_VRING_BASE:
    case VHOST_USER_GET_VRING_BASE:
    case VHOST_USER_SET_VRING_ENABLE:
        return judge_state(offer, message);
    case VHOST_USER_SET_VRING_ADDR:
        return judge_addresses(offer, memory, message);
    case VHOST_USER_SET_LOG_BASE:
        return judge_log(message, &descriptors[0]);
    case VHOST_USER_SET_BACKEND_REQ_FD:
        return descriptors[0].kind == DESCRIPTOR_STREAM ? REFUSAL_NONE : REFUSAL_DESCRIPTORS;
    case VHOST_USER_SET_LOG_FD:
        return descriptors[0].kind == DESCRIPTOR_EVENT ? REFUSAL_NONE : REFUSAL_DESCRIPTORS;
    default:
        return REFUSAL_NONE;
    }
}

bool vhost_user_is_answered(uint32_t request) {
    switch (request) {
    case VHOST_USER_GET_FEATURES:
    case VHOST_USER_SET_LOG_BASE:
    case VHOST_USER_GET_VRING_BASE:
    case VHOST_USER_GET_PROTOCOL_FEATURES:
    case VHOST_USER_GET_QUEUE_NUM:
    case VHOST_USER_GET_STATUS:
        return true;
    default:
        return false;
    }
}

void vhost_user_memory_of(const struct vhost_user_message *message, struct vhost_user_memory *memory) {
    memcpy(memory, message->payload.bytes, sizeof(*memory));
}

bool vhost_user_memory_same(const struct vhost_user_memory *a, const struct vhost_user_memory *b) {
    if (a->count != b->count)
        return false;
    for (uint32_t i = 0; i < a->count; i++) {
        if (a->regions[i].guest_address != b->regions[i].guest_address ||
            a->regions[i].size != b->regions[i].size ||
            a->regions[i].user_address != b->regions[i].user_address)
            return false;
    }
    return true;
}
