/* The agent's bytes through the line reader of the control channel. */
#include "control.h"
#include "target.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static json_t *call_echo(void *context, const json_t *params, struct failure *failure) {
    (void)context;
    if (params == NULL) {
        failure_set(failure, -1, FAILURE_BAD_PARAMS, "no params");
        return NULL;
    }
    return json_deep_copy(params);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const struct control_method methods[] = {{"echo", call_echo}, {NULL, NULL}};
    struct control *control;
    int ends[2];

    if (size > 32768 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return 0;
    control = calloc(1, sizeof(*control));
    if (control != NULL) {
        control_init(control, ends[1], methods, NULL);
        if (send(ends[0], data, size, MSG_DONTWAIT) == (ssize_t)size) {
            shutdown(ends[0], SHUT_WR);
            /* Bounded: a step handles what one read brought. */
            for (int steps = 0; steps < 64 && !control->ended && control_step(control) == 0; steps++)
                while (recv(ends[0], (char[4096]){0}, 4096, MSG_DONTWAIT) > 0)
                    ;
        }
        control_destroy(control);
        free(control);
    }
    close(ends[0]);
    close(ends[1]);
    return 0;
}
