/* A vdpad whose agent is killed ends, even if somebody else still holds the control end: test_parent VDPAD */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_MS 20000

static int fail(const char *what) {
    perror(what);
    return EXIT_FAILURE;
}

/* What the agent does: starts vdpad, says which process it is, and waits. */
static void be_agent(const char *program, int control, int report) {
    char fd[16];
    char directory[] = "/tmp/vdpad-test-XXXXXX";
    char list[64];
    pid_t vdpad;

    if (mkdtemp(directory) == NULL)
        _exit(1);
    snprintf(fd, sizeof(fd), "%d", control);
    snprintf(list, sizeof(list), "%s/list", directory);
    vdpad = fork();
    if (vdpad == 0) {
        execl(program, program, "--simulate", "--memory", "none", "--control-fd", fd, "--socket-list", list,
              "--socket-dir", directory, (char *)NULL);
        _exit(127);
    }
    rmdir(directory);
    if (write(report, &vdpad, sizeof(vdpad)) < 0)
        _exit(1);
    for (;;)
        pause();
}

int main(int argc, char **argv) {
    static const char request[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"version\"}\n";
    struct pollfd poller = {.events = POLLIN};
    char reply[1024];
    int control[2];
    int report[2];
    pid_t agent;
    pid_t vdpad;

    if (argc != 2)
        return EXIT_FAILURE;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, control) != 0 || pipe(report) != 0)
        return fail("pipe");
    agent = fork();
    if (agent == 0)
        be_agent(argv[1], control[0], report[1]);
    if (agent < 0 || read(report[0], &vdpad, sizeof(vdpad)) != (ssize_t)sizeof(vdpad))
        return fail("agent");
    poller.fd = (int)syscall(SYS_pidfd_open, vdpad, 0);
    if (poller.fd < 0)
        return fail("pidfd_open");
    /* It is up, and serves. */
    if (write(control[1], request, sizeof(request) - 1) < 0 || read(control[1], reply, sizeof(reply)) <= 0)
        return fail("version");
    if (kill(agent, SIGKILL) != 0 || waitpid(agent, NULL, 0) != agent)
        return fail("kill");
    if (poll(&poller, 1, PATIENCE_MS) == 1)
        return EXIT_SUCCESS;
    fprintf(stderr, "vdpad outlives its agent\n");
    kill(vdpad, SIGKILL);
    return EXIT_FAILURE;
}
