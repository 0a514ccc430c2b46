/* JSON-RPC 2.0 on a stream socket, one object a line: framing, parsing, replies and notifications. */
#ifndef VDPAD_CONTROL_H
#define VDPAD_CONTROL_H

#include "failure.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* The longest request line, without its line feed. */
#define CONTROL_LINE_MAX ((size_t)64 * 1024)

/*
 * `params` is an object, or NULL if there are none. Returns the result (a new reference), or NULL with
 * `failure` filled, or NULL with `failure->code` zero if memory is short.
 */
typedef json_t *control_call(void *context, const json_t *params, struct failure *failure);

struct control_method {
    const char *name;
    control_call *call;
};

struct control {
    int fd;
    const struct control_method *methods; /* ends with a NULL name */
    void *context;                        /* handed to the methods */
    bool stopped;                         /* no further line is handled */
    bool ended;                           /* the other end closed */
    bool skipping;                        /* inside a line that was too long */
    size_t in_start;                      /* the first byte not handled */
    size_t in_end;
    char in[CONTROL_LINE_MAX + 1];
    char *out;
    size_t out_start; /* the first byte not sent */
    size_t out_end;
    size_t out_capacity;
};

void control_init(struct control *control, int fd, const struct control_method *methods, void *context);
void control_destroy(struct control *control);

/* What to poll() the socket for: a peer that does not read its replies is not read from either. */
short control_events(const struct control *control);

/* Whether notifications may be added, or the peer has to read first what there is. */
bool control_has_room(const struct control *control);

/*
 * Reads, answers the complete lines and sends, as far as it goes without blocking. `ended` is set when the
 * other end has closed and everything that it sent is handled. -ENOMEM, or the -errno of the socket.
 */
int control_step(struct control *control);

/* Adds a notification; sent by the next control_step(). Takes over `params`. */
int control_notify(struct control *control, const char *method, json_t *params);

/* Sends what is left, waiting up to `timeout_ms` for the peer to read. */
void control_flush(struct control *control, int timeout_ms);

#endif
