/* vdpa-front: a DPDK virtio-user front end that counts exactly what comes back of what it sends. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "options.h"
#include "port.h"
#include "report.h"
#include "traffic.h"

enum { EXIT_INTACT = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_NO_CONNECTION = 5 };

/* Signal handlers can reach nothing else. */
static volatile sig_atomic_t stop, expired;

static void on_signal(int signal) {
    if (signal == SIGALRM)
        expired = 1;
    else
        stop = 1;
}

/*
 * The driver blocks in system calls while it connects: no SA_RESTART, and the timer goes on, so that a signal
 * just before a call is not the last one.
 */
static void set_timer(double first_s) {
    struct itimerval timer = {.it_interval = {.tv_usec = 100 * 1000}};

    timer.it_value.tv_sec = (time_t)first_s;
    timer.it_value.tv_usec = (suseconds_t)((first_s - (double)timer.it_value.tv_sec) * 1e6);
    if (first_s <= 0)
        timer.it_interval.tv_usec = 0;
    setitimer(ITIMER_REAL, &timer, NULL);
}

/* The signals stay with the main thread: EAL's threads are born with all of them blocked. */
static int init_eal(const struct options *options) {
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t all, old;

    sigaction(SIGALRM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* a back end that goes away is an event here */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &old);
    int rc = port_init_eal(options);
    sigprocmask(SIG_SETMASK, &old, NULL);
    return rc;
}

/* Takes stdout for the events alone: what libraries print there goes to stderr from now on. */
static FILE *take_stdout(void) {
    int fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);

    if (fd < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
        return NULL;
    return fdopen(fd, "w");
}

int main(int argc, char **argv) {
    struct options options;
    struct report report;
    struct port port = {0};
    bool intact = false;
    int rc, code = EXIT_FAILED;

    rc = options_parse(&options, argc, argv);
    if (rc != 0)
        return rc > 0 ? EXIT_INTACT : EXIT_USAGE;
    report = (struct report){.out = take_stdout(), .text = options.text};
    if (report.out == NULL) {
        fprintf(stderr, "error: cannot write to standard output: %s\n", strerror(errno));
        return EXIT_FAILED;
    }
    if (init_eal(&options) != 0)
        return EXIT_FAILED;

    set_timer(options.connect_timeout_s);
    rc = port_open(&port, &options, &expired, &stop);
    set_timer(0);
    if (rc == 0) {
        report_ready(&report, options.queues, port.mac);
        rc = traffic_run(&port, &options, &report, &stop, &intact);
        if (rc == 0 && intact)
            code = EXIT_INTACT;
    } else if (rc == -ETIMEDOUT) {
        fprintf(stderr, "error: no back end at %s within %g s: is the daemon running\n", options.path,
                options.connect_timeout_s);
        code = EXIT_NO_CONNECTION;
    } else if (rc == -EADDRINUSE) {
        code = EXIT_USAGE;
    }
    port_close(&port);
    port_cleanup_eal();
    return code;
}
