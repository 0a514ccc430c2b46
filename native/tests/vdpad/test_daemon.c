/* The requests of the control end and the main loop, on devices that are made up. */
#include "check.h"
#include "daemon.h"
#include "fake_devices.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

struct fixture {
    char *directory;
    char list[64];
    char list_directory[48];
    struct log log;
    struct options options;
    struct daemon daemon;
    int peer;
    int signals; /* the writing end of what stands for the signalfd */
};

static int start(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));
    int ends[2];
    int signals[2];

    if (f == NULL || make_directory((void **)&f->directory) != 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0 || pipe2(signals, O_CLOEXEC) != 0)
        return -1;
    memset(&fake_next, 0, sizeof(fake_next));
    snprintf(f->list_directory, sizeof(f->list_directory), "%s/lists", f->directory);
    snprintf(f->list, sizeof(f->list), "%s/socketList.dat", f->list_directory);
    f->log = (struct log){.level = LEVEL_ERROR, .fd = open("/dev/null", O_WRONLY | O_CLOEXEC)};
    f->options = (struct options){.control_fd = ends[0], .socket_dir = "/vhost", .socket_list = f->list};
    f->daemon = (struct daemon){.log = &f->log, .options = &f->options, .signal_fd = signals[0]};
    f->peer = ends[1];
    f->signals = signals[1];
    control_init(&f->daemon.control, ends[0], daemon_methods, &f->daemon);
    *state = f;
    return mkdir(f->list_directory, 0755) != 0 || links_init(&f->daemon.devices.links) != 0 ||
                   mapping_file_init(&f->daemon.mapping_file, f->list) != 0
               ? -1
               : 0;
}

static int stop(void **state) {
    struct fixture *f = *state;

    while (f->daemon.devices.count > 0)
        free(f->daemon.devices.entries[--f->daemon.devices.count]);
    links_destroy(&f->daemon.devices.links);
    control_destroy(&f->daemon.control);
    close(f->daemon.control.fd);
    close(f->daemon.signal_fd);
    if (f->peer >= 0)
        close(f->peer);
    close(f->signals);
    close(f->log.fd);
    remove_directory((void **)&f->directory);
    free(f);
    return 0;
}

/* One request; the lines that the control end gets, up to and with the reply, as an array. */
static json_t *exchange(struct fixture *f, const char *method, const char *params) {
    char request[512];
    char lines[8192] = "";
    size_t size = 0;
    json_t *array = json_array();

    snprintf(request, sizeof(request), "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"%s\",\"params\":%s}\n",
             method, params);
    assert_int_equal(write(f->peer, request, strlen(request)), strlen(request));
    assert_int_equal(control_step(&f->daemon.control), 0);
    size = (size_t)recv(f->peer, lines, sizeof(lines) - 1, MSG_DONTWAIT);
    assert_true(size < sizeof(lines));
    for (char *line = strtok(lines, "\n"); line != NULL; line = strtok(NULL, "\n"))
        assert_int_equal(json_array_append_new(array, json_loads(line, 0, NULL)), 0);
    return array;
}

static void assert_lines(struct fixture *f, const char *method, const char *params, const char *expected) {
    json_t *lines = exchange(f, method, params);
    json_t *wanted = json_loads(expected, 0, NULL);

    assert_non_null(wanted);
    if (!json_equal(lines, wanted)) {
        char *text = json_dumps(lines, JSON_COMPACT);

        fail_msg("%s %s: %s", method, params, text);
    }
    json_decref(lines);
    json_decref(wanted);
}

static void assert_mapping(const struct fixture *f, const char *expected) {
    struct mapping mapping;
    char reason[256] = "";
    char text[256] = "";

    assert_int_equal(mapping_file_read(f->list, &mapping, reason, sizeof(reason)), 0);
    for (size_t i = 0; i < mapping.count; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s=%s ", mapping.entries[i].address,
                 mapping.entries[i].socket);
    mapping_free(&mapping);
    assert_string_equal(text, expected);
}

#define DEVICE                                                                                               \
    "\"device\":\"0000:82:00.2\",\"socket\":\"/"                                                             \
    "s\",\"mode\":\"server\",\"state\":\"started\",\"connected\":false,\"configured\":false,\"queue_pairs_"  \
    "in_use\":0,"                                                                                            \
    "\"driver\":\"made_up\",\"queue_pairs\":2,\"features\":9223372036854775807,\"protocol_features\":0,"     \
    "\"type\":\"net\",\"numa_node\":0"
#define HEAD "{\"jsonrpc\":\"2.0\",\"id\":1,"
#define ADD "{\"device\":\"82:00.2\",\"socket\":\"/s\"}"
#define NAME "{\"device\":\"82:00.2\"}"

static void test_device_comes_and_goes(void **state) {
    struct fixture *f = *state;

    assert_lines(f, "device.list", "{}", "[" HEAD "\"result\":{\"devices\":[]}}]");
    assert_lines(f, "device.add", "{\"device\":\"82:00.2\",\"socket\":\"/s\",\"devargs\":\"queues=2\"}",
                 "[" HEAD "\"result\":{" DEVICE ",\"refusals\":{}}}]");
    assert_string_equal(fake_next.devargs, "queues=2");
    assert_mapping(f, "0000:82:00.2=/s ");
    links_refused(&f->daemon.devices.links, "0000:82:00.2", REFUSAL_MEMORY);
    assert_lines(f, "device.list", "{}",
                 "[" HEAD "\"result\":{\"devices\":[{" DEVICE ",\"refusals\":{\"memory\":1}}]}}]");
    assert_lines(f, "device.stats", NAME,
                 "[" HEAD
                 "\"result\":{\"device\":\"0000:82:00.2\",\"queues\":[{\"queue\":0,\"stats\":{\"packets\":1,"
                 "\"bytes\":9223372036854775807}},{\"queue\":3,\"stats\":{\"packets\":2}}],"
                 "\"refusals\":{\"memory\":1}}}]");
    assert_lines(f, "device.remove", NAME, "[" HEAD "\"result\":{\"device\":\"0000:82:00.2\"}}]");
    assert_mapping(f, "");
    assert_lines(f, "device.remove", NAME,
                 "[" HEAD "\"error\":{\"code\":-32001,\"message\":\"no device 0000:82:00.2\","
                 "\"data\":{\"device\":\"82:00.2\"}}}]");
}

/* --no-socket-list: the control end writes the mapping. */
static void test_no_mapping(void **state) {
    struct fixture *f = *state;
    struct stat status;

    f->options.socket_list = NULL;
    assert_lines(f, "device.add", ADD, "[" HEAD "\"result\":{" DEVICE ",\"refusals\":{}}}]");
    assert_lines(f, "mapping.write", "{}", "[" HEAD "\"result\":{}}]");
    assert_lines(f, "device.remove", NAME, "[" HEAD "\"result\":{\"device\":\"0000:82:00.2\"}}]");
    assert_int_equal(lstat(f->list, &status), -1);
}

/* The control end heard of the front end: it hears of its end too, and before the device's. */
static void test_removal_under_a_front_end(void **state) {
    struct fixture *f = *state;

    fake_next.announced = LINK_CONFIGURED;
    json_decref(exchange(f, "device.add", ADD));
    assert_lines(f, "device.remove", NAME,
                 "[{\"jsonrpc\":\"2.0\",\"method\":\"device.disconnected\",\"params\":{\"device\":\"0000:82:"
                 "00.2\"}}," HEAD "\"result\":{\"device\":\"0000:82:00.2\"}}]");
}

static void test_removal_that_fails(void **state) {
    struct fixture *f = *state;

    fake_next.announced = LINK_CONNECTED;
    fake_next.remove_error = -EIO;
    json_decref(exchange(f, "device.add", ADD));
    assert_lines(f, "device.remove", NAME,
                 "[{\"jsonrpc\":\"2.0\",\"method\":\"device.disconnected\",\"params\":{\"device\":\"0000:82:"
                 "00.2\"}}," HEAD
                 "\"error\":{\"code\":-32003,\"message\":\"no unplug\",\"data\":{\"device\":\"82:00.2\"}}}]");
    /* It is not served any more, whatever DPDK answers. */
    assert_mapping(f, "");
}

static void test_refusals(void **state) {
    static const struct {
        const char *method;
        const char *params;
        int code;
    } cases[] = {
        {"device.add", "{}", FAILURE_BAD_PARAMS},
        {"device.add", "{\"device\":7,\"socket\":\"/s\"}", FAILURE_BAD_PARAMS},
        {"device.add", "{\"device\":\"nonsense\",\"socket\":\"/s\"}", FAILURE_BAD_PARAMS},
        {"device.add", NAME, FAILURE_BAD_PARAMS},
        {"device.add", "{\"device\":\"82:00.2\",\"socket\":\"/s\",\"devargs\":1}", FAILURE_BAD_PARAMS},
        {"device.add", ADD, FAILURE_SOCKET},
        {"device.remove", "{}", FAILURE_BAD_PARAMS},
        {"device.stats", "{}", FAILURE_BAD_PARAMS},
        {"device.stats", NAME, FAILURE_NO_DEVICE},
    };
    struct fixture *f = *state;

    fake_next.add_error = -EIO;
    for (size_t i = 0; i < COUNT(cases); i++) {
        json_t *lines = exchange(f, cases[i].method, cases[i].params);
        json_t *error = json_object_get(json_array_get(lines, 0), "error");

        if (json_integer_value(json_object_get(error, "code")) != cases[i].code)
            fail_msg("%s %s", cases[i].method, cases[i].params);
        json_decref(lines);
    }
    fake_next = (struct fake_next){.stats_error = -ENOTSUP};
    json_decref(exchange(f, "device.add", ADD));
    assert_lines(f, "device.stats", NAME,
                 "[" HEAD
                 "\"error\":{\"code\":-32005,\"message\":\"no stats\",\"data\":{\"device\":\"82:00.2\"}}}]");
}

static void *run(void *context) {
    struct daemon *daemon = context;

    return (void *)(intptr_t)daemon_run(daemon);
}

static void ask_to_stop(const struct fixture *f) {
    const struct signalfd_siginfo info = {.ssi_signo = SIGTERM};

    assert_int_equal(write(f->signals, &info, sizeof(info)), sizeof(info));
}

/* A mapping that cannot be written fails nothing else, and is written when it can be. */
static void test_mapping_is_tried_again(void **state) {
    struct fixture *f = *state;
    pthread_t thread;
    void *error;

    assert_int_equal(rmdir(f->list_directory), 0);
    assert_lines(f, "device.add", ADD,
                 "[" HEAD "\"result\":{" DEVICE ",\"refusals\":{},\"mapping_written\":false,"
                 "\"mapping_problem\":\"No such file or directory\"}}]");
    assert_true(f->daemon.mapping_stale);
    assert_int_equal(pthread_create(&thread, NULL, run, &f->daemon), 0);
    assert_int_equal(mkdir(f->list_directory, 0755), 0);
    while (access(f->list, F_OK) != 0)
        poll(NULL, 0, 1);
    assert_mapping(f, "0000:82:00.2=/s ");
    ask_to_stop(f);
    assert_int_equal(pthread_join(thread, &error), 0);
    assert_null(error);
    assert_lines(f, "mapping.write", "{}", "[" HEAD "\"result\":{}}]");
}

static void test_the_end_of_the_control_end_stops(void **state) {
    struct fixture *f = *state;

    close(f->peer);
    f->peer = -1;
    assert_int_equal(daemon_run(&f->daemon), 0);
    assert_true(f->daemon.stopping);
}

static void test_shutdown(void **state) {
    static const char request[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"shutdown\"}\n";
    struct fixture *f = *state;
    char reply[128] = "";

    assert_int_equal(write(f->peer, request, sizeof(request) - 1), sizeof(request) - 1);
    assert_int_equal(daemon_run(&f->daemon), 0);
    assert_true(read(f->peer, reply, sizeof(reply) - 1) > 0);
    assert_string_equal(reply, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n");
}

/* What the links say reaches the control end while the main loop has nothing else to do. */
static void test_announcements(void **state) {
    struct fixture *f = *state;
    struct links *links = &f->daemon.devices.links;
    char lines[512] = "";
    size_t size = 0;
    pthread_t thread;

    json_decref(exchange(f, "device.add", ADD));
    assert_int_equal(pthread_create(&thread, NULL, run, &f->daemon), 0);
    links_connected(links, "0000:82:00.2");
    for (unsigned int ring = 0; ring < 4; ring++)
        links_ring(links, "0000:82:00.2", ring, true);
    links_configured(links, "0000:82:00.2", 1);
    while (strstr(lines, "queue_pairs") == NULL) {
        ssize_t got = read(f->peer, lines + size, sizeof(lines) - 1 - size);

        assert_true(got > 0);
        size += (size_t)got;
    }
    assert_string_equal(
        lines,
        "{\"jsonrpc\":\"2.0\",\"method\":\"device.connected\",\"params\":{\"device\":\"0000:82:00.2\"}}\n"
        "{\"jsonrpc\":\"2.0\",\"method\":\"device.configured\",\"params\":{\"device\":\"0000:82:00.2\","
        "\"queue_pairs\":2}}\n");
    ask_to_stop(f);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

static void test_by_hand(void **state) {
    char first[] = "82:00.2,queues=1";
    char second[] = "82:00.3";
    char *devices[] = {first, second};
    struct fixture *f = *state;

    f->options.control_fd = -1;
    f->options.devices = devices;
    f->options.device_count = 2;
    f->options.vhost_client = true;
    ask_to_stop(f);
    assert_int_equal(daemon_run(&f->daemon), 0);
    assert_mapping(f, "0000:82:00.2=/vhost/vdpa-0 0000:82:00.3=/vhost/vdpa-1 ");
    assert_string_equal(fake_next.devargs, "");
    assert_true(f->daemon.devices.entries[0]->vhost_client);
    assert_true(f->daemon.devices.entries[1]->vhost_client);
    fake_next.add_error = -EIO;
    assert_int_equal(daemon_run(&f->daemon), -EIO);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, start, stop)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_device_comes_and_goes),
        TEST(test_no_mapping),
        TEST(test_removal_under_a_front_end),
        TEST(test_removal_that_fails),
        TEST(test_refusals),
        TEST(test_mapping_is_tried_again),
        TEST(test_the_end_of_the_control_end_stops),
        TEST(test_shutdown),
        TEST(test_announcements),
        TEST(test_by_hand),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
