/* A tap device of Linux that was made beforehand: opened without any capability, read and written by frame.
 */
#include "tap.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/if_tun.h>

static const char device[] = "/dev/net/tun";

/* How to make one that this user may open. */
static void say(char *problem, size_t size, const char *name, const char *what) {
    snprintf(problem, size,
             "uplink=%s %s: run ip tuntap add dev %s mode tap vnet_hdr user %u && ip link set %s up", name,
             what, name, (unsigned int)geteuid(), name);
}

/* A tap of several queues is only opened as one of these, and one of a single queue only as that. */
static int attach(int fd, const char *name) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    const struct ifreq several = {.ifr_flags = (short)(request.ifr_flags | IFF_MULTI_QUEUE)};

    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    if (ioctl(fd, TUNSETIFF, &request) == 0)
        return 0;
    if (errno != EINVAL)
        return -errno;
    request.ifr_flags = several.ifr_flags;
    return ioctl(fd, TUNSETIFF, &request) == 0 ? 0 : -errno;
}

/* What an earlier user of the device may have left otherwise. */
static int settle(int fd) {
    const int header = TAP_HEADER, little = 1;

    return ioctl(fd, TUNSETVNETHDRSZ, &header) == 0 && ioctl(fd, TUNSETVNETLE, &little) == 0 &&
                   ioctl(fd, TUNSETOFFLOAD, 0) == 0
               ? 0
               : -errno;
}

int tap_open(const char *name, char *problem, size_t size) {
    int fd, rc;

    /* With the capability to do so, the kernel would make it. */
    if (if_nametoindex(name) == 0) {
        say(problem, size, name, "is not a device here");
        return -ENODEV;
    }
    fd = open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        rc = -errno;
        snprintf(problem, size,
                 "uplink=%s needs %s (%s): load the module tun, give the container that device", name, device,
                 strerror(errno));
        return rc;
    }
    rc = attach(fd, name);
    if (rc == 0)
        rc = settle(fd);
    if (rc == 0)
        return fd;
    close(fd);
    if (rc == -EBUSY)
        snprintf(problem, size, "uplink=%s is in use: each switch needs a tap of its own", name);
    else if (rc == -EPERM)
        say(problem, size, name, "is another user's: delete it, and");
    else if (rc == -EINVAL)
        say(problem, size, name, "is not a tap: delete it, or name another, and");
    else
        snprintf(problem, size, "uplink=%s cannot be opened: %s", name, strerror(-rc));
    return rc;
}
