/* File descriptors that a front end passed: what they are, and how to be rid of them without waiting. */
#ifndef VDPAD_DESCRIPTOR_H
#define VDPAD_DESCRIPTOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum descriptor_kind {
    DESCRIPTOR_OTHER,
    DESCRIPTOR_EVENT,  /* an eventfd */
    DESCRIPTOR_STREAM, /* a connection of the kind AF_UNIX */
    DESCRIPTOR_MEMORY, /* a file of tmpfs or hugetlbfs, memfd included, that can be mapped for writing */
};

struct descriptor {
    int fd;
    enum descriptor_kind kind;
    uint64_t size; /* of memory */
    uint64_t inode;
    uint32_t device_major;
    uint32_t device_minor;
};

/* Looks at `fd` without ever asking a file system that may let its callers wait. */
void descriptor_look(int fd, struct descriptor *descriptor);

/* Counts the descriptors of one device whose close() has not come back yet; shared by them and the device. */
struct debt {
    atomic_uint holders;
    atomic_uint pending;
};

/* NULL if memory is short. */
struct debt *debt_new(void);
void debt_release(struct debt *debt);
unsigned int debt_pending(const struct debt *debt);

/*
 * Closes a descriptor of any kind: at once if that cannot wait, or on a thread of its own, because close() of
 * a socket that lingers or of a file of a user's file system waits as long as its owner likes.
 */
void descriptor_close(int fd, struct debt *debt);

#endif
