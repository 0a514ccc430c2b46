/* File descriptors that a front end passed: what they are, and how to be rid of them without waiting. */
#include "descriptor.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLOSER_STACK_SIZE ((size_t)64 * 1024)

static bool is_eventfd(int fd) {
    static const char expected[] = "anon_inode:[eventfd]";
    char name[32];
    char target[sizeof(expected)];
    ssize_t length;

    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    length = readlink(name, target, sizeof(target));
    return length == (ssize_t)sizeof(expected) - 1 && memcmp(target, expected, (size_t)length) == 0;
}

/* What getsockopt() says, or -1. */
static int socket_option(int fd, int name) {
    socklen_t size = sizeof(int);
    int value;

    return getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

static bool is_stream(int fd) {
    return socket_option(fd, SO_DOMAIN) == AF_UNIX && socket_option(fd, SO_TYPE) == SOCK_STREAM &&
           socket_option(fd, SO_ACCEPTCONN) == 0;
}

void descriptor_look(int fd, struct descriptor *descriptor) {
    const int blocked = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
    struct statx status;
    int seals;

    *descriptor = (struct descriptor){.fd = fd};
    /* Only tmpfs and hugetlbfs have seals, and neither ever waits. */
    seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0) {
        if (is_eventfd(fd))
            descriptor->kind = DESCRIPTOR_EVENT;
        else if (is_stream(fd))
            descriptor->kind = DESCRIPTOR_STREAM;
        return;
    }
    if ((seals & blocked) != 0 || (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDWR ||
        statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &status) != 0 ||
        !S_ISREG(status.stx_mode))
        return;
    descriptor->kind = DESCRIPTOR_MEMORY;
    descriptor->size = status.stx_size;
    descriptor->inode = status.stx_ino;
    descriptor->device_major = status.stx_dev_major;
    descriptor->device_minor = status.stx_dev_minor;
}

struct debt *debt_new(void) {
    struct debt *debt = calloc(1, sizeof(*debt));

    if (debt != NULL)
        atomic_init(&debt->holders, 1);
    return debt;
}

void debt_release(struct debt *debt) {
    if (debt != NULL && atomic_fetch_sub(&debt->holders, 1) == 1)
        free(debt);
}

unsigned int debt_pending(const struct debt *debt) {
    return atomic_load(&debt->pending);
}

struct job {
    int fd;
    struct debt *debt;
};

static void *run(void *context) {
    struct job *job = context;

    close(job->fd);
    atomic_fetch_sub(&job->debt->pending, 1);
    debt_release(job->debt);
    free(job);
    return NULL;
}

/* Signals that are sent are for the main thread. */
static int start(struct job *job) {
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all;
    sigset_t old;
    int error = pthread_attr_init(&attributes);

    if (error != 0)
        return -error;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, CLOSER_STACK_SIZE);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    error = pthread_create(&thread, &attributes, run, job);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attributes);
    return -error;
}

/* With nothing queued, no other descriptor is inside that would be closed with it. */
static bool is_empty(int fd) {
    int queued;

    return ioctl(fd, FIONREAD, &queued) == 0 && queued == 0;
}

void descriptor_close(int fd, struct debt *debt) {
    struct descriptor descriptor;
    struct job *job;

    descriptor_look(fd, &descriptor);
    /* Nothing more can arrive on a connection that is to be closed for good. */
    if (descriptor.kind == DESCRIPTOR_STREAM)
        shutdown(fd, SHUT_RDWR);
    if (descriptor.kind == DESCRIPTOR_EVENT || descriptor.kind == DESCRIPTOR_MEMORY ||
        (descriptor.kind == DESCRIPTOR_STREAM && is_empty(fd))) {
        close(fd);
        return;
    }
    job = malloc(sizeof(*job));
    if (job == NULL) {
        close(fd);
        return;
    }
    *job = (struct job){.fd = fd, .debt = debt};
    atomic_fetch_add(&debt->holders, 1);
    atomic_fetch_add(&debt->pending, 1);
    if (start(job) != 0)
        run(job);
}
