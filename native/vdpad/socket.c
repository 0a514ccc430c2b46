/* Paths of vhost-user sockets: what is allowed, and what may be taken over. */
#include "socket.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* The kernel's table of AF_UNIX sockets, and the flag that it shows for a listener (__SO_ACCEPTCON). */
#define UNIX_TABLE "/proc/net/unix"
#define FLAG_LISTENING 0x10000UL

const char *socket_path_problem(const char *path) {
    if (path[0] != '/')
        return "is not absolute";
    if (strlen(path) >= SOCKET_PATH_SIZE)
        return "is longer than 107 bytes";
    for (const char *c = path; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return "has control characters";
    }
    return NULL;
}

/* One line: "address: references protocol flags type state inode path". */
static bool line_is_listener(char *line, const char *path) {
    char *cursor = strchr(line, ':');
    unsigned long flags;
    int column = 0;

    line[strcspn(line, "\n")] = '\0';
    if (cursor == NULL)
        return false;
    cursor++;
    (void)strtoul(cursor, &cursor, 16);
    (void)strtoul(cursor, &cursor, 16);
    flags = strtoul(cursor, &cursor, 16);
    if ((flags & FLAG_LISTENING) == 0)
        return false;
    for (; column < 3; column++) {
        cursor += strspn(cursor, " ");
        cursor += strcspn(cursor, " ");
    }
    return *cursor == ' ' && strcmp(cursor + 1, path) == 0;
}

int socket_is_listening(const char *path) {
    FILE *table = fopen(UNIX_TABLE, "re");
    char *line = NULL;
    size_t size = 0;
    int found = 0;

    if (table == NULL)
        return -errno;
    while (found == 0 && getline(&line, &size, table) >= 0)
        found = line_is_listener(line, path) ? 1 : 0;
    if (found == 0 && ferror(table))
        found = -EIO;
    free(line);
    (void)fclose(table);
    return found;
}

static int refuse(char *reason, size_t size, int error, const char *text) {
    (void)snprintf(reason, size, "%s", text);
    return error;
}

/* What failed, why, and what to do where that is known. */
static void explain(char *reason, size_t size, const char *what, int error) {
    struct rlimit limit;

    if (error == -EMFILE && getrlimit(RLIMIT_NOFILE, &limit) == 0)
        (void)snprintf(reason, size, "%s: %s, the limit is %llu; raise RLIMIT_NOFILE", what, strerror(-error),
                       (unsigned long long)limit.rlim_cur);
    else if (error == -EACCES || error == -EPERM || error == -EROFS)
        (void)snprintf(reason, size, "%s: %s; make its directory writable", what, strerror(-error));
    else
        (void)snprintf(reason, size, "%s: %s", what, strerror(-error));
}

/* The kernel's own word on whether the path can be bound; DPDK's failure to bind would be hard to undo. */
static int try_bind(const char *path, char *reason, size_t size) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int error = 0;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        error = -errno;
    (void)snprintf(name.sun_path, sizeof(name.sun_path), "%s", path);
    if (error == 0 && bind(fd, (const struct sockaddr *)&name, sizeof(name)) != 0)
        error = -errno;
    if (error == 0 && unlink(path) != 0)
        error = -errno;
    if (fd >= 0)
        (void)close(fd);
    if (error != 0)
        explain(reason, size, "cannot be created", error);
    return error;
}

int socket_claim(const char *path, char *reason, size_t size) {
    struct stat status;
    int listening;

    if (lstat(path, &status) != 0) {
        if (errno != ENOENT) {
            int error = -errno;

            (void)snprintf(reason, size, "cannot be looked at: %s", strerror(-error));
            return error;
        }
        return try_bind(path, reason, size);
    }
    if (!S_ISSOCK(status.st_mode))
        return refuse(reason, size, -EEXIST, "exists and is not a socket: remove it or choose another path");
    listening = socket_is_listening(path);
    if (listening < 0)
        return refuse(reason, size, listening,
                      "exists, and " UNIX_TABLE " cannot be read to see if it is in use");
    if (listening > 0)
        return refuse(reason, size, -EADDRINUSE, "is in use: another process listens on it");
    if (unlink(path) != 0) {
        int error = -errno;

        explain(reason, size, "is stale and cannot be removed", error);
        return error;
    }
    return try_bind(path, reason, size);
}

int socket_check_client(const char *path, char *reason, size_t size) {
    struct stat status;

    if (lstat(path, &status) == 0 && !S_ISSOCK(status.st_mode))
        return refuse(reason, size, -EEXIST, "exists and is not a socket: remove it or choose another path");
    return 0;
}
