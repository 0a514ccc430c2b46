/* The directory of the private sockets between the gate and DPDK. */
#include "private_directory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Its name cannot be foreseen, so that no other process has made it. */
#define NAME_FORMAT "%s/vdpad-XXXXXX"

int private_directory_choose(struct private_directory *directory, const char *const places[], size_t count) {
    int error = -ENOENT;

    for (size_t i = 0; i < count; i++) {
        if (places[i] == NULL || places[i][0] == '\0')
            continue;
        snprintf(directory->path, sizeof(directory->path), NAME_FORMAT, places[i]);
        if (mkdtemp(directory->path) != NULL) {
            rmdir(directory->path);
            return 0;
        }
        error = -errno;
    }
    directory->path[0] = '\0';
    return error;
}

int private_directory_make(const struct private_directory *directory) {
    char above[PATH_MAX];
    char *slash;

    if (mkdir(directory->path, 0700) == 0 || errno == EEXIST)
        return 0;
    if (errno != ENOENT)
        return -errno;
    snprintf(above, sizeof(above), "%s", directory->path);
    slash = strrchr(above, '/');
    if (slash == NULL)
        return -ENOENT;
    *slash = '\0';
    if (mkdir(above, 0700) != 0 && errno != EEXIST)
        return -errno;
    return mkdir(directory->path, 0700) == 0 || errno == EEXIST ? 0 : -errno;
}

void private_directory_remove(const struct private_directory *directory) {
    rmdir(directory->path);
}
