/* Paths of vhost-user sockets: what is allowed, and what may be taken over. */
#ifndef VDPAD_SOCKET_H
#define VDPAD_SOCKET_H

#include <stddef.h>
#include <sys/types.h>

/* sun_path with its terminating zero; DPDK cuts longer paths short without a word. */
#define SOCKET_PATH_SIZE 108

/* Why `path` cannot be a socket's path (relative, over 107 bytes, control characters), or NULL if it can. */
const char *socket_path_problem(const char *path);

enum socket_life {
    SOCKET_ABSENT,  /* nothing is there */
    SOCKET_STALE,   /* a socket file without its socket */
    SOCKET_ALIVE,   /* some process has it, in whatever network namespace */
    SOCKET_UNKNOWN, /* it may be alive */
};

/* Asks the kernel by a datagram connect(), of which the owner of a stream socket notices nothing. */
enum socket_life socket_probe(const char *path);

/*
 * Makes sure that a server can bind `path`: removes a stale socket. On failure returns -errno with the reason
 * in `reason`, and what was there stays.
 */
int socket_claim(const char *path, char *reason, size_t size);

/* Who may connect. */
struct socket_access {
    mode_t mode;
    uid_t owner; /* (uid_t)-1: unchanged */
    gid_t group; /* (gid_t)-1: unchanged */
};

/* Which file it is, as no other process can make it. */
struct socket_file {
    dev_t device;
    ino_t inode;
};

/* Binds `path` and listens. Returns the descriptor, or -errno with the reason and nothing left behind. */
int socket_listen(const char *path, const struct socket_access *access, struct socket_file *file,
                  char *reason, size_t size);

/* What failed, why, and what to do where that is known. */
void socket_explain(char *reason, size_t size, const char *what, int error);

/* Removes the file of a socket if it is still that one. */
void socket_remove(const char *path, const struct socket_file *file);

/*
 * Checks that `path` may be connected to: a socket, or nothing yet.
 * As socket_claim() otherwise; changes nothing.
 */
int socket_check_client(const char *path, char *reason, size_t size);

/*
 * Connects to the socket at `path` and to nothing else: no link is followed, of the file or of its directory,
 * whatever happens to them meanwhile. Returns a descriptor that does not wait, or -errno: -ENOTSOCK if
 * something else is there.
 */
int socket_connect(const char *path);

#endif
