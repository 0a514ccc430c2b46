/* The virtio-user port: EAL, the connection to the back end, bursts and the state of the link. */
#ifndef VDPA_FRONT_PORT_H
#define VDPA_FRONT_PORT_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "frame.h"
#include "options.h"

struct rte_mbuf;
struct rte_mempool;

enum { PORT_BURST = 32 };

struct port {
    uint16_t id;
    bool plugged;
    bool started;
    uint8_t mac[FRAME_MAC];
    struct rte_mempool *pool;
};

/* Starts EAL. All other threads of the process come from here: block the signals before. 0 or -errno. */
int port_init_eal(const struct options *options);

/*
 * Connects, or waits for the back end to connect, and starts the queues. 0 or -errno: -ETIMEDOUT when
 * `expired` is set by then, -EINTR when `stop` is. Their signals have to interrupt system calls, repeatedly.
 */
int port_open(struct port *port, const struct options *options, const volatile sig_atomic_t *expired,
              const volatile sig_atomic_t *stop);

/* Whether the back end is there, as the driver last saw. */
bool port_link_up(const struct port *port);

/* Closes what port_open has opened. */
void port_close(struct port *port);

void port_cleanup_eal(void);

#endif
