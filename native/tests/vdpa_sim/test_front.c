/* The counting of vdpa-front: no frame is taken for another, and the account of sequence numbers is exact. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "frame.h"
#include "tally.h"

static const uint8_t mac[FRAME_MAC] = {2, 0, 0, 0, 0, 1};
static const struct frame_id id = {.stream = 7, .sequence = 123456789, .queue = 3};

static void write_frame(uint8_t *frame, uint32_t len) {
    frame_write(frame, len, mac, mac, &id);
}

static void turns_a_frame_round(void **state) {
    static const uint8_t other[FRAME_MAC] = {2, 0, 0, 0, 0, 2},
                         all[FRAME_MAC] = {255, 255, 255, 255, 255, 255};
    uint8_t frame[FRAME_MIN], back[FRAME_MIN];
    (void)state;

    frame_write(frame, sizeof(frame), all, mac, &id);
    frame_write(back, sizeof(back), mac, other, &id);
    frame_turn(frame, other);
    assert_memory_equal(frame, back, sizeof(frame));
}

static void reads_what_it_wrote(void **state) {
    uint8_t frame[FRAME_MAX];
    struct frame_id out;
    (void)state;

    for (uint32_t len = FRAME_MIN; len <= FRAME_MAX; len++) {
        write_frame(frame, len);
        assert_int_equal(frame_read(frame, len, len, id.stream, &out), FRAME_OK);
        assert_int_equal(out.sequence, id.sequence);
        assert_int_equal(out.queue, id.queue);
    }
}

static void sees_each_flipped_bit_after_the_addresses(void **state) {
    uint8_t frame[131];
    struct frame_id out;
    (void)state;

    for (uint32_t bit = 12 * 8; bit < sizeof(frame) * 8; bit++) {
        write_frame(frame, sizeof(frame));
        frame[bit / 8] ^= (uint8_t)(1U << bit % 8);
        assert_int_not_equal(frame_read(frame, sizeof(frame), sizeof(frame), id.stream, &out), FRAME_OK);
    }
}

static void tells_foreign_from_corrupt(void **state) {
    uint8_t frame[128];
    struct frame_id out;
    (void)state;

    write_frame(frame, sizeof(frame));
    assert_int_equal(frame_read(frame, sizeof(frame), sizeof(frame), id.stream + 1, &out), FRAME_FOREIGN);
    assert_int_equal(frame_read(frame, sizeof(frame) - 1, sizeof(frame), id.stream, &out), FRAME_CORRUPT);
    assert_int_equal(frame_read(frame, 20, sizeof(frame), id.stream, &out), FRAME_FOREIGN);
    frame[127] ^= 1;
    assert_int_equal(frame_read(frame, sizeof(frame), sizeof(frame), id.stream, &out), FRAME_CORRUPT);
    frame[12] ^= 1;
    assert_int_equal(frame_read(frame, sizeof(frame), sizeof(frame), id.stream, &out), FRAME_FOREIGN);
}

static void receive(struct tally *tally, uint64_t first, uint64_t end) {
    for (uint64_t s = first; s < end; s++)
        tally_receive(tally, s);
}

static void counts_a_clean_run(void **state) {
    static struct tally tally;
    (void)state;

    tally = (struct tally){.sent = 200000};
    receive(&tally, 0, 199990);
    assert_int_equal(tally.received, 199990);
    assert_int_equal(tally_lost(&tally), 0);
    assert_int_equal(tally_in_flight(&tally), 10);
    assert_int_equal(tally.duplicated + tally.reordered + tally.corrupt, 0);
}

static void counts_losses_late_ones_and_duplicates(void **state) {
    static struct tally tally;
    (void)state;

    tally = (struct tally){.sent = 1000};
    receive(&tally, 0, 10);
    receive(&tally, 13, 20); /* 10, 11, 12 are missing */
    assert_int_equal(tally_lost(&tally), 3);
    tally_receive(&tally, 11);
    assert_int_equal(tally_lost(&tally), 2);
    assert_int_equal(tally.reordered, 1);
    tally_receive(&tally, 11);
    tally_receive(&tally, 5);
    tally_receive(&tally, 19);
    assert_int_equal(tally.duplicated, 3);
    assert_int_equal(tally.received, 18);
    assert_int_equal(tally_in_flight(&tally), 980);
}

static void does_not_believe_what_was_never_sent(void **state) {
    static struct tally tally;
    (void)state;

    tally = (struct tally){.sent = 5};
    tally_receive(&tally, 5);
    tally_receive(&tally, UINT64_MAX);
    assert_int_equal(tally.corrupt, 2);
    assert_int_equal(tally.received, 0);
    assert_int_equal(tally_in_flight(&tally), 5);
}

static void keeps_the_window_apart_from_what_it_was(void **state) {
    static struct tally tally;
    (void)state;

    tally = (struct tally){.sent = 10 * TALLY_WINDOW};
    receive(&tally, 0, 100);
    tally_receive(&tally, TALLY_WINDOW + 50); /* its place is that of 50, which was received */
    tally_receive(&tally, TALLY_WINDOW + 20); /* late, not a duplicate of 20 */
    assert_int_equal(tally.reordered, 1);
    assert_int_equal(tally.duplicated, 0);
    tally_receive(&tally, 5 * TALLY_WINDOW); /* a gap larger than the window */
    tally_receive(&tally, 4 * TALLY_WINDOW + 50);
    assert_int_equal(tally.reordered, 2);
    assert_int_equal(tally.duplicated, 0);
    tally_receive(&tally, 51); /* so old that it counts as come twice */
    assert_int_equal(tally.duplicated, 1);
}

/* Against the simplest possible account: one byte per number. */
static void agrees_with_a_simple_account(void **state) {
    enum { SENT = 5000 };
    static struct tally tally;
    uint8_t times[SENT] = {0};
    uint64_t distinct = 0, highest = 0, duplicated = 0;
    (void)state;

    srand(1);
    tally = (struct tally){.sent = SENT};
    for (int i = 0; i < 4000; i++) {
        uint64_t s = (uint64_t)rand() % SENT;
        tally_receive(&tally, s);
        if (times[s]++ == 0)
            distinct++;
        else
            duplicated++;
        highest = s > highest ? s : highest;
    }
    assert_int_equal(tally.received, distinct);
    assert_int_equal(tally.duplicated, duplicated);
    assert_int_equal(tally_lost(&tally), highest + 1 - distinct);
    assert_int_equal(tally_in_flight(&tally), SENT - 1 - highest);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turns_a_frame_round),
        cmocka_unit_test(reads_what_it_wrote),
        cmocka_unit_test(sees_each_flipped_bit_after_the_addresses),
        cmocka_unit_test(tells_foreign_from_corrupt),
        cmocka_unit_test(counts_a_clean_run),
        cmocka_unit_test(counts_losses_late_ones_and_duplicates),
        cmocka_unit_test(does_not_believe_what_was_never_sent),
        cmocka_unit_test(keeps_the_window_apart_from_what_it_was),
        cmocka_unit_test(agrees_with_a_simple_account),
    };

    return cmocka_run_group_tests_name("front", tests, NULL, NULL);
}
