/* The mapping: which vhost-user socket belongs to which PCI address, as bytes and as values. */
#include "mapping.h"

#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How much of an offending value a message repeats. */
#define SHOWN 120

struct reason {
    char *text;
    size_t size;
};

static int refuse(const struct reason *reason, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int refuse(const struct reason *reason, const char *format, ...) {
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(reason->text, reason->size, format, arguments);
    va_end(arguments);
    for (char *c = reason->text; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    }
    return -EINVAL;
}

/* A required string without embedded zeros, or NULL with the reason given. */
static const char *member(const json_t *object, const char *key, size_t number, const struct reason *reason) {
    const json_t *value = json_object_get(object, key);

    if (value == NULL)
        refuse(reason, "entry %zu: %s is missing", number, key);
    else if (!json_is_string(value))
        refuse(reason, "entry %zu: %s is not a string", number, key);
    else if (strlen(json_string_value(value)) != json_string_length(value))
        refuse(reason, "entry %zu: %s has control characters", number, key);
    else
        return json_string_value(value);
    return NULL;
}

static int decode_entry(const json_t *object, size_t number, struct mapping_entry *entry,
                        const struct reason *reason) {
    const char *address;
    const char *socket;
    const char *problem;

    if (!json_is_object(object))
        return refuse(reason, "entry %zu: is not an object", number);
    address = member(object, "pciAddress", number, reason);
    if (address == NULL)
        return -EINVAL;
    socket = member(object, "socketpath", number, reason);
    if (socket == NULL)
        return -EINVAL;
    if (pci_address_normalise(address, entry->address) != 0)
        return refuse(reason, "entry %zu: pciAddress '%.*s' is not a PCI address such as 0000:82:00.2",
                      number, SHOWN, address);
    problem = socket_path_problem(socket);
    if (problem != NULL)
        return refuse(reason, "entry %zu: socketpath '%.*s' %s", number, SHOWN, socket, problem);
    snprintf(entry->socket, sizeof(entry->socket), "%s", socket);
    return 0;
}

static int decode_entries(const json_t *array, struct mapping *mapping, const struct reason *reason) {
    json_t *seen = json_object();
    int error = seen == NULL ? -ENOMEM : 0;

    for (size_t i = 0; error == 0 && i < json_array_size(array); i++) {
        struct mapping_entry *entry = &mapping->entries[i];

        error = decode_entry(json_array_get(array, i), i + 1, entry, reason);
        if (error == 0 && json_object_get(seen, entry->address) != NULL)
            error = refuse(reason, "entry %zu: %s is listed twice", i + 1, entry->address);
        if (error == 0 && json_object_set_new(seen, entry->address, json_true()) != 0)
            error = -ENOMEM;
        mapping->count = i + 1;
    }
    json_decref(seen);
    return error;
}

int mapping_decode(const char *data, size_t size, struct mapping *mapping, char *reason_text,
                   size_t reason_size) {
    const struct reason reason = {.text = reason_text, .size = reason_size};
    json_error_t problem;
    json_t *array;
    int error;

    *mapping = (struct mapping){0};
    if (size > MAPPING_MAX_BYTES)
        return refuse(&reason, "is larger than %zu bytes", MAPPING_MAX_BYTES);
    /*
     * Numbers stand only under unknown keys:
     * as reals, no integer is too big. Zeros are refused where they matter.
     */
    array = json_loadb(data, size, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL | JSON_DECODE_ANY, &problem);
    if (array == NULL)
        return refuse(&reason, "is not JSON: %s (line %d)", problem.text, problem.line);
    if (!json_is_array(array)) {
        error = refuse(&reason, "is not an array");
    } else if (json_array_size(array) > MAPPING_MAX_ENTRIES) {
        error = refuse(&reason, "has more than %zu entries", MAPPING_MAX_ENTRIES);
    } else {
        mapping->entries = calloc(json_array_size(array) + 1, sizeof(*mapping->entries));
        error = mapping->entries == NULL ? -ENOMEM : decode_entries(array, mapping, &reason);
    }
    if (error == -ENOMEM)
        refuse(&reason, "cannot be read: out of memory");
    if (error != 0)
        mapping_free(mapping);
    json_decref(array);
    return error;
}

char *mapping_encode(const struct mapping *mapping) {
    char *text = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&text, &size);
    int error = 0;

    if (stream == NULL)
        return NULL;
    for (size_t i = 0; i < mapping->count && error == 0; i++) {
        const struct mapping_entry *entry = &mapping->entries[i];
        json_t *object = json_pack("{s:s,s:s}", "pciAddress", entry->address, "socketpath", entry->socket);

        fputs(i == 0 ? "[\n" : ",\n", stream);
        error = object == NULL ? -EINVAL : json_dumpf(object, stream, 0);
        json_decref(object);
    }
    fputs(mapping->count == 0 ? "[]\n" : "\n]\n", stream);
    if (fclose(stream) != 0 || error != 0) {
        free(text);
        return NULL;
    }
    return text;
}

void mapping_free(struct mapping *mapping) {
    free(mapping->entries);
    *mapping = (struct mapping){0};
}
