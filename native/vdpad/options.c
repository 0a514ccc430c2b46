/* The command line: what was asked for, checked. */
#include "options.h"

#include "pci_address.h"
#include "socket.h"

#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <jansson.h>
#include <limits.h>
#include <pwd.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define FILE_PREFIX_MAX 63

enum option_number {
    OPTION_CONTROL_FD = 256,
    OPTION_SOCKET_DIR,
    OPTION_SOCKET_LIST,
    OPTION_NO_SOCKET_LIST,
    OPTION_SOCKET_MODE,
    OPTION_SOCKET_OWNER,
    OPTION_SOCKET_GROUP,
    OPTION_VHOST_MODE,
    OPTION_MEMORY,
    OPTION_SIMULATE,
    OPTION_SIMULATE_NETWORK,
    OPTION_FILE_PREFIX,
    OPTION_LCORE,
    OPTION_LOG_LEVEL,
    OPTION_VERSION,
    OPTION_HELP,
};

static const struct option long_options[] = {
    {"control-fd", required_argument, NULL, OPTION_CONTROL_FD},
    {"socket-dir", required_argument, NULL, OPTION_SOCKET_DIR},
    {"socket-list", required_argument, NULL, OPTION_SOCKET_LIST},
    {"no-socket-list", no_argument, NULL, OPTION_NO_SOCKET_LIST},
    {"socket-mode", required_argument, NULL, OPTION_SOCKET_MODE},
    {"socket-owner", required_argument, NULL, OPTION_SOCKET_OWNER},
    {"socket-group", required_argument, NULL, OPTION_SOCKET_GROUP},
    {"vhost-mode", required_argument, NULL, OPTION_VHOST_MODE},
    {"memory", required_argument, NULL, OPTION_MEMORY},
    {"simulate", no_argument, NULL, OPTION_SIMULATE},
    {"simulate-network", required_argument, NULL, OPTION_SIMULATE_NETWORK},
    {"file-prefix", required_argument, NULL, OPTION_FILE_PREFIX},
    {"lcore", required_argument, NULL, OPTION_LCORE},
    {"log-level", required_argument, NULL, OPTION_LOG_LEVEL},
    {"version", no_argument, NULL, OPTION_VERSION},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

void options_print_help(FILE *stream) {
    fputs(
        "usage: vdpad [OPTION]... [DEVICE[,DEVARGS]]...\n"
        "\n"
        "Serves vDPA devices as vhost-user sockets, one each. DEVICE is a PCI address such as 0000:82:00.2.\n"
        "\n"
        "  --control-fd N          take JSON-RPC requests on this inherited socket, and no DEVICE arguments\n"
        "  --socket-dir DIR        without --control-fd: sockets DIR/vdpa-0, DIR/vdpa-1, ... in the order "
        "of\n"
        "                          the arguments (default /var/run/vdpa/vhost)\n"
        "  --socket-list PATH      mapping file (default /var/run/vdpa/socketList.dat)\n"
        "  --no-socket-list        write no mapping file: the control end does\n"
        "  --socket-mode OCTAL     mode of each socket (default 0660)\n"
        "  --socket-owner USER     owner of each socket, a name or a number (default: unchanged)\n"
        "  --socket-group GROUP    group of each socket, a name or a number (default: unchanged)\n"
        "  --vhost-mode MODE       server: make the sockets; client: connect to those that the front ends\n"
        "                          make, again after each loss (default server)\n"
        "  --memory MODE           hugepages, none, or auto: hugepages if any are free (default auto)\n"
        "  --simulate              serve a software device in place of each real one\n"
        "  --simulate-network KIND loopback: each software device gives back what it is sent; switch: those\n"
        "                          of one PCI bus are ports of one switch (default loopback)\n"
        "  --file-prefix NAME      DPDK's prefix of run-time files (default vdpad)\n"
        "  --lcore N               CPU to run on (default: the first one allowed)\n"
        "  --log-level LEVEL       debug, info, warning or error (default info)\n"
        "  --version               print the version and exit\n"
        "  --help                  print this and exit\n"
        "\n"
        "Exit codes: 0 stopped as asked, 1 failure at run time, 2 usage or configuration.\n",
        stream);
}

struct problem {
    char *text;
    size_t size;
};

static enum options_verdict wrong(const struct problem *problem, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static enum options_verdict wrong(const struct problem *problem, const char *format, ...) {
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(problem->text, problem->size, format, arguments);
    va_end(arguments);
    return OPTIONS_WRONG;
}

/* A whole number of digits alone, up to `limit`. */
static int parse_number(const char *text, int base, unsigned long limit, unsigned long *value) {
    char *end;

    if (text[0] < '0' || text[0] > '9')
        return -EINVAL;
    errno = 0;
    *value = strtoul(text, &end, base);
    if (errno != 0 || *end != '\0' || *value > limit)
        return -EINVAL;
    return 0;
}

static enum options_verdict parse_control_fd(const char *text, struct options *options,
                                             const struct problem *problem) {
    struct stat status;
    unsigned long fd;

    if (parse_number(text, 10, INT_MAX, &fd) != 0)
        return wrong(problem, "--control-fd '%s' is not a file descriptor's number", text);
    if (fstat((int)fd, &status) != 0 || !S_ISSOCK(status.st_mode))
        return wrong(problem, "--control-fd %lu is not an open socket: pass one end of a socketpair", fd);
    options->control_fd = (int)fd;
    return OPTIONS_RUN;
}

static enum options_verdict parse_mode(const char *text, struct options *options,
                                       const struct problem *problem) {
    unsigned long mode;

    if (parse_number(text, 8, 0777, &mode) != 0)
        return wrong(problem, "--socket-mode '%s' is not an octal mode from 0 to 0777", text);
    options->socket_mode = (mode_t)mode;
    return OPTIONS_RUN;
}

static enum options_verdict parse_owner(const char *text, struct options *options,
                                        const struct problem *problem) {
    unsigned long number;
    const struct passwd *user;

    if (parse_number(text, 10, UINT_MAX - 1, &number) == 0) {
        options->socket_owner = (uid_t)number;
        return OPTIONS_RUN;
    }
    user = getpwnam(text);
    if (user == NULL)
        return wrong(problem, "--socket-owner '%s' is not a user here: give a name or a number", text);
    options->socket_owner = user->pw_uid;
    return OPTIONS_RUN;
}

static enum options_verdict parse_group(const char *text, struct options *options,
                                        const struct problem *problem) {
    unsigned long number;
    const struct group *group;

    if (parse_number(text, 10, UINT_MAX - 1, &number) == 0) {
        options->socket_group = (gid_t)number;
        return OPTIONS_RUN;
    }
    group = getgrnam(text);
    if (group == NULL)
        return wrong(problem, "--socket-group '%s' is not a group here: give a name or a number", text);
    options->socket_group = group->gr_gid;
    return OPTIONS_RUN;
}

static enum options_verdict parse_vhost_mode(const char *text, struct options *options,
                                             const struct problem *problem) {
    options->vhost_client = strcmp(text, "client") == 0;
    if (!options->vhost_client && strcmp(text, "server") != 0)
        return wrong(problem, "--vhost-mode '%s' is neither server nor client", text);
    return OPTIONS_RUN;
}

static enum options_verdict parse_memory(const char *text, struct options *options,
                                         const struct problem *problem) {
    if (strcmp(text, "auto") == 0)
        options->memory = MEMORY_AUTO;
    else if (strcmp(text, "hugepages") == 0)
        options->memory = MEMORY_HUGEPAGES;
    else if (strcmp(text, "none") == 0)
        options->memory = MEMORY_NONE;
    else
        return wrong(problem, "--memory '%s' is none of auto, hugepages and none", text);
    return OPTIONS_RUN;
}

static enum options_verdict parse_simulate_network(const char *text, struct options *options,
                                                   const struct problem *problem) {
    options->simulate_switch = strcmp(text, "switch") == 0;
    if (!options->simulate_switch && strcmp(text, "loopback") != 0)
        return wrong(problem, "--simulate-network '%s' is neither loopback nor switch", text);
    return OPTIONS_RUN;
}

/* It becomes a part of file names, and of an argument of DPDK. */
static enum options_verdict parse_file_prefix(const char *text, struct options *options,
                                              const struct problem *problem) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t length = strlen(text);

    if (length == 0 || length > FILE_PREFIX_MAX || text[0] == '.' || strspn(text, allowed) != length)
        return wrong(problem, "--file-prefix '%s' is not a name of 1 to %d letters, digits, '-', '_' and '.'",
                     text, FILE_PREFIX_MAX);
    options->file_prefix = text;
    return OPTIONS_RUN;
}

static enum options_verdict parse_lcore(const char *text, struct options *options,
                                        const struct problem *problem) {
    unsigned long cpu;
    cpu_set_t allowed;

    if (parse_number(text, 10, CPU_SETSIZE - 1, &cpu) != 0)
        return wrong(problem, "--lcore '%s' is not a CPU's number", text);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0 && !CPU_ISSET(cpu, &allowed))
        return wrong(problem, "--lcore %lu is not a CPU that this process may run on", cpu);
    options->cpu = (unsigned int)cpu;
    return OPTIONS_RUN;
}

static unsigned int first_allowed_cpu(void) {
    cpu_set_t allowed;

    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        for (unsigned int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (CPU_ISSET(cpu, &allowed))
                return cpu;
        }
    }
    return 0;
}

static enum options_verdict parse_one(int option, const char *value, struct options *options,
                                      const struct problem *problem) {
    switch (option) {
    case OPTION_CONTROL_FD:
        return parse_control_fd(value, options, problem);
    case OPTION_SOCKET_DIR:
        options->socket_dir = value;
        return OPTIONS_RUN;
    case OPTION_SOCKET_LIST:
        if (value[0] == '\0')
            return wrong(problem, "--socket-list is empty: give a path");
        options->socket_list = value;
        return OPTIONS_RUN;
    case OPTION_NO_SOCKET_LIST:
        options->socket_list = NULL;
        return OPTIONS_RUN;
    case OPTION_SOCKET_MODE:
        return parse_mode(value, options, problem);
    case OPTION_SOCKET_OWNER:
        return parse_owner(value, options, problem);
    case OPTION_SOCKET_GROUP:
        return parse_group(value, options, problem);
    case OPTION_VHOST_MODE:
        return parse_vhost_mode(value, options, problem);
    case OPTION_MEMORY:
        return parse_memory(value, options, problem);
    case OPTION_SIMULATE:
        options->simulate = true;
        return OPTIONS_RUN;
    case OPTION_SIMULATE_NETWORK:
        return parse_simulate_network(value, options, problem);
    case OPTION_FILE_PREFIX:
        return parse_file_prefix(value, options, problem);
    case OPTION_LCORE:
        return parse_lcore(value, options, problem);
    case OPTION_LOG_LEVEL:
        if (log_level_parse(value, &options->log_level) != 0)
            return wrong(problem, "--log-level '%s' is none of debug, info, warning and error", value);
        return OPTIONS_RUN;
    case OPTION_VERSION:
        return OPTIONS_VERSION;
    default:
        return OPTIONS_HELP;
    }
}

static bool is_utf8(const char *text) {
    json_t *string = json_string(text);

    json_decref(string);
    return string != NULL;
}

/* "ADDRESS[,DEVARGS]" */
static bool is_device(const char *argument) {
    size_t length = strcspn(argument, ",");
    char text[PCI_ADDRESS_SIZE];
    char address[PCI_ADDRESS_SIZE];

    if (length >= sizeof(text))
        return false;
    snprintf(text, sizeof(text), "%.*s", (int)length, argument);
    return pci_address_normalise(text, address) == 0;
}

/* What no option alone can show. */
static enum options_verdict check(const struct options *options, const struct problem *problem) {
    const char *socket_problem = socket_path_problem(options->socket_dir);

    if (socket_problem != NULL)
        return wrong(problem, "--socket-dir '%s' %s", options->socket_dir, socket_problem);
    /* It becomes a part of the mapping file, which is JSON. */
    if (!is_utf8(options->socket_dir))
        return wrong(problem, "--socket-dir is not UTF-8: choose another path");
    if (options->simulate && !VDPAD_HAS_SIMULATOR)
        return wrong(problem, "--simulate: this vdpad was built without the software device");
    if (options->simulate_switch && !options->simulate)
        return wrong(problem, "--simulate-network switch is for software devices: add --simulate");
    if (options->control_fd >= 0 && options->device_count > 0)
        return wrong(problem, "device '%s' beside --control-fd: add it by the request device.add",
                     options->devices[0]);
    if (options->control_fd < 0 && options->device_count == 0)
        return wrong(problem, "no device: give PCI addresses as arguments, or --control-fd");
    for (int i = 0; i < options->device_count; i++) {
        if (!is_device(options->devices[i]))
            return wrong(problem, "device '%s' is not a PCI address such as 0000:82:00.2",
                         options->devices[i]);
    }
    return OPTIONS_RUN;
}

enum options_verdict options_parse(int argc, char **argv, struct options *options, char *text, size_t size) {
    const struct problem problem = {.text = text, .size = size};
    enum options_verdict verdict = OPTIONS_RUN;

    *options = (struct options){
        .control_fd = -1,
        .socket_dir = "/var/run/vdpa/vhost",
        .socket_list = "/var/run/vdpa/socketList.dat",
        .socket_mode = 0660,
        .socket_owner = (uid_t)-1,
        .socket_group = (gid_t)-1,
        .memory = MEMORY_AUTO,
        .cpu = first_allowed_cpu(),
        .log_level = LEVEL_INFO,
    };
    optind = 0; /* glibc: start anew */
    opterr = 0;
    while (verdict == OPTIONS_RUN) {
        int option = getopt_long(argc, argv, ":", long_options, NULL);

        if (option == -1)
            break;
        if (option == ':')
            return wrong(&problem, "%s needs a value: see --help", argv[optind - 1]);
        if (option == '?' && optopt >= OPTION_CONTROL_FD)
            return wrong(&problem, "%s takes no value: see --help", argv[optind - 1]);
        if (option == '?')
            return wrong(&problem, "unknown option %s: see --help", argv[optind - 1]);
        verdict = parse_one(option, optarg, options, &problem);
    }
    if (verdict != OPTIONS_RUN)
        return verdict;
    options->devices = argv + optind;
    options->device_count = argc - optind;
    return check(options, &problem);
}
