/* The command line: defaults, every option, and messages that say what is wrong. */
#include "check.h"
#include "options.h"

#include <sys/socket.h>

#define ARGUMENTS_MAX 12

static struct options options;
static char problem[512];

static enum options_verdict parse(const char *const *words) {
    static char *arguments[ARGUMENTS_MAX];
    int count = 0;

    for (int i = 0; i < ARGUMENTS_MAX; i++) {
        free(arguments[i]);
        arguments[i] = NULL;
    }
    arguments[count++] = strdup("vdpad");
    for (; *words != NULL; words++)
        arguments[count++] = strdup(*words);
    problem[0] = '\0';
    return options_parse(count, arguments, &options, problem, sizeof(problem));
}

#define PARSE(...) parse((const char *const[]){__VA_ARGS__, NULL})

static void test_defaults(void **state) {
    (void)state;
    assert_int_equal(PARSE("0000:82:00.2,queues=2", "82:00.3"), OPTIONS_RUN);
    assert_int_equal(options.control_fd, -1);
    assert_string_equal(options.socket_dir, "/var/run/vdpa/vhost");
    assert_string_equal(options.socket_list, "/var/run/vdpa/socketList.dat");
    assert_int_equal(options.socket_mode, 0660);
    assert_int_equal(options.socket_owner, (uid_t)-1);
    assert_int_equal(options.socket_group, (gid_t)-1);
    assert_false(options.vhost_client);
    assert_int_equal(options.memory, MEMORY_AUTO);
    assert_false(options.simulate);
    assert_false(options.simulate_switch);
    assert_null(options.file_prefix);
    assert_int_equal(options.log_level, LEVEL_INFO);
    assert_int_equal(options.device_count, 2);
    assert_string_equal(options.devices[0], "0000:82:00.2,queues=2");
}

static void test_every_option(void **state) {
    char fd[16];
    int ends[2];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    snprintf(fd, sizeof(fd), "%d", ends[0]);
    assert_int_equal(
        PARSE("--control-fd", fd, "--socket-list=/l", "--socket-mode", "600", "--memory", "none"),
        OPTIONS_RUN);
    assert_int_equal(options.control_fd, ends[0]);
    assert_string_equal(options.socket_list, "/l");
    assert_int_equal(options.socket_mode, 0600);
    assert_int_equal(options.memory, MEMORY_NONE);
    assert_int_equal(PARSE("--control-fd", fd, "82:00.2"), OPTIONS_WRONG);
    assert_non_null(strstr(problem, "'82:00.2' beside --control-fd"));
    close(ends[0]);
    close(ends[1]);
    assert_int_equal(PARSE("82:00.2", "--socket-dir", "/d", "--socket-owner", "root", "--socket-group=0",
                           "--vhost-mode", "client", "--log-level", "debug"),
                     OPTIONS_RUN);
    assert_string_equal(options.socket_dir, "/d");
    assert_int_equal(options.socket_owner, 0);
    assert_int_equal(options.socket_group, 0);
    assert_true(options.vhost_client);
    assert_int_equal(options.log_level, LEVEL_DEBUG);
    assert_int_equal(PARSE("82:00.2", "--file-prefix", "a-b_1.c", "--memory=hugepages"), OPTIONS_RUN);
    assert_string_equal(options.file_prefix, "a-b_1.c");
    assert_int_equal(options.memory, MEMORY_HUGEPAGES);
    assert_int_equal(PARSE("--simulate", "--simulate-network", "switch", "82:00.2"), OPTIONS_RUN);
    assert_true(options.simulate_switch);
    assert_int_equal(PARSE("--simulate", "--simulate-network=loopback", "82:00.2"), OPTIONS_RUN);
    assert_false(options.simulate_switch);
    assert_int_equal(PARSE("82:00.2", "--no-socket-list"), OPTIONS_RUN);
    assert_null(options.socket_list);
    assert_int_equal(PARSE("--help", "--nonsense"), OPTIONS_HELP);
    assert_int_equal(PARSE("--version"), OPTIONS_VERSION);
}

static void test_wrong(void **state) {
    static const struct {
        const char *words[3];
        const char *expected;
    } cases[] = {
        {{"--log-level", "info"}, "no device"},
        {{"--nonsense"}, "unknown option --nonsense"},
        {{"-x"}, "unknown option -x"},
        {{"--socket-mode"}, "--socket-mode needs a value"},
        {{"--simulate=yes"}, "--simulate=yes takes no value"},
        {{"--simulate-network", "hub"}, "'hub' is neither loopback nor switch"},
        {{"--simulate-network=switch", "82:00.2"},
         "--simulate-network switch is for software devices: add --simulate"},
        {{"--control-fd", "x"}, "'x' is not a file descriptor's number"},
        {{"--control-fd", "-1"}, "'-1' is not a file descriptor's number"},
        {{"--control-fd", "99999999999"}, "'99999999999' is not a file descriptor's number"},
        {{"--control-fd", "999"}, "999 is not an open socket"},
        {{"--control-fd", "2"}, "2 is not an open socket"},
        {{"--socket-mode", "0888"}, "'0888' is not an octal mode"},
        {{"--socket-mode", "01777"}, "'01777' is not an octal mode"},
        {{"--socket-mode", "-1"}, "'-1' is not an octal mode"},
        {{"--socket-mode", ""}, "'' is not an octal mode"},
        {{"--socket-owner", "no such user"}, "'no such user' is not a user"},
        {{"--socket-group", "4294967295"}, "'4294967295' is not a group"},
        {{"--vhost-mode", "both"}, "'both' is neither server nor client"},
        {{"--memory", "some"}, "'some' is none of auto, hugepages and none"},
        {{"--file-prefix", "../x"}, "'../x' is not a name"},
        {{"--file-prefix", ""}, "'' is not a name"},
        {{"--lcore", "1024"}, "'1024' is not a CPU's number"},
        {{"--lcore", "1023"}, "1023 is not a CPU that this process may run on"},
        {{"--log-level", "loud"}, "'loud' is none of debug"},
        {{"82:00.2", "nonsense"}, "device 'nonsense' is not a PCI address"},
        {{"0000:82:00.2x,queues=2"}, "device '0000:82:00.2x,queues=2' is not a PCI address"},
        {{"--socket-list", ""}, "--socket-list is empty"},
        {{"--socket-dir", "vhost", "82:00.2"}, "'vhost' is not absolute"},
        {{"--socket-dir", "/\xff", "82:00.2"}, "is not UTF-8"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        const char *words[] = {cases[i].words[0], cases[i].words[1], cases[i].words[2], NULL};

        assert_int_equal(parse(words), OPTIONS_WRONG);
        if (strstr(problem, cases[i].expected) == NULL)
            fail_msg("'%s' does not say '%s'", problem, cases[i].expected);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_option),
        cmocka_unit_test(test_wrong),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
