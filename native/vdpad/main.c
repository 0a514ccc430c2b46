/* vdpad: serves vDPA devices as vhost-user sockets, as its arguments or a control socket ask. */
#include "daemon.h"
#include "eal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define EXIT_USAGE 2

/* What a thread has for its stack, as Linux gives it where nothing is set; with less than the second EAL
 * crashes. */
#define STACK_BYTES (8ULL * 1024 * 1024)
#define STACK_LEAST_BYTES (256ULL * 1024)

#define HUGEPAGES_DIRECTORY "/sys/kernel/mm/hugepages"

/* Whether the kernel has a free hugepage of any size. */
static bool has_free_hugepages(void) {
    DIR *directory = opendir(HUGEPAGES_DIRECTORY);
    const struct dirent *entry;
    unsigned long free_pages = 0;

    while (directory != NULL && free_pages == 0 && (entry = readdir(directory)) != NULL) {
        char path[sizeof(HUGEPAGES_DIRECTORY) + sizeof(entry->d_name) + sizeof("/free_hugepages")];
        FILE *file;

        snprintf(path, sizeof(path), HUGEPAGES_DIRECTORY "/%s/free_hugepages", entry->d_name);
        file = fopen(path, "re");
        if (file == NULL)
            continue;
        if (fscanf(file, "%lu", &free_pages) != 1)
            free_pages = 0;
        fclose(file);
    }
    if (directory != NULL)
        closedir(directory);
    return free_pages > 0;
}

/*
 * An agent that is killed leaves no daemon. Dead before prctl(), it shows as another parent; dead even before
 * `parent` was asked for, it shows as a control end that is closed.
 */
static int die_with_parent(pid_t parent) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
        return -errno;
    return getppid() == parent ? 0 : -ESRCH;
}

/* Each device takes a socket, and each front end a few descriptors more. */
static void raise_descriptor_limit(void) {
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/*
 * The main thread's stack grows as far as the limit of now allows; that of other threads is what it was at
 * the start, unless it is set. EAL needs more than 128 KiB. Returns what there is if that is too little, else
 * 0.
 */
static rlim_t raise_stack_limit(void) {
    struct rlimit limit;
    pthread_attr_t attributes;
    size_t size = 0;

    if (getrlimit(RLIMIT_STACK, &limit) != 0)
        return 0;
    if (limit.rlim_cur < STACK_BYTES) {
        limit.rlim_cur = limit.rlim_max < STACK_BYTES ? limit.rlim_max : STACK_BYTES;
        setrlimit(RLIMIT_STACK, &limit);
    }
    if (pthread_attr_init(&attributes) == 0) {
        if (pthread_attr_getstacksize(&attributes, &size) == 0 && size < STACK_BYTES &&
            pthread_attr_setstacksize(&attributes, STACK_BYTES) == 0)
            pthread_setattr_default_np(&attributes);
        pthread_attr_destroy(&attributes);
    }
    return limit.rlim_cur < STACK_LEAST_BYTES ? limit.rlim_cur : 0;
}

/* Blocked before any other thread exists, so that all inherit it, and read by the main loop. */
static int open_signals(void) {
    sigset_t signals;
    int fd;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    /* A write beyond the limit of file size fails then, as one on a full disk does. */
    if (signal(SIGPIPE, SIG_IGN) == SIG_ERR || signal(SIGXFSZ, SIG_IGN) == SIG_ERR ||
        sigprocmask(SIG_BLOCK, &signals, NULL) != 0)
        return -errno;
    fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

static int serve(const struct options *options, const struct log *log) {
    const struct device_settings device_settings = {
        .simulate = options->simulate,
        .simulate_switch = options->simulate_switch,
        .access = {.mode = options->socket_mode,
                   .owner = options->socket_owner,
                   .group = options->socket_group},
        .socket_dir = options->socket_dir,
    };
    struct daemon daemon = {.log = log, .options = options};
    struct eal_settings eal_settings = {.simulate = options->simulate, .cpu = options->cpu};
    struct failure failure;
    struct eal eal;
    int error = 0;

    /* One name for all: it stays empty, and a process that is killed on its way leaves it only once. */
    eal_settings.file_prefix = options->file_prefix == NULL ? "vdpad" : options->file_prefix;
    eal_settings.hugepages =
        options->memory == MEMORY_HUGEPAGES || (options->memory == MEMORY_AUTO && has_free_hugepages());
    daemon.hugepages = eal_settings.hugepages;
    control_init(&daemon.control, options->control_fd, daemon_methods, &daemon);
    if (options->socket_list != NULL)
        error = mapping_file_init(&daemon.mapping_file, options->socket_list);
    if (error != 0) {
        log_line(log, LEVEL_ERROR, "--socket-list '%s' is too long", options->socket_list);
        return error;
    }
    daemon.signal_fd = open_signals();
    if (daemon.signal_fd < 0) {
        log_line(log, LEVEL_ERROR, "cannot take signals: %s", strerror(-daemon.signal_fd));
        return daemon.signal_fd;
    }
    error = eal_start(&eal, log, &eal_settings, &failure);
    if (error != 0) {
        log_line(log, LEVEL_ERROR, "%s", failure.text);
        goto close_signals;
    }
    error = devices_init(&daemon.devices, log, &eal, &device_settings);
    if (error != 0) {
        log_line(log, LEVEL_ERROR, "cannot start: %s", strerror(-error));
        goto stop_eal;
    }
    log_line(log, LEVEL_INFO, "vdpad %s on DPDK %s is up: vhost %s, memory %s%s", VDPAD_VERSION,
             eal_version(), options->vhost_client ? "client" : "server",
             daemon.hugepages ? "hugepages" : "none",
             !options->simulate         ? ""
             : options->simulate_switch ? ", software devices as a network"
                                        : ", software devices");
    error = daemon_run(&daemon);
    /* The file first: it never names a socket that is gone. */
    mapping_file_remove(&daemon.mapping_file);
    if (devices_destroy(&daemon.devices) != 0) {
        log_line(log, LEVEL_ERROR, "DPDK does not let a device go: ending without it");
        _exit(EXIT_FAILURE);
    }

stop_eal:
    eal_stop(&eal);
close_signals:
    close(daemon.signal_fd);
    control_destroy(&daemon.control);
    return error;
}

int main(int argc, char **argv) {
    const pid_t parent = getppid();
    struct log log = {.level = LEVEL_INFO, .fd = STDERR_FILENO};
    struct options options;
    char problem[512];
    rlim_t stack;
    int error;

    switch (options_parse(argc, argv, &options, problem, sizeof(problem))) {
    case OPTIONS_HELP:
        options_print_help(stdout);
        return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
    case OPTIONS_VERSION:
        printf("vdpad %s (DPDK %s)\n", VDPAD_VERSION, eal_version());
        return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
    case OPTIONS_WRONG:
        log_line(&log, LEVEL_ERROR, "%s", problem);
        return EXIT_USAGE;
    case OPTIONS_RUN:
        break;
    }
    log.level = options.log_level;
    if (options.control_fd >= 0) {
        error = die_with_parent(parent);
        if (error == 0 && fcntl(options.control_fd, F_SETFD, FD_CLOEXEC) != 0)
            error = -errno;
        if (error != 0) {
            log_line(&log, LEVEL_ERROR, "cannot be the child of an agent: %s", strerror(-error));
            return EXIT_FAILURE;
        }
    }
    raise_descriptor_limit();
    stack = raise_stack_limit();
    if (stack != 0) {
        log_line(&log, LEVEL_ERROR,
                 "the limit of the stack is %llu KiB, DPDK needs %llu: raise it (ulimit -s)",
                 (unsigned long long)stack / 1024, STACK_LEAST_BYTES / 1024);
        return EXIT_FAILURE;
    }
    return serve(&options, &log) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
