/* SIGBUS: survived where a front end truncated memory that it shares, logged and fatal everywhere else. */
#include "fault.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Eight regions and a log of each of 1,023 devices, twice while a table is replaced. */
#define SLOTS 20480

struct slot {
    _Atomic uint64_t device; /* written before `inode`, which makes the slot valid */
    _Atomic uint64_t inode;  /* 0: free */
    atomic_bool hit;
};

static struct {
    struct slot slots[SLOTS];
    atomic_int used; /* no slot from here on is in use */
    int log_fd;
    int wake_fd;
} state = {.log_fd = -1, .wake_fd = -1};

/* One line of /proc/self/maps, as far as it matters. */
struct area {
    uint64_t start;
    uint64_t end;
    bool shared;
    uint64_t device;
    uint64_t inode;
};

/* No function of stdio is safe in a handler. */
static uint64_t take_number(const char **text, unsigned int base) {
    uint64_t value = 0;

    for (;; (*text)++) {
        const char c = **text;
        unsigned int digit;

        if (c >= '0' && c <= '9')
            digit = (unsigned int)(c - '0');
        else if (base == 16 && c >= 'a' && c <= 'f')
            digit = (unsigned int)(c - 'a') + 10;
        else
            return value;
        value = value * base + digit;
    }
}

/* "start-end perms offset major:minor inode name" */
static void parse_area(const char *line, struct area *area) {
    unsigned int major_number;

    area->start = take_number(&line, 16);
    line += *line == '-';
    area->end = take_number(&line, 16);
    line += *line == ' ';
    area->shared = strnlen(line, 4) == 4 && line[3] == 's';
    line += strnlen(line, 5);
    take_number(&line, 16);
    line += *line == ' ';
    major_number = (unsigned int)take_number(&line, 16);
    line += *line == ':';
    area->device = makedev(major_number, (unsigned int)take_number(&line, 16));
    line += *line == ' ';
    area->inode = take_number(&line, 10);
}

/* The names in the file may have any length: what does not fit is skipped. */
static bool find_area(uint64_t address, struct area *area) {
    char buffer[4096];
    char line[128];
    size_t length = 0;
    bool found = false;
    ssize_t got;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    while (!found && ((got = read(fd, buffer, sizeof(buffer))) > 0 || (got < 0 && errno == EINTR))) {
        for (ssize_t i = 0; i < got && !found; i++) {
            if (buffer[i] != '\n') {
                if (length < sizeof(line) - 1)
                    line[length++] = buffer[i];
                continue;
            }
            line[length] = '\0';
            length = 0;
            parse_area(line, area);
            found = address >= area->start && address < area->end;
        }
    }
    close(fd);
    return found;
}

/* Marks the file as truncated; false if no front end shares it. */
static bool mark(const struct area *area) {
    const int used = atomic_load(&state.used);
    bool found = false;

    for (int i = 0; i < used; i++) {
        struct slot *slot = &state.slots[i];

        if (atomic_load(&slot->inode) == area->inode && atomic_load(&slot->device) == area->device) {
            atomic_store(&slot->hit, true);
            found = true;
        }
    }
    return found;
}

/* Puts zeros in the place of what is gone; false if the address is not a front end's. */
static bool repair(const siginfo_t *info) {
    const uint64_t one = 1;
    struct area area;
    void *start;

    /* Memory of a front end shows no other cause; a broken memory module, for one, is not survived. */
    if (info->si_code != BUS_ADRERR || !find_area((uint64_t)(uintptr_t)info->si_addr, &area))
        return false;
    /* Another thread was faster: plain memory raises no such fault. */
    if (area.inode == 0)
        return true;
    if (!area.shared || !mark(&area))
        return false;
    /*
     * All of it: a part of a hugepage cannot be replaced.
     * The address is that of a mapping, not of an object.
     */
    memcpy(&start, &(uintptr_t){(uintptr_t)area.start}, sizeof(start));
    if (mmap(start, (size_t)(area.end - area.start), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
        return false;
    if (state.wake_fd >= 0 && write(state.wake_fd, &one, sizeof(one)) < 0)
        return true; /* full, and so readable */
    return true;
}

/* "error: ...", as log_line() writes it. */
static void say(const void *address) {
    static const char digits[] = "0123456789abcdef";
    char text[] =
        "error: the process ends: SIGBUS at address 0x0000000000000000, which no front end shares\n";
    char *number = strstr(text, "0x") + 2;

    for (int i = 0; i < 16; i++)
        number[i] = digits[((uintptr_t)address >> (60 - 4 * i)) & 15];
    if (write(state.log_fd, text, sizeof(text) - 1) < 0)
        return;
}

static void handle(int number, siginfo_t *info, void *context) {
    const int saved = errno;
    const struct sigaction fatal = {.sa_handler = SIG_DFL};

    (void)context;
    if (!repair(info)) {
        say(info->si_addr);
        sigaction(number, &fatal, NULL);
        /* Sent by another process, it does not come again by itself. */
        if (info->si_code <= 0)
            raise(number);
    }
    errno = saved;
}

int fault_install(int log_fd, int wake_fd) {
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_RESTART};

    state.log_fd = log_fd;
    state.wake_fd = wake_fd;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, NULL) == 0 ? 0 : -errno;
}

int fault_share(const struct descriptor *file) {
    for (int i = 0; i < SLOTS; i++) {
        struct slot *slot = &state.slots[i];

        if (atomic_load(&slot->inode) != 0)
            continue;
        atomic_store(&slot->hit, false);
        atomic_store(&slot->device, makedev(file->device_major, file->device_minor));
        atomic_store(&slot->inode, file->inode);
        if (i >= atomic_load(&state.used))
            atomic_store(&state.used, i + 1);
        return i;
    }
    return -ENOSPC;
}

void fault_unshare(int slot) {
    atomic_store(&state.slots[slot].inode, 0);
}

bool fault_hit(int slot) {
    return atomic_load(&state.slots[slot].hit);
}
