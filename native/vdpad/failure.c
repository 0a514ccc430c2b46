/* Why a request was refused: a JSON-RPC error code and a text for people. */
#include "failure.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int failure_set(struct failure *failure, int error, enum failure_code code, const char *format, ...) {
    va_list arguments;

    failure->code = code;
    va_start(arguments, format);
    vsnprintf(failure->text, sizeof(failure->text), format, arguments);
    va_end(arguments);
    return error;
}

const char *failure_errno_name(int error) {
    const char *name = strerrorname_np(abs(error));

    return name == NULL ? "unknown error" : name;
}
