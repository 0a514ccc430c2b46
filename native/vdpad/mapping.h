/* The mapping: which vhost-user socket belongs to which PCI address, as bytes and as values. */
#ifndef VDPAD_MAPPING_H
#define VDPAD_MAPPING_H

#include "pci_address.h"
#include "socket.h"

#include <stddef.h>

#define MAPPING_MAX_BYTES ((size_t)1024 * 1024)
#define MAPPING_MAX_ENTRIES ((size_t)4096)

struct mapping_entry {
    char address[PCI_ADDRESS_SIZE];
    char socket[SOCKET_PATH_SIZE];
};

struct mapping {
    struct mapping_entry *entries;
    size_t count;
};

/*
 * Decodes a whole mapping file; on failure `mapping` is empty and `reason` says which entry (from 1) and why.
 * Returns 0, -EINVAL or -ENOMEM. Free the result by mapping_free().
 */
int mapping_decode(const char *data, size_t size, struct mapping *mapping, char *reason, size_t reason_size);

/*
 * Encodes to text of one line per entry, to be freed by free();
 * NULL if memory is short or a path is not UTF-8.
 */
char *mapping_encode(const struct mapping *mapping);

void mapping_free(struct mapping *mapping);

#endif
