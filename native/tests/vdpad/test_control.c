/* JSON-RPC on a socketpair: framing, every kind of refusal, and a peer that does not read. */
#include "check.h"
#include "control.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

struct fixture {
    struct control control;
    int peer;
    char *replies; /* read from the peer's end so far */
    size_t size;
};

static json_t *call_echo(void *context, const json_t *params, struct failure *failure) {
    json_t *copy = params == NULL ? json_null() : json_deep_copy(params);

    (void)context;
    (void)failure;
    return json_pack("{s:o}", "echo", copy);
}

static json_t *call_fail(void *context, const json_t *params, struct failure *failure) {
    (void)context;
    (void)params;
    failure_set(failure, -EINVAL, FAILURE_NO_DEVICE, "no device \xc3\xa9\xc3");
    return NULL;
}

static json_t *call_stop(void *context, const json_t *params, struct failure *failure) {
    struct control *control = context;

    (void)params;
    (void)failure;
    control->stopped = true;
    return json_object();
}

static const struct control_method methods[] = {
    {"echo", call_echo}, {"fail", call_fail}, {"stop", call_stop}, {NULL, NULL}};

static int start(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));
    int ends[2];

    if (f == NULL || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return -1;
    control_init(&f->control, ends[0], methods, &f->control);
    f->peer = ends[1];
    *state = f;
    return fcntl(f->peer, F_SETFL, O_NONBLOCK);
}

static int stop(void **state) {
    struct fixture *f = *state;

    control_destroy(&f->control);
    close(f->control.fd);
    close(f->peer);
    free(f->replies);
    free(f);
    return 0;
}

static void read_peer(struct fixture *f) {
    char part[65536];
    ssize_t got;

    while ((got = read(f->peer, part, sizeof(part))) > 0) {
        f->replies = realloc(f->replies, f->size + (size_t)got + 1);
        assert_non_null(f->replies);
        memcpy(f->replies + f->size, part, (size_t)got);
        f->size += (size_t)got;
        f->replies[f->size] = '\0';
    }
}

/* Sends all, letting the other side work when the socket is full, as the two processes would. */
static void say(struct fixture *f, const char *data, size_t size) {
    while (size > 0) {
        ssize_t put = write(f->peer, data, size);

        if (put < 0) {
            assert_int_equal(errno, EAGAIN);
            assert_int_equal(control_step(&f->control), 0);
            read_peer(f);
        } else {
            data += put;
            size -= (size_t)put;
        }
    }
}

/* Lets the control work until nothing is left to do. */
static void settle(struct fixture *f) {
    struct pollfd poller = {.fd = f->control.fd};

    for (int i = 0; i < 1000000; i++) {
        read_peer(f);
        poller.events = control_events(&f->control);
        if (f->control.ended || poll(&poller, 1, 0) == 0)
            break;
        assert_int_equal(control_step(&f->control), 0);
    }
    read_peer(f);
}

static void forget(struct fixture *f) {
    free(f->replies);
    f->replies = NULL;
    f->size = 0;
}

static void assert_answer(struct fixture *f, const char *request, const char *expected) {
    forget(f);
    say(f, request, strlen(request));
    say(f, "\n", 1);
    settle(f);
    if (f->replies == NULL || strcmp(f->replies, expected) != 0)
        fail_msg("%.200s: answered %s", request, f->replies == NULL ? "nothing" : f->replies);
}

static void assert_code(struct fixture *f, const char *request, size_t size, int code) {
    json_t *reply;

    forget(f);
    say(f, request, size);
    say(f, "\n", 1);
    settle(f);
    assert_non_null(f->replies);
    reply = json_loads(f->replies, 0, NULL);
    assert_non_null(reply);
    if (json_integer_value(json_object_get(json_object_get(reply, "error"), "code")) != code)
        fail_msg("%.200s: answered %s", request, f->replies);
    json_decref(reply);
}

static void test_answers(void **state) {
    struct fixture *f = *state;

    assert_answer(f, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",\"params\":{\"a\":[1]}}",
                  "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"echo\":{\"a\":[1]}}}\n");
    assert_answer(f, " {\"id\":\"x\",\"method\":\"echo\",\"jsonrpc\":\"2.0\",\"more\":1}\r",
                  "{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"result\":{\"echo\":null}}\n");
    assert_answer(f, "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"fail\",\"params\":{\"device\":\"d\"}}",
                  "{\"jsonrpc\":\"2.0\",\"id\":2,\"error\":{\"code\":-32001,\"message\":\"no device ???\","
                  "\"data\":{\"device\":\"d\"}}}\n");
    assert_answer(
        f, "{\"jsonrpc\":\"2.0\",\"method\":\"fail\"}\n{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"echo\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":null,\"result\":{\"echo\":null}}\n");
    assert_answer(
        f, "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"\xc3\xa9\"}",
        "{\"jsonrpc\":\"2.0\",\"id\":2,\"error\":{\"code\":-32601,\"message\":\"no method '\xc3\xa9'\"}}\n");
    assert_int_equal(control_notify(&f->control, "noted", json_pack("{s:s}", "device", "d")), 0);
    assert_answer(f, "{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"echo\"}",
                  "{\"jsonrpc\":\"2.0\",\"method\":\"noted\",\"params\":{\"device\":\"d\"}}\n"
                  "{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{\"echo\":null}}\n");
}

static void test_refusals(void **state) {
    static const struct {
        const char *request;
        int code;
    } cases[] = {
        {"", FAILURE_PARSE},
        {"garbage", FAILURE_PARSE},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\"", FAILURE_PARSE},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}", FAILURE_PARSE},
        {"{\"jsonrpc\":\"2.0\",\"id\":NaN,\"method\":\"echo\"}", FAILURE_PARSE},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\"} {}", FAILURE_PARSE},
        {"1", FAILURE_INVALID_REQUEST},
        {"null", FAILURE_INVALID_REQUEST},
        {"[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\"}]", FAILURE_INVALID_REQUEST},
        {"{}", FAILURE_INVALID_REQUEST},
        {"{\"id\":1,\"method\":\"echo\"}", FAILURE_INVALID_REQUEST},
        {"{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"echo\"}", FAILURE_INVALID_REQUEST},
        {"{\"jsonrpc\":\"2.0\",\"id\":1}", FAILURE_INVALID_REQUEST},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":7}", FAILURE_INVALID_REQUEST},
        {"{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"echo\"}", FAILURE_INVALID_REQUEST},
        {"{\"jsonrpc\":\"2.0\",\"id\":true,\"method\":\"echo\"}", FAILURE_INVALID_REQUEST},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"none\"}", FAILURE_NO_METHOD},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\"}", FAILURE_NO_METHOD},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",\"params\":[1]}", FAILURE_BAD_PARAMS},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",\"params\":null}", FAILURE_BAD_PARAMS},
        {"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"fail\",\"params\":{}}", FAILURE_NO_DEVICE},
    };
    static const char zero[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\0\"}";
    char deep[10000];

    for (size_t i = 0; i < COUNT(cases); i++)
        assert_code(*state, cases[i].request, strlen(cases[i].request), cases[i].code);
    assert_code(*state, zero, sizeof(zero) - 1, FAILURE_PARSE);
    memset(deep, '[', sizeof(deep));
    assert_code(*state, deep, sizeof(deep), FAILURE_PARSE);
    assert_answer(*state, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\"}",
                  "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"echo\":null}}\n");
}

static void test_long_lines(void **state) {
    static const char request[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\"}";
    const size_t huge = CONTROL_LINE_MAX * 40;
    char *line = malloc(huge);
    struct fixture *f = *state;

    assert_non_null(line);
    memset(line, ' ', huge);
    memcpy(line, request, sizeof(request) - 1);
    forget(f);
    say(f, line, CONTROL_LINE_MAX);
    settle(f);
    assert_null(f->replies);
    say(f, "\n", 1);
    settle(f);
    assert_non_null(f->replies);
    assert_string_equal(f->replies, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"echo\":null}}\n");
    assert_code(f, line, CONTROL_LINE_MAX + 1, FAILURE_INVALID_REQUEST);
    assert_code(f, line, huge, FAILURE_INVALID_REQUEST);
    assert_answer(f, request, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"echo\":null}}\n");
    free(line);
}

static void test_byte_by_byte(void **state) {
    static const char request[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\"}\n";
    struct fixture *f = *state;

    for (size_t i = 0; i < sizeof(request) - 1; i++) {
        assert_null(f->replies);
        say(f, request + i, 1);
        settle(f);
    }
    assert_string_equal(f->replies, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"echo\":null}}\n");
}

/* Thousands of requests before the first answer is read: each is answered, and memory stays bounded. */
static void test_peer_that_does_not_read(void **state) {
    static const char request[] =
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",\"params\":{\"a\":\"aaaaaaaaaaaa\"}}\n";
    struct fixture *f = *state;
    size_t sent = 0;
    size_t answers = 0;
    ssize_t put;
    size_t part = 0;

    for (int i = 0; i < 1000; i++) {
        while ((put = write(f->peer, request + part, sizeof(request) - 1 - part)) > 0) {
            part = (part + (size_t)put) % (sizeof(request) - 1);
            sent += part == 0;
        }
        assert_int_equal(control_step(&f->control), 0);
        assert_true(f->control.out_capacity <= 1024U * 1024U);
    }
    assert_false(control_has_room(&f->control));
    assert_int_equal(control_events(&f->control), POLLOUT);
    assert_true(sent > 3000);
    if (part != 0)
        say(f, request + part, sizeof(request) - 1 - part);
    sent += part != 0;
    settle(f);
    for (const char *c = f->replies; *c != '\0'; c++)
        answers += *c == '\n';
    assert_int_equal(answers, sent);
    assert_int_equal(control_events(&f->control), POLLIN);
}

/* The shortest lines make the most answers of what one read brings. */
static void test_flood_of_short_lines(void **state) {
    const int buffer = 1 << 20;
    struct fixture *f = *state;
    char lines[60000];
    size_t answers = 0;

    assert_int_equal(setsockopt(f->control.fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer)), 0);
    memset(lines, '\n', sizeof(lines));
    assert_int_equal(write(f->peer, lines, sizeof(lines)), sizeof(lines));
    do {
        read_peer(f);
        assert_int_equal(control_step(&f->control), 0);
        assert_true(f->control.out_capacity <= 1024U * 1024U);
    } while (control_events(&f->control) != POLLIN);
    read_peer(f);
    for (const char *c = f->replies; *c != '\0'; c++)
        answers += *c == '\n';
    assert_int_equal(answers, sizeof(lines));
}

static void test_stop(void **state) {
    struct fixture *f = *state;

    assert_answer(f,
                  "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"stop\"}\n{\"jsonrpc\":\"2.0\",\"id\":2,"
                  "\"method\":\"echo\"}",
                  "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n");
    assert_int_equal(control_events(&f->control), 0);
}

static void test_end(void **state) {
    static const char request[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\"}\n{\"jsonrpc\":";
    struct fixture *f = *state;

    say(f, request, sizeof(request) - 1);
    assert_int_equal(shutdown(f->peer, SHUT_WR), 0);
    settle(f);
    assert_true(f->control.ended);
    assert_string_equal(f->replies, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"echo\":null}}\n");
}

static void test_end_while_answers_wait(void **state) {
    struct fixture *f = *state;

    say(f, "{}\n", 3);
    close(f->peer);
    f->peer = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int i = 0; i < 10 && !f->control.ended; i++)
        assert_int_equal(control_step(&f->control), 0);
    assert_true(f->control.ended);
}

/* An error of the socket is not taken for silence. */
static void test_socket_that_fails(void **state) {
    struct fixture *f = *state;
    const int fd = f->control.fd;

    f->control.fd = f->peer;
    close(fd);
    f->peer = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(dup2(f->peer, f->control.fd), f->control.fd);
    assert_int_equal(control_step(&f->control), -ENOTSOCK);
    assert_false(f->control.ended);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_answers, start, stop),
        cmocka_unit_test_setup_teardown(test_refusals, start, stop),
        cmocka_unit_test_setup_teardown(test_long_lines, start, stop),
        cmocka_unit_test_setup_teardown(test_byte_by_byte, start, stop),
        cmocka_unit_test_setup_teardown(test_peer_that_does_not_read, start, stop),
        cmocka_unit_test_setup_teardown(test_flood_of_short_lines, start, stop),
        cmocka_unit_test_setup_teardown(test_stop, start, stop),
        cmocka_unit_test_setup_teardown(test_end, start, stop),
        cmocka_unit_test_setup_teardown(test_end_while_answers_wait, start, stop),
        cmocka_unit_test_setup_teardown(test_socket_that_fails, start, stop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
