/* The examples of the control channel, on devices that are made up: test_control_contract DIRECTORY */
#include "check.h"
#include "daemon.h"
#include "fake_devices.h"

#include <dirent.h>
#include <sys/socket.h>

#define EXAMPLES_MAX 64

static const char *directory;

struct fixture {
    struct log log;
    struct options options;
    struct daemon daemon;
    int peer;
};

static int start(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));
    int ends[2];

    if (f == NULL || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return -1;
    fake_next = (struct fake_next){.file = {.device = 1, .inode = 2}};
    f->log = (struct log){.level = LEVEL_ERROR, .fd = STDERR_FILENO};
    f->options = (struct options){.control_fd = ends[0], .socket_dir = "/vhost"};
    f->daemon = (struct daemon){.log = &f->log, .options = &f->options, .signal_fd = -1};
    f->peer = ends[1];
    control_init(&f->daemon.control, ends[0], daemon_methods, &f->daemon);
    *state = f;
    return links_init(&f->daemon.devices.links);
}

static int stop(void **state) {
    struct fixture *f = *state;

    while (f->daemon.devices.count > 0)
        free(f->daemon.devices.entries[--f->daemon.devices.count]);
    links_destroy(&f->daemon.devices.links);
    control_destroy(&f->daemon.control);
    close(f->daemon.control.fd);
    close(f->peer);
    free(f);
    return 0;
}

static int by_id(const void *a, const void *b) {
    json_int_t left =
        json_integer_value(json_object_get(json_object_get(*(json_t *const *)a, "request"), "id"));
    json_int_t right =
        json_integer_value(json_object_get(json_object_get(*(json_t *const *)b, "request"), "id"));

    return left < right ? -1 : left > right;
}

/* Those that have `key`, in the order of their ids, as an array of `*count`; each is to be released. */
static void load(const char *key, json_t *examples[EXAMPLES_MAX], size_t *count) {
    DIR *files = opendir(directory);

    *count = 0;
    assert_non_null(files);
    for (const struct dirent *entry; (entry = readdir(files)) != NULL;) {
        char path[512];
        json_t *example;

        if (strstr(entry->d_name, ".json") == NULL)
            continue;
        snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
        example = json_load_file(path, 0, NULL);
        if (example == NULL)
            fail_msg("%s is not JSON", path);
        assert_true(*count < EXAMPLES_MAX);
        if (json_object_get(example, key) != NULL)
            examples[(*count)++] = example;
        else
            json_decref(example);
    }
    closedir(files);
    qsort(examples, *count, sizeof(examples[0]), by_id);
}

/* The form: keys and types. A list is as its first entry, and counters have any name. */
static bool same_form(const json_t *got, const json_t *wanted) {
    const char *key;
    json_t *value;

    if (json_is_boolean(got) && json_is_boolean(wanted))
        return true;
    if (json_typeof(got) != json_typeof(wanted))
        return false;
    if (json_is_array(got))
        return (json_array_size(got) == 0) == (json_array_size(wanted) == 0) &&
               (json_array_size(got) == 0 || same_form(json_array_get(got, 0), json_array_get(wanted, 0)));
    if (!json_is_object(got))
        return true;
    if (json_object_size(got) != json_object_size(wanted))
        return false;
    json_object_foreach((json_t *)(uintptr_t)wanted, key, value) {
        const json_t *member = json_object_get(got, key);

        if (member == NULL || (strcmp(key, "stats") != 0 && !same_form(member, value)))
            return false;
    }
    return true;
}

static json_t *read_line(const struct fixture *f) {
    char line[8192] = "";
    ssize_t size = recv(f->peer, line, sizeof(line) - 1, MSG_DONTWAIT);
    json_t *object;

    assert_true(size > 0);
    object = json_loadb(line, (size_t)size, 0, NULL);
    assert_non_null(object);
    return object;
}

static void expect(const json_t *got, const json_t *wanted, const char *what) {
    const json_t *error = json_object_get(wanted, "error");

    if (same_form(got, wanted) && json_equal(json_object_get(got, "id"), json_object_get(wanted, "id")) &&
        (error == NULL || json_equal(json_object_get(got, "error"), error)))
        return;
    fail_msg("%s: %s", what, json_dumps(got, JSON_COMPACT));
}

static bool has_example(json_t *const examples[EXAMPLES_MAX], size_t count, const char *method) {
    for (size_t i = 0; i < count; i++) {
        const json_t *request = json_object_get(examples[i], "request");

        if (strcmp(json_string_value(json_object_get(request, "method")), method) == 0)
            return true;
    }
    return false;
}

static void test_each_request_is_answered_as_its_example(void **state) {
    struct fixture *f = *state;
    json_t *examples[EXAMPLES_MAX];
    size_t count;

    load("request", examples, &count);
    assert_true(count >= 12);
    for (size_t i = 0; i < count; i++) {
        const json_t *request = json_object_get(examples[i], "request");
        char *text = json_dumps(request, JSON_COMPACT);
        json_t *got;

        assert_int_equal(write(f->peer, text, strlen(text)), strlen(text));
        assert_int_equal(write(f->peer, "\n", 1), 1);
        assert_int_equal(control_step(&f->daemon.control), 0);
        got = read_line(f);
        expect(got, json_object_get(examples[i], "answer"), text);
        /* A device that was added has refused a front end by the next request. */
        if (f->daemon.devices.count > 0)
            links_refused(&f->daemon.devices.links, f->daemon.devices.entries[0]->address, REFUSAL_MEMORY);
        json_decref(got);
        free(text);
    }
    for (const struct control_method *method = daemon_methods; method->name != NULL; method++) {
        if (!has_example(examples, count, method->name))
            fail_msg("no example of %s", method->name);
    }
    for (size_t i = 0; i < count; i++)
        json_decref(examples[i]);
}

static void test_each_notification_is_its_example(void **state) {
    static const struct {
        const char *method;
        enum link_state state;
    } words[] = {{"device.connected", LINK_CONNECTED},
                 {"device.configured", LINK_CONFIGURED},
                 {"device.disconnected", LINK_DISCONNECTED}};
    struct fixture *f = *state;
    json_t *examples[EXAMPLES_MAX];
    size_t count;

    load("notification", examples, &count);
    assert_int_equal(count, COUNT(words));
    for (size_t i = 0; i < count; i++) {
        const json_t *wanted = json_object_get(examples[i], "notification");
        const char *method = json_string_value(json_object_get(wanted, "method"));
        struct link_change change = {.address = "0000:82:00.2", .queue_pairs = 1};
        size_t word = 0;
        json_t *got;

        while (word < COUNT(words) && strcmp(words[word].method, method) != 0)
            word++;
        assert_true(word < COUNT(words));
        change.state = words[word].state;
        daemon_announce(&f->daemon, &change);
        assert_int_equal(control_step(&f->daemon.control), 0);
        got = read_line(f);
        if (!json_equal(got, wanted))
            fail_msg("%s: %s", method, json_dumps(got, JSON_COMPACT));
        json_decref(got);
        json_decref(examples[i]);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_each_request_is_answered_as_its_example, start, stop),
        cmocka_unit_test_setup_teardown(test_each_notification_is_its_example, start, stop),
    };

    if (argc != 2)
        return 2;
    directory = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
