/* The command line of vdpa-front. */
#ifndef VDPA_FRONT_OPTIONS_H
#define VDPA_FRONT_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "frame.h"

/* What it does with packets. */
enum mode {
    MODE_SEND,   /* sends, and counts what comes back */
    MODE_ECHO,   /* sends each frame back to where it came from */
    MODE_LISTEN, /* counts what comes */
};

enum memory { MEMORY_AUTO, MEMORY_HUGEPAGES, MEMORY_NONE };

struct options {
    const char *path;
    bool server;
    bool text;
    enum memory memory;
    enum mode mode;
    const char *mac; /* of the port; NULL: any */
    bool has_to;     /* frames are sent to `to`, and not to the port itself */
    uint8_t to[FRAME_MAC];
    uint16_t queues;
    uint32_t rate_pps; /* 0: as fast as it goes */
    uint32_t size_bytes;
    uint64_t packets; /* 0: no limit */
    double seconds_s; /* 0: no limit */
    double interval_s;
    double connect_timeout_s;
    int lcore; /* -1: the first allowed CPU */
};

enum { OPTIONS_MAX_QUEUES = 8 };

/* 0: go on; 1: help or version was printed on stdout; -EINVAL: said on stderr what is wrong. */
int options_parse(struct options *options, int argc, char **argv);

#endif
