/* The gate: what reaches the back end, and that no front end keeps the others or the main loop waiting. */
#include "check.h"
#include "fault.h"
#include "gate.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#define FIRST "0000:82:00.2"
#define SECOND "0000:82:00.3"
#define THIRD "0000:82:00.4"
#define FEATURES UINT64_C(0x140008000)
#define MEMORY_SIZE ((size_t)1 << 20)

/* A back end that answers as DPDK does, on a thread for each connection. */
struct session {
    struct session *next;
    struct fixture *f;
    pthread_t thread;
    int fd;
    char address[PCI_ADDRESS_SIZE];
};

struct fixture {
    char *directory;
    struct log log;
    struct links links;
    struct gate gate;
    struct session *sessions; /* the gate's thread alone */
    atomic_uint seen[64];     /* messages by request */
    atomic_uint attached;
    atomic_uint left;
    atomic_int memory_fd; /* the last one that was passed */
    atomic_int channel_fd;
    atomic_bool refuse; /* acknowledgements say that it failed */
    atomic_bool hang_up;
    atomic_bool hold; /* detach() does not come back */
};

static void keep(atomic_int *place, int fd) {
    int old = atomic_exchange(place, fd);

    if (old >= 0)
        close(old);
}

static void *answer(void *context) {
    struct session *session = context;
    struct fixture *f = session->f;
    struct vhost_user_message message;

    for (;;) {
        char control[CMSG_SPACE(8 * sizeof(int))] __attribute__((aligned(8)));
        struct iovec part = {.iov_base = &message, .iov_len = VHOST_USER_HEADER_SIZE};
        struct msghdr head = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
        ssize_t got = recvmsg(session->fd, &head, 0);

        if (got <= 0 || atomic_load(&f->hang_up))
            break;
        /* What arrives is whole: nothing has to be waited for. */
        assert_int_equal(got, VHOST_USER_HEADER_SIZE);
        assert_true(message.size == 0 || recv(session->fd, message.payload.bytes, message.size,
                                              MSG_DONTWAIT) == (ssize_t)message.size);
        atomic_fetch_add(&f->seen[message.request], 1);
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&head); c != NULL; c = CMSG_NXTHDR(&head, c)) {
            size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            int fds[8];

            memcpy(fds, CMSG_DATA(c), count * sizeof(int));
            for (size_t i = 0; i < count; i++) {
                if (message.request == VHOST_USER_SET_MEM_TABLE && i == 0)
                    keep(&f->memory_fd, fds[i]);
                else if (message.request == VHOST_USER_SET_BACKEND_REQ_FD)
                    atomic_store(&f->channel_fd, fds[i]);
                else
                    close(fds[i]);
            }
        }
        if (!vhost_user_is_answered(message.request) && (message.flags & VHOST_USER_NEED_REPLY) == 0)
            continue;
        message.payload.number =
            vhost_user_is_answered(message.request) ? FEATURES | 0xff : atomic_load(&f->refuse);
        message.flags = VHOST_USER_VERSION | VHOST_USER_REPLY;
        message.size = 8;
        /* detach() may have come in the meantime. */
        if (send(session->fd, &message, VHOST_USER_HEADER_SIZE + 8, MSG_NOSIGNAL) < 0)
            break;
    }
    close(session->fd);
    return NULL;
}

static int attach(void *context, const char *address) {
    struct session *session = calloc(1, sizeof(*session));
    struct fixture *f = context;
    int ends[2];

    assert_non_null(session);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    *session = (struct session){.next = f->sessions, .f = f, .fd = ends[1]};
    snprintf(session->address, sizeof(session->address), "%s", address);
    f->sessions = session;
    assert_int_equal(pthread_create(&session->thread, NULL, answer, session), 0);
    atomic_fetch_add(&f->attached, 1);
    return ends[0];
}

static void detach(void *context, const char *address) {
    struct fixture *f = context;
    struct session **link = &f->sessions;
    struct session *session;

    while (atomic_load(&f->hold))
        poll(NULL, 0, 1);
    while (strcmp((*link)->address, address) != 0)
        link = &(*link)->next;
    session = *link;
    *link = session->next;
    shutdown(session->fd, SHUT_RDWR);
    assert_int_equal(pthread_join(session->thread, NULL), 0);
    free(session);
    atomic_fetch_sub(&f->attached, 1);
}

static int leave(void *context, const char *address, struct failure *failure) {
    struct fixture *f = context;

    (void)address;
    (void)failure;
    atomic_fetch_add(&f->left, 1);
    return 0;
}

static void path_of(const struct fixture *f, const char *address, char *path) {
    snprintf(path, SOCKET_PATH_SIZE, "%s/%s", f->directory, address);
}

static void add_with(struct fixture *f, const char *address, uint64_t protocol_features) {
    const struct socket_access access = {.mode = 0600, .owner = (uid_t)-1, .group = (gid_t)-1};
    struct gate_entry entry = {.offer = {.protocol_features = protocol_features, .rings = 4}};
    char reason[256];

    snprintf(entry.address, sizeof(entry.address), "%s", address);
    path_of(f, address, entry.socket);
    entry.listener = socket_listen(entry.socket, &access, &entry.file, reason, sizeof(reason));
    assert_true(entry.listener >= 0);
    assert_int_equal(links_add(&f->links, address), 0);
    assert_int_equal(gate_add(&f->gate, &entry), 0);
}

static void add(struct fixture *f, const char *address) {
    add_with(f, address, 1 | 1 << 3);
}

static int start(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));
    const struct gate_back_end back_end = {.context = f, .attach = attach, .detach = detach, .leave = leave};

    if (f == NULL || make_directory((void **)&f->directory) != 0)
        return -1;
    *state = f;
    f->log = (struct log){.level = LEVEL_WARNING, .fd = open("/dev/null", O_WRONLY | O_CLOEXEC)};
    atomic_store(&f->memory_fd, -1);
    if (links_init(&f->links) != 0 || gate_start(&f->gate, &f->log, &f->links, &back_end) != 0)
        return -1;
    add(f, FIRST);
    add(f, SECOND);
    return 0;
}

static int stop(void **state) {
    struct fixture *f = *state;

    assert_int_equal(gate_stop(&f->gate, 5000), 0);
    assert_int_equal(atomic_load(&f->attached), 0);
    links_destroy(&f->links);
    close(f->log.fd);
    if (atomic_load(&f->memory_fd) >= 0)
        close(atomic_load(&f->memory_fd));
    remove_directory((void **)&f->directory);
    free(f);
    return 0;
}

static int front(const struct fixture *f, const char *address) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    path_of(f, address, name.sun_path);
    assert_int_equal(connect(fd, (const struct sockaddr *)&name, sizeof(name)), 0);
    return fd;
}

static void say(int fd, uint32_t request, uint32_t flags, const void *payload, uint32_t size, const int *fds,
                size_t count) {
    char control[CMSG_SPACE(253 * sizeof(int))] __attribute__((aligned(8))) = {0};
    char bytes[VHOST_USER_HEADER_SIZE + 1024];
    struct iovec part = {.iov_base = bytes, .iov_len = VHOST_USER_HEADER_SIZE + size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

    memcpy(bytes, (const uint32_t[]){request, flags, size}, VHOST_USER_HEADER_SIZE);
    if (size > 0)
        memcpy(bytes + VHOST_USER_HEADER_SIZE, payload, size);
    if (count > 0) {
        struct cmsghdr *head;

        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(head), fds, count * sizeof(int));
    }
    sendmsg(fd, &message, MSG_NOSIGNAL);
}

static uint64_t answer_to(int fd) {
    struct vhost_user_message message;
    ssize_t got = recv(fd, &message, VHOST_USER_HEADER_SIZE + 8, MSG_WAITALL);

    assert_int_equal(got, VHOST_USER_HEADER_SIZE + 8);
    assert_int_equal(message.flags, VHOST_USER_VERSION | VHOST_USER_REPLY);
    return message.payload.number;
}

static uint64_t ask(int fd, uint32_t request, const void *payload, uint32_t size, const int *fds,
                    size_t count) {
    say(fd, request, VHOST_USER_VERSION | VHOST_USER_NEED_REPLY, payload, size, fds, count);
    return answer_to(fd);
}

/* Ends when the gate ends the connection; nothing else ends it. */
static void assert_ended(int fd) {
    char bytes[256];
    ssize_t got;

    while ((got = read(fd, bytes, sizeof(bytes))) > 0)
        ;
    assert_true(got == 0 || errno == ECONNRESET);
    close(fd);
}

static unsigned int refusals(struct fixture *f, const char *address, enum refusal refusal) {
    uint64_t counts[REFUSAL_COUNT];

    links_refusals(&f->links, address, counts);
    return (unsigned int)counts[refusal];
}

/* A well-behaved front end gets through, whatever others do. */
static void assert_served(struct fixture *f, const char *address) {
    int fd = front(f, address);

    assert_int_equal(ask(fd, VHOST_USER_GET_FEATURES, NULL, 0, NULL, 0), FEATURES | 0xff);
    assert_int_equal(ask(fd, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 0);
    close(fd);
}

static size_t descriptors(void) {
    DIR *entries = opendir("/proc/self/fd");
    size_t count = 0;

    assert_non_null(entries);
    while (readdir(entries) != NULL)
        count++;
    closedir(entries);
    return count;
}

static int memory(void) {
    int fd = memfd_create("memory", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)MEMORY_SIZE), 0);
    return fd;
}

static struct vhost_user_memory one_region(void) {
    return (struct vhost_user_memory){
        .count = 1, .regions = {{.guest_address = 0, .size = MEMORY_SIZE, .user_address = 0x10000000}}};
}

#define TABLE_SIZE(count) ((uint32_t)(8 + 32 * (count)))

static void test_passes_what_is_offered(void **state) {
    const uint64_t number = 1;
    const uint64_t ring = 1;
    struct fixture *f = *state;
    struct vhost_user_memory table = one_region();
    const uint64_t addresses[] = {1, 0x10000000, 0x10002000, 0x10001000, 0};
    const uint32_t size[] = {1, 256};
    int event = eventfd(0, EFD_CLOEXEC);
    int file = memory();
    int fd = front(f, FIRST);

    assert_int_equal(ask(fd, VHOST_USER_GET_FEATURES, NULL, 0, NULL, 0), FEATURES | 0xff);
    /* Without what the gate does not let through. */
    assert_int_equal(ask(fd, VHOST_USER_GET_PROTOCOL_FEATURES, NULL, 0, NULL, 0), 1 | 1 << 3);
    assert_int_equal(ask(fd, VHOST_USER_SET_FEATURES, &number, 8, NULL, 0), 0);
    assert_int_equal(ask(fd, VHOST_USER_SET_MEM_TABLE, &table, TABLE_SIZE(1), &file, 1), 0);
    assert_int_equal(atomic_load(&f->seen[VHOST_USER_SET_MEM_TABLE]), 1);
    /* DPDK would take no notice of the same table: it keeps its own files, and so does the gate. */
    assert_int_equal(ask(fd, VHOST_USER_SET_MEM_TABLE, &table, TABLE_SIZE(1), &file, 1), 0);
    assert_int_equal(atomic_load(&f->seen[VHOST_USER_SET_MEM_TABLE]), 1);
    assert_int_equal(ask(fd, VHOST_USER_SET_VRING_NUM, size, 8, NULL, 0), 0);
    assert_int_equal(ask(fd, VHOST_USER_SET_VRING_ADDR, addresses, 40, NULL, 0), 0);
    /* No answer was asked for: none comes. */
    say(fd, VHOST_USER_SET_VRING_CALL, VHOST_USER_VERSION, &ring, 8, &event, 1);
    assert_int_equal(ask(fd, VHOST_USER_SET_VRING_KICK, &ring, 8, &event, 1), 0);
    assert_int_equal(atomic_load(&f->seen[VHOST_USER_SET_VRING_CALL]), 1);
    close(event);
    close(file);
    close(fd);
}

static void test_refuses(void **state) {
    static const struct {
        uint32_t request;
        uint32_t flags;
        uint32_t size;
        uint64_t words[9];
        char fds[9]; /* m: memory, r: the same for reading only, e: eventfd, p: pipe */
        enum refusal refusal;
    } cases[] = {
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, MEMORY_SIZE, 0, 0}, "e", REFUSAL_DESCRIPTORS},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, MEMORY_SIZE, 0, 0}, "r", REFUSAL_DESCRIPTORS},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, MEMORY_SIZE, 0, 0}, "p", REFUSAL_DESCRIPTORS},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, MEMORY_SIZE, 0, 0}, "", REFUSAL_DESCRIPTORS},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, MEMORY_SIZE, 0, 0}, "mm", REFUSAL_DESCRIPTORS},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {0, 0, MEMORY_SIZE, 0, 0}, "", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {9, 0, MEMORY_SIZE, 0, 0}, "m", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {UINT64_C(0xffffffff), 0, MEMORY_SIZE, 0, 0}, "m", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {2, 0, MEMORY_SIZE, 0, 0}, "mm", REFUSAL_FORM},
        {VHOST_USER_SET_MEM_TABLE, 1, 8, {1}, "m", REFUSAL_FORM},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, 0, 0, 0}, "m", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, MEMORY_SIZE + 4096, 0, 0}, "m", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, MEMORY_SIZE, 0, 4096}, "m", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, 4096, 0, UINT64_C(0xfffffffffffff000)}, "m", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, UINT64_C(0xfffffffffffff000), 0, 4096}, "m", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, UINT64_C(0xfffffffffffff000), 8192, 0, 0}, "m", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, 8192, UINT64_C(0xfffffffffffff000), 0}, "m", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 40, {1, 0, 4096, 0, 100}, "m", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 72, {2, 0, 8192, 0, 0, 4096, 4096, 0x100000, 0}, "mm", REFUSAL_MEMORY},
        {VHOST_USER_SET_MEM_TABLE, 1, 72, {2, 0, 8192, 0, 0, 8192, 4096, 4096, 0}, "mm", REFUSAL_MEMORY},
        {VHOST_USER_SET_VRING_NUM, 1, 8, {4 | UINT64_C(256) << 32}, "", REFUSAL_RING},
        {VHOST_USER_SET_VRING_NUM, 1, 8, {0}, "", REFUSAL_RING},
        {VHOST_USER_SET_VRING_NUM, 1, 8, {UINT64_C(32769) << 32}, "", REFUSAL_RING},
        {VHOST_USER_SET_VRING_ENABLE, 1, 8, {UINT64_C(2) << 32}, "", REFUSAL_RING},
        {VHOST_USER_GET_VRING_BASE, 1, 8, {4}, "", REFUSAL_RING},
        {VHOST_USER_SET_VRING_ADDR, 1, 40, {0, 0x10000000, 0x10000000, 0x10000000, 0}, "", REFUSAL_RING},
        {VHOST_USER_SET_VRING_KICK, 1, 8, {4}, "e", REFUSAL_RING},
        {VHOST_USER_SET_VRING_KICK, 1, 8, {0x200}, "e", REFUSAL_RING},
        {VHOST_USER_SET_VRING_KICK, 1, 8, {0}, "", REFUSAL_DESCRIPTORS},
        {VHOST_USER_SET_VRING_KICK, 1, 8, {0x100}, "e", REFUSAL_DESCRIPTORS},
        {VHOST_USER_SET_VRING_KICK, 1, 8, {0}, "ee", REFUSAL_DESCRIPTORS},
        {VHOST_USER_SET_VRING_CALL, 1, 8, {0}, "p", REFUSAL_DESCRIPTORS},
        {VHOST_USER_SET_VRING_ERR, 1, 8, {0}, "m", REFUSAL_DESCRIPTORS},
        {VHOST_USER_GET_FEATURES, 1, 0, {0}, "e", REFUSAL_DESCRIPTORS},
        {VHOST_USER_GET_FEATURES, 0, 0, {0}, "", REFUSAL_FORM},
        {VHOST_USER_GET_FEATURES, 1 | VHOST_USER_REPLY, 0, {0}, "", REFUSAL_FORM},
        {VHOST_USER_SET_FEATURES, 1, 7, {0}, "", REFUSAL_FORM},
        {VHOST_USER_SET_FEATURES, 1, 1000, {0}, "", REFUSAL_FORM},
    };
    struct fixture *f = *state;
    int pipes[2];
    int event = eventfd(0, EFD_CLOEXEC);
    int file = memory();
    int reading;
    char name[32];
    size_t before;

    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    snprintf(name, sizeof(name), "/proc/self/fd/%d", file);
    reading = open(name, O_RDONLY | O_CLOEXEC);
    assert_true(reading >= 0);
    before = descriptors();
    for (size_t i = 0; i < COUNT(cases); i++) {
        unsigned int count = refusals(f, FIRST, cases[i].refusal);
        char payload[1024] = "";
        int fd = front(f, FIRST);
        int fds[8];
        size_t passed = strlen(cases[i].fds);

        memcpy(payload, cases[i].words, sizeof(cases[i].words));
        for (size_t j = 0; j < passed; j++)
            fds[j] = cases[i].fds[j] == 'm'   ? file
                     : cases[i].fds[j] == 'r' ? reading
                     : cases[i].fds[j] == 'e' ? event
                                              : pipes[0];
        say(fd, cases[i].request, cases[i].flags, payload, cases[i].size, fds, passed);
        assert_ended(fd);
        if (refusals(f, FIRST, cases[i].refusal) != count + 1)
            fail_msg("case %zu is not refused as %s", i, refusal_name(cases[i].refusal));
    }
    /* Whatever the device does not offer. */
    for (uint32_t request = 0; request < 64; request++) {
        static const char offered[] = {1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18};
        const uint64_t payload[8] = {0};

        if (memchr(offered, (int)request, sizeof(offered)) == NULL) {
            int fd = front(f, FIRST);

            say(fd, request, VHOST_USER_VERSION | VHOST_USER_NEED_REPLY, payload, sizeof(payload), &event, 1);
            assert_ended(fd);
        }
    }
    assert_int_equal(refusals(f, FIRST, REFUSAL_REQUEST), 64 - 15);
    /* None of them has reached the back end. */
    for (size_t i = 0; i < COUNT(f->seen); i++)
        assert_int_equal(atomic_load(&f->seen[i]), 0);
    while (descriptors() > before)
        poll(NULL, 0, 1);
    close(event);
    close(file);
    close(reading);
    close(pipes[0]);
    close(pipes[1]);
    assert_served(f, FIRST);
}

/* Each of the three addresses: outside of what is shared, over its end, not aligned. */
static void test_refuses_ring_addresses(void **state) {
    static const uint64_t wrong[][3] = {
        {0x20000000, 0x10002000, 0x10001000}, {0x10000000, 0x20000000, 0x10001000},
        {0x10000000, 0x10002000, 0x20000000}, {0x100ffff8, 0x10002000, 0x10001000},
        {0x10000000, 0x100ffffe, 0x10001000}, {0x10000000, 0x10002000, 0x100ffffe},
        {0x10000008, 0x10002000, 0x10001000}, {0x10000000, 0x10002002, 0x10001000},
        {0x10000000, 0x10002000, 0x10001001}, {UINT64_C(0xfffffffffffffff0), 0x10002000, 0x10001000},
    };
    struct vhost_user_memory table = one_region();
    struct fixture *f = *state;
    int file = memory();

    for (size_t i = 0; i < COUNT(wrong); i++) {
        const uint64_t addresses[] = {1, wrong[i][0], wrong[i][1], wrong[i][2], 0};
        int fd = front(f, FIRST);

        assert_int_equal(ask(fd, VHOST_USER_SET_MEM_TABLE, &table, TABLE_SIZE(1), &file, 1), 0);
        say(fd, VHOST_USER_SET_VRING_ADDR, VHOST_USER_VERSION, addresses, 40, NULL, 0);
        assert_ended(fd);
        if (refusals(f, FIRST, REFUSAL_RING) != i + 1)
            fail_msg("case %zu is not refused", i);
    }
    assert_int_equal(atomic_load(&f->seen[VHOST_USER_SET_VRING_ADDR]), 0);
    close(file);
}

/* In pieces of a byte, as a stream may bring it. */
static void test_pieces(void **state) {
    const uint32_t message[] = {VHOST_USER_SET_FEATURES, VHOST_USER_VERSION | VHOST_USER_NEED_REPLY, 8, 0, 0};
    struct fixture *f = *state;
    int fd = front(f, FIRST);

    for (size_t i = 0; i < sizeof(message); i++) {
        assert_int_equal(atomic_load(&f->seen[VHOST_USER_SET_FEATURES]), 0);
        assert_int_equal(send(fd, (const char *)message + i, 1, 0), 1);
    }
    assert_int_equal(answer_to(fd), 0);
    close(fd);
}

static void test_half_a_message(void **state) {
    struct fixture *f = *state;
    int fds[4];

    for (size_t i = 0; i < COUNT(fds); i++) {
        fds[i] = front(f, FIRST);
        assert_int_equal(send(fds[i], (const uint32_t[]){VHOST_USER_SET_FEATURES, 1, 8}, 4 * i, 0), 4 * i);
    }
    assert_served(f, SECOND);
    /* Even on the same socket. */
    assert_served(f, FIRST);
    for (size_t i = 0; i < COUNT(fds); i++)
        close(fds[i]);
}

static void test_patience(void **state) {
    struct fixture *f = *state;
    int served = front(f, SECOND);
    int half;
    int silent;

    assert_int_equal(ask(served, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 0);
    f->gate.patience_ms = 20;
    half = front(f, FIRST);
    silent = front(f, FIRST);
    assert_int_equal(send(half, "x", 1, 0), 1);
    assert_ended(half);
    assert_ended(silent);
    assert_int_equal(refusals(f, FIRST, REFUSAL_SILENT), 2);
    /* One that has said something may wait for its guest as long as it likes. */
    assert_int_equal(ask(served, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 0);
    close(served);
}

static void test_unread_replies(void **state) {
    const uint32_t message[] = {VHOST_USER_GET_FEATURES, VHOST_USER_VERSION, 0};
    struct fixture *f = *state;
    int fd = front(f, FIRST);

    /*
     * Until the socket is full in both directions:
     * each round of the others shows that nothing stands still.
     */
    for (int idle = 0; idle < 20;) {
        if (send(fd, message, sizeof(message), MSG_DONTWAIT) == (ssize_t)sizeof(message)) {
            idle = 0;
        } else {
            assert_served(f, SECOND);
            idle++;
        }
    }
    close(fd);
    assert_served(f, FIRST);
}

static void test_crowd(void **state) {
    struct fixture *f = *state;
    int fds[200];

    for (size_t i = 0; i < COUNT(fds); i++)
        fds[i] = front(f, FIRST);
    assert_served(f, SECOND);
    /* The oldest ones made place. */
    for (size_t i = 0; i < COUNT(fds) - GATE_WAITING_MAX; i++)
        assert_ended(fds[i]);
    assert_int_equal(refusals(f, FIRST, REFUSAL_CROWD), COUNT(fds) - GATE_WAITING_MAX);
    assert_served(f, FIRST);
    for (size_t i = COUNT(fds) - GATE_WAITING_MAX; i < COUNT(fds); i++)
        close(fds[i]);
}

static void test_second_front_end(void **state) {
    struct fixture *f = *state;
    int first = front(f, FIRST);
    int second;

    assert_int_equal(ask(first, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 0);
    second = front(f, FIRST);
    say(second, VHOST_USER_SET_OWNER, VHOST_USER_VERSION, NULL, 0, NULL, 0);
    assert_ended(second);
    assert_int_equal(refusals(f, FIRST, REFUSAL_SECOND), 1);
    assert_int_equal(ask(first, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 0);
    close(first);
}

static void test_back_end_refuses(void **state) {
    struct fixture *f = *state;
    int fd = front(f, FIRST);

    atomic_store(&f->refuse, true);
    /* A front end that asks for the answer gets it. */
    assert_int_equal(ask(fd, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 1);
    say(fd, VHOST_USER_SET_OWNER, VHOST_USER_VERSION, NULL, 0, NULL, 0);
    assert_ended(fd);
    fd = front(f, FIRST);
    atomic_store(&f->hang_up, true);
    say(fd, VHOST_USER_GET_FEATURES, VHOST_USER_VERSION, NULL, 0, NULL, 0);
    assert_ended(fd);
    assert_int_equal(refusals(f, FIRST, REFUSAL_BACK_END), 2);
    atomic_store(&f->hang_up, false);
    atomic_store(&f->refuse, false);
    assert_served(f, FIRST);
}

/* A TCP connection whose last close() waits until data that is not read is sent. */
static int lingering(int *peer) {
    const struct linger linger = {.l_onoff = 1, .l_linger = 600};
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(name);
    static char data[65536];
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(listener, (struct sockaddr *)&name, sizeof(name)), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&name, &size), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    *peer = accept(listener, NULL, NULL);
    assert_true(*peer >= 0);
    close(listener);
    while (send(fd, data, sizeof(data), MSG_DONTWAIT) > 0)
        ;
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
    return fd;
}

/* The gate has the last reference when it learns that the message is no good. */
static void pass_and_forget(int fd, uint32_t request, int passed) {
    const uint32_t header[] = {request, VHOST_USER_VERSION, 0};
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec part = {.iov_base = (void *)(uintptr_t)header, .iov_len = sizeof(header) - 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);

    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &passed, sizeof(int));
    assert_int_equal(sendmsg(fd, &message, 0), sizeof(header) - 1);
    close(passed);
    assert_int_equal(send(fd, (const char *)header + sizeof(header) - 1, 1, 0), 1);
}

static void test_descriptors_that_linger(void **state) {
    struct fixture *f = *state;
    struct failure failure;
    int peers[4];
    int fds[4];

    for (size_t i = 0; i < COUNT(fds); i++) {
        int passed = lingering(&peers[i]);

        fds[i] = front(f, FIRST);
        pass_and_forget(fds[i], i % 2 == 0 ? 50 : VHOST_USER_SET_OWNER, passed);
        assert_served(f, SECOND);
    }
    /*
     * No other front end of that device is let in until some are closed: its backlog fills, the others go on.
     */
    close(front(f, FIRST));
    assert_served(f, SECOND);
    assert_int_equal(gate_remove(&f->gate, FIRST, 5000, &failure), 0);
    assert_served(f, SECOND);
    for (size_t i = 0; i < COUNT(fds); i++) {
        const struct linger none = {.l_onoff = 1};

        close(fds[i]);
        /* Ends the wait of the threads. */
        assert_int_equal(setsockopt(peers[i], SOL_SOCKET, SO_LINGER, &none, sizeof(none)), 0);
        close(peers[i]);
    }
}

/* Too many for a message, and those of a message that is never read. */
static void test_too_many_descriptors(void **state) {
    struct fixture *f = *state;
    const size_t before = descriptors();
    int fds[253];
    int fd = front(f, FIRST);

    for (size_t i = 0; i < COUNT(fds); i++)
        fds[i] = STDERR_FILENO;
    say(fd, VHOST_USER_SET_OWNER, VHOST_USER_VERSION, NULL, 0, fds, COUNT(fds));
    assert_ended(fd);
    assert_int_equal(refusals(f, FIRST, REFUSAL_DESCRIPTORS), 1);
    fd = front(f, FIRST);
    say(fd, 50, VHOST_USER_VERSION, NULL, 0, NULL, 0);
    say(fd, 50, VHOST_USER_VERSION, NULL, 0, fds, COUNT(fds));
    assert_ended(fd);
    while (descriptors() > before)
        poll(NULL, 0, 1);
    assert_served(f, FIRST);
}

static void test_removal(void **state) {
    struct fixture *f = *state;
    struct failure failure;
    char path[SOCKET_PATH_SIZE];
    int fd = front(f, FIRST);
    int waiting = front(f, FIRST);

    path_of(f, FIRST, path);
    assert_int_equal(ask(fd, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 0);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(gate_remove(&f->gate, FIRST, 5000, &failure), 0);
    assert_int_equal(atomic_load(&f->left), 1);
    assert_int_equal(atomic_load(&f->attached), 0);
    assert_int_equal(access(path, F_OK), -1);
    assert_ended(fd);
    assert_ended(waiting);
    assert_served(f, SECOND);
    links_remove(&f->links, FIRST);
    add(f, FIRST);
    assert_served(f, FIRST);
}

static int64_t now_ms(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whatever DPDK does, the main loop gets its answer. */
static void test_removal_that_hangs(void **state) {
    struct gate_entry entry = {.address = FIRST, .listener = -1};
    struct fixture *f = *state;
    struct failure failure;
    int fd = front(f, FIRST);
    int64_t before;

    assert_int_equal(ask(fd, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 0);
    atomic_store(&f->hold, true);
    before = now_ms();
    assert_int_equal(gate_remove(&f->gate, FIRST, 50, &failure), -ETIMEDOUT);
    assert_true(now_ms() - before >= 50);
    assert_int_equal(failure.code, FAILURE_DPDK);
    assert_int_equal(gate_add(&f->gate, &entry), -EBUSY);
    atomic_store(&f->hold, false);
    assert_ended(fd);
    while (atomic_load(&f->left) == 0)
        poll(NULL, 0, 1);
    links_remove(&f->links, FIRST);
    assert_served(f, SECOND);
}

/* The front end that truncates its memory pays for it alone. */
static void test_truncated_memory(void **state) {
    struct fixture *f = *state;
    struct vhost_user_memory table = one_region();
    int other = front(f, SECOND);
    int file = memory();
    int fd = front(f, FIRST);
    volatile uint8_t *mapped;

    /* cmocka has taken the signal since. */
    assert_int_equal(fault_install(f->log.fd, f->gate.wake_fd), 0);
    assert_int_equal(ask(other, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 0);
    assert_int_equal(ask(fd, VHOST_USER_SET_MEM_TABLE, &table, TABLE_SIZE(1), &file, 1), 0);
    mapped = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, atomic_load(&f->memory_fd), 0);
    assert_true(mapped != MAP_FAILED);
    mapped[5000] = 7;
    assert_int_equal(ftruncate(file, 0), 0);
    assert_int_equal(mapped[5000], 0);
    mapped[MEMORY_SIZE - 1] = 9;
    assert_int_equal(mapped[MEMORY_SIZE - 1], 9);
    assert_ended(fd);
    assert_int_equal(refusals(f, FIRST, REFUSAL_TRUNCATED), 1);
    assert_int_equal(ask(other, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0), 0);
    close(other);
    close(file);
    assert_int_equal(munmap((void *)(uintptr_t)mapped, MEMORY_SIZE), 0);
}

/* Waits until the gate has looked at all that came before: its thread does one thing after the other. */
static void wait_for_gate(struct fixture *f) {
    while (atomic_load(&f->attached) > 0)
        poll(NULL, 0, 1);
    assert_served(f, SECOND);
    while (atomic_load(&f->attached) > 0)
        poll(NULL, 0, 1);
}

/* The lowest place that is free for a file that front ends share. */
static int free_slot(void) {
    const struct descriptor file = {.inode = 1};
    int slot = fault_share(&file);

    assert_true(slot >= 0);
    fault_unshare(slot);
    return slot;
}

/*
 * The files of a front end count as shared for as long as it is there: the tables of memory one after the
 * other, the log, and those of a message on which DPDK hangs up.
 */
static void test_shared_files_are_forgotten(void **state) {
    const uint64_t log[] = {MEMORY_SIZE, 0};
    struct fixture *f = *state;
    struct vhost_user_memory table = one_region();
    int file = memory();
    int slot;
    int fd;

    wait_for_gate(f);
    slot = free_slot();
    add_with(f, THIRD, 1 | 1 << 1 | 1 << 3);
    for (unsigned int i = 0; i < 3; i++) {
        fd = front(f, THIRD);
        for (unsigned int j = 0; j < 3; j++) {
            table.regions[0].user_address += MEMORY_SIZE;
            assert_int_equal(ask(fd, VHOST_USER_SET_MEM_TABLE, &table, TABLE_SIZE(1), &file, 1), 0);
        }
        say(fd, VHOST_USER_SET_LOG_BASE, VHOST_USER_VERSION, log, 16, &file, 1);
        assert_int_equal(answer_to(fd), FEATURES | 0xff);
        /* One of the table and one of the log. */
        assert_int_equal(free_slot(), slot + 2);
        if (i == 1) {
            table.regions[0].user_address += MEMORY_SIZE;
            atomic_store(&f->hang_up, true);
            say(fd, VHOST_USER_SET_MEM_TABLE, VHOST_USER_VERSION, &table, TABLE_SIZE(1), &file, 1);
            assert_ended(fd);
            atomic_store(&f->hang_up, false);
        } else {
            close(fd);
        }
        wait_for_gate(f);
        assert_int_equal(free_slot(), slot);
    }
    close(file);
}

#define CHANNEL UINT64_C(0xc20)

/* DPDK asks, with a descriptor: it has its answer at once, whenever the front end gives its own. */
static void ask_back(struct fixture *f, int outer) {
    int event = eventfd(0, EFD_CLOEXEC);
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
    struct vhost_user_message message;
    struct iovec part = {.iov_base = &message, .iov_len = sizeof(message)};
    struct msghdr head = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *rights;
    int got = -1;

    say(atomic_load(&f->channel_fd), 3, VHOST_USER_VERSION | VHOST_USER_NEED_REPLY, &(uint64_t){7}, 8, &event,
        1);
    assert_int_equal(answer_to(atomic_load(&f->channel_fd)), 0);
    assert_int_equal(recvmsg(outer, &head, 0), VHOST_USER_HEADER_SIZE + 8);
    assert_int_equal(message.request, 3);
    assert_int_equal(message.payload.number, 7);
    rights = CMSG_FIRSTHDR(&head);
    if (rights != NULL)
        memcpy(&got, CMSG_DATA(rights), sizeof(got));
    assert_int_equal(eventfd_write(got, 5), 0);
    assert_int_equal(eventfd_read(event, &(eventfd_t){0}), 0);
    close(got);
    close(event);
}

static int open_channel(struct fixture *f, int *outer) {
    int fd = front(f, THIRD);
    int ends[2];

    assert_int_equal(ask(fd, VHOST_USER_GET_PROTOCOL_FEATURES, NULL, 0, NULL, 0) & CHANNEL, 0x20);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    assert_int_equal(ask(fd, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &ends[1], 1), 0);
    close(ends[1]);
    *outer = ends[0];
    return fd;
}

static void channel_ends(void **state, const uint64_t *answer) {
    struct fixture *f = *state;
    int outer;
    int fd;

    add_with(f, THIRD, 1 | CHANNEL);
    fd = open_channel(f, &outer);
    for (int i = 0; i < 3; i++) {
        ask_back(f, outer);
        say(outer, 3, VHOST_USER_VERSION | VHOST_USER_REPLY, &(uint64_t){0}, 8, NULL, 0);
    }
    f->gate.patience_ms = answer == NULL ? 20 : GATE_PATIENCE_MS;
    ask_back(f, outer);
    if (answer != NULL)
        say(outer, 3, VHOST_USER_VERSION | VHOST_USER_REPLY, answer, 8, NULL, 0);
    assert_ended(fd);
    assert_int_equal(refusals(f, THIRD, REFUSAL_CHANNEL), 1);
    close(outer);
    close(atomic_load(&f->channel_fd));
    /* It is not offered again. */
    f->gate.patience_ms = GATE_PATIENCE_MS;
    fd = front(f, THIRD);
    assert_int_equal(ask(fd, VHOST_USER_GET_PROTOCOL_FEATURES, NULL, 0, NULL, 0) & CHANNEL, 0);
    close(fd);
}

static void test_channel_with_a_no(void **state) {
    channel_ends(state, &(uint64_t){1});
}

static void test_channel_without_an_answer(void **state) {
    channel_ends(state, NULL);
}

/* A front end answers what was not asked. */
static void test_channel_abused(void **state) {
    struct fixture *f = *state;
    int outer;
    int fd;

    add_with(f, THIRD, 1 | CHANNEL);
    fd = open_channel(f, &outer);
    say(outer, 3, VHOST_USER_VERSION | VHOST_USER_REPLY, &(uint64_t){0}, 8, NULL, 0);
    assert_ended(fd);
    close(outer);
    close(atomic_load(&f->channel_fd));
    assert_served(f, SECOND);
}

/* A fault of memory that no front end shares is not survived: the process ends, and says of what. */
static void test_other_faults_are_fatal(void **state) {
    char text[256] = "";
    int ends[2];
    int status;
    pid_t child;

    (void)state;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int file = memory();
        volatile char *mapped = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

        if (mapped == MAP_FAILED || fault_install(ends[1], -1) != 0 || ftruncate(file, 0) != 0)
            _exit(1);
        _exit(mapped[0]);
    }
    close(ends[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGBUS);
    assert_true(read(ends[0], text, sizeof(text) - 1) > 0);
    assert_memory_equal(text, "error: the process ends: SIGBUS at address 0x0000", 49);
    close(ends[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_passes_what_is_offered, start, stop),
        cmocka_unit_test_setup_teardown(test_refuses, start, stop),
        cmocka_unit_test_setup_teardown(test_refuses_ring_addresses, start, stop),
        cmocka_unit_test_setup_teardown(test_pieces, start, stop),
        cmocka_unit_test_setup_teardown(test_half_a_message, start, stop),
        cmocka_unit_test_setup_teardown(test_patience, start, stop),
        cmocka_unit_test_setup_teardown(test_unread_replies, start, stop),
        cmocka_unit_test_setup_teardown(test_crowd, start, stop),
        cmocka_unit_test_setup_teardown(test_second_front_end, start, stop),
        cmocka_unit_test_setup_teardown(test_back_end_refuses, start, stop),
        cmocka_unit_test_setup_teardown(test_descriptors_that_linger, start, stop),
        cmocka_unit_test_setup_teardown(test_too_many_descriptors, start, stop),
        cmocka_unit_test_setup_teardown(test_removal, start, stop),
        cmocka_unit_test_setup_teardown(test_removal_that_hangs, start, stop),
        cmocka_unit_test_setup_teardown(test_truncated_memory, start, stop),
        cmocka_unit_test_setup_teardown(test_shared_files_are_forgotten, start, stop),
        cmocka_unit_test_setup_teardown(test_channel_with_a_no, start, stop),
        cmocka_unit_test_setup_teardown(test_channel_without_an_answer, start, stop),
        cmocka_unit_test_setup_teardown(test_channel_abused, start, stop),
        cmocka_unit_test_setup_teardown(test_other_faults_are_fatal, start, stop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
