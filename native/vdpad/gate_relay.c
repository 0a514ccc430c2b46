/* The way of a front end's messages to DPDK and of its answers back, one at a time. */
#include "gate_parts.h"

#include "fault.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* The first front end that says something has the device. */
static enum refusal attach(struct gate *gate, struct gate_connection *connection) {
    struct gate_device *device = connection->device;
    int fd;

    connection->spoke = true;
    device->waiting--;
    if (device->served != NULL)
        return REFUSAL_SECOND;
    fd = gate->back_end.attach(gate->back_end.context, device->entry.address);
    if (fd < 0)
        return REFUSAL_BACK_END;
    device->served = connection;
    connection->back = fd;
    connection->back_source = (struct source){.kind = SOURCE_BACK, .owner = connection};
    return gate_watch(gate, fd, &connection->back_source, EPOLLIN, true) == 0 ? REFUSAL_NONE
                                                                              : REFUSAL_BACK_END;
}

/* Whatever is mapped from now on may be truncated. */
static int share(struct gate_connection *connection) {
    struct shares *shares = &connection->next_shares;

    for (size_t i = 0; i < connection->descriptor_count; i++) {
        int slot;

        if (connection->descriptors[i].kind != DESCRIPTOR_MEMORY)
            continue;
        slot = fault_share(&connection->descriptors[i]);
        if (slot < 0)
            return slot;
        shares->slots[shares->count++] = slot;
    }
    return 0;
}

/*
 * Whether DPDK will be able to map what is shared, which is found out by doing the same. Where its mmap()
 * fails, it has already unmapped what it had, goes on without any memory, and forgets the descriptor.
 */
static bool can_be_mapped(const struct vhost_user_memory *memory, const struct descriptor *descriptors) {
    void *mapped[VHOST_USER_REGIONS_MAX];
    size_t sizes[VHOST_USER_REGIONS_MAX];
    uint64_t room = GATE_MEMORY_MAX;
    uint32_t count = 0;
    bool fits = true;

    while (fits && count < memory->count) {
        const struct vhost_user_region *region = &memory->regions[count];
        uint64_t size = region->offset + region->size; /* judged: it lies within the file */
        struct stat status;

        fits = fstat(descriptors[count].fd, &status) == 0 && status.st_blksize > 0 && size <= room;
        if (!fits)
            break;
        room -= size;
        size += (uint64_t)status.st_blksize - 1;
        sizes[count] = (size_t)(size - size % (uint64_t)status.st_blksize);
        mapped[count] =
            mmap(NULL, sizes[count], PROT_READ | PROT_WRITE, MAP_SHARED, descriptors[count].fd, 0);
        fits = mapped[count] != MAP_FAILED;
        if (fits)
            count++;
    }
    while (count > 0) {
        count--;
        munmap(mapped[count], sizes[count]);
    }
    return fits;
}

/* A message is here as a whole. */
static enum refusal take(struct gate *gate, struct gate_connection *connection) {
    struct vhost_user_message *message = &connection->message;
    enum refusal refusal = vhost_user_judge(&connection->device->entry.offer, &connection->memory, message,
                                            connection->descriptors, connection->descriptor_count);

    if (refusal != REFUSAL_NONE)
        return refusal;
    if (!connection->spoke) {
        refusal = attach(gate, connection);
        if (refusal != REFUSAL_NONE)
            return refusal;
    }
    connection->request = message->request;
    connection->acknowledged =
        vhost_user_is_answered(message->request) || (message->flags & VHOST_USER_NEED_REPLY) != 0;
    if (message->request == VHOST_USER_SET_MEM_TABLE) {
        vhost_user_memory_of(message, &connection->next_memory);
        if (vhost_user_memory_same(&connection->next_memory, &connection->memory)) {
            /* DPDK would keep the files that it has; so the ones that are known stay right. */
            gate_connection_drop(connection);
            message->flags = VHOST_USER_VERSION | VHOST_USER_REPLY;
            message->size = sizeof(message->payload.number);
            message->payload.number = 0;
            gate_connection_enter(connection, connection->acknowledged ? REPLYING : RECEIVING);
            return REFUSAL_NONE;
        }
        if (!can_be_mapped(&connection->next_memory, connection->descriptors))
            return REFUSAL_MEMORY;
    }
    if (message->request == VHOST_USER_SET_BACKEND_REQ_FD && gate_channel_open(gate, connection) != 0)
        return REFUSAL_BACK_END;
    if (share(connection) != 0)
        return REFUSAL_BACK_END;
    /* With an answer to each message, there is only one on its way, and the verdict on it is known. */
    if (!vhost_user_is_answered(message->request))
        message->flags |= VHOST_USER_NEED_REPLY;
    gate_connection_enter(connection, PASSING);
    return REFUSAL_NONE;
}

/* The back end has answered. */
static enum refusal settle(struct gate_connection *connection) {
    struct vhost_user_message *message = &connection->message;
    const bool failed = !vhost_user_is_answered(connection->request) && message->payload.number != 0;

    if (message->request != connection->request)
        return REFUSAL_BACK_END;
    switch (message->request) {
    case VHOST_USER_SET_MEM_TABLE:
        /* After a failure DPDK has no memory at all, and the front end would have to leave. */
        if (failed)
            return REFUSAL_BACK_END;
        gate_shares_replace(&connection->memory_shares, &connection->next_shares);
        connection->memory = connection->next_memory;
        break;
    case VHOST_USER_SET_LOG_BASE:
        gate_shares_replace(&connection->log_shares, &connection->next_shares);
        break;
    case VHOST_USER_GET_PROTOCOL_FEATURES:
        /* What the gate does not let through. */
        message->payload.number &= connection->device->entry.offer.protocol_features;
        break;
    default:
        break;
    }
    if (failed && !connection->acknowledged)
        return REFUSAL_BACK_END;
    gate_connection_enter(connection, connection->acknowledged ? REPLYING : RECEIVING);
    return REFUSAL_NONE;
}

static enum refusal step_receiving(struct gate *gate, struct gate_connection *connection, int *error) {
    const size_t head = VHOST_USER_HEADER_SIZE;

    if (connection->done < head) {
        if (connection->done == 0)
            connection->since_ms = gate_now_ms();
        *error = gate_receive(connection->front, connection, head);
        if (*error == -EMSGSIZE)
            return REFUSAL_DESCRIPTORS;
        if (*error != 0 || connection->done < head)
            return REFUSAL_NONE;
        if (connection->message.size > VHOST_USER_PAYLOAD_MAX)
            return REFUSAL_FORM;
    }
    if (connection->done < head + connection->message.size) {
        *error = gate_receive(connection->front, connection, head + connection->message.size);
        if (*error == -EMSGSIZE)
            return REFUSAL_DESCRIPTORS;
        if (*error != 0 || connection->done < head + connection->message.size)
            return REFUSAL_NONE;
    }
    return take(gate, connection);
}

static enum refusal step_awaiting(struct gate_connection *connection, int *error) {
    const size_t head = VHOST_USER_HEADER_SIZE;

    if (connection->done < head) {
        *error = gate_receive(connection->back, connection, head);
        if (*error != 0 || connection->done < head)
            return REFUSAL_NONE;
    }
    if (connection->message.size > VHOST_USER_PAYLOAD_MAX)
        return REFUSAL_BACK_END;
    if (connection->done < head + connection->message.size) {
        *error = gate_receive(connection->back, connection, head + connection->message.size);
        if (*error != 0 || connection->done < head + connection->message.size)
            return REFUSAL_NONE;
    }
    /* No answer of DPDK to these requests has a descriptor. */
    gate_connection_drop(connection);
    return settle(connection);
}

/*
 * Goes on as far as neither end has to be waited for. One message at a time: the others have their turn too.
 */
static void step(struct gate *gate, struct gate_connection *connection) {
    enum refusal refusal = REFUSAL_NONE;
    int error = 0;

    for (int steps = 0; steps < 4 && error == 0 && refusal == REFUSAL_NONE; steps++) {
        switch (connection->phase) {
        case RECEIVING:
            refusal = step_receiving(gate, connection, &error);
            break;
        case PASSING:
            error = gate_pass(connection->back, connection);
            if (error == 0) {
                /* DPDK has them: none of these is a last reference. */
                for (size_t i = 0; i < connection->descriptor_count; i++)
                    close(connection->descriptors[i].fd);
                connection->descriptor_count = 0;
                gate_connection_enter(connection, AWAITING);
            }
            break;
        case AWAITING:
            refusal = step_awaiting(connection, &error);
            break;
        case REPLYING:
            error = gate_pass(connection->front, connection);
            if (error == 0)
                gate_connection_enter(connection, RECEIVING);
            break;
        }
    }
    if (refusal != REFUSAL_NONE) {
        gate_connection_refuse(gate, connection, refusal);
    } else if (error != 0 && error != -EAGAIN) {
        /* A front end that ends its connection is not refused. */
        if (connection->phase == PASSING || connection->phase == AWAITING)
            gate_connection_refuse(gate, connection, REFUSAL_BACK_END);
        else
            gate_connection_close(gate, connection);
    } else {
        uint32_t front = connection->phase == RECEIVING  ? EPOLLIN
                         : connection->phase == REPLYING ? EPOLLOUT
                                                         : 0;
        uint32_t back = EPOLLIN | (connection->phase == PASSING ? EPOLLOUT : 0);

        gate_watch(gate, connection->front, &connection->front_source, front, false);
        if (connection->back >= 0)
            gate_watch(gate, connection->back, &connection->back_source, back, false);
    }
}

void gate_relay_front(struct gate *gate, struct gate_connection *connection, uint32_t events) {
    if (connection->device == NULL)
        return;
    /* Gone, and nothing of it is left to read. */
    if (connection->phase != RECEIVING && (events & (EPOLLHUP | EPOLLERR)) != 0)
        gate_connection_close(gate, connection);
    else
        step(gate, connection);
}

void gate_relay_back(struct gate *gate, struct gate_connection *connection) {
    char byte;

    if (connection->device == NULL)
        return;
    /* Nothing was asked: DPDK has closed its end, or sends what was not asked for. */
    if ((connection->phase == RECEIVING || connection->phase == REPLYING) &&
        recv(connection->back, &byte, 1, MSG_DONTWAIT | MSG_PEEK) >= 0)
        gate_connection_refuse(gate, connection, REFUSAL_BACK_END);
    else
        step(gate, connection);
}
