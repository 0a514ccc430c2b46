/* The bytes of one vhost-user message and its descriptors, in and out without waiting. */
#include "gate_parts.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* SCM_MAX_FD of the kernel: with room for all, none is closed by recvmsg(), where it could wait. */
#define DESCRIPTORS_MAX 253

int gate_receive(int fd, struct gate_connection *connection, size_t size) {
    char control[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))] __attribute__((aligned(sizeof(size_t))));
    struct iovec part = {.iov_base = (char *)&connection->message + connection->done,
                         .iov_len = size - connection->done};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    ssize_t got;
    int error = 0;

    do {
        got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got <= 0)
        return got == 0 ? -ECONNRESET : -errno;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head != NULL; head = CMSG_NXTHDR(&message, head)) {
        int fds[DESCRIPTORS_MAX];
        size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS || count > DESCRIPTORS_MAX)
            continue;
        memcpy(fds, CMSG_DATA(head), count * sizeof(int));
        for (size_t i = 0; i < count; i++) {
            if (connection->descriptor_count < VHOST_USER_REGIONS_MAX) {
                descriptor_look(fds[i], &connection->descriptors[connection->descriptor_count++]);
            } else {
                descriptor_close(fds[i], connection->device->debt);
                error = -EMSGSIZE;
            }
        }
    }
    connection->done += (size_t)got;
    return error;
}

int gate_pass(int fd, struct gate_connection *connection) {
    char control[CMSG_SPACE(VHOST_USER_REGIONS_MAX * sizeof(int))]
        __attribute__((aligned(sizeof(size_t)))) = {0};
    const size_t size = VHOST_USER_HEADER_SIZE + connection->message.size;

    while (connection->done < size) {
        struct iovec part = {.iov_base = (char *)&connection->message + connection->done,
                             .iov_len = size - connection->done};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        ssize_t put;

        if (connection->descriptor_count > 0 && connection->done == 0) {
            struct cmsghdr *head;

            message.msg_control = control;
            message.msg_controllen = CMSG_SPACE(connection->descriptor_count * sizeof(int));
            head = CMSG_FIRSTHDR(&message);
            if (head == NULL)
                return -EINVAL;
            head->cmsg_level = SOL_SOCKET;
            head->cmsg_type = SCM_RIGHTS;
            head->cmsg_len = CMSG_LEN(connection->descriptor_count * sizeof(int));
            for (size_t i = 0; i < connection->descriptor_count; i++)
                memcpy(CMSG_DATA(head) + i * sizeof(int), &connection->descriptors[i].fd, sizeof(int));
        }
        put = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        connection->done += (size_t)put;
    }
    return 0;
}
