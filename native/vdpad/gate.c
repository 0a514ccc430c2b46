/* The gate between front ends and DPDK: one thread that never waits for any of them. */
#include "gate.h"

#include "descriptor.h"
#include "fault.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* SCM_MAX_FD of the kernel: with room for all, none is closed by recvmsg(), where it could wait. */
#define DESCRIPTORS_MAX 253
/* More closes than these that have not come back, and nobody else of that device is let in. */
#define DEBT_MAX 4
#define TICK_MS 250
#define LOG_EVERY_MS 10000
#define EVENTS_MAX 64

enum phase {
    RECEIVING, /* a message from the front end */
    PASSING,   /* it, to the back end */
    AWAITING,  /* the answer of the back end */
    REPLYING   /* it, to the front end */
};

/* Files that a front end shares, as slots of fault.h. */
struct shares {
    size_t count;
    int slots[VHOST_USER_REGIONS_MAX];
};

/* What epoll hands back. */
enum source_kind { SOURCE_WAKE, SOURCE_LISTENER, SOURCE_FRONT, SOURCE_BACK, SOURCE_INNER, SOURCE_OUTER };

struct source {
    enum source_kind kind;
    void *owner;
    uint32_t events; /* what is watched now */
};

/*
 * The way on which the device asks something of its front end. DPDK waits for each answer, on the thread of
 * all devices: so the gate answers in the front end's place, and the front end answers the gate.
 */
struct channel {
    int inner; /* to DPDK; -1: there is no channel */
    int outer; /* to the front end */
    struct source inner_source;
    struct source outer_source;
    int64_t asked_ms;        /* the oldest question that is not answered */
    unsigned int unanswered; /* questions */
    size_t done;             /* bytes of the answer that is on its way */
    struct vhost_user_message answer;
};

struct gate_connection {
    struct gate_connection *next;
    struct gate_device *device; /* NULL once it is closed */
    int front;
    int back; /* -1: not attached */
    struct source front_source;
    struct source back_source;
    enum phase phase;
    int64_t since_ms; /* when it came, or when its message began */
    bool spoke;
    uint32_t request;  /* of the message that is on its way */
    bool acknowledged; /* the front end itself wants the answer */
    struct vhost_user_message message;
    size_t done; /* bytes of `message` received or sent */
    struct descriptor descriptors[VHOST_USER_REGIONS_MAX];
    size_t descriptor_count;
    struct vhost_user_memory memory;
    struct vhost_user_memory next_memory; /* of the table that is on its way */
    struct channel channel;
    struct shares memory_shares;
    struct shares log_shares;
    struct shares next_shares; /* of the message that is on its way */
};

struct gate_device {
    struct gate_device *next;
    struct gate_entry entry;
    struct source source;
    struct debt *debt;
    struct gate_connection *connections; /* the newest first */
    struct gate_connection *served;      /* the one that is attached, or NULL */
    unsigned int waiting;                /* connections that have not said a word */
    int64_t tried_ms;                    /* when the listener was put to rest, or a front end last called */
    int64_t logged_ms[REFUSAL_COUNT];
    unsigned int unlogged[REFUSAL_COUNT];
};

/* One removal that somebody waits for, or has ceased to wait for. */
struct gate_departure {
    struct gate_departure *next;
    char address[PCI_ADDRESS_SIZE];
    bool taken;
    bool done;
    bool abandoned;
    int error;
    struct failure failure;
};

static int64_t now_ms(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void lock(struct gate *gate) {
    pthread_mutex_lock(&gate->mutex);
}

static void unlock(struct gate *gate) {
    pthread_mutex_unlock(&gate->mutex);
}

/* -errno, or 0; `events` 0 stops watching, except for hang-ups. */
static int watch(struct gate *gate, int fd, struct source *source, uint32_t events, bool anew) {
    struct epoll_event event = {.events = events, .data.ptr = source};

    if (!anew && source->events == events)
        return 0;
    source->events = events;
    return epoll_ctl(gate->epoll_fd, anew ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) == 0 ? 0 : -errno;
}

static void drop_descriptors(struct gate_connection *connection) {
    for (size_t i = 0; i < connection->descriptor_count; i++)
        descriptor_close(connection->descriptors[i].fd, connection->device->debt);
    connection->descriptor_count = 0;
}

static void release_shares(struct shares *shares) {
    for (size_t i = 0; i < shares->count; i++)
        fault_unshare(shares->slots[i]);
    shares->count = 0;
}

static void replace_shares(struct shares *old, struct shares *next) {
    release_shares(old);
    *old = *next;
    next->count = 0;
}

static void close_channel(struct gate *gate, struct gate_connection *connection) {
    struct channel *channel = &connection->channel;

    if (channel->inner < 0)
        return;
    /* DPDK, if it waits there, waits no longer. */
    close(channel->inner);
    epoll_ctl(gate->epoll_fd, EPOLL_CTL_DEL, channel->outer, NULL);
    descriptor_close(channel->outer, connection->device->debt);
    channel->inner = -1;
}

/* The memory of a connection stays until the events that name it have been looked at. */
static void close_connection(struct gate *gate, struct gate_connection *connection) {
    struct gate_device *device = connection->device;
    struct gate_connection **link = &device->connections;

    while (*link != connection)
        link = &(*link)->next;
    *link = connection->next;
    close_channel(gate, connection);
    if (connection->back >= 0) {
        gate->back_end.detach(gate->back_end.context, device->entry.address);
        close(connection->back);
        device->served = NULL;
    }
    release_shares(&connection->memory_shares);
    release_shares(&connection->log_shares);
    release_shares(&connection->next_shares);
    drop_descriptors(connection);
    epoll_ctl(gate->epoll_fd, EPOLL_CTL_DEL, connection->front, NULL);
    shutdown(connection->front, SHUT_RDWR);
    descriptor_close(connection->front, device->debt);
    if (!connection->spoke)
        device->waiting--;
    links_disconnected(gate->links, device->entry.address);
    connection->device = NULL;
    connection->next = gate->dead;
    gate->dead = connection;
}

/* Ends the connection. What is repeated is drawn together in the log. */
static void refuse(struct gate *gate, struct gate_connection *connection, enum refusal refusal) {
    struct gate_device *device = connection->device;
    const int64_t now = now_ms();

    links_refused(gate->links, device->entry.address, refusal);
    if (device->logged_ms[refusal] != 0 && now - device->logged_ms[refusal] < LOG_EVERY_MS) {
        device->unlogged[refusal]++;
    } else {
        char more[48] = "";

        if (device->unlogged[refusal] > 0)
            snprintf(more, sizeof(more), " (and %u more since the last line)", device->unlogged[refusal]);
        log_line(gate->log, LEVEL_WARNING, "%s: a front end is refused: %s%s", device->entry.address,
                 refusal_text(refusal), more);
        device->logged_ms[refusal] = now;
        device->unlogged[refusal] = 0;
    }
    close_connection(gate, connection);
}

/* 0, or -errno: -EAGAIN if nothing is there, -ECONNRESET at the end, -EMSGSIZE for too many descriptors. */
static int receive(int fd, struct gate_connection *connection, size_t size) {
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

/* 0 once the message is out as a whole, or -errno; -EAGAIN if the other end does not read. */
static int pass(int fd, struct gate_connection *connection) {
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

static void enter(struct gate_connection *connection, enum phase phase) {
    connection->phase = phase;
    connection->done = 0;
    connection->since_ms = now_ms();
    if (phase == RECEIVING || phase == AWAITING)
        memset(&connection->message, 0, sizeof(connection->message));
}

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
    return watch(gate, fd, &connection->back_source, EPOLLIN, true) == 0 ? REFUSAL_NONE : REFUSAL_BACK_END;
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

/* What the front end passed stays here; DPDK gets an end of our own. */
static int open_channel(struct gate *gate, struct gate_connection *connection) {
    struct channel *channel = &connection->channel;
    int ends[2];

    close_channel(gate, connection);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return -errno;
    *channel = (struct channel){.inner = ends[0], .outer = connection->descriptors[0].fd};
    connection->descriptors[0] = (struct descriptor){.fd = ends[1], .kind = DESCRIPTOR_STREAM};
    channel->inner_source = (struct source){.kind = SOURCE_INNER, .owner = connection};
    channel->outer_source = (struct source){.kind = SOURCE_OUTER, .owner = connection};
    if (watch(gate, channel->inner, &channel->inner_source, EPOLLIN, true) != 0 ||
        watch(gate, channel->outer, &channel->outer_source, EPOLLIN, true) != 0)
        return -EIO;
    return 0;
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
            drop_descriptors(connection);
            message->flags = VHOST_USER_VERSION | VHOST_USER_REPLY;
            message->size = sizeof(message->payload.number);
            message->payload.number = 0;
            enter(connection, connection->acknowledged ? REPLYING : RECEIVING);
            return REFUSAL_NONE;
        }
    }
    if (message->request == VHOST_USER_SET_BACKEND_REQ_FD && open_channel(gate, connection) != 0)
        return REFUSAL_BACK_END;
    if (share(connection) != 0)
        return REFUSAL_BACK_END;
    /* With an answer to each message, there is only one on its way, and the verdict on it is known. */
    if (!vhost_user_is_answered(message->request))
        message->flags |= VHOST_USER_NEED_REPLY;
    enter(connection, PASSING);
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
        replace_shares(&connection->memory_shares, &connection->next_shares);
        connection->memory = connection->next_memory;
        break;
    case VHOST_USER_SET_LOG_BASE:
        replace_shares(&connection->log_shares, &connection->next_shares);
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
    enter(connection, connection->acknowledged ? REPLYING : RECEIVING);
    return REFUSAL_NONE;
}

static enum refusal step_receiving(struct gate *gate, struct gate_connection *connection, int *error) {
    const size_t head = VHOST_USER_HEADER_SIZE;

    if (connection->done < head) {
        if (connection->done == 0)
            connection->since_ms = now_ms();
        *error = receive(connection->front, connection, head);
        if (*error == -EMSGSIZE)
            return REFUSAL_DESCRIPTORS;
        if (*error != 0 || connection->done < head)
            return REFUSAL_NONE;
        if (connection->message.size > VHOST_USER_PAYLOAD_MAX)
            return REFUSAL_FORM;
    }
    if (connection->done < head + connection->message.size) {
        *error = receive(connection->front, connection, head + connection->message.size);
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
        *error = receive(connection->back, connection, head);
        if (*error != 0 || connection->done < head)
            return REFUSAL_NONE;
    }
    if (connection->message.size > VHOST_USER_PAYLOAD_MAX)
        return REFUSAL_BACK_END;
    if (connection->done < head + connection->message.size) {
        *error = receive(connection->back, connection, head + connection->message.size);
        if (*error != 0 || connection->done < head + connection->message.size)
            return REFUSAL_NONE;
    }
    /* No answer of DPDK to these requests has a descriptor. */
    drop_descriptors(connection);
    return settle(connection);
}

/* Goes on as far as nobody has to be waited for. One message at a time: the others have their turn too. */
static void step(struct gate *gate, struct gate_connection *connection) {
    enum refusal refusal = REFUSAL_NONE;
    int error = 0;

    for (int steps = 0; steps < 4 && error == 0 && refusal == REFUSAL_NONE; steps++) {
        switch (connection->phase) {
        case RECEIVING:
            refusal = step_receiving(gate, connection, &error);
            break;
        case PASSING:
            error = pass(connection->back, connection);
            if (error == 0) {
                /* DPDK has them: none of these is a last reference. */
                for (size_t i = 0; i < connection->descriptor_count; i++)
                    close(connection->descriptors[i].fd);
                connection->descriptor_count = 0;
                enter(connection, AWAITING);
            }
            break;
        case AWAITING:
            refusal = step_awaiting(connection, &error);
            break;
        case REPLYING:
            error = pass(connection->front, connection);
            if (error == 0)
                enter(connection, RECEIVING);
            break;
        }
    }
    if (refusal != REFUSAL_NONE) {
        refuse(gate, connection, refusal);
    } else if (error != 0 && error != -EAGAIN) {
        /* Its own end is no fault of a front end. */
        if (connection->phase == PASSING || connection->phase == AWAITING)
            refuse(gate, connection, REFUSAL_BACK_END);
        else
            close_connection(gate, connection);
    } else {
        uint32_t front = connection->phase == RECEIVING  ? EPOLLIN
                         : connection->phase == REPLYING ? EPOLLOUT
                                                         : 0;
        uint32_t back = EPOLLIN | (connection->phase == PASSING ? EPOLLOUT : 0);

        watch(gate, connection->front, &connection->front_source, front, false);
        if (connection->back >= 0)
            watch(gate, connection->back, &connection->back_source, back, false);
    }
}

static void take_front_event(struct gate *gate, struct gate_connection *connection, uint32_t events) {
    if (connection->device == NULL)
        return;
    /* Gone, and nothing of it is left to read. */
    if (connection->phase != RECEIVING && (events & (EPOLLHUP | EPOLLERR)) != 0)
        close_connection(gate, connection);
    else
        step(gate, connection);
}

static void take_back_event(struct gate *gate, struct gate_connection *connection) {
    char byte;

    if (connection->device == NULL)
        return;
    /* Nothing was asked: DPDK has closed its end, or says what nobody wants to know. */
    if ((connection->phase == RECEIVING || connection->phase == REPLYING) &&
        recv(connection->back, &byte, 1, MSG_DONTWAIT | MSG_PEEK) >= 0)
        refuse(gate, connection, REFUSAL_BACK_END);
    else
        step(gate, connection);
}

/* Front ends of the device are no longer asked for what one of them does not do. */
static void refuse_channel(struct gate *gate, struct gate_connection *connection) {
    connection->device->entry.offer.protocol_features &=
        ~(UINT64_C(1) << VHOST_USER_FEATURE_BACKEND_REQ | UINT64_C(1) << VHOST_USER_FEATURE_BACKEND_SEND_FD |
          UINT64_C(1) << VHOST_USER_FEATURE_HOST_NOTIFIER);
    refuse(gate, connection, REFUSAL_CHANNEL);
}

/* DPDK sends whole messages, with one descriptor at most, and the next one after the answer to the last. */
static void take_question(struct gate *gate, struct gate_connection *connection) {
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
        /* DPDK has closed its end, or says what nobody knows. */
        close_channel(gate, connection);
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
        refuse_channel(gate, connection);
        return;
    }
    if (!asked)
        return;
    if (channel->unanswered++ == 0)
        channel->asked_ms = now_ms();
    message.flags = VHOST_USER_VERSION | VHOST_USER_REPLY;
    message.size = sizeof(message.payload.number);
    message.payload.number = 0;
    if (send(channel->inner, &message, VHOST_USER_HEADER_SIZE + sizeof(message.payload.number),
             MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        close_channel(gate, connection);
}

/* Nothing but the answers that were asked for, and that say yes. */
static void take_answer(struct gate *gate, struct gate_connection *connection) {
    const size_t size = VHOST_USER_HEADER_SIZE + sizeof(uint64_t);
    struct channel *channel = &connection->channel;
    struct gate_connection reader;
    int error;

    if (connection->device == NULL || channel->inner < 0)
        return;
    reader = (struct gate_connection){
        .device = connection->device, .message = channel->answer, .done = channel->done};
    error = receive(channel->outer, &reader, size);
    channel->answer = reader.message;
    channel->done = reader.done;
    if (reader.descriptor_count > 0) {
        drop_descriptors(&reader);
        error = -EMSGSIZE;
    }
    if (error == -EAGAIN)
        return;
    if (error == -ECONNRESET && channel->unanswered == 0) {
        /* It wants to hear no more. */
        close_channel(gate, connection);
        return;
    }
    if (error != 0 || channel->unanswered == 0) {
        refuse_channel(gate, connection);
        return;
    }
    if (channel->done < size)
        return;
    if (channel->answer.size != sizeof(uint64_t) || channel->answer.payload.number != 0) {
        refuse_channel(gate, connection);
        return;
    }
    channel->done = 0;
    channel->unanswered--;
    channel->asked_ms = now_ms();
}

static struct gate_connection *oldest_silent(const struct gate_device *device) {
    struct gate_connection *oldest = NULL;

    for (struct gate_connection *c = device->connections; c != NULL; c = c->next) {
        if (!c->spoke)
            oldest = c;
    }
    return oldest;
}

static void admit(struct gate *gate, struct gate_device *device, int fd) {
    struct gate_connection *connection = calloc(1, sizeof(*connection));

    if (connection == NULL) {
        descriptor_close(fd, device->debt);
        return;
    }
    connection->device = device;
    connection->front = fd;
    connection->back = -1;
    connection->channel.inner = -1;
    connection->front_source = (struct source){.kind = SOURCE_FRONT, .owner = connection};
    connection->next = device->connections;
    device->connections = connection;
    device->waiting++;
    enter(connection, RECEIVING);
    links_connected(gate->links, device->entry.address);
    if (watch(gate, fd, &connection->front_source, EPOLLIN, true) != 0)
        close_connection(gate, connection);
    else if (device->waiting > GATE_WAITING_MAX)
        refuse(gate, oldest_silent(device), REFUSAL_CROWD);
}

static bool in_debt(const struct gate_device *device) {
    return debt_pending(device->debt) >= DEBT_MAX;
}

/* Nobody else is let in for a while. */
static void rest(struct gate *gate, struct gate_device *device) {
    device->tried_ms = now_ms();
    watch(gate, device->entry.listener, &device->source, 0, false);
}

/* One at a time, as with messages. */
static void accept_one(struct gate *gate, struct gate_device *device) {
    int fd;

    if (in_debt(device)) {
        rest(gate, device);
        return;
    }
    fd = accept4(device->entry.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        admit(gate, device, fd);
    else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
        rest(gate, device);
}

/* The front end owns the socket: tried again at each tick while there is no connection. */
static void connect_once(struct gate *gate, struct gate_device *device, int64_t now) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd;

    if (device->connections != NULL || in_debt(device) || now - device->tried_ms < TICK_MS)
        return;
    device->tried_ms = now;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return;
    snprintf(name.sun_path, sizeof(name.sun_path), "%s", device->entry.socket);
    if (connect(fd, (const struct sockaddr *)&name, sizeof(name)) == 0)
        admit(gate, device, fd);
    else
        close(fd);
}

static bool is_hit(const struct shares *shares) {
    for (size_t i = 0; i < shares->count; i++) {
        if (fault_hit(shares->slots[i]))
            return true;
    }
    return false;
}

static void check_connection(struct gate *gate, struct gate_connection *connection, int64_t now) {
    if (is_hit(&connection->memory_shares) || is_hit(&connection->log_shares) ||
        is_hit(&connection->next_shares)) {
        refuse(gate, connection, REFUSAL_TRUNCATED);
        return;
    }
    if (connection->channel.inner >= 0 && connection->channel.unanswered > 0 &&
        now - connection->channel.asked_ms >= gate->patience_ms) {
        refuse_channel(gate, connection);
        return;
    }
    /* A front end that listens itself may take its time. */
    if (connection->phase == RECEIVING && now - connection->since_ms >= gate->patience_ms &&
        (connection->done > 0 || (!connection->spoke && connection->device->entry.listener >= 0)))
        refuse(gate, connection, REFUSAL_SILENT);
}

/* What time, and not an event, brings. Returns whether there has to be another tick. */
static bool tick(struct gate *gate) {
    const int64_t now = now_ms();
    bool again = false;

    for (struct gate_device *device = gate->devices; device != NULL; device = device->next) {
        for (struct gate_connection *c = device->connections, *next; c != NULL; c = next) {
            next = c->next;
            check_connection(gate, c, now);
            again =
                again ||
                (c->device != NULL &&
                 ((c->phase == RECEIVING && ((!c->spoke && device->entry.listener >= 0) || c->done > 0)) ||
                  (c->channel.inner >= 0 && c->channel.unanswered > 0)));
        }
        if (device->entry.listener < 0) {
            connect_once(gate, device, now);
            again = again || device->connections == NULL;
        } else if (device->source.events == 0) {
            if (in_debt(device) || now - device->tried_ms < TICK_MS)
                again = true;
            else
                watch(gate, device->entry.listener, &device->source, EPOLLIN, false);
        }
    }
    return again;
}

static void free_device(struct gate *gate, struct gate_device *device) {
    /* Nobody can come any more, however long the back end holds on to those who are here. */
    if (device->entry.listener >= 0) {
        socket_remove(device->entry.socket, &device->entry.file);
        epoll_ctl(gate->epoll_fd, EPOLL_CTL_DEL, device->entry.listener, NULL);
        descriptor_close(device->entry.listener, device->debt);
    }
    while (device->connections != NULL)
        close_connection(gate, device->connections);
    debt_release(device->debt);
    free(device);
}

static struct gate_device **find(struct gate *gate, const char *address) {
    struct gate_device **link = &gate->devices;

    while (*link != NULL && strcmp((*link)->entry.address, address) != 0)
        link = &(*link)->next;
    return link;
}

static void arrive(struct gate *gate) {
    struct gate_device *arrived;

    lock(gate);
    arrived = gate->arrivals;
    gate->arrivals = NULL;
    unlock(gate);
    while (arrived != NULL) {
        struct gate_device *device = arrived;

        arrived = device->next;
        device->next = gate->devices;
        gate->devices = device;
        if (device->entry.listener >= 0 &&
            watch(gate, device->entry.listener, &device->source, EPOLLIN, true) != 0)
            log_line(gate->log, LEVEL_ERROR, "%s: its socket cannot be watched", device->entry.address);
    }
}

static struct gate_departure *next_departure(struct gate *gate) {
    struct gate_departure *departure;

    lock(gate);
    departure = gate->departures;
    while (departure != NULL && departure->taken)
        departure = departure->next;
    if (departure != NULL)
        departure->taken = true;
    unlock(gate);
    return departure;
}

static void forget_departure(struct gate *gate, struct gate_departure *departure) {
    struct gate_departure **link = &gate->departures;

    while (*link != departure)
        link = &(*link)->next;
    *link = departure->next;
    free(departure);
}

static void depart(struct gate *gate) {
    struct gate_departure *departure;

    while ((departure = next_departure(gate)) != NULL) {
        struct gate_device **link = find(gate, departure->address);
        struct gate_device *device = *link;

        if (device != NULL) {
            *link = device->next;
            free_device(gate, device);
        }
        departure->error =
            gate->back_end.leave(gate->back_end.context, departure->address, &departure->failure);
        lock(gate);
        departure->done = true;
        if (departure->abandoned) {
            log_line(gate->log, departure->error == 0 ? LEVEL_INFO : LEVEL_WARNING,
                     "%s: DPDK has let it go%s%s", departure->address, departure->error == 0 ? "" : ", but ",
                     departure->error == 0 ? "" : departure->failure.text);
            forget_departure(gate, departure);
        }
        pthread_cond_broadcast(&gate->departed);
        unlock(gate);
    }
}

static void bury(struct gate *gate) {
    while (gate->dead != NULL) {
        struct gate_connection *connection = gate->dead;

        gate->dead = connection->next;
        free(connection);
    }
}

static void take_event(struct gate *gate, const struct epoll_event *event) {
    struct source *source = event->data.ptr;
    uint64_t count;

    switch (source->kind) {
    case SOURCE_WAKE:
        if (read(gate->wake_fd, &count, sizeof(count)) < 0)
            break;
        break;
    case SOURCE_LISTENER:
        accept_one(gate, source->owner);
        break;
    case SOURCE_FRONT:
        take_front_event(gate, source->owner, event->events);
        break;
    case SOURCE_BACK:
        take_back_event(gate, source->owner);
        break;
    case SOURCE_INNER:
        take_question(gate, source->owner);
        break;
    case SOURCE_OUTER:
        take_answer(gate, source->owner);
        break;
    }
}

static bool is_stopping(struct gate *gate) {
    bool stopping;

    lock(gate);
    stopping = gate->stopping;
    unlock(gate);
    return stopping;
}

static void *run(void *context) {
    struct gate *gate = context;
    struct source wake = {.kind = SOURCE_WAKE};
    bool again = false;

    watch(gate, gate->wake_fd, &wake, EPOLLIN, true);
    while (!is_stopping(gate)) {
        struct epoll_event events[EVENTS_MAX];
        int count;

        arrive(gate);
        depart(gate);
        again = tick(gate);
        bury(gate);
        count = epoll_wait(gate->epoll_fd, events, EVENTS_MAX, again ? TICK_MS : -1);
        for (int i = 0; i < count; i++)
            take_event(gate, &events[i]);
    }
    arrive(gate);
    while (gate->devices != NULL) {
        struct gate_device *device = gate->devices;

        gate->devices = device->next;
        free_device(gate, device);
    }
    bury(gate);
    return NULL;
}

static void wake(struct gate *gate) {
    const uint64_t one = 1;

    while (write(gate->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

/* Signals that are sent are for the main thread; a fault of this one is not to be blocked. */
static int start_thread(struct gate *gate) {
    sigset_t signals;
    sigset_t old;
    int error;

    sigfillset(&signals);
    sigdelset(&signals, SIGBUS);
    sigdelset(&signals, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &signals, &old);
    error = pthread_create(&gate->thread, NULL, run, gate);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error == 0)
        pthread_setname_np(gate->thread, "gate");
    return -error;
}

int gate_start(struct gate *gate, const struct log *log, struct links *links,
               const struct gate_back_end *back_end) {
    pthread_condattr_t attributes;
    int error;

    *gate = (struct gate){.log = log,
                          .links = links,
                          .back_end = *back_end,
                          .patience_ms = GATE_PATIENCE_MS,
                          .mutex = PTHREAD_MUTEX_INITIALIZER};
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&gate->departed, &attributes);
    pthread_condattr_destroy(&attributes);
    gate->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    gate->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    error = gate->epoll_fd < 0 || gate->wake_fd < 0 ? -errno : fault_install(log->fd, gate->wake_fd);
    if (error == 0)
        error = start_thread(gate);
    if (error == 0)
        return 0;
    if (gate->epoll_fd >= 0)
        close(gate->epoll_fd);
    if (gate->wake_fd >= 0)
        close(gate->wake_fd);
    return error;
}

static struct timespec after(clockid_t clock, int timeout_ms) {
    struct timespec end;

    clock_gettime(clock, &end);
    end.tv_sec += timeout_ms / 1000;
    end.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (end.tv_nsec >= 1000000000) {
        end.tv_sec++;
        end.tv_nsec -= 1000000000;
    }
    return end;
}

int gate_stop(struct gate *gate, int timeout_ms) {
    const struct timespec end = after(CLOCK_REALTIME, timeout_ms);
    int error;

    lock(gate);
    gate->stopping = true;
    unlock(gate);
    wake(gate);
    error = pthread_timedjoin_np(gate->thread, NULL, &end);
    if (error != 0)
        return -error;
    while (gate->departures != NULL)
        forget_departure(gate, gate->departures);
    close(gate->epoll_fd);
    close(gate->wake_fd);
    pthread_cond_destroy(&gate->departed);
    pthread_mutex_destroy(&gate->mutex);
    return 0;
}

static bool is_leaving(const struct gate *gate, const char *address) {
    const struct gate_departure *departure = gate->departures;

    while (departure != NULL && strcmp(departure->address, address) != 0)
        departure = departure->next;
    return departure != NULL;
}

int gate_add(struct gate *gate, const struct gate_entry *entry) {
    struct gate_device *device = calloc(1, sizeof(*device));
    struct debt *debt = debt_new();
    int error = device == NULL || debt == NULL ? -ENOMEM : 0;

    if (error == 0) {
        device->entry = *entry;
        device->debt = debt;
        device->source = (struct source){.kind = SOURCE_LISTENER, .owner = device};
        lock(gate);
        if (is_leaving(gate, entry->address)) {
            error = -EBUSY;
        } else {
            device->next = gate->arrivals;
            gate->arrivals = device;
        }
        unlock(gate);
    }
    if (error != 0) {
        debt_release(debt);
        free(device);
        return error;
    }
    wake(gate);
    return 0;
}

int gate_remove(struct gate *gate, const char *address, int timeout_ms, struct failure *failure) {
    const struct timespec end = after(CLOCK_MONOTONIC, timeout_ms);
    struct gate_departure *departure = calloc(1, sizeof(*departure));
    int error = 0;

    if (departure == NULL)
        return failure_set(failure, -ENOMEM, FAILURE_DPDK, "out of memory");
    snprintf(departure->address, sizeof(departure->address), "%s", address);
    lock(gate);
    departure->next = gate->departures;
    gate->departures = departure;
    unlock(gate);
    wake(gate);
    lock(gate);
    while (!departure->done && error == 0)
        error = -pthread_cond_timedwait(&gate->departed, &gate->mutex, &end);
    if (departure->done) {
        error = departure->error;
        *failure = departure->failure;
        forget_departure(gate, departure);
    } else {
        departure->abandoned = true;
        error = failure_set(failure, -ETIMEDOUT, FAILURE_DPDK,
                            "DPDK is still busy with %s, and lets it go as soon as it can", address);
    }
    unlock(gate);
    return error;
}
