/* The floor of every figure: sends back what it gets on a unix socket, one thread, no protocol. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define EVENTS_MAX 256
#define BYTES_MAX 4096
#define BACKLOG 4096

static int open_listener(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path) + 1);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        return -errno;
    if (bind(listener, (const struct sockaddr *)&address, sizeof(address)) != 0 ||
        listen(listener, BACKLOG) != 0) {
        int error = -errno;

        close(listener);
        return error;
    }
    return listener;
}

static int watch(int epoll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

/* A request is shorter than the buffer of a socket: what is not sent back at once is a client that went. */
static void echo(int fd) {
    char bytes[BYTES_MAX];
    ssize_t size = read(fd, bytes, sizeof(bytes));

    if (size <= 0 || send(fd, bytes, (size_t)size, MSG_NOSIGNAL) != size)
        close(fd);
}

static int serve(int epoll, int listener) {
    struct epoll_event events[EVENTS_MAX];

    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS_MAX, -1);

        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;

            if (fd != listener) {
                echo(fd);
                continue;
            }
            fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (fd < 0 || watch(epoll, fd) != 0)
                return -errno;
        }
    }
}

int main(int argc, char **argv) {
    int listener, epoll, error;

    if (argc != 2) {
        (void)fputs("usage: echo SOCKET\n", stderr);
        return 2;
    }
    listener = open_listener(argv[1]);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    error = listener < 0 ? listener : epoll < 0 ? -errno : watch(epoll, listener);
    if (error == 0)
        error = serve(epoll, listener);
    (void)fprintf(stderr, "echo: %s: %s\n", argv[1], strerror(-error));
    return 1;
}
