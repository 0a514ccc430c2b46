/* Log lines on a file descriptor, one write each: "LEVEL: MESSAGE". */
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Below PIPE_BUF (4096), so that lines of several threads never interleave in a pipe. */
#define LINE_SIZE 2048

static const char *const words[] = {"debug", "info", "warning", "error"};

int log_level_parse(const char *word, enum log_level *level) {
    for (unsigned int i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(word, words[i]) == 0) {
            *level = (enum log_level)i;
            return 0;
        }
    }
    return -EINVAL;
}

const char *log_level_word(enum log_level level) {
    return words[level];
}

void log_line(const struct log *log, enum log_level level, const char *format, ...) {
    char line[LINE_SIZE];
    va_list arguments;
    size_t start;
    size_t length;

    if (level < log->level)
        return;
    start = (size_t)snprintf(line, sizeof(line), "%s: ", words[level]);
    va_start(arguments, format);
    vsnprintf(line + start, sizeof(line) - start, format, arguments);
    va_end(arguments);
    length = strlen(line);
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)line[i];

        if (byte < 0x20 || byte == 0x7f)
            line[i] = '?';
    }
    /* In the place of the terminating zero. */
    line[length++] = '\n';
    /* A reader that went away does not end the daemon: there is nowhere to report it. */
    while (write(log->fd, line, length) < 0 && errno == EINTR)
        ;
}
