/*
 * A switch's port to the outside: a tap device, and the thread that waits for what comes in by it.
 *
 * The descriptor's number is the same for as long as the uplink is there, so that those who send need no
 * lock: a tap that was deleted and made anew takes the place of the old one under that number.
 */
#include "uplink.h"

#include "tap.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/virtio_net.h>

enum {
    RETRY_MS = 1000,
    PIECES = 18, /* the header, the frame's head, and what is behind it */
};

_Static_assert(sizeof(struct virtio_net_hdr) == TAP_HEADER,
               "the tap has the header without a count of buffers");

struct uplink {
    char tap[IF_NAMESIZE];
    struct uplink_config config;
    int fd;
    int bell; /* an eventfd that wakes the thread */
    atomic_bool stop;
    _Atomic int refusal; /* why a frame was not taken, until one is */
    bool lost;           /* the tap is gone: it is looked for again */
    pthread_t thread;
    uint8_t frame[RING_MAX_PACKET];
};

const struct packet_form uplink_form = {.header_len = TAP_HEADER};

const char *uplink_tap(const struct uplink *uplink) {
    return uplink->tap;
}

static void wake(const struct uplink *uplink) {
    const uint64_t one = 1;

    if (write(uplink->bell, &one, sizeof(one)) < 0)
        return; /* the counter is full: it is awake */
}

bool uplink_take(struct uplink *uplink, struct packet *packet) {
    ssize_t got = read(uplink->fd, uplink->frame, sizeof(uplink->frame));

    if (got < TAP_HEADER) {
        uplink->lost = got >= 0 || (errno != EAGAIN && errno != EINTR);
        return false;
    }
    packet_set(packet, uplink->frame, (uint32_t)got, TAP_HEADER);
    return true;
}

bool uplink_send(struct uplink *uplink, struct packet *packet) {
    static const struct virtio_net_hdr header;
    struct iovec pieces[PIECES];
    uint32_t count = packet_pieces(packet, pieces + 1, PIECES - 1);

    pieces[0] = (struct iovec){.iov_base = (void *)(uintptr_t)&header, .iov_len = sizeof(header)};
    if (writev(uplink->fd, pieces, (int)count + 1) >= 0) {
        if (atomic_load_explicit(&uplink->refusal, memory_order_relaxed) != 0)
            atomic_store(&uplink->refusal, 0);
        return true;
    }
    /* What the frame itself is refused for says nothing about the tap. */
    if ((errno == EIO || errno == EBADFD || errno == ENETDOWN) &&
        atomic_exchange(&uplink->refusal, errno) == 0)
        wake(uplink);
    return false;
}

/* Once for each time that frames begin to be refused. */
static void report_refusal(struct uplink *uplink) {
    char problem[128];
    int refusal = atomic_load(&uplink->refusal);

    if (refusal == 0 || uplink->lost)
        return;
    snprintf(problem, sizeof(problem), "it takes no frames (%s): run ip link set %s up", strerror(refusal),
             uplink->tap);
    uplink->config.report(uplink->tap, problem);
}

static void find_again(struct uplink *uplink) {
    char problem[256];
    int fd = tap_open(uplink->tap, problem, sizeof(problem));

    if (fd < 0)
        return;
    if (dup3(fd, uplink->fd, O_CLOEXEC) >= 0) {
        uplink->lost = false;
        uplink->config.report(uplink->tap, NULL);
    }
    close(fd);
}

static void *run(void *context) {
    struct uplink *uplink = context;
    uint64_t count;

    for (;;) {
        struct pollfd fds[] = {{.fd = uplink->bell, .events = POLLIN}, {.fd = uplink->fd, .events = POLLIN}};
        bool was_lost = uplink->lost;

        poll(fds, was_lost ? 1 : 2, was_lost ? RETRY_MS : -1);
        if (atomic_load(&uplink->stop))
            return NULL;
        if ((fds[0].revents & POLLIN) && read(uplink->bell, &count, sizeof(count)) > 0)
            report_refusal(uplink);
        if (was_lost)
            find_again(uplink);
        else if (fds[1].revents != 0)
            uplink->config.ready(uplink->config.context);
        if (uplink->lost && !was_lost)
            uplink->config.report(uplink->tap, "it is gone: make it again, it is looked for every second");
    }
}

static int start_thread(struct uplink *uplink) {
    char name[16];
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* a fault on a guest's memory is not to be blocked */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&uplink->thread, NULL, run, uplink);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0)
        return -rc;
    /* Neither is worth failing for. */
    snprintf(name, sizeof(name), "up-%.12s", uplink->tap);
    pthread_setname_np(uplink->thread, name);
    if (CPU_COUNT(&uplink->config.cpus) > 0)
        pthread_setaffinity_np(uplink->thread, sizeof(uplink->config.cpus), &uplink->config.cpus);
    return 0;
}

int uplink_open(struct uplink **opened, const struct uplink_config *config, char *problem, size_t size) {
    struct uplink *uplink = calloc(1, sizeof(*uplink));
    int rc;

    if (uplink == NULL) {
        snprintf(problem, size, "out of memory");
        return -ENOMEM;
    }
    snprintf(uplink->tap, sizeof(uplink->tap), "%s", config->tap);
    uplink->config = *config;
    uplink->fd = rc = tap_open(uplink->tap, problem, size);
    if (rc < 0)
        goto free_uplink;
    uplink->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rc = uplink->bell < 0 ? -errno : start_thread(uplink);
    if (rc != 0) {
        snprintf(problem, size, "uplink=%s cannot be served: %s", uplink->tap, strerror(-rc));
        goto close_all;
    }
    *opened = uplink;
    return 0;

close_all:
    if (uplink->bell >= 0)
        close(uplink->bell);
    close(uplink->fd);
free_uplink:
    free(uplink);
    return rc;
}

void uplink_close(struct uplink *uplink) {
    atomic_store(&uplink->stop, true);
    wake(uplink);
    pthread_join(uplink->thread, NULL);
    close(uplink->bell);
    close(uplink->fd);
    free(uplink);
}
