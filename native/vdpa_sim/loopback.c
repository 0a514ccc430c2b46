/* Moves packets from the TX ring of a queue pair into its RX ring. */
#include "loopback.h"

struct loopback_result loopback_run(struct packet *packet, struct ring *tx, struct ring *rx,
                                    const struct packet_form *form, uint32_t budget) {
    struct loopback_result result = {0};

    while (result.delivered + result.dropped < budget) {
        uint16_t tx_head;
        if (packet_take(packet, tx, form, &tx_head) <= 0)
            break;
        enum packet_delivery delivery = packet->bytes == 0 ? PACKET_NEVER : packet_deliver(packet, rx, form);
        if (delivery == PACKET_NOT_YET) {
            ring_unpop(tx, 1);
            break;
        }
        ring_push(tx, tx_head, 0);
        if (delivery == PACKET_NEVER) {
            result.dropped++;
        } else {
            result.delivered++;
            result.bytes += packet->bytes;
        }
    }
    /* Received before sent: if the process is killed in between, a packet comes twice rather than never. */
    if (result.delivered > 0)
        result.rx_interrupt = ring_publish(rx);
    if (result.delivered + result.dropped > 0)
        result.tx_interrupt = ring_publish(tx);
    return result;
}
