/*
 * mapping-check: reads or writes mapping files by the
 * daemon's own code, so that tests can compare other readers.
 */
#include "mapping_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check(const char *path) {
    struct mapping mapping;
    char reason[512];

    if (mapping_file_read(path, &mapping, reason, sizeof(reason)) != 0) {
        printf("refused: %s\n", reason);
        return -1;
    }
    for (size_t i = 0; i < mapping.count; i++)
        printf("%s %s\n", mapping.entries[i].address, mapping.entries[i].socket);
    mapping_free(&mapping);
    return 0;
}

/* `words` alternate: address, socket. */
static int write_file(const char *path, char **words, size_t count) {
    struct mapping mapping = {.entries = calloc(count / 2 + 1, sizeof(*mapping.entries)), .count = count / 2};
    struct mapping_file file;
    char reason[512];
    int error;

    if (mapping.entries == NULL || mapping_file_init(&file, path) != 0)
        return -1;
    for (size_t i = 0; i < mapping.count; i++) {
        struct mapping_entry *entry = &mapping.entries[i];

        if (pci_address_normalise(words[2 * i], entry->address) != 0 ||
            socket_path_problem(words[2 * i + 1]) != NULL) {
            printf("refused: %s %s\n", words[2 * i], words[2 * i + 1]);
            mapping_free(&mapping);
            return -1;
        }
        snprintf(entry->socket, sizeof(entry->socket), "%s", words[2 * i + 1]);
    }
    error = mapping_file_replace(&file, &mapping, reason, sizeof(reason));
    if (error != 0)
        printf("refused: %s\n", reason);
    mapping_free(&mapping);
    return error;
}

int main(int argc, char **argv) {
    int error = 0;

    if (argc >= 3 && strcmp(argv[1], "--write") == 0 && argc % 2 == 1)
        return write_file(argv[2], argv + 3, (size_t)argc - 3) == 0 ? 0 : 1;
    if (argc < 2 || argv[1][0] == '-') {
        fprintf(stderr, "usage: mapping-check FILE... | mapping-check --write PATH [ADDRESS SOCKET]...\n");
        return 2;
    }
    for (int i = 1; i < argc; i++) {
        if (check(argv[i]) != 0)
            error = 1;
    }
    return error;
}
