/* The gate between front ends and DPDK: one thread that never waits for any of them. */
#include "gate_parts.h"

#include "fault.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_MAX 64

/* One removal that the main loop waits for, or has ceased to wait for. */
struct gate_departure {
    struct gate_departure *next;
    char address[PCI_ADDRESS_SIZE];
    bool taken;
    bool done;
    bool abandoned;
    int error;
    struct failure failure;
};

static void lock(struct gate *gate) {
    pthread_mutex_lock(&gate->mutex);
}

static void unlock(struct gate *gate) {
    pthread_mutex_unlock(&gate->mutex);
}

/* What time, and not an event, brings. Returns whether there has to be another tick. */
static bool tick(struct gate *gate) {
    const int64_t now = gate_now_ms();
    bool again = false;

    for (struct gate_device *device = gate->devices; device != NULL; device = device->next) {
        for (struct gate_connection *c = device->connections, *next; c != NULL; c = next) {
            next = c->next;
            gate_connection_check(gate, c, now);
            again =
                again ||
                (c->device != NULL &&
                 ((c->phase == RECEIVING && ((!c->spoke && device->entry.listener >= 0) || c->done > 0)) ||
                  (c->channel.inner >= 0 && c->channel.unanswered > 0)));
        }
        if (device->entry.listener < 0) {
            gate_listener_connect(gate, device, now);
            again = again || device->connections == NULL;
        } else if (device->source.events == 0) {
            if (gate_listener_in_debt(device) || now - device->tried_ms < GATE_TICK_MS)
                again = true;
            else
                gate_watch(gate, device->entry.listener, &device->source, EPOLLIN, false);
        }
    }
    return again;
}

static void free_device(struct gate *gate, struct gate_device *device) {
    /* No front end can come any more, however long the back end holds on to those that are here. */
    if (device->entry.listener >= 0) {
        socket_remove(device->entry.socket, &device->entry.file);
        epoll_ctl(gate->epoll_fd, EPOLL_CTL_DEL, device->entry.listener, NULL);
        descriptor_close(device->entry.listener, device->debt);
    }
    while (device->connections != NULL)
        gate_connection_close(gate, device->connections);
    debt_release(device->debt);
    free(device);
}

static struct gate_device **find(struct gate *gate, const char *address) {
    struct gate_device **link = &gate->devices;

    while (*link != NULL && strcmp((*link)->entry.address, address) != 0)
        link = &(*link)->next;
    return link;
}

static void arrive(struct gate *gate) {
    struct gate_device *arrived;

    lock(gate);
    arrived = gate->arrivals;
    gate->arrivals = NULL;
    unlock(gate);
    while (arrived != NULL) {
        struct gate_device *device = arrived;

        arrived = device->next;
        device->next = gate->devices;
        gate->devices = device;
        if (device->entry.listener >= 0 &&
            gate_watch(gate, device->entry.listener, &device->source, EPOLLIN, true) != 0)
            log_line(gate->log, LEVEL_ERROR, "%s: its socket cannot be watched", device->entry.address);
    }
}

static struct gate_departure *next_departure(struct gate *gate) {
    struct gate_departure *departure;

    lock(gate);
    departure = gate->departures;
    while (departure != NULL && departure->taken)
        departure = departure->next;
    if (departure != NULL)
        departure->taken = true;
    unlock(gate);
    return departure;
}

static void forget_departure(struct gate *gate, struct gate_departure *departure) {
    struct gate_departure **link = &gate->departures;

    while (*link != departure)
        link = &(*link)->next;
    *link = departure->next;
    free(departure);
}

static void depart(struct gate *gate) {
    struct gate_departure *departure;

    while ((departure = next_departure(gate)) != NULL) {
        struct gate_device **link = find(gate, departure->address);
        struct gate_device *device = *link;

        if (device != NULL) {
            *link = device->next;
            free_device(gate, device);
        }
        departure->error =
            gate->back_end.leave(gate->back_end.context, departure->address, &departure->failure);
        lock(gate);
        departure->done = true;
        if (departure->abandoned) {
            log_line(gate->log, departure->error == 0 ? LEVEL_INFO : LEVEL_WARNING,
                     "%s: DPDK has let it go%s%s", departure->address, departure->error == 0 ? "" : ", but ",
                     departure->error == 0 ? "" : departure->failure.text);
            forget_departure(gate, departure);
        }
        pthread_cond_broadcast(&gate->departed);
        unlock(gate);
    }
}

static void bury(struct gate *gate) {
    while (gate->dead != NULL) {
        struct gate_connection *connection = gate->dead;

        gate->dead = connection->next;
        free(connection);
    }
}

static void take_event(struct gate *gate, const struct epoll_event *event) {
    struct source *source = event->data.ptr;
    uint64_t count;

    switch (source->kind) {
    case SOURCE_WAKE:
        if (read(gate->wake_fd, &count, sizeof(count)) < 0)
            break;
        break;
    case SOURCE_LISTENER:
        gate_listener_accept(gate, source->owner);
        break;
    case SOURCE_FRONT:
        gate_relay_front(gate, source->owner, event->events);
        break;
    case SOURCE_BACK:
        gate_relay_back(gate, source->owner);
        break;
    case SOURCE_INNER:
        gate_channel_question(gate, source->owner);
        break;
    case SOURCE_OUTER:
        gate_channel_answer(gate, source->owner);
        break;
    }
}

static bool is_stopping(struct gate *gate) {
    bool stopping;

    lock(gate);
    stopping = gate->stopping;
    unlock(gate);
    return stopping;
}

static void *run(void *context) {
    struct gate *gate = context;
    struct source wake = {.kind = SOURCE_WAKE};
    bool again = false;

    gate_watch(gate, gate->wake_fd, &wake, EPOLLIN, true);
    while (!is_stopping(gate)) {
        struct epoll_event events[EVENTS_MAX];
        int count;

        arrive(gate);
        depart(gate);
        again = tick(gate);
        bury(gate);
        count = epoll_wait(gate->epoll_fd, events, EVENTS_MAX, again ? GATE_TICK_MS : -1);
        for (int i = 0; i < count; i++)
            take_event(gate, &events[i]);
    }
    arrive(gate);
    while (gate->devices != NULL) {
        struct gate_device *device = gate->devices;

        gate->devices = device->next;
        free_device(gate, device);
    }
    bury(gate);
    return NULL;
}

static void wake(struct gate *gate) {
    const uint64_t one = 1;

    while (write(gate->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

/* Signals that are sent are for the main thread; a fault of this one is not to be blocked. */
static int start_thread(struct gate *gate) {
    sigset_t signals;
    sigset_t old;
    int error;

    sigfillset(&signals);
    sigdelset(&signals, SIGBUS);
    sigdelset(&signals, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &signals, &old);
    error = pthread_create(&gate->thread, NULL, run, gate);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error == 0)
        pthread_setname_np(gate->thread, "gate");
    return -error;
}

int gate_start(struct gate *gate, const struct log *log, struct links *links,
               const struct gate_back_end *back_end) {
    pthread_condattr_t attributes;
    int error;

    *gate = (struct gate){.log = log,
                          .links = links,
                          .back_end = *back_end,
                          .patience_ms = GATE_PATIENCE_MS,
                          .mutex = PTHREAD_MUTEX_INITIALIZER};
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&gate->departed, &attributes);
    pthread_condattr_destroy(&attributes);
    gate->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    gate->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    error = gate->epoll_fd < 0 || gate->wake_fd < 0 ? -errno : fault_install(log->fd, gate->wake_fd);
    if (error == 0)
        error = start_thread(gate);
    if (error == 0)
        return 0;
    if (gate->epoll_fd >= 0)
        close(gate->epoll_fd);
    if (gate->wake_fd >= 0)
        close(gate->wake_fd);
    return error;
}

static struct timespec after(clockid_t clock, int timeout_ms) {
    struct timespec end;

    clock_gettime(clock, &end);
    end.tv_sec += timeout_ms / 1000;
    end.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (end.tv_nsec >= 1000000000) {
        end.tv_sec++;
        end.tv_nsec -= 1000000000;
    }
    return end;
}

int gate_stop(struct gate *gate, int timeout_ms) {
    const struct timespec end = after(CLOCK_REALTIME, timeout_ms);
    int error;

    lock(gate);
    gate->stopping = true;
    unlock(gate);
    wake(gate);
    error = pthread_timedjoin_np(gate->thread, NULL, &end);
    if (error != 0)
        return -error;
    while (gate->departures != NULL)
        forget_departure(gate, gate->departures);
    close(gate->epoll_fd);
    close(gate->wake_fd);
    pthread_cond_destroy(&gate->departed);
    pthread_mutex_destroy(&gate->mutex);
    return 0;
}

static bool is_leaving(const struct gate *gate, const char *address) {
    const struct gate_departure *departure = gate->departures;

    while (departure != NULL && strcmp(departure->address, address) != 0)
        departure = departure->next;
    return departure != NULL;
}

int gate_add(struct gate *gate, const struct gate_entry *entry) {
    struct gate_device *device = calloc(1, sizeof(*device));
    struct debt *debt = debt_new();
    int error = device == NULL || debt == NULL ? -ENOMEM : 0;

    if (error == 0) {
        device->entry = *entry;
        device->debt = debt;
        device->source = (struct source){.kind = SOURCE_LISTENER, .owner = device};
        lock(gate);
        if (is_leaving(gate, entry->address)) {
            error = -EBUSY;
        } else {
            device->next = gate->arrivals;
            gate->arrivals = device;
        }
        unlock(gate);
    }
    if (error != 0) {
        debt_release(debt);
        free(device);
        return error;
    }
    wake(gate);
    return 0;
}

int gate_remove(struct gate *gate, const char *address, int timeout_ms, struct failure *failure) {
    const struct timespec end = after(CLOCK_MONOTONIC, timeout_ms);
    struct gate_departure *departure = calloc(1, sizeof(*departure));
    int error = 0;

    if (departure == NULL)
        return failure_set(failure, -ENOMEM, FAILURE_DPDK, "out of memory");
    snprintf(departure->address, sizeof(departure->address), "%s", address);
    lock(gate);
    departure->next = gate->departures;
    gate->departures = departure;
    unlock(gate);
    wake(gate);
    lock(gate);
    while (!departure->done && error == 0)
        error = -pthread_cond_timedwait(&gate->departed, &gate->mutex, &end);
    if (departure->done) {
        error = departure->error;
        *failure = departure->failure;
        forget_departure(gate, departure);
    } else {
        departure->abandoned = true;
        error = failure_set(failure, -ETIMEDOUT, FAILURE_DPDK,
                            "DPDK is still busy with %s, and lets it go as soon as it can", address);
    }
    unlock(gate);
    return error;
}
