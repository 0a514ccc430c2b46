/*
 * What the modules of the gate share: its devices and connections, and the functions of each module.
 *
 * gate.c has the thread and the calls from outside, gate_listener.c the sockets of the devices and their
 * crowds, gate_connection.c the life of one connection, gate_message.c the bytes of one message, gate_relay.c
 * the way of a message to DPDK and back, gate_channel.c the requests of a device to its front end. All but
 * the calls from outside run on the thread of the gate.
 */
#ifndef VDPAD_GATE_PARTS_H
#define VDPAD_GATE_PARTS_H

#include "descriptor.h"
#include "gate.h"

#define GATE_TICK_MS 250

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
    int inner; /* to DPDK; -1: without a channel */
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
    int unreachable;                     /* why the front end's socket cannot be reached, as logged last */
    int64_t unreachable_ms;              /* when that was */
    int64_t logged_ms[REFUSAL_COUNT];
    unsigned int unlogged[REFUSAL_COUNT];
};

/* gate_connection.c */

int64_t gate_now_ms(void);

/* -errno, or 0; `events` 0 stops watching, except for hang-ups. */
int gate_watch(struct gate *gate, int fd, struct source *source, uint32_t events, bool anew);

void gate_shares_replace(struct shares *old, struct shares *next);

/* Closes the descriptors that came with the message that is on its way. */
void gate_connection_drop(struct gate_connection *connection);

/* Begins a phase, with none of its bytes done. */
void gate_connection_enter(struct gate_connection *connection, enum phase phase);

/* The memory of a connection stays until the events that name it have been looked at. */
void gate_connection_close(struct gate *gate, struct gate_connection *connection);

/* Ends the connection, counts and logs why. What is repeated is drawn together in the log. */
void gate_connection_refuse(struct gate *gate, struct gate_connection *connection, enum refusal refusal);

/* Refuses a connection whose memory was truncated or whose time is over. */
void gate_connection_check(struct gate *gate, struct gate_connection *connection, int64_t now);

/* gate_message.c */

/*
 * Reads on, up to `size` bytes of the message.
 * 0, or -errno: -EAGAIN if nothing is there, -ECONNRESET at the end, -EMSGSIZE for too many descriptors.
 */
int gate_receive(int fd, struct gate_connection *connection, size_t size);

/* 0 once the message is out as a whole, or -errno; -EAGAIN if the other end does not read. */
int gate_pass(int fd, struct gate_connection *connection);

/* gate_relay.c */

void gate_relay_front(struct gate *gate, struct gate_connection *connection, uint32_t events);
void gate_relay_back(struct gate *gate, struct gate_connection *connection);

/* gate_channel.c */

/* Keeps the descriptor that the front end passed, and puts an end for DPDK in its place. 0 or -errno. */
int gate_channel_open(struct gate *gate, struct gate_connection *connection);
void gate_channel_close(struct gate *gate, struct gate_connection *connection);

/* Refuses the connection for its channel, which no later front end of the device is offered. */
void gate_channel_refuse(struct gate *gate, struct gate_connection *connection);
void gate_channel_question(struct gate *gate, struct gate_connection *connection);
void gate_channel_answer(struct gate *gate, struct gate_connection *connection);

/* gate_listener.c */

/* Whether the descriptors that front ends of the device passed still wait in close(), too many of them. */
bool gate_listener_in_debt(const struct gate_device *device);
void gate_listener_accept(struct gate *gate, struct gate_device *device);

/* Where the front end owns the socket: tried again at each tick while there is no connection. */
void gate_listener_connect(struct gate *gate, struct gate_device *device, int64_t now);

#endif
