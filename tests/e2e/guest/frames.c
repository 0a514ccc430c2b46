/* Sends Ethernet frames of all sizes by eth0 and counts those that come back as
 * they were: frames COUNT PATIENCE_S. */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { ETHERTYPE = 0x88b5 /* for local experiments */, ON_THE_WAY = 32 };

struct head {
  struct ether_header ether;
  uint32_t run; /* a frame of an earlier run may come late */
  uint32_t number;
} __attribute__((packed));

static size_t make(uint8_t *frame, uint32_t number) {
  const size_t size = ETH_ZLEN + number * 7 % (ETH_FRAME_LEN - ETH_ZLEN + 1);
  const struct head head = {.ether = {.ether_dhost = {2, 0, 0, 0, 0, 1},
                                      .ether_shost = {2, 0, 0, 0, 0, 2},
                                      .ether_type = htons(ETHERTYPE)},
                            .run = (uint32_t)getpid(),
                            .number = number};

  memcpy(frame, &head, sizeof(head));
  for (size_t i = sizeof(head); i < size; i++)
    frame[i] = (uint8_t)(number + i);
  return size;
}

static bool is_of_this_run(const uint8_t *frame) {
  const uint32_t run = (uint32_t)getpid();

  return memcmp(frame + offsetof(struct head, run), &run, sizeof(run)) == 0;
}

int main(int argc, char **argv) {
  const uint32_t count = argc == 3 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0;
  const struct timeval patience = {
      .tv_sec = argc == 3 ? strtol(argv[2], NULL, 10) : 0};
  const struct sockaddr_ll at = {
      .sll_family = AF_PACKET,
      .sll_protocol = htons(ETHERTYPE), /* so what is sent is not seen here */
      .sll_ifindex = (int)if_nametoindex("eth0")};
  uint8_t frame[ETH_FRAME_LEN], back[ETH_FRAME_LEN];
  uint32_t sent = 0, returned = 0, corrupt = 0;
  bool passing = true;
  int fd = socket(AF_PACKET, SOCK_RAW, htons(ETHERTYPE));

  if (fd < 0 || bind(fd, (const struct sockaddr *)&at, sizeof(at)) != 0 ||
      setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) !=
          0) {
    perror("frames");
    return 1;
  }
  while (passing && returned < count) {
    while (passing && sent < count && sent - returned < ON_THE_WAY) {
      passing = send(fd, frame, make(frame, sent), 0) >= 0;
      sent += passing;
    }
    ssize_t size = recv(fd, back, sizeof(back), 0);
    passing = passing && size >= 0;
    if (size < 0 || !is_of_this_run(back))
      continue;
    corrupt += (size_t)size != make(frame, returned) ||
               memcmp(frame, back, (size_t)size) != 0;
    returned++;
  }
  printf("frames sent %u returned %u corrupt %u\n", sent, returned, corrupt);
  return 0;
}
