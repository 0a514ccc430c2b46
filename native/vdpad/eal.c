/* DPDK's environment abstraction layer: started with arguments of our own, its log lines turned into ours. */
#include "eal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_log.h>
#include <rte_version.h>

/*
 * Megabytes for vhost's own tables where there are no hugepages: an upper bound of anonymous memory, of which
 * only what is used gets pages.
 */
#define MEMORY_WITHOUT_HUGEPAGES "256"

/* DPDK learns from it which CPUs there are, and blames its own arguments where it is missing. */
#define CPUS "/sys/devices/system/cpu"

#define ARGUMENTS_MAX 16
#define ARGUMENT_SIZE 128

const char *eal_version(void) {
    const char *version = rte_version();

    return strncmp(version, "DPDK ", 5) == 0 ? version + 5 : version;
}

void eal_forget_error(struct eal *eal) {
    pthread_mutex_lock(&eal->mutex);
    eal->error[0] = '\0';
    pthread_mutex_unlock(&eal->mutex);
}

void eal_first_error(struct eal *eal, char *text, size_t size) {
    pthread_mutex_lock(&eal->mutex);
    snprintf(text, size, "%s", eal->error);
    pthread_mutex_unlock(&eal->mutex);
}

/* DPDK says at its level "info" each message of each front end: that is detail here. */
static enum log_level level_from_dpdk(int level) {
    if (level <= (int)RTE_LOG_ERR)
        return LEVEL_ERROR;
    if (level == (int)RTE_LOG_WARNING)
        return LEVEL_WARNING;
    return level == (int)RTE_LOG_NOTICE ? LEVEL_INFO : LEVEL_DEBUG;
}

static unsigned int level_to_dpdk(enum log_level level) {
    switch (level) {
    case LEVEL_ERROR:
        return RTE_LOG_ERR;
    case LEVEL_WARNING:
        return RTE_LOG_WARNING;
    case LEVEL_INFO:
        return RTE_LOG_NOTICE;
    default:
        return RTE_LOG_DEBUG;
    }
}

/* Called when DPDK flushes the stream, which it does after each message, on the thread that logs. */
static ssize_t take_log(void *cookie, const char *buffer, size_t size) {
    struct eal *eal = cookie;
    enum log_level level = level_from_dpdk(rte_log_cur_msg_loglevel());
    const char *end = buffer + size;

    for (const char *line = buffer; line < end;) {
        const char *feed = memchr(line, '\n', (size_t)(end - line));
        const char *stop = feed == NULL ? end : feed;
        int length = (int)(stop - line);

        if (length > 0) {
            log_line(eal->log, level, "%.*s", length, line);
            if (level == LEVEL_ERROR) {
                pthread_mutex_lock(&eal->mutex);
                /* The first of several: the later ones only say that something failed. */
                if (eal->error[0] == '\0')
                    snprintf(eal->error, sizeof(eal->error), "%.*s", length, line);
                pthread_mutex_unlock(&eal->mutex);
            }
        }
        line = stop + 1;
    }
    return (ssize_t)size;
}

static int open_log(struct eal *eal) {
    const cookie_io_functions_t functions = {.write = take_log};

    eal->stream = fopencookie(eal, "w", functions);
    if (eal->stream == NULL)
        return -ENOMEM;
    rte_log_set_global_level(level_to_dpdk(eal->log->level));
    if (rte_openlog_stream(eal->stream) != 0)
        return -EIO;
    return 0;
}

static void close_log(struct eal *eal) {
    if (eal->stream == NULL)
        return;
    /* The threads of DPDK live on: what they say from now on goes to stderr as it is. */
    rte_openlog_stream(NULL);
    fclose(eal->stream);
    eal->stream = NULL;
}

/* rte_eal_init() wants strings that it may write to. */
struct arguments {
    int count;
    char words[ARGUMENTS_MAX][ARGUMENT_SIZE];
};

static void add(struct arguments *arguments, const char *word) {
    snprintf(arguments->words[arguments->count++], ARGUMENT_SIZE, "%s", word);
}

static int init_eal(const struct eal_settings *settings) {
    struct arguments arguments = {.count = 0};
    char *pointers[ARGUMENTS_MAX + 1] = {NULL};
    char lcores[32];

    /* "0@N": lcore 0 on CPU N, so that a CPU number may be higher than DPDK's highest lcore. */
    snprintf(lcores, sizeof(lcores), "0@%u", settings->cpu);
    add(&arguments, "vdpad");
    add(&arguments, "--lcores");
    add(&arguments, lcores);
    add(&arguments, "--file-prefix");
    add(&arguments, settings->file_prefix);
    add(&arguments, "--no-telemetry");
    if (settings->hugepages) {
        add(&arguments, "--in-memory");
    } else {
        add(&arguments, "--no-huge");
        add(&arguments, "--no-shconf");
        add(&arguments, "-m");
        add(&arguments, MEMORY_WITHOUT_HUGEPAGES);
    }
    if (settings->simulate) {
        add(&arguments, "--no-pci");
    } else {
        /* An address that no device has: nothing is probed that was not asked for. */
        add(&arguments, "-a");
        add(&arguments, "0000:00:00.0");
    }
    for (int i = 0; i < arguments.count; i++)
        pointers[i] = arguments.words[i];
    if (rte_eal_init(arguments.count, pointers) >= 0)
        return 0;
    return rte_errno == 0 ? -EIO : -rte_errno;
}

/*
 * DPDK makes a directory for each file prefix and leaves it for ever. Without shared configuration it stays
 * empty, so it can go at once, before anything can kill this process.
 */
static void remove_runtime_directory(void) {
    const char *directory = rte_eal_get_runtime_dir();

    if (directory[0] != '\0')
        rmdir(directory);
}

int eal_start(struct eal *eal, const struct log *log, const struct eal_settings *settings,
              struct failure *failure) {
    char said[256];
    int error;

    *eal = (struct eal){.log = log, .mutex = PTHREAD_MUTEX_INITIALIZER};
    error = open_log(eal);
    if (error != 0) {
        close_log(eal);
        return failure_set(failure, error, FAILURE_DPDK, "cannot take DPDK's log: %s", strerror(-error));
    }
    if (access(CPUS, F_OK) != 0) {
        error = -errno;
        close_log(eal);
        return failure_set(failure, error, FAILURE_DPDK,
                           "DPDK cannot start: %s: %s; mount -t sysfs sysfs /sys", CPUS, strerror(-error));
    }
    error = init_eal(settings);
    remove_runtime_directory();
    if (error != 0) {
        eal_first_error(eal, said, sizeof(said));
        close_log(eal);
        return failure_set(failure, error, FAILURE_DPDK, "DPDK cannot start: %s (%s)%s",
                           said[0] == '\0' ? strerror(-error) : said, failure_errno_name(error),
                           settings->hugepages ? "; without hugepages, use --memory none" : "");
    }
    eal->started = true;
    return 0;
}

void eal_stop(struct eal *eal) {
    if (!eal->started)
        return;
    rte_eal_cleanup();
    close_log(eal);
    pthread_mutex_destroy(&eal->mutex);
    eal->started = false;
}
