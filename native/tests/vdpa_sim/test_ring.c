/* The checks of ring.c: what is right is taken exactly, and each violation breaks the ring without harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "guest.h"

enum { SIZE = 8 };

struct fixture {
    struct guest guest;
    struct guest_ring ring;
    struct ring_buffer buffer;
    uint16_t head;
};

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    guest_init(&f->guest);
    guest_ring_init(&f->guest, &f->ring, SIZE, 0);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;

    guest_free(&f->guest);
    free(f);
    return 0;
}

static int pop(struct fixture *f, enum ring_direction direction) {
    return ring_pop(&f->ring.ring, direction, &f->buffer, &f->head);
}

static void assert_breaks(struct fixture *f, enum ring_direction direction, const char *part) {
    guest_offer(&f->ring, 0);
    assert_int_equal(pop(f, direction), -EPROTO);
    assert_non_null(f->ring.ring.fault);
    assert_non_null(strstr(f->ring.ring.fault, part));
    assert_int_equal(f->buffer.count, 0);
    /* It stays broken, whatever is offered next. */
    guest_set(&f->ring, 1, LEFT, 64, direction == RING_WRITE ? VRING_DESC_F_WRITE : 0, 0);
    guest_offer(&f->ring, 1);
    assert_int_equal(pop(f, direction), -EPROTO);
    assert_int_equal(f->ring.used->idx, 0);
}

static void takes_a_chain_in_order(void **state) {
    struct fixture *f = *state;

    assert_int_equal(pop(f, RING_READ), 0);
    guest_set(&f->ring, 3, LEFT + 100, 10, VRING_DESC_F_NEXT, 7);
    guest_set(&f->ring, 7, RIGHT, 20, VRING_DESC_F_NEXT, 0);
    guest_set(&f->ring, 0, LEFT, 30, 0, 5);
    guest_offer(&f->ring, 3);
    assert_int_equal(pop(f, RING_READ), 1);
    assert_int_equal(f->head, 3);
    assert_int_equal(f->buffer.count, 3);
    assert_int_equal(f->buffer.bytes, 60);
    assert_ptr_equal(f->buffer.spans[0].base, guest_host(&f->guest, LEFT + 100));
    assert_ptr_equal(f->buffer.spans[1].base, guest_host(&f->guest, RIGHT));
    assert_ptr_equal(f->buffer.spans[2].base, guest_host(&f->guest, LEFT));
    assert_int_equal(pop(f, RING_READ), 0);
}

static const struct ring_features indirect = {.indirect = true}, events = {.event_idx = true};

/* An indirect table at a guest address; the one descriptor that leads to it. */
static struct vring_desc *lay_table(struct fixture *f, uint64_t addr, uint32_t count, uint16_t flags) {
    guest_set(&f->ring, 0, addr, count * (uint32_t)sizeof(struct vring_desc),
              (uint16_t)(VRING_DESC_F_INDIRECT | flags), 1);
    guest_set(&f->ring, 1, LEFT, 8, 0, 0);
    assert_int_equal(ring_negotiate(&f->ring.ring, &indirect), 0);
    return (struct vring_desc *)(void *)guest_host(&f->guest, addr);
}

static void takes_an_indirect_chain(void **state) {
    struct fixture *f = *state;
    /* Up to the very end of a region, for the sanitizer. */
    struct vring_desc *table = lay_table(f, RIGHT + DATA_SIZE - 3 * sizeof(*table), 3, 0);

    table[0] = (struct vring_desc){.addr = LEFT + 100, .len = 10, .flags = VRING_DESC_F_NEXT, .next = 2};
    table[2] = (struct vring_desc){.addr = RIGHT, .len = 20};
    guest_offer(&f->ring, 0);
    assert_int_equal(pop(f, RING_READ), 1);
    assert_int_equal(f->head, 0);
    assert_int_equal(f->buffer.count, 2);
    assert_ptr_equal(f->buffer.spans[1].base, guest_host(&f->guest, RIGHT));
    /* Behind a descriptor of the ring itself. */
    guest_set(&f->ring, 3, LEFT, 7, VRING_DESC_F_NEXT, 0);
    guest_offer(&f->ring, 3);
    f->buffer = (struct ring_buffer){0};
    assert_int_equal(pop(f, RING_READ), 1);
    assert_int_equal(f->buffer.bytes, 37);
}

static void breaks_on_a_wrong_indirect_table(void **state) {
    static const struct {
        uint64_t addr;
        uint32_t count;
        uint16_t flags;
        struct vring_desc first;
        const char *part;
    } cases[] = {
        {LEFT, 1, VRING_DESC_F_NEXT, {LEFT, 8, 0, 0}, "not the last one"},
        {LEFT, 0, 0, {LEFT, 8, 0, 0}, "wrong length"},
        {LEFT, SIZE + 1, 0, {LEFT, 8, 0, 0}, "wrong length"},
        {HOLE, 1, 0, {LEFT, 8, 0, 0}, "not within a region"},
        {HOLE - 16, 2, 0, {LEFT, 8, 0, 0}, "not within a region"},
        {RIGHT - 16, 2, 0, {LEFT, 8, 0, 0}, "not within a region"},
        {LEFT + 4, 1, 0, {LEFT, 8, 0, 0}, "not aligned"},
        {UINT64_MAX - 15, 1, 0, {LEFT, 8, 0, 0}, "not within a region"},
        {LEFT, 1, 0, {LEFT, 8, VRING_DESC_F_NEXT, 1}, "out of range"},
        {LEFT, 2, 0, {LEFT, 8, VRING_DESC_F_NEXT, 0}, "loops"},
        {LEFT, 1, 0, {LEFT, 16, VRING_DESC_F_INDIRECT, 0}, "in an indirect table"},
        {LEFT, 1, 0, {HOLE, 8, 0, 0}, "outside the guest's memory"},
        {LEFT, 1, 0, {LEFT, 8, VRING_DESC_F_WRITE, 0}, "not readable"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fixture *f = *state;
        guest_ring_init(&f->guest, &f->ring, SIZE, 0);
        f->buffer = (struct ring_buffer){0};
        bool mapped = cases[i].addr < HOLE && cases[i].addr % 8 == 0;
        struct vring_desc *table =
            lay_table(f, mapped ? cases[i].addr : LEFT, cases[i].count, cases[i].flags);
        f->ring.desc[0].addr = cases[i].addr;
        *table = cases[i].first;
        assert_breaks(f, RING_READ, cases[i].part);
    }
}

/* Whose first descriptor leads to the table again. */
static void breaks_on_an_indirect_table_that_is_the_ring_itself(void **state) {
    struct fixture *f = *state;

    lay_table(f, RINGS, 1, 0);
    assert_ptr_equal(f->ring.desc, guest_host(&f->guest, RINGS));
    assert_breaks(f, RING_READ, "in an indirect table");
}

static void interrupts_when_the_event_is_passed(void **state) {
    struct fixture *f = *state;
    struct guest_ring ring;

    guest_ring_init(&f->guest, &ring, SIZE, 65533); /* over the wrap */
    assert_int_equal(ring_negotiate(&ring.ring, &events), 0);
    ring.avail->flags = VRING_AVAIL_F_NO_INTERRUPT; /* says nothing now */
    *guest_used_event(&ring) = 65535;
    for (uint16_t n = 0; n < 6; n++) {
        ring_push(&ring.ring, 0, 0);
        /* The entry numbered 65535 is the third one. */
        assert_int_equal(ring_publish(&ring.ring), n == 2);
    }
    *guest_used_event(&ring) = 5;
    for (uint16_t n = 0; n < 4; n++) /* 3 to 6, at once */
        ring_push(&ring.ring, 0, 0);
    assert_true(ring_publish(&ring.ring));
}

/* As the driver asks: whether adding entries from `before` to `offered` is to be told. */
static bool wants_kick(struct guest_ring *ring, uint16_t before) {
    return vring_need_event(*guest_avail_event(ring), ring->offered, before);
}

static void asks_for_kicks_by_events(void **state) {
    struct fixture *f = *state;
    struct guest_ring ring;

    guest_ring_init(&f->guest, &ring, SIZE, 65534);
    assert_int_equal(ring_negotiate(&ring.ring, &events), 0);
    for (uint16_t n = 0; n < 5; n++) {
        uint16_t before = ring.offered;
        guest_set(&ring, 0, LEFT, 8, 0, 0);
        ring_want_kicks(&ring.ring, n % 2 == 0);
        guest_offer(&ring, 0);
        assert_int_equal(wants_kick(&ring, before), n % 2 == 0);
        before = ring.offered;
        guest_offer(&ring, 0);
        assert_false(wants_kick(&ring, before));
        for (int k = 0; k < 2; k++) {
            f->buffer = (struct ring_buffer){0};
            assert_int_equal(ring_pop(&ring.ring, RING_READ, &f->buffer, &f->head), 1);
        }
    }
    assert_int_equal(ring.used->flags, 0);
}

static void refuses_events_outside_the_memory(void **state) {
    struct fixture *f = *state;
    const size_t used = sizeof(struct vring_used) + SIZE * sizeof(struct vring_used_elem);
    const size_t avail = sizeof(struct vring_avail) + SIZE * sizeof(uint16_t);
    struct ring ring;

    /* The used ring ends with its region; the word behind it would not. */
    assert_int_equal(ring_init(&ring, f->ring.desc, f->ring.avail,
                               (void *)guest_host(&f->guest, HOLE - (used + 3) / 4 * 4), SIZE,
                               &f->guest.memory, 0, 0),
                     0);
    assert_int_equal(ring_negotiate(&ring, &indirect), 0);
    assert_int_equal(ring_negotiate(&ring, &events), -EINVAL);
    /* And the available one. */
    assert_int_equal(ring_init(&ring, f->ring.desc, (void *)guest_host(&f->guest, HOLE - avail), f->ring.used,
                               SIZE, &f->guest.memory, 0, 0),
                     0);
    assert_int_equal(ring_negotiate(&ring, &events), -EINVAL);
}

static void splits_over_adjacent_regions(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, RIGHT - 40, 100, 0, 0);
    guest_offer(&f->ring, 0);
    assert_int_equal(pop(f, RING_READ), 1);
    assert_int_equal(f->buffer.count, 2);
    assert_ptr_equal(f->buffer.spans[0].base, guest_host(&f->guest, RIGHT - 40));
    assert_int_equal(f->buffer.spans[0].len, 40);
    assert_ptr_equal(f->buffer.spans[1].base, guest_host(&f->guest, RIGHT));
    assert_int_equal(f->buffer.spans[1].len, 60);
}

static void takes_the_last_bytes_of_a_region(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, HOLE - 64, 64, 0, 0);
    guest_offer(&f->ring, 0);
    assert_int_equal(pop(f, RING_READ), 1);
    memset(f->buffer.spans[0].base, 0x5a, f->buffer.spans[0].len);
}

static void wraps_its_indexes(void **state) {
    struct fixture *f = *state;
    struct guest_ring ring;
    struct vring_used_elem elem;

    guest_ring_init(&f->guest, &ring, SIZE, 65533);
    for (uint32_t i = 0; i < 20; i++) {
        guest_set(&ring, i % SIZE, LEFT + i, 1 + i, 0, 0);
        guest_offer(&ring, (uint16_t)(i % SIZE));
        f->buffer.count = 0;
        f->buffer.bytes = 0;
        assert_int_equal(ring_pop(&ring.ring, RING_READ, &f->buffer, &f->head), 1);
        assert_int_equal(f->head, i % SIZE);
        assert_int_equal(f->buffer.bytes, 1 + i);
        ring_push(&ring.ring, f->head, i);
        assert_false(guest_reap(&ring, &elem));
        ring_publish(&ring.ring);
        assert_true(guest_reap(&ring, &elem));
        assert_int_equal(elem.id, i % SIZE);
        assert_int_equal(elem.len, i);
    }
    assert_int_equal(ring.used->idx, (uint16_t)(65533 + 20));
}

static void takes_a_full_ring_across_the_wrap(void **state) {
    struct fixture *f = *state;
    struct guest_ring ring;

    guest_ring_init(&f->guest, &ring, SIZE, 65532);
    for (uint16_t i = 0; i < SIZE; i++) {
        guest_set(&ring, i, LEFT, 1, 0, 0);
        guest_offer(&ring, i);
    }
    for (uint16_t i = 0; i < SIZE; i++)
        assert_int_equal(ring_pop(&ring.ring, RING_READ, &f->buffer, &f->head), 1);
    assert_int_equal(ring_pop(&ring.ring, RING_READ, &f->buffer, &f->head), 0);
}

static void gives_back_what_was_unpopped(void **state) {
    struct fixture *f = *state;

    for (uint16_t i = 0; i < 3; i++) {
        guest_set(&f->ring, i, LEFT, 10, 0, 0);
        guest_offer(&f->ring, i);
        assert_int_equal(pop(f, RING_READ), 1);
    }
    ring_unpop(&f->ring.ring, 2);
    assert_int_equal(pop(f, RING_READ), 1);
    assert_int_equal(f->head, 1);
    assert_int_equal(pop(f, RING_READ), 1);
    assert_int_equal(f->head, 2);
    assert_int_equal(pop(f, RING_READ), 0);
}

static void refuses_a_head_out_of_range(void **state) {
    struct fixture *f = *state;

    guest_offer(&f->ring, SIZE);
    assert_int_equal(pop(f, RING_READ), -EPROTO);
    assert_non_null(strstr(f->ring.ring.fault, "index is out of range"));
}

static void refuses_a_next_out_of_range(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, 64, VRING_DESC_F_NEXT, SIZE);
    assert_breaks(f, RING_READ, "index is out of range");
}

static void refuses_a_loop(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, 64, VRING_DESC_F_NEXT, 1);
    guest_set(&f->ring, 1, LEFT, 64, VRING_DESC_F_NEXT, 0);
    assert_breaks(f, RING_READ, "loops");
}

static void refuses_a_receive_loop_beyond_the_largest_packet(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, DATA_SIZE, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 0);
    assert_breaks(f, RING_WRITE, "loops");
}

static void takes_a_chain_of_the_whole_ring(void **state) {
    struct fixture *f = *state;

    for (uint16_t i = 0; i < SIZE; i++)
        guest_set(&f->ring, i, LEFT, 1, i < SIZE - 1 ? VRING_DESC_F_NEXT : 0, (uint16_t)(i + 1));
    guest_offer(&f->ring, 0);
    assert_int_equal(pop(f, RING_READ), 1);
    assert_int_equal(f->buffer.bytes, SIZE);
}

static void refuses_memory_outside(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, HOLE, 1, 0, 0);
    assert_breaks(f, RING_READ, "outside the guest's memory");
}

static void refuses_memory_before(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT - 1, 2, 0, 0);
    assert_breaks(f, RING_READ, "outside the guest's memory");
}

static void refuses_one_byte_too_many(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, HOLE - 64, 65, VRING_DESC_F_WRITE, 0);
    assert_breaks(f, RING_WRITE, "outside the guest's memory");
}

static void refuses_an_address_that_overflows(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, UINT64_MAX - 10, 64, 0, 0);
    assert_breaks(f, RING_READ, "outside the guest's memory");
}

static void refuses_a_range_that_wraps_into_a_region(void **state) {
    struct fixture *f = *state;
    struct ring_region *top = &f->guest.memory.regions[f->guest.memory.count];

    /* A region that ends exactly at the top of the address space, and one that begins at 0. */
    top[0] =
        (struct ring_region){.guest_addr = UINT64_MAX - 0xfff, .size = 0x1000, .host = calloc(1, 0x1000)};
    top[1] = (struct ring_region){.guest_addr = 0, .size = 0x1000, .host = calloc(1, 0x1000)};
    f->guest.memory.count += 2;
    assert_int_equal(ring_memory_check(&f->guest.memory), 0);
    guest_set(&f->ring, 0, UINT64_MAX - 9, 20, 0, 0);
    assert_breaks(f, RING_READ, "wraps around");
}

static void refuses_an_empty_descriptor(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, 0, 0, 0);
    assert_breaks(f, RING_READ, "empty");
}

static void refuses_a_writable_transmit_descriptor(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, 64, VRING_DESC_F_WRITE, 0);
    assert_breaks(f, RING_READ, "not readable");
}

static void refuses_a_read_only_receive_descriptor(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, 64, 0, 0);
    assert_breaks(f, RING_WRITE, "not writable");
}

static void refuses_a_second_descriptor_of_the_wrong_direction(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, 64, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
    guest_set(&f->ring, 1, LEFT, 64, 0, 0);
    guest_offer(&f->ring, 0);
    assert_int_equal(pop(f, RING_WRITE), -EPROTO);
    assert_int_equal(f->buffer.count, 0);
}

static void refuses_an_indirect_descriptor(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, 64, VRING_DESC_F_INDIRECT, 0);
    assert_breaks(f, RING_READ, "indirect");
}

static void refuses_a_packet_beyond_any_mtu(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, RING_MAX_PACKET, VRING_DESC_F_NEXT, 1);
    guest_set(&f->ring, 1, LEFT, 1, 0, 0);
    assert_breaks(f, RING_READ, "longer than any MTU");
}

static void refuses_a_length_that_overflows(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, 64, VRING_DESC_F_NEXT, 1);
    guest_set(&f->ring, 1, LEFT, UINT32_MAX, 0, 0);
    assert_breaks(f, RING_READ, "longer than any MTU");
}

static void takes_a_packet_of_the_largest_mtu(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, RING_MAX_PACKET, 0, 0);
    guest_offer(&f->ring, 0);
    assert_int_equal(pop(f, RING_READ), 1);
    assert_int_equal(f->buffer.bytes, RING_MAX_PACKET);
}

static void uses_no_more_of_a_receive_chain_than_a_packet_needs(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, RING_MAX_PACKET - 1, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
    guest_set(&f->ring, 1, LEFT, 5000, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 2);
    guest_set(&f->ring, 2, LEFT, 5000, VRING_DESC_F_WRITE, 0);
    guest_offer(&f->ring, 0);
    assert_int_equal(pop(f, RING_WRITE), 1);
    assert_int_equal(f->buffer.bytes, RING_MAX_PACKET);
    assert_int_equal(f->buffer.count, 2);
    assert_int_equal(f->buffer.spans[1].len, 1);
}

static void refuses_a_jump_of_the_available_index(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, 64, 0, 0);
    f->ring.avail->idx = SIZE + 1;
    assert_int_equal(pop(f, RING_READ), -EPROTO);
    assert_non_null(strstr(f->ring.ring.fault, "available index"));
}

static void refuses_an_available_index_that_goes_back(void **state) {
    struct fixture *f = *state;

    guest_set(&f->ring, 0, LEFT, 64, 0, 0);
    guest_offer(&f->ring, 0);
    assert_int_equal(pop(f, RING_READ), 1);
    f->ring.avail->idx = 0;
    assert_int_equal(pop(f, RING_READ), -EPROTO);
}

static void refuses_a_chain_of_too_many_pieces(void **state) {
    struct fixture *f = *state;
    struct guest_ring ring;
    const uint16_t size = 2048;

    guest_ring_init(&f->guest, &ring, size, 0);
    for (uint16_t i = 0; i < size; i++)
        guest_set(&ring, i, LEFT, 1, i < size - 1 ? VRING_DESC_F_NEXT : 0, (uint16_t)(i + 1));
    guest_offer(&ring, 0);
    assert_int_equal(ring_pop(&ring.ring, RING_READ, &f->buffer, &f->head), -EPROTO);
    assert_non_null(strstr(ring.ring.fault, "too many pieces"));
}

static void leaves_a_chain_for_which_the_buffer_has_no_room(void **state) {
    struct fixture *f = *state;

    f->buffer.count = RING_MAX_SPANS - 1;
    guest_set(&f->ring, 0, LEFT, 1, VRING_DESC_F_NEXT, 1);
    guest_set(&f->ring, 1, LEFT, 1, 0, 0);
    guest_offer(&f->ring, 0);
    assert_int_equal(pop(f, RING_READ), -ENOBUFS);
    assert_null(f->ring.ring.fault);
    assert_int_equal(f->buffer.count, RING_MAX_SPANS - 1);
    f->buffer.count = 0;
    assert_int_equal(pop(f, RING_READ), 1);
}

static void is_revived_by_a_new_start(void **state) {
    struct fixture *f = *state;
    struct guest_ring *r = &f->ring;

    guest_set(r, 0, HOLE, 64, 0, 0);
    assert_breaks(f, RING_READ, "outside");
    guest_set(r, 0, LEFT, 64, 0, 0);
    assert_int_equal(ring_init(&r->ring, r->desc, r->avail, r->used, r->size, &f->guest.memory, 0, 0), 0);
    assert_int_equal(pop(f, RING_READ), 1);
}

static int init_at(struct fixture *f, void *desc, void *avail, void *used, uint32_t size) {
    struct ring ring;

    return ring_init(&ring, desc, avail, used, size, &f->guest.memory, 0, 0);
}

static void refuses_rings_that_do_not_fit(void **state) {
    struct fixture *f = *state;
    uint8_t *memory = guest_host(&f->guest, LEFT), *end = memory + DATA_SIZE;
    uint8_t *desc = memory, *avail = memory + 4096, *used = memory + 8192;

    assert_int_equal(init_at(f, desc, avail, used, SIZE), 0);
    assert_int_equal(init_at(f, desc, avail, used, 0), -EINVAL);
    assert_int_equal(init_at(f, desc, avail, used, 7), -EINVAL);
    assert_int_equal(init_at(f, desc, avail, used, 65536), -EINVAL);
    assert_int_equal(init_at(f, desc + 8, avail, used, SIZE), -EINVAL);
    assert_int_equal(init_at(f, desc, avail + 1, used, SIZE), -EINVAL);
    assert_int_equal(init_at(f, desc, avail, used + 2, SIZE), -EINVAL);
    assert_int_equal(init_at(f, NULL, avail, used, SIZE), -EINVAL);
    assert_int_equal(init_at(f, end - 16 * SIZE, avail, used, SIZE), 0);
    assert_int_equal(init_at(f, end - 16 * (SIZE - 1), avail, used, SIZE), -EINVAL);
    assert_int_equal(init_at(f, desc, end - 4 - 2 * SIZE, used, SIZE), 0);
    assert_int_equal(init_at(f, desc, end - 2 - 2 * SIZE, used, SIZE), -EINVAL);
    assert_int_equal(init_at(f, desc, avail, end - 4 - 8 * SIZE, SIZE), 0);
    assert_int_equal(init_at(f, desc, avail, end - 8 * SIZE, SIZE), -EINVAL);
}

static void refuses_impossible_regions(void **state) {
    struct ring_memory memory = {.count = 1};
    uint8_t byte = 0;
    (void)state;

    memory.regions[0] = (struct ring_region){.guest_addr = 0, .size = 1, .host = &byte};
    assert_int_equal(ring_memory_check(&memory), 0);
    memory.regions[0].size = 0;
    assert_int_equal(ring_memory_check(&memory), -EINVAL);
    memory.regions[0] = (struct ring_region){.guest_addr = 2, .size = UINT64_MAX, .host = &byte};
    assert_int_equal(ring_memory_check(&memory), -EINVAL);
    memory.regions[0] = (struct ring_region){.guest_addr = 0, .size = 1, .host = NULL};
    assert_int_equal(ring_memory_check(&memory), -EINVAL);
    memory.count = 0;
    assert_int_equal(ring_memory_check(&memory), -EINVAL);
    memory.count = RING_MAX_REGIONS + 1;
    assert_int_equal(ring_memory_check(&memory), -EINVAL);
}

static void asks_and_tells_by_the_flags(void **state) {
    struct fixture *f = *state;

    assert_true(ring_publish(&f->ring.ring));
    f->ring.avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
    assert_false(ring_publish(&f->ring.ring));
    ring_want_kicks(&f->ring.ring, false);
    assert_int_equal(f->ring.used->flags, VRING_USED_F_NO_NOTIFY);
    ring_want_kicks(&f->ring.ring, true);
    assert_int_equal(f->ring.used->flags, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(takes_an_indirect_chain),
        TEST(breaks_on_a_wrong_indirect_table),
        TEST(breaks_on_an_indirect_table_that_is_the_ring_itself),
        TEST(interrupts_when_the_event_is_passed),
        TEST(asks_for_kicks_by_events),
        TEST(refuses_events_outside_the_memory),
        TEST(takes_a_chain_in_order),
        TEST(splits_over_adjacent_regions),
        TEST(takes_the_last_bytes_of_a_region),
        TEST(wraps_its_indexes),
        TEST(takes_a_full_ring_across_the_wrap),
        TEST(gives_back_what_was_unpopped),
        TEST(refuses_a_head_out_of_range),
        TEST(refuses_a_next_out_of_range),
        TEST(refuses_a_loop),
        TEST(refuses_a_receive_loop_beyond_the_largest_packet),
        TEST(takes_a_chain_of_the_whole_ring),
        TEST(refuses_memory_outside),
        TEST(refuses_memory_before),
        TEST(refuses_one_byte_too_many),
        TEST(refuses_an_address_that_overflows),
        TEST(refuses_a_range_that_wraps_into_a_region),
        TEST(refuses_an_empty_descriptor),
        TEST(refuses_a_writable_transmit_descriptor),
        TEST(refuses_a_read_only_receive_descriptor),
        TEST(refuses_a_second_descriptor_of_the_wrong_direction),
        TEST(refuses_an_indirect_descriptor),
        TEST(refuses_a_packet_beyond_any_mtu),
        TEST(refuses_a_length_that_overflows),
        TEST(takes_a_packet_of_the_largest_mtu),
        TEST(uses_no_more_of_a_receive_chain_than_a_packet_needs),
        TEST(refuses_a_jump_of_the_available_index),
        TEST(refuses_an_available_index_that_goes_back),
        TEST(refuses_a_chain_of_too_many_pieces),
        TEST(leaves_a_chain_for_which_the_buffer_has_no_room),
        TEST(is_revived_by_a_new_start),
        TEST(refuses_rings_that_do_not_fit),
        TEST(refuses_impossible_regions),
        TEST(asks_and_tells_by_the_flags),
    };

    return cmocka_run_group_tests_name("ring", tests, NULL, NULL);
}
