/* JSON-RPC 2.0 on a stream socket, one object a line: framing, parsing, replies and notifications. */
#include "control.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Unsent bytes from which on nothing more is read or announced. */
#define OUT_FULL ((size_t)256 * 1024)

void control_init(struct control *control, int fd, const struct control_method *methods, void *context) {
    memset(control, 0, sizeof(*control));
    control->fd = fd;
    control->methods = methods;
    control->context = context;
}

void control_destroy(struct control *control) {
    free(control->out);
    control->out = NULL;
}

bool control_has_room(const struct control *control) {
    return control->out_end - control->out_start < OUT_FULL;
}

short control_events(const struct control *control) {
    int events = 0;

    if (control->out_end > control->out_start)
        events |= POLLOUT;
    if (control_has_room(control) && !control->stopped)
        events |= POLLIN;
    return (short)events;
}

static int reserve(struct control *control, size_t size) {
    size_t capacity = control->out_capacity == 0 ? 4096 : control->out_capacity;
    char *out;

    if (control->out_start > 0) {
        memmove(control->out, control->out + control->out_start, control->out_end - control->out_start);
        control->out_end -= control->out_start;
        control->out_start = 0;
    }
    while (capacity - control->out_end < size)
        capacity *= 2;
    if (capacity == control->out_capacity)
        return 0;
    out = realloc(control->out, capacity);
    if (out == NULL)
        return -ENOMEM;
    control->out = out;
    control->out_capacity = capacity;
    return 0;
}

/* Adds one message and takes it over; NULL stands for one that could not be built. */
static int append(struct control *control, json_t *message) {
    char *text = message == NULL ? NULL : json_dumps(message, JSON_COMPACT);
    size_t size = text == NULL ? 0 : strlen(text);
    int error = text == NULL ? -ENOMEM : reserve(control, size + 1);

    if (error == 0) {
        memcpy(control->out + control->out_end, text, size);
        control->out[control->out_end + size] = '\n';
        control->out_end += size + 1;
    }
    free(text);
    json_decref(message);
    return error;
}

int control_notify(struct control *control, const char *method, json_t *params) {
    return append(control, json_pack("{s:s,s:s,s:o}", "jsonrpc", "2.0", "method", method, "params", params));
}

/* Text that was cut inside a character, or comes from DPDK, does not stop the reply. */
static json_t *string_from(const char *text) {
    json_t *string = json_string(text);
    char *copy;

    if (string != NULL)
        return string;
    copy = strdup(text);
    for (char *c = copy; c != NULL && *c != '\0'; c++) {
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    }
    string = copy == NULL ? NULL : json_string(copy);
    free(copy);
    return string;
}

/* `device` (may be NULL) is what the request named. */
static int reply_failure(struct control *control, json_t *id, const struct failure *failure, json_t *device) {
    json_t *error = json_pack("{s:i,s:o}", "code", (int)failure->code, "message", string_from(failure->text));

    if (error != NULL && device != NULL)
        json_object_set_new(error, "data", json_pack("{s:O}", "device", device));
    return append(control, json_pack("{s:s,s:O?,s:o}", "jsonrpc", "2.0", "id", id, "error", error));
}

static int refuse_line(struct control *control, enum failure_code code, const char *text) {
    struct failure failure;

    failure_set(&failure, 0, code, "%s", text);
    return reply_failure(control, NULL, &failure, NULL);
}

static const struct control_method *find_method(const struct control *control, const char *name) {
    const struct control_method *method = control->methods;

    while (method->name != NULL && strcmp(method->name, name) != 0)
        method++;
    return method->name == NULL ? NULL : method;
}

static int handle_request(struct control *control, const json_t *request) {
    json_t *id = json_object_get(request, "id");
    const char *version = json_string_value(json_object_get(request, "jsonrpc"));
    const char *name = json_string_value(json_object_get(request, "method"));
    const json_t *params = json_object_get(request, "params");
    json_t *device = json_object_get(params, "device");
    const struct control_method *method;
    struct failure failure = {0};
    json_t *result = NULL;

    if (id != NULL && !json_is_string(id) && !json_is_number(id) && !json_is_null(id))
        return refuse_line(control, FAILURE_INVALID_REQUEST, "id is neither a string nor a number");
    if (version == NULL || strcmp(version, "2.0") != 0 || name == NULL) {
        failure_set(&failure, 0, FAILURE_INVALID_REQUEST,
                    "not a request: it needs \"jsonrpc\": \"2.0\" and a \"method\"");
        return reply_failure(control, id, &failure, NULL);
    }
    method = find_method(control, name);
    if (method == NULL)
        failure_set(&failure, 0, FAILURE_NO_METHOD, "no method '%.80s'", name);
    else if (params != NULL && !json_is_object(params))
        failure_set(&failure, 0, FAILURE_BAD_PARAMS, "params is not an object");
    else
        result = method->call(control->context, params, &failure);
    if (id == NULL) {
        /* A notification: no answer is expected. */
        json_decref(result);
        return 0;
    }
    if (result != NULL)
        return append(control, json_pack("{s:s,s:O,s:o}", "jsonrpc", "2.0", "id", id, "result", result));
    if (failure.code == 0)
        return -ENOMEM;
    return reply_failure(control, id, &failure, device);
}

static int handle_line(struct control *control, const char *line, size_t size) {
    json_error_t problem;
    char text[300];
    json_t *request = json_loadb(line, size, JSON_DECODE_ANY, &problem);
    int error;

    if (request == NULL) {
        snprintf(text, sizeof(text), "not JSON: %s", problem.text);
        return refuse_line(control, FAILURE_PARSE, text);
    }
    if (json_is_object(request))
        error = handle_request(control, request);
    else
        error = refuse_line(control, FAILURE_INVALID_REQUEST, "a request is one JSON object a line");
    json_decref(request);
    return error;
}

/* Handles the complete lines that are there, as long as there is room for the answers. */
static int handle_lines(struct control *control) {
    int error = 0;

    while (error == 0 && !control->stopped && control_has_room(control)) {
        char *start = control->in + control->in_start;
        size_t size = control->in_end - control->in_start;
        char *end = memchr(start, '\n', size);

        if (end == NULL)
            break;
        if (!control->skipping)
            error = handle_line(control, start, (size_t)(end - start));
        control->skipping = false;
        control->in_start += (size_t)(end - start) + 1;
    }
    if (control->in_start > 0 && control->in_start == control->in_end)
        control->in_start = control->in_end = 0;
    return error;
}

/* Makes place for more input; a line that fills the whole buffer is too long, and its rest is skipped. */
static int make_place(struct control *control) {
    int error = 0;

    if (control->in_start > 0) {
        memmove(control->in, control->in + control->in_start, control->in_end - control->in_start);
        control->in_end -= control->in_start;
        control->in_start = 0;
    }
    if (control->in_end == sizeof(control->in)) {
        if (!control->skipping)
            error = refuse_line(control, FAILURE_INVALID_REQUEST, "the line is longer than 65536 bytes");
        control->skipping = true;
        control->in_end = 0;
    }
    return error;
}

static int send_pending(struct control *control) {
    while (control->out_end > control->out_start) {
        ssize_t sent = send(control->fd, control->out + control->out_start,
                            control->out_end - control->out_start, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            return 0;
        if (sent < 0)
            return -errno;
        control->out_start += (size_t)sent;
    }
    control->out_start = control->out_end = 0;
    return 0;
}

/* One read, if something is there. */
static int receive(struct control *control) {
    ssize_t got;

    do {
        got = recv(control->fd, control->in + control->in_end, sizeof(control->in) - control->in_end,
                   MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN ? 0 : -errno;
    control->ended = got == 0;
    control->in_end += (size_t)got;
    return 0;
}

static bool has_line(const struct control *control) {
    return memchr(control->in + control->in_start, '\n', control->in_end - control->in_start) != NULL;
}

static int handle_and_send(struct control *control) {
    int error;

    do {
        error = handle_lines(control);
        if (error == 0)
            error = send_pending(control);
        /* Sending may have made room for the answers to lines that are already here. */
    } while (error == 0 && !control->stopped && control_has_room(control) && has_line(control));
    return error;
}

int control_step(struct control *control) {
    int error = handle_and_send(control);

    /* One read a step, so that a flood of requests does not keep the caller from its other work. */
    if (error == 0 && !control->stopped && control_has_room(control)) {
        error = make_place(control);
        if (error == 0)
            error = receive(control);
        if (error == 0)
            error = handle_and_send(control);
    }
    if (error == -EPIPE || error == -ECONNRESET) {
        control->ended = true;
        error = 0;
    }
    return error;
}

void control_flush(struct control *control, int timeout_ms) {
    struct pollfd poller = {.fd = control->fd, .events = POLLOUT};

    /* As long as the peer goes on reading: each wait is for some progress. */
    while (send_pending(control) == 0 && control->out_end > control->out_start) {
        if (poll(&poller, 1, timeout_ms) <= 0)
            return;
    }
}
