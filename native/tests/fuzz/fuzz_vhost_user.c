/*
 * A front end's bytes through the reader and the judge of the gate. Byte 0 has the descriptors that go with
 * each message, as the replay against a real vdpad reads it too (tests/e2e/test_front_ends.py).
 */
#include "gate_parts.h"
#include "target.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Byte 0. Without STREAM and LINGERING: memory of 1 MiB. */
#define KINDS_COUNT 15u     /* how many */
#define KINDS_STREAM 16u    /* a connection of AF_UNIX */
#define KINDS_LINGERING 32u /* a TCP connection whose close() waits */
#define KINDS_LATER 64u     /* none goes with the first message */

/* What a file that was let in has to hold for DPDK: within what the front end shares. */
static void check_memory(const struct vhost_user_memory *memory, const struct descriptor *descriptors) {
    for (uint32_t i = 0; i < memory->count; i++) {
        const struct vhost_user_region *region = &memory->regions[i];

        if (region->size == 0 || region->offset + region->size < region->size ||
            region->offset + region->size > descriptors[i].size)
            abort();
    }
}

static enum descriptor_kind kind_of(uint8_t kinds) {
    if ((kinds & KINDS_LINGERING) != 0)
        return DESCRIPTOR_OTHER;
    return (kinds & KINDS_STREAM) != 0 ? DESCRIPTOR_STREAM : DESCRIPTOR_MEMORY;
}

/* One message; false if the connection ends. */
static bool read_message(int fd, struct gate_connection *connection, uint8_t kinds, bool first) {
    static const struct vhost_user_offer offer = {.protocol_features = UINT64_MAX, .rings = 4};
    struct descriptor descriptors[VHOST_USER_REGIONS_MAX] = {0};
    size_t count = first && (kinds & KINDS_LATER) != 0 ? 0 : kinds & KINDS_COUNT;

    gate_connection_enter(connection, RECEIVING);
    if (gate_receive(fd, connection, VHOST_USER_HEADER_SIZE) != 0 ||
        connection->done < VHOST_USER_HEADER_SIZE || connection->message.size > VHOST_USER_PAYLOAD_MAX)
        return false;
    if (connection->message.size > 0 &&
        (gate_receive(fd, connection, VHOST_USER_HEADER_SIZE + connection->message.size) != 0 ||
         connection->done < VHOST_USER_HEADER_SIZE + connection->message.size))
        return false;
    count = count > VHOST_USER_REGIONS_MAX ? VHOST_USER_REGIONS_MAX : count;
    for (size_t i = 0; i < count; i++)
        descriptors[i] = (struct descriptor){.fd = -1, .kind = kind_of(kinds), .size = 1 << 20};
    if (vhost_user_judge(&offer, &connection->memory, &connection->message, descriptors, count) !=
        REFUSAL_NONE)
        return false;
    if (connection->message.request == VHOST_USER_SET_MEM_TABLE) {
        vhost_user_memory_of(&connection->message, &connection->memory);
        check_memory(&connection->memory, descriptors);
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct gate_connection connection = {.front = -1, .back = -1};
    int ends[2];

    if (size < 2 || size > 8192 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return 0;
    if (send(ends[0], data + 1, size - 1, MSG_DONTWAIT) == (ssize_t)(size - 1)) {
        bool first = true;

        close(ends[0]);
        while (read_message(ends[1], &connection, data[0], first))
            first = false;
    } else {
        close(ends[0]);
    }
    close(ends[1]);
    return 0;
}
