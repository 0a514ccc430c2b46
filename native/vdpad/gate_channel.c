/* The requests of a device to its front end, which the gate answers in the front end's place. */
#include "gate_parts.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

void gate_channel_close(struct gate *gate, struct gate_connection *connection) {
    struct channel *channel = &connection->channel;

    if (channel->inner < 0)
        return;
    /* DPDK, if it waits there, waits no longer. */
    close(channel->inner);
    epoll_ctl(gate->epoll_fd, EPOLL_CTL_DEL, channel->outer, NULL);
    descriptor_close(channel->outer, connection->device->debt);
    channel->inner = -1;
}

/* What the front end passed stays here; DPDK gets an end of our own. */
int gate_channel_open(struct gate *gate, struct gate_connection *connection) {
    struct channel *channel = &connection->channel;
    int ends[2];

    gate_channel_close(gate, connection);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return -errno;
    *channel = (struct channel){.inner = ends[0], .outer = connection->descriptors[0].fd};
    connection->descriptors[0] = (struct descriptor){.fd = ends[1], .kind = DESCRIPTOR_STREAM};
    channel->inner_source = (struct source){.kind = SOURCE_INNER, .owner = connection};
    channel->outer_source = (struct source){.kind = SOURCE_OUTER, .owner = connection};
    if (gate_watch(gate, channel->inner, &channel->inner_source, EPOLLIN, true) != 0 ||
        gate_watch(gate, channel->outer, &channel->outer_source, EPOLLIN, true) != 0)
        return -EIO;
    return 0;
}

void gate_channel_refuse(struct gate *gate, struct gate_connection *connection) {
    connection->device->entry.offer.protocol_features &=
        ~(UINT64_C(1) << VHOST_USER_FEATURE_BACKEND_REQ | UINT64_C(1) << VHOST_USER_FEATURE_BACKEND_SEND_FD |
          UINT64_C(1) << VHOST_USER_FEATURE_HOST_NOTIFIER);
    gate_connection_refuse(gate, connection, REFUSAL_CHANNEL);
}

/* DPDK sends whole messages, with one descriptor at most, and the next one after the answer to the last. */
void gate_channel_question(struct gate *gate, struct gate_connection *connection) {
    struct channel *channel = &connection->channel;
    struct vhost_user_message message;
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(sizeof(size_t))));
    struct iovec part = {.iov_base = &message, .iov_len = sizeof(message)};
    struct msghdr head = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *rights;
    ssize_t got;
    bool asked;

    if (connection->device == NULL || channel->inner < 0)
        return;
    got = recvmsg(channel->inner, &head, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got < VHOST_USER_HEADER_SIZE || message.size > VHOST_USER_PAYLOAD_MAX) {
        /* DPDK has closed its end, or sends what is not a message. */
        gate_channel_close(gate, connection);
        return;
    }
    part.iov_len = (size_t)got;
    rights = CMSG_FIRSTHDR(&head);
    if (rights == NULL) {
        head.msg_control = NULL;
        head.msg_controllen = 0;
    }
    asked = (message.flags & VHOST_USER_NEED_REPLY) != 0;
    got = sendmsg(channel->outer, &head, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (rights != NULL) {
        int fd;

        /* DPDK has it too: this is not the last reference. */
        memcpy(&fd, CMSG_DATA(rights), sizeof(fd));
        close(fd);
    }
    if (got != (ssize_t)part.iov_len) {
        gate_channel_refuse(gate, connection);
        return;
    }
    if (!asked)
        return;
    if (channel->unanswered++ == 0)
        channel->asked_ms = gate_now_ms();
    message.flags = VHOST_USER_VERSION | VHOST_USER_REPLY;
    message.size = sizeof(message.payload.number);
    message.payload.number = 0;
    if (send(channel->inner, &message, VHOST_USER_HEADER_SIZE + sizeof(message.payload.number),
             MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        gate_channel_close(gate, connection);
}

/* Nothing but the answers that were asked for, and that say yes. */
void gate_channel_answer(struct gate *gate, struct gate_connection *connection) {
    const size_t size = VHOST_USER_HEADER_SIZE + sizeof(uint64_t);
    struct channel *channel = &connection->channel;
    struct gate_connection reader;
    int error;

    if (connection->device == NULL || channel->inner < 0)
        return;
    reader = (struct gate_connection){
        .device = connection->device, .message = channel->answer, .done = channel->done};
    error = gate_receive(channel->outer, &reader, size);
    channel->answer = reader.message;
    channel->done = reader.done;
    if (reader.descriptor_count > 0) {
        gate_connection_drop(&reader);
        error = -EMSGSIZE;
    }
    if (error == -EAGAIN)
        return;
    if (error == -ECONNRESET && channel->unanswered == 0) {
        /* It wants to hear no more. */
        gate_channel_close(gate, connection);
        return;
    }
    if (error != 0 || channel->unanswered == 0) {
        gate_channel_refuse(gate, connection);
        return;
    }
    if (channel->done < size)
        return;
    if (channel->answer.size != sizeof(uint64_t) || channel->answer.payload.number != 0) {
        gate_channel_refuse(gate, connection);
        return;
    }
    channel->done = 0;
    channel->unanswered--;
    channel->asked_ms = gate_now_ms();
}
