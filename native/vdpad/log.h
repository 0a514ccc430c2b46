/* Log lines on a file descriptor, one write each: "LEVEL: MESSAGE". */
#ifndef VDPAD_LOG_H
#define VDPAD_LOG_H

enum log_level { LEVEL_DEBUG, LEVEL_INFO, LEVEL_WARNING, LEVEL_ERROR };

struct log {
    enum log_level level;
    int fd;
};

/*
 * Writes one line if `level` is high enough.
 * Control characters become '?', so one call is one line. Any thread.
 */
void log_line(const struct log *log, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Parses "debug", "info", "warning" or "error"; -EINVAL for anything else. */
int log_level_parse(const char *word, enum log_level *level);

const char *log_level_word(enum log_level level);

#endif
