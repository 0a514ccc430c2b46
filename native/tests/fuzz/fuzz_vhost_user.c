/* A front end's bytes through the reader and the judge of the gate: byte 0 has each message's descriptors. */
#include "gate_parts.h"
#include "target.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What a file that was let in has to hold for DPDK: within what the front end shares. */
static void check_memory(const struct vhost_user_memory *memory, const struct descriptor *descriptors) {
    for (uint32_t i = 0; i < memory->count; i++) {
        const struct vhost_user_region *region = &memory->regions[i];

        if (region->size == 0 || region->offset + region->size < region->size ||
            region->offset + region->size > descriptors[i].size)
            abort();
    }
}

/* One message; false if the connection ends. */
static bool read_message(int fd, struct gate_connection *connection, uint8_t kinds) {
    static const struct vhost_user_offer offer = {.protocol_features = UINT64_MAX, .rings = 4};
    struct descriptor descriptors[VHOST_USER_REGIONS_MAX] = {0};
    size_t count = kinds & 15u;

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
        descriptors[i] = (struct descriptor){
            .fd = -1, .kind = (kinds & 16u) != 0 ? DESCRIPTOR_STREAM : DESCRIPTOR_MEMORY, .size = 1 << 20};
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
        close(ends[0]);
        while (read_message(ends[1], &connection, data[0]))
            ;
    } else {
        close(ends[0]);
    }
    close(ends[1]);
    return 0;
}
