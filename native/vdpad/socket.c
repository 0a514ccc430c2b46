/* Paths of vhost-user sockets: what is allowed, and what may be taken over. */
#include "socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Front ends that wait to be taken, as DPDK had it. */
#define BACKLOG 128

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

enum socket_life socket_probe(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    enum socket_life life = SOCKET_UNKNOWN;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return SOCKET_UNKNOWN;
    snprintf(name.sun_path, sizeof(name.sun_path), "%s", path);
    if (connect(fd, (const struct sockaddr *)&name, sizeof(name)) == 0 || errno == EPROTOTYPE)
        life = SOCKET_ALIVE;
    else if (errno == ECONNREFUSED)
        life = SOCKET_STALE;
    else if (errno == ENOENT)
        life = SOCKET_ABSENT;
    close(fd);
    return life;
}

static int refuse(char *reason, size_t size, int error, const char *text) {
    snprintf(reason, size, "%s", text);
    return error;
}

void socket_explain(char *reason, size_t size, const char *what, int error) {
    struct rlimit limit;

    if (error == -EMFILE && getrlimit(RLIMIT_NOFILE, &limit) == 0)
        snprintf(reason, size, "%s: %s, the limit is %llu; raise RLIMIT_NOFILE", what, strerror(-error),
                 (unsigned long long)limit.rlim_cur);
    else if (error == -EPERM)
        snprintf(reason, size,
                 "%s: %s; make its directory writable: chattr -i, if lsattr -d shows an i for it", what,
                 strerror(-error));
    else if (error == -EACCES || error == -EROFS)
        snprintf(reason, size, "%s: %s; make its directory writable", what, strerror(-error));
    else
        snprintf(reason, size, "%s: %s", what, strerror(-error));
}

/* The last component of an absolute path. */
static const char *name_of(const char *path) {
    return strrchr(path, '/') + 1;
}

/*
 * Opens the directory of a socket. A symbolic link in its place could lead to the files of others, so it is
 * not followed.
 */
static int open_directory(const char *path, char *reason, size_t size) {
    char directory[SOCKET_PATH_SIZE];
    struct stat status;
    int error;
    int fd;

    snprintf(directory, sizeof(directory), "%.*s", (int)(name_of(path) - path), path);
    /* Without its last slash, which would have a link followed. */
    if (directory[1] != '\0')
        directory[strlen(directory) - 1] = '\0';
    fd = open(directory, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    error = -errno;
    if (fd >= 0)
        return fd;
    if (lstat(directory, &status) == 0 && S_ISLNK(status.st_mode))
        snprintf(reason, size,
                 "cannot be created: its directory %s is a symbolic link; put a directory there", directory);
    else
        socket_explain(reason, size, "cannot be created", error);
    return error;
}

/* As socket_claim(), for a name in an open directory. */
static int claim(int directory, const char *path, char *reason, size_t size) {
    struct stat status;

    if (fstatat(directory, name_of(path), &status, AT_SYMLINK_NOFOLLOW) != 0) {
        int error = -errno;

        if (error == -ENOENT)
            return 0;
        snprintf(reason, size, "cannot be looked at: %s", strerror(-error));
        return error;
    }
    if (!S_ISSOCK(status.st_mode))
        return refuse(reason, size, -EEXIST, "exists and is not a socket: remove it or choose another path");
    switch (socket_probe(path)) {
    case SOCKET_ALIVE:
        return refuse(reason, size, -EADDRINUSE, "is in use: another process has it");
    case SOCKET_UNKNOWN:
        return refuse(reason, size, -EADDRINUSE, "exists, and whether it is in use cannot be found out");
    default:
        break;
    }
    if (unlinkat(directory, name_of(path), 0) != 0 && errno != ENOENT) {
        int error = -errno;

        socket_explain(reason, size, "is stale and cannot be removed", error);
        return error;
    }
    return 0;
}

int socket_claim(const char *path, char *reason, size_t size) {
    int directory = open_directory(path, reason, size);
    int error;

    if (directory < 0)
        return directory;
    error = claim(directory, path, reason, size);
    close(directory);
    return error;
}

/*
 * Only a socket of this user is given away, by a descriptor that follows no link: any process that may write
 * to the directory could have put something else there, or another directory in its place.
 */
static int give_away(int directory, const char *path, const struct socket_access *access, struct stat *status,
                     bool *refused) {
    int fd = openat(directory, name_of(path), O_PATH | O_NOFOLLOW | O_CLOEXEC);
    int error = 0;

    if (fd < 0)
        return errno == ENOENT ? -ESTALE : -errno;
    if (fstat(fd, status) != 0)
        error = -errno;
    else if (!S_ISSOCK(status->st_mode) || status->st_uid != geteuid())
        error = -ESTALE;
    else if ((access->owner != (uid_t)-1 || access->group != (gid_t)-1) &&
             fchownat(fd, "", access->owner, access->group, AT_EMPTY_PATH) != 0) {
        error = -errno;
        *refused = error == -EPERM;
    }
    close(fd);
    return error;
}

int socket_listen(const char *path, const struct socket_access *access, struct socket_file *file,
                  char *reason, size_t size) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    const char *what = "cannot be created";
    struct stat status;
    bool refused = false;
    int error = 0;
    mode_t mask;
    int directory = open_directory(path, reason, size);
    int fd;

    if (directory < 0)
        return directory;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        error = -errno;
        goto close_directory;
    }
    snprintf(name.sun_path, sizeof(name.sun_path), "%s", path);
    /* The mode is the final one from the start: a chmod by path could meet something else. */
    mask = umask((mode_t)(~access->mode & 0777));
    if (bind(fd, (const struct sockaddr *)&name, sizeof(name)) != 0)
        error = -errno;
    umask(mask);
    if (error != 0)
        goto close_socket;
    what = "cannot be given to its owner and group";
    error = give_away(directory, path, access, &status, &refused);
    if (error != 0)
        goto remove_file;
    /* No front end can connect before this. */
    what = "cannot be listened on";
    if (listen(fd, BACKLOG) != 0) {
        error = -errno;
        goto remove_file;
    }
    *file = (struct socket_file){.device = status.st_dev, .inode = status.st_ino};
    close(directory);
    return fd;

remove_file:
    if (error != -ESTALE)
        unlinkat(directory, name_of(path), 0);
close_socket:
    close(fd);
close_directory:
    close(directory);
    if (refused)
        snprintf(reason, size,
                 "%s: %s; give the capability CAP_CHOWN, or change --socket-owner and --socket-group", what,
                 strerror(-error));
    else
        socket_explain(reason, size, what, error);
    return error;
}

void socket_remove(const char *path, const struct socket_file *file) {
    struct stat status;

    if (lstat(path, &status) == 0 && status.st_dev == file->device && status.st_ino == file->inode)
        unlink(path);
}

/* The file itself, held open; -errno. */
static int hold(const char *path) {
    char above[SOCKET_PATH_SIZE];
    char *slash;
    int directory;
    int fd;

    snprintf(above, sizeof(above), "%s", path);
    slash = strrchr(above, '/');
    if (slash == NULL)
        return -EINVAL;
    *slash = '\0';
    directory = open(slash == above ? "/" : above, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory < 0)
        return -errno;
    fd = openat(directory, slash + 1, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        fd = -errno;
    close(directory);
    return fd;
}

int socket_connect(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct stat status;
    int error = 0;
    int fd = -1;
    int file = hold(path);

    if (file < 0)
        return file;
    if (fstat(file, &status) != 0)
        error = -errno;
    else if (!S_ISSOCK(status.st_mode))
        error = -ENOTSOCK;
    if (error == 0) {
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        snprintf(name.sun_path, sizeof(name.sun_path), "/proc/self/fd/%d", file);
        if (fd < 0 || connect(fd, (const struct sockaddr *)&name, sizeof(name)) != 0)
            error = -errno;
    }
    close(file);
    if (error == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return error;
}

int socket_check_client(const char *path, char *reason, size_t size) {
    struct stat status;

    if (lstat(path, &status) == 0 && !S_ISSOCK(status.st_mode))
        return refuse(reason, size, -EEXIST, "exists and is not a socket: remove it or choose another path");
    return 0;
}
