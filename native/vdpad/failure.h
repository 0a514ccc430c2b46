/* Why a request was refused: a JSON-RPC error code and a text for people. */
#ifndef VDPAD_FAILURE_H
#define VDPAD_FAILURE_H

enum failure_code {
    FAILURE_PARSE = -32700,
    FAILURE_INVALID_REQUEST = -32600,
    FAILURE_NO_METHOD = -32601,
    FAILURE_BAD_PARAMS = -32602,
    FAILURE_NO_DEVICE = -32001,
    FAILURE_DEVICE_EXISTS = -32002,
    FAILURE_DPDK = -32003,
    FAILURE_SOCKET = -32004,
    FAILURE_NOT_SUPPORTED = -32005,
    FAILURE_TABLE_FULL = -32006,
};

struct failure {
    enum failure_code code;
    char text[640];
};

/* Fills `failure` and returns `error`, a negative errno, so that a caller can return in one line. */
int failure_set(struct failure *failure, int error, enum failure_code code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The symbolic name of an errno, of either sign: "ENOENT". */
const char *failure_errno_name(int error);

#endif
