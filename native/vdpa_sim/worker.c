/* The thread that serves the virtqueues of one software device and sleeps while there is nothing to do. */
#include "worker.h"

#include "loopback.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum {
    BUDGET = 64, /* packets of one queue pair before the next one has its turn */
    SPARE_PASSES =
        32, /* empty passes before it waits for a kick: some 10 us, less than a kick costs both ends */
    WAKE = WORKER_MAX_QUEUES, /* epoll's name for the bell, after those of the queues */
    NUDGE_NS = 10000000,
    LOOK_PASSES = 1 << 13, /* a hundredth of a second of work, or a second of one that has to wait for each */
    LOOK_NS = 500000000,   /* a share of less time than this says little */
    CROWDED_PERCENT = 25,
    TELL_S = 60
};

/* Ends a write() that waits. */
#define NUDGE_SIGNAL SIGURG

/* The counter is the only message; if it is full, the reader has not looked yet and will. */
static bool signal_eventfd(int fd) {
    const uint64_t one = 1;

    return write(fd, &one, sizeof(one)) == (ssize_t)sizeof(one);
}

static void interrupt(struct worker_queue *queue, bool wanted) {
    if (wanted && queue->callfd >= 0 && signal_eventfd(queue->callfd))
        stats_add(&queue->stats.interrupts, 1);
}

static void report_if_broken(struct worker *worker, uint32_t index) {
    struct worker_queue *queue = &worker->queues[index];

    if (queue->ring.fault == NULL || queue->reported)
        return;
    queue->reported = true;
    stats_add(&queue->stats.errors, 1);
    worker->broken(worker->context, index, queue->ring.fault);
}

static bool loop_back(struct worker *worker, uint32_t pair) {
    struct worker_queue *rx = &worker->queues[2 * pair], *tx = &worker->queues[2 * pair + 1];

    if (!rx->started || !tx->started)
        return false;
    struct loopback_result r =
        loopback_run(&worker->packet, &tx->ring, &rx->ring, &worker->config.form, BUDGET);
    interrupt(rx, r.rx_interrupt);
    interrupt(tx, r.tx_interrupt);
    stats_add(&rx->stats.packets, r.delivered);
    stats_add(&rx->stats.bytes, r.bytes);
    stats_add(&tx->stats.packets, r.delivered);
    stats_add(&tx->stats.bytes, r.bytes);
    stats_add(&tx->stats.dropped, r.dropped);
    report_if_broken(worker, 2 * pair);
    report_if_broken(worker, 2 * pair + 1);
    return r.delivered + r.dropped > 0;
}

static bool send_out(struct worker *worker, uint32_t pair) {
    const struct sender sender = {.network = worker->config.network,
                                  .port = worker->config.port,
                                  .only = worker->config.only,
                                  .form = worker->config.form};
    struct worker_queue *tx = &worker->queues[2 * pair + 1];

    if (!tx->started)
        return false;
    struct network_result r = network_run(&sender, &worker->packet, &tx->ring, BUDGET);
    interrupt(tx, r.interrupt);
    stats_add(&tx->stats.packets, r.sent);
    stats_add(&tx->stats.bytes, r.bytes);
    stats_add(&tx->stats.dropped, r.dropped + r.lost);
    report_if_broken(worker, 2 * pair + 1);
    return r.sent + r.dropped > 0;
}

/* What other workers did to the RX rings. A broken one is not touched by any of them any more. */
static void answer_bell(struct worker *worker) {
    uint32_t rung;

    if (atomic_load_explicit(&worker->bell.rung, memory_order_relaxed) == 0)
        return;
    rung = atomic_exchange(&worker->bell.rung, 0);
    for (uint32_t pair = 0; pair < worker->config.pairs; pair++) {
        if (!worker->queues[2 * pair].started)
            continue;
        if (rung & BELL_FILLED(pair))
            interrupt(&worker->queues[2 * pair], true);
        if (rung & BELL_BROKEN(pair))
            report_if_broken(worker, 2 * pair);
    }
}

/* Gives each queue pair one turn. Returns whether any packet moved. */
static bool serve(struct worker *worker) {
    bool moved = false;

    for (uint32_t pair = 0; pair < worker->config.pairs; pair++)
        moved |= worker->config.network == NULL ? loop_back(worker, pair) : send_out(worker, pair);
    return moved;
}

/* Whether the queue's ring is another's to touch: the network needs no kicks for what it can deliver to. */
static bool is_outlet(const struct worker *worker, uint32_t index) {
    return worker->config.network != NULL && index % 2 == 0;
}

static void want_kicks(struct worker *worker, bool wanted) {
    for (uint32_t i = 0; i < 2 * worker->config.pairs; i++)
        if (worker->queues[i].started && !is_outlet(worker, i) && worker->queues[i].ring.fault == NULL)
            ring_want_kicks(&worker->queues[i].ring, wanted);
}

/*
 * A pass over all queues; `spare` is how many more passes there would be without a wait. Returns the new
 * number. While there are passes to come, kicks are off.
 */
static uint32_t pass(struct worker *worker, uint32_t spare) {
    if (serve(worker)) {
        if (spare == 0)
            want_kicks(worker, false);
        return SPARE_PASSES;
    }
    if (spare == 0 || --spare > 0)
        return spare;
    want_kicks(worker, true);
    /* What came in while kicks were off has no kick of its own. */
    return serve(worker) ? 1 : 0;
}

/*
 * How much of its time the thread waited for a CPU since the last look, where the kernel counts it
 * (Documentation/scheduler/sched-stats.rst). A front end that polls on the CPU of the thread takes half of
 * it.
 */
static void look_for_crowd(struct worker *worker) {
    uint64_t ran, waited;
    struct timespec now;
    FILE *file = fopen("/proc/thread-self/schedstat", "re");
    int read = file == NULL ? 0 : fscanf(file, "%" SCNu64 " %" SCNu64, &ran, &waited);

    if (file != NULL)
        fclose(file);
    if (read != 2 || ran - worker->ran_ns + waited - worker->waited_ns < LOOK_NS)
        return;
    const uint64_t waits = waited - worker->waited_ns, all = waits + ran - worker->ran_ns;
    const bool is_first = worker->ran_ns == 0;

    worker->ran_ns = ran;
    worker->waited_ns = waited;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (is_first || 100 * waits / all < CROWDED_PERCENT ||
        (worker->told_s != 0 && now.tv_sec - worker->told_s < TELL_S))
        return;
    worker->told_s = now.tv_sec;
    worker->crowded(worker->context, (unsigned int)(100 * waits / all));
}

static void *run(void *arg) {
    struct worker *worker = arg;
    struct epoll_event events[WORKER_MAX_QUEUES + 1];
    uint32_t spare = 0;

    for (;;) {
        int n = epoll_wait(worker->epfd, events, WORKER_MAX_QUEUES + 1, spare > 0 ? 0 : -1);
        if (atomic_load(&worker->stop))
            return NULL;
        for (int i = 0; i < n; i++)
            if (events[i].data.u32 < WAKE)
                stats_add(&worker->queues[events[i].data.u32].stats.kicks, 1);
        pthread_rwlock_rdlock(&worker->queues_lock);
        answer_bell(worker);
        spare = pass(worker, spare);
        pthread_rwlock_unlock(&worker->queues_lock);
        if (++worker->passes % LOOK_PASSES == 0 && worker->crowded != NULL)
            look_for_crowd(worker);
    }
}

void worker_init(struct worker *worker, const char *name, worker_broken_fn *broken, void *context) {
    memset(worker, 0, sizeof(*worker));
    snprintf(worker->name, sizeof(worker->name), "%s", name);
    worker->broken = broken;
    worker->context = context;
}

/*
 * Edge-triggered, so that nothing is ever read from a descriptor that the guest shares: it could be emptied
 * by the guest between epoll_wait and read, and a blocking read would then never let the worker stop. Each
 * write to an eventfd is an edge.
 */
static int watch(struct worker *worker, int fd, uint32_t name) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = name};

    return epoll_ctl(worker->epfd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

static int init_lock(pthread_rwlock_t *lock) {
    pthread_rwlockattr_t attr;
    int rc = pthread_rwlockattr_init(&attr);
    if (rc != 0)
        return -rc;
    /* The worker takes the lock again and again: without this, a change of a queue could wait for ever. */
    rc = pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    if (rc == 0)
        rc = pthread_rwlock_init(lock, &attr);
    pthread_rwlockattr_destroy(&attr);
    return -rc;
}

static void ignore(int number) {
    (void)number;
}

static struct timespec in_a_moment(void) {
    struct timespec end;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_nsec += NUDGE_NS;
    if (end.tv_nsec >= 1000000000) {
        end.tv_sec++;
        end.tv_nsec -= 1000000000;
    }
    return end;
}

/*
 * The front end shares the file description of its callfd: it can take O_NONBLOCK away and fill the counter,
 * and then the worker waits in write() for it. A signal ends that, unless it comes just before the call.
 */
static void nudge(struct worker *worker) {
    pthread_kill(worker->thread, NUDGE_SIGNAL);
}

static void lock_queues(struct worker *worker) {
    struct timespec end = in_a_moment();

    while (pthread_rwlock_timedwrlock(&worker->queues_lock, &end) != 0) {
        nudge(worker);
        end = in_a_moment();
    }
}

/*
 * Signals that are sent are for the program's main thread;
 * a fault on the guest's memory is not to be blocked.
 */
static int start_thread(struct worker *worker) {
    const struct sigaction action = {.sa_handler = ignore}; /* without SA_RESTART */
    sigset_t all, old;

    if (sigaction(NUDGE_SIGNAL, &action, NULL) != 0)
        return -errno;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, NUDGE_SIGNAL);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&worker->thread, NULL, run, worker);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc == 0) {
        /* Neither is worth failing for. */
        pthread_setname_np(worker->thread, worker->name);
        if (CPU_COUNT(&worker->config.cpus) > 0)
            pthread_setaffinity_np(worker->thread, sizeof(worker->config.cpus), &worker->config.cpus);
    }
    return -rc;
}

int worker_start(struct worker *worker, const struct worker_config *config) {
    int rc;

    if (worker->running)
        return -EBUSY;
    if (config->pairs == 0 || config->pairs > WORKER_MAX_PAIRS)
        return -EINVAL;
    rc = ring_memory_check(&config->memory);
    if (rc != 0)
        return rc;
    worker->config = *config;
    worker->ran_ns = worker->waited_ns = 0; /* of the thread before */
    atomic_store(&worker->stop, false);
    atomic_store(&worker->bell.rung, 0);
    rc = init_lock(&worker->queues_lock);
    if (rc != 0)
        return rc;
    worker->epfd = epoll_create1(EPOLL_CLOEXEC);
    if (worker->epfd < 0) {
        rc = -errno;
        goto destroy_lock;
    }
    worker->bell.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->bell.fd < 0) {
        rc = -errno;
        goto close_epfd;
    }
    rc = watch(worker, worker->bell.fd, WAKE);
    if (rc == 0)
        rc = start_thread(worker);
    if (rc != 0)
        goto close_bell;
    worker->running = true;
    return 0;

close_bell:
    close(worker->bell.fd);
close_epfd:
    close(worker->epfd);
destroy_lock:
    pthread_rwlock_destroy(&worker->queues_lock);
    return rc;
}

void worker_stop(struct worker *worker) {
    if (!worker->running)
        return;
    atomic_store(&worker->stop, true);
    signal_eventfd(worker->bell.fd);
    struct timespec end = in_a_moment();
    while (pthread_timedjoin_np(worker->thread, NULL, &end) != 0) {
        nudge(worker);
        end = in_a_moment();
    }
    for (uint32_t i = 0; i < WORKER_MAX_QUEUES; i++)
        worker_queue_stop(worker, i);
    close(worker->bell.fd);
    close(worker->epfd);
    pthread_rwlock_destroy(&worker->queues_lock);
    worker->running = false;
}

static void close_if_open(int fd) {
    if (fd >= 0)
        close(fd);
}

int worker_queue_start(struct worker *worker, uint32_t index, const struct worker_ring *ring) {
    struct worker_queue *queue;
    int kickfd = -1, callfd = -1, rc;

    if (!worker->running || index >= 2 * worker->config.pairs)
        return -EINVAL;
    queue = &worker->queues[index];
    if (queue->started)
        return -EBUSY;
    kickfd = fcntl(ring->kickfd, F_DUPFD_CLOEXEC, 0);
    if (kickfd < 0)
        return -errno;
    if (ring->callfd >= 0) {
        callfd = fcntl(ring->callfd, F_DUPFD_CLOEXEC, 0);
        if (callfd < 0) {
            rc = -errno;
            goto fail;
        }
        /* So that a full counter does not block the worker. */
        int flags = fcntl(callfd, F_GETFL);
        if (flags < 0 || fcntl(callfd, F_SETFL, flags | O_NONBLOCK) < 0) {
            rc = -errno;
            goto fail;
        }
    }
    lock_queues(worker);
    rc = ring_init(&queue->ring, ring->desc, ring->avail, ring->used, ring->size, &worker->config.memory,
                   ring->next_avail, ring->next_used);
    if (rc == 0)
        rc = ring_negotiate(&queue->ring, &worker->config.rings);
    if (rc == 0)
        rc = watch(worker, kickfd, index);
    if (rc == 0) {
        /* A process that died may have turned them off. */
        ring_want_kicks(&queue->ring, !is_outlet(worker, index));
        queue->kickfd = kickfd;
        queue->callfd = callfd;
        queue->reported = false;
        queue->started = true;
    }
    pthread_rwlock_unlock(&worker->queues_lock);
    if (rc != 0)
        goto fail;
    if (is_outlet(worker, index)) {
        const struct outlet_ring to = {
            .ring = &queue->ring, .form = worker->config.form, .stats = &queue->stats, .bell = &worker->bell};
        network_open(worker->config.network, worker->config.port, index / 2, &to);
    }
    signal_eventfd(worker->bell.fd); /* there may be packets already, whose kick was not seen */
    return 0;

fail:
    close_if_open(callfd);
    close_if_open(kickfd);
    return rc;
}

void worker_queue_stop(struct worker *worker, uint32_t index) {
    struct worker_queue *queue;

    if (!worker->running || index >= WORKER_MAX_QUEUES)
        return;
    queue = &worker->queues[index];
    if (!queue->started)
        return;
    if (is_outlet(worker, index))
        network_close(worker->config.network, worker->config.port, index / 2);
    lock_queues(worker);
    queue->started = false;
    pthread_rwlock_unlock(&worker->queues_lock);
    epoll_ctl(worker->epfd, EPOLL_CTL_DEL, queue->kickfd, NULL);
    close(queue->kickfd);
    close_if_open(queue->callfd);
}
