/* The command line of vdpa-front. */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frame.h"

static const char usage[] =
    "usage: vdpa-front --path SOCKET [options]\n"
    "\n"
    "A DPDK virtio-user front end that sends numbered packets into a vhost-user socket\n"
    "and counts what comes back.\n"
    "\n"
    "  --path SOCKET          the vhost-user socket\n"
    "  --server               create the socket and wait for the back end, instead of connecting;\n"
    "                         survives restarts of the back end\n"
    "  --mode MODE            send: send, and count what comes back; echo: send each frame back to its "
    "sender;\n"
    "                         listen: count what comes (default send)\n"
    "  --mac MAC              address of the port (default: any)\n"
    "  --to MAC               where frames are sent to (default: the port itself)\n"
    "  --queues N             queue pairs, 1 to 8 (default 1)\n"
    "  --rate PPS             packets a second over all queues, 0 for as fast as it goes (default 50000)\n"
    "  --size BYTES           frame length, 64 to 1500 (default 128)\n"
    "  --packets N            stop after N packets\n"
    "  --seconds S            stop after S seconds; without --packets and --seconds, on SIGTERM or SIGINT\n"
    "  --interval S           seconds between two interval lines (default 1)\n"
    "  --connect-timeout S    seconds to wait for the back end (default 10)\n"
    "  --memory MODE          auto, hugepages or none (default auto)\n"
    "  --format FORMAT        json (one object a line) or text (default json)\n"
    "  --lcore N              CPU to run on (default: the first allowed one)\n"
    "  --version, --help\n"
    "\n"
    "exit codes: 0 everything came back intact, or it was not to send; 1 losses, corruption or nothing sent; "
    "2 usage;\n"
    "5 no connection in time\n";

/* Parses all of `text` as a number within [min, max]; -EINVAL after an error message if it is not one. */
static int number(const char *name, const char *text, double min, double max, double *out) {
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end != '\0' || !(value >= min && value <= max)) {
        fprintf(stderr, "error: --%s %s is not a number from %g to %.15g\n", name, text, min, max);
        return -EINVAL;
    }
    *out = value;
    return 0;
}

static int integer(const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *out) {
    char *end;

    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value < min || value > max) {
        fprintf(stderr, "error: --%s %s is not an integer from %llu to %llu\n", name, text,
                (unsigned long long)min, (unsigned long long)max);
        return -EINVAL;
    }
    *out = value;
    return 0;
}

/* The index of `text` in the NULL-terminated `words`, or -EINVAL after an error message. */
static int word(const char *name, const char *text, const char *const *words) {
    for (int i = 0; words[i] != NULL; i++)
        if (strcmp(text, words[i]) == 0)
            return i;
    fprintf(stderr, "error: --%s %s is unknown: see --help for its values\n", name, text);
    return -EINVAL;
}

static int mac(const char *name, const char *text, uint8_t out[FRAME_MAC]) {
    unsigned int parts[FRAME_MAC];
    int end = 0;

    if (strlen(text) == 17 && strspn(text, "0123456789abcdefABCDEF:") == 17 &&
        sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &parts[0], &parts[1], &parts[2], &parts[3], &parts[4],
               &parts[5], &end) == FRAME_MAC &&
        end == 17) {
        for (int i = 0; i < FRAME_MAC; i++)
            out[i] = (uint8_t)parts[i];
        return 0;
    }
    fprintf(stderr, "error: --%s %s is not an address such as 02:00:00:00:00:01\n", name, text);
    return -EINVAL;
}

static int set(struct options *options, const char *name, const char *value) {
    static const char *const memories[] = {"auto", "hugepages", "none", NULL};
    static const char *const modes[] = {"send", "echo", "listen", NULL};
    static const char *const formats[] = {"json", "text", NULL};
    uint8_t own[FRAME_MAC];
    uint64_t n = 0;
    int rc = 0;

    if (strcmp(name, "path") == 0) {
        options->path = value;
    } else if (strcmp(name, "server") == 0) {
        options->server = true;
    } else if (strcmp(name, "mode") == 0) {
        rc = word(name, value, modes);
        options->mode = (enum mode)rc;
    } else if (strcmp(name, "mac") == 0) {
        rc = mac(name, value, own);
        options->mac = value;
    } else if (strcmp(name, "to") == 0) {
        rc = mac(name, value, options->to);
        options->has_to = true;
    } else if (strcmp(name, "queues") == 0) {
        rc = integer(name, value, 1, OPTIONS_MAX_QUEUES, &n);
        options->queues = (uint16_t)n;
    } else if (strcmp(name, "rate") == 0) {
        rc = integer(name, value, 0, 100000000, &n);
        options->rate_pps = (uint32_t)n;
    } else if (strcmp(name, "size") == 0) {
        rc = integer(name, value, FRAME_MIN, FRAME_MAX, &n);
        options->size_bytes = (uint32_t)n;
    } else if (strcmp(name, "packets") == 0) {
        rc = integer(name, value, 1, UINT64_MAX / 2, &options->packets);
    } else if (strcmp(name, "seconds") == 0) {
        rc = number(name, value, 0.001, 1e9, &options->seconds_s);
    } else if (strcmp(name, "interval") == 0) {
        rc = number(name, value, 0.001, 1e9, &options->interval_s);
    } else if (strcmp(name, "connect-timeout") == 0) {
        rc = number(name, value, 0.001, 1e6, &options->connect_timeout_s);
    } else if (strcmp(name, "memory") == 0) {
        rc = word(name, value, memories);
        options->memory = (enum memory)rc;
    } else if (strcmp(name, "format") == 0) {
        rc = word(name, value, formats);
        options->text = rc == 1;
    } else if (strcmp(name, "lcore") == 0) {
        rc = integer(name, value, 0, 1023, &n);
        options->lcore = (int)n;
    }
    return rc < 0 ? rc : 0;
}

int options_parse(struct options *options, int argc, char **argv) {
    static const struct option longopts[] = {
        {"path", required_argument, NULL, 0},
        {"server", no_argument, NULL, 0},
        {"mode", required_argument, NULL, 0},
        {"mac", required_argument, NULL, 0},
        {"to", required_argument, NULL, 0},
        {"queues", required_argument, NULL, 0},
        {"rate", required_argument, NULL, 0},
        {"size", required_argument, NULL, 0},
        {"packets", required_argument, NULL, 0},
        {"seconds", required_argument, NULL, 0},
        {"interval", required_argument, NULL, 0},
        {"memory", required_argument, NULL, 0},
        {"connect-timeout", required_argument, NULL, 0},
        {"format", required_argument, NULL, 0},
        {"lcore", required_argument, NULL, 0},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},
        {NULL, 0, NULL, 0},
    };
    int opt, index = 0;

    *options = (struct options){
        .queues = 1,
        .rate_pps = 50000,
        .size_bytes = 128,
        .interval_s = 1,
        .connect_timeout_s = 10,
        .lcore = -1,
    };
    while ((opt = getopt_long(argc, argv, "", longopts, &index)) != -1) {
        if (opt == 'h') {
            fputs(usage, stdout);
            return 1;
        }
        if (opt == 'v') {
            puts("vdpa-front " VDPA_FRONT_VERSION);
            return 1;
        }
        if (opt != 0) /* getopt has said what is wrong */
            return -EINVAL;
        int rc = set(options, longopts[index].name, optarg);
        if (rc != 0)
            return rc;
    }
    if (optind < argc) {
        fprintf(stderr, "error: unexpected argument '%s': see --help\n", argv[optind]);
        return -EINVAL;
    }
    if (options->path == NULL) {
        fprintf(stderr, "error: --path is missing: give the vhost-user socket\n");
        return -EINVAL;
    }
    /* The comma ends a device argument; the length is that of sun_path. */
    if (options->path[0] == '\0' || strlen(options->path) > 107 || strchr(options->path, ',') != NULL) {
        fprintf(stderr, "error: --path '%s' cannot be used: give 1 to 107 bytes without a comma\n",
                options->path);
        return -EINVAL;
    }
    return 0;
}
