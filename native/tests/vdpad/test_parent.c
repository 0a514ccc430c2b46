/* A vdpad whose agent is killed ends, even while the control end is held open: test_parent VDPAD */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Last: glibc's header and the kernel's each define what the other one leaves. */
#include <linux/ptrace.h>

#define PATIENCE_MS 20000

struct family {
    int control[2]; /* both ends are held here, so that neither is closed when the agent dies */
    int report[2];
    int go[2];
    pid_t agent;
    pid_t vdpad;
    int vdpad_fd; /* readable once vdpad has ended */
};

static bool failed(const char *what) {
    perror(what);
    return false;
}

/* What the agent does: starts vdpad, reports its process, and waits. */
static void be_agent(const char *program, const struct family *family) {
    char fd[16];
    char directory[] = "/tmp/vdpad-test-XXXXXX";
    char list[64];
    char go;
    pid_t vdpad;

    if (mkdtemp(directory) == NULL)
        _exit(1);
    snprintf(fd, sizeof(fd), "%d", family->control[0]);
    snprintf(list, sizeof(list), "%s/list", directory);
    vdpad = fork();
    if (vdpad == 0) {
        if (read(family->go[0], &go, 1) != 1)
            _exit(126);
        execl(program, program, "--simulate", "--memory", "none", "--control-fd", fd, "--socket-list", list,
              "--socket-dir", directory, (char *)NULL);
        _exit(127);
    }
    rmdir(directory);
    if (write(family->report[1], &vdpad, sizeof(vdpad)) < 0)
        _exit(1);
    for (;;)
        pause();
}

/* An agent, and a vdpad that starts at start_vdpad(). */
static bool start_agent(const char *program, struct family *family) {
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, family->control) != 0 || pipe(family->report) != 0 ||
        pipe(family->go) != 0)
        return failed("pipe");
    family->agent = fork();
    if (family->agent == 0)
        be_agent(program, family);
    if (family->agent < 0 ||
        read(family->report[0], &family->vdpad, sizeof(family->vdpad)) != (ssize_t)sizeof(family->vdpad))
        return failed("agent");
    family->vdpad_fd = (int)syscall(SYS_pidfd_open, family->vdpad, 0);
    return family->vdpad_fd >= 0 || failed("pidfd_open");
}

static bool start_vdpad(const struct family *family) {
    return write(family->go[1], "g", 1) == 1 || failed("go");
}

static bool kill_agent(const struct family *family) {
    return (kill(family->agent, SIGKILL) == 0 && waitpid(family->agent, NULL, 0) == family->agent) ||
           failed("kill");
}

static bool vdpad_ends(const struct family *family) {
    struct pollfd poller = {.fd = family->vdpad_fd, .events = POLLIN};

    if (poll(&poller, 1, PATIENCE_MS) == 1)
        return true;
    fprintf(stderr, "vdpad outlives its agent\n");
    kill(family->vdpad, SIGKILL);
    return false;
}

/* It is up, and serves. */
static bool dies_with_its_agent(const char *program) {
    static const char request[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"version\"}\n";
    struct family family;
    char reply[1024];

    if (!start_agent(program, &family) || !start_vdpad(&family))
        return false;
    if (write(family.control[1], request, sizeof(request) - 1) < 0 ||
        read(family.control[1], reply, sizeof(reply)) <= 0)
        return failed("version");
    return kill_agent(&family) && vdpad_ends(&family);
}

/* Lets vdpad run until it is about to ask for the signal of its parent's death. */
static bool stop_before_prctl(pid_t vdpad) {
    for (;;) {
        struct __ptrace_syscall_info call = {0};
        int signal_number = 0;
        int status;

        if (waitpid(vdpad, &status, __WALL) != vdpad || !WIFSTOPPED(status))
            return failed("vdpad ends early");
        if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            if (ptrace(PTRACE_GET_SYSCALL_INFO, vdpad, sizeof(call), &call) <= 0)
                return failed("PTRACE_GET_SYSCALL_INFO");
            if (call.op == PTRACE_SYSCALL_INFO_ENTRY && call.entry.nr == SYS_prctl &&
                call.entry.args[0] == PR_SET_PDEATHSIG)
                return true;
        } else if (status >> 16 == 0) {
            signal_number = WSTOPSIG(status);
        }
        if (ptrace(PTRACE_SYSCALL, vdpad, 0, signal_number) != 0)
            return failed("PTRACE_SYSCALL");
    }
}

/* No signal comes of a death before prctl(). */
static bool ends_when_its_agent_was_faster(const char *program) {
    struct family family;

    if (!start_agent(program, &family))
        return false;
    if (ptrace(PTRACE_SEIZE, family.vdpad, 0, PTRACE_O_TRACESYSGOOD) != 0 ||
        ptrace(PTRACE_INTERRUPT, family.vdpad, 0, 0) != 0)
        return failed("PTRACE_SEIZE");
    if (!start_vdpad(&family) || !stop_before_prctl(family.vdpad) || !kill_agent(&family))
        return false;
    if (ptrace(PTRACE_DETACH, family.vdpad, 0, 0) != 0)
        return failed("PTRACE_DETACH");
    return vdpad_ends(&family);
}

int main(int argc, char **argv) {
    if (argc != 2)
        return EXIT_FAILURE;
    return dies_with_its_agent(argv[1]) && ends_when_its_agent_was_faster(argv[1]) ? EXIT_SUCCESS
                                                                                   : EXIT_FAILURE;
}
