/*
 * The mapping file on disk: replaced atomically,
 * and never put in the place of something that is not a mapping.
 */
#ifndef VDPAD_MAPPING_FILE_H
#define VDPAD_MAPPING_FILE_H

#include "mapping.h"

#include <limits.h>
#include <stdbool.h>
#include <sys/stat.h>

struct mapping_file {
    const char *path;         /* borrowed */
    char temporary[PATH_MAX]; /* next to `path` */
    bool written;             /* `last` is the file written last */
    struct stat last;
    struct stat ours; /* the file that was last under the temporary name by our doing */
    bool looked;      /* at what an earlier process left under that name */
    bool held; /* what has that name now is not ours, and goes back to `path` before anything is written */
    bool plain_rename; /* the file system knows no atomic exchange */
};

/* -ENAMETOOLONG if no temporary name fits beside `path`. */
int mapping_file_init(struct mapping_file *file, const char *path);

/*
 * Writes `mapping` and puts it in place. A device list that came to `path` meanwhile goes back there; as long
 * as that fails it stays under the temporary name, and nothing is written. -EEXIST if what is there is not a
 * mapping (it stays: it may be a device list, which is a request to the agent), else the -errno of the write;
 * both with the reason in `reason`.
 */
int mapping_file_replace(struct mapping_file *file, const struct mapping *mapping, char *reason, size_t size);

/* Removes the file if it is still the one written last, and was not changed since. */
void mapping_file_remove(struct mapping_file *file);

/* Reads and decodes the file at `path`; -errno and a reason as mapping_decode() otherwise. */
int mapping_file_read(const char *path, struct mapping *mapping, char *reason, size_t size);

#endif
