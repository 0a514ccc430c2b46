/* Paths of vhost-user sockets: what is allowed, and what may be taken over. */
#ifndef VDPAD_SOCKET_H
#define VDPAD_SOCKET_H

#include <stdbool.h>
#include <stddef.h>

/* sun_path with its terminating zero; DPDK cuts longer paths short without a word. */
#define SOCKET_PATH_SIZE 108

/* Why `path` cannot be a socket's path (relative, over 107 bytes, control characters), or NULL if it can. */
const char *socket_path_problem(const char *path);

/*
 * Whether a process of this network namespace listens on `path`, as the kernel's table says: 1, 0 or -errno.
 * A connection to find out would look like a front end to its owner.
 */
int socket_is_listening(const char *path);

/*
 * Makes sure that a server can bind `path`: removes a stale socket, tries to bind, and leaves nothing there.
 * On failure returns -errno with the reason in `reason`, and what was there stays.
 */
int socket_claim(const char *path, char *reason, size_t size);

/* Checks that `path` may be connected to: a socket, or nothing yet. As socket_claim() otherwise; changes
 * nothing. */
int socket_check_client(const char *path, char *reason, size_t size);

#endif
