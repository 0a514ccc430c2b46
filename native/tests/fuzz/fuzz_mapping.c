/* The bytes of a mapping file through its reader; what it takes is written and read as the same. */
#include "mapping.h"
#include "target.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct mapping mapping;
    struct mapping again;
    char reason[128];
    char *text;

    if (mapping_decode((const char *)data, size, &mapping, reason, sizeof(reason)) != 0)
        return 0;
    text = mapping_encode(&mapping);
    if (text == NULL || mapping_decode(text, strlen(text), &again, reason, sizeof(reason)) != 0 ||
        again.count != mapping.count)
        abort();
    for (size_t i = 0; i < mapping.count; i++) {
        if (strcmp(mapping.entries[i].address, again.entries[i].address) != 0 ||
            strcmp(mapping.entries[i].socket, again.entries[i].socket) != 0)
            abort();
    }
    mapping_free(&again);
    mapping_free(&mapping);
    free(text);
    return 0;
}
