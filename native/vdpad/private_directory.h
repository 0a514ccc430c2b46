/* The directory of the private sockets between the gate and DPDK, which is there only while one is made. */
#ifndef VDPAD_PRIVATE_DIRECTORY_H
#define VDPAD_PRIVATE_DIRECTORY_H

#include <limits.h>
#include <stddef.h>

struct private_directory {
    char path[PATH_MAX];
};

/*
 * Takes the first of `count` places, NULL or "" for none, below which a directory can be made. Nothing stays
 * there. -errno of the last one if there is none.
 */
int private_directory_choose(struct private_directory *directory, const char *const places[], size_t count);

/* Makes it, and the one above it, for this user alone; it may exist already. 0, or -errno. */
int private_directory_make(const struct private_directory *directory);

/* Removes it if it is empty. */
void private_directory_remove(const struct private_directory *directory);

#endif
