/* SPDX-License-Identifier: Apache-2.0 */
/* test_plan.c -- placement of ranges in the ring, without any reading: cases with known results,
 * and a model that watches every byte of the ring while ranges come and go at random.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/reader.h"
#include "io_testing.h"

enum { A = 4096, BLOCK = 64 << 10, MIB = 1 << 20 };

static struct hr_plan make_plan(const struct hr_read_range *ranges, uint32_t n, uint32_t n_passes,
                                uint64_t ring_bytes, uint64_t align_bytes)
{
    struct hr_plan plan = {
        .ranges = ranges,
        .n_ranges = n,
        .ring_bytes = ring_bytes,
        .align_bytes = align_bytes,
        .block_bytes = BLOCK,
    };

    assert_int_equal(hr_plan_init(&plan, n_passes), 0);
    return plan;
}

static void expect_block(struct hr_plan *plan, uint64_t pos, uint64_t offset, uint64_t size)
{
    struct hr_plan_block block;

    assert_int_equal(hr_plan_next(plan, true, &block), HR_PLAN_BLOCK);
    assert_int_equal(block.pos, pos);
    assert_int_equal(block.offset_bytes, offset);
    assert_int_equal(block.size_bytes, size);
}

static void expect_result(struct hr_plan *plan, bool may_hold, enum hr_plan_result result)
{
    struct hr_plan_block block;

    assert_int_equal(hr_plan_next(plan, may_hold, &block), result);
}

/* Neighbours and small gaps are one run; blocks end at multiples of the block size in the file. */
static void neighbours_are_joined(void **state)
{
    static const struct hr_read_range ranges[] = {{0, 5000, 60000},
                                                  {0, 65000, 1},
                                                  {0, 65001 + 100, 60000},
                                                  {0, 1000000, 10},
                                                  {1, 1000010, 10}};
    struct hr_plan plan = make_plan(ranges, 5, 1, 2 * MIB, A);

    (void) state;
    expect_block(&plan, 0, 4096, BLOCK - 4096);
    expect_block(&plan, BLOCK - 4096, BLOCK, 126976 - BLOCK); /* 125101 rounded up */
    expect_block(&plan, 126976 - 4096, 999424, 4096);
    expect_block(&plan, 126976, 999424, 4096);
    expect_result(&plan, true, HR_PLAN_END);
    assert_int_equal(hr_plan_pos(&plan, 0), 5000 - 4096);
    assert_int_equal(hr_plan_pos(&plan, 1), 65000 - 4096);
    assert_int_equal(hr_plan_pos(&plan, 3), 126976 - 4096 + 576);
    hr_plan_uninit(&plan);
}

/* A run does not cross the end of the ring: the next range skips to the start. */
static void ring_end_is_skipped(void **state)
{
    static const struct hr_read_range ranges[] = {{0, 0, 3 * MIB / 2},
                                                  {0, 3 * MIB / 2, 3 * MIB / 4}};
    struct hr_plan plan = make_plan(ranges, 2, 1, 2 * MIB, A);

    (void) state;
    for (int i = 0; i < 3 * MIB / 2 / BLOCK; i++)
        expect_block(&plan, (uint64_t) i * BLOCK, (uint64_t) i * BLOCK, BLOCK);
    expect_result(&plan, true, HR_PLAN_FULL);
    hr_plan_release(&plan, 1);
    expect_block(&plan, 2 * MIB, 3 * MIB / 2, BLOCK);
    assert_int_equal(hr_plan_pos(&plan, 1), 2 * MIB);
    assert_int_equal(plan.tail, 2 * MIB);
    hr_plan_uninit(&plan);
}

/* A part of a block waits for the space that would lengthen it, if the caller of the plan likes. */
static void parts_are_held_back(void **state)
{
    static const struct hr_read_range ranges[] = {
        {0, 0, MIB}, {0, MIB, MIB - 1000}, {0, 2 * MIB - 1000, MIB}};
    struct hr_plan plan = make_plan(ranges, 3, 1, 4 * MIB, A);

    (void) state;
    plan.window = 2;
    for (int i = 0; i < 2 * MIB / BLOCK - 1; i++)
        expect_block(&plan, (uint64_t) i * BLOCK, (uint64_t) i * BLOCK, BLOCK);
    /* The cover is page-aligned and here a whole number of blocks. */
    expect_block(&plan, 2 * MIB - BLOCK, 2 * MIB - BLOCK, BLOCK);
    expect_result(&plan, true, HR_PLAN_FULL);
    hr_plan_uninit(&plan);

    static const struct hr_read_range odd[] = {{0, 0, 100}, {0, 100, 100000}};
    plan = make_plan(odd, 2, 1, 2 * MIB, A);
    plan.window = 1;
    expect_result(&plan, true, HR_PLAN_HOLD);
    struct hr_plan_block block;
    assert_int_equal(hr_plan_next(&plan, false, &block), HR_PLAN_BLOCK);
    assert_int_equal(block.size_bytes, A);
    expect_result(&plan, false, HR_PLAN_FULL);
    hr_plan_release(&plan, 1);
    /* The shared page was given up with its range, so that it is read again. */
    expect_block(&plan, A, 0, BLOCK);
    assert_int_equal(hr_plan_pos(&plan, 1), A + 100);
    hr_plan_uninit(&plan);
}

enum { IN_FLIGHT_MAX = 16 };

/* The ring as the model sees it: for each aligned piece, who wrote it last; and the blocks that are
 * still being read, which arrive late, but here in order. */
struct model {
    struct hr_plan plan;
    uint64_t *piece_offset; /* [ring / align] file offset + 1 that the piece holds, 0 none */
    uint32_t *piece_file;
    struct hr_plan_block blocks[IN_FLIGHT_MAX]; /* circular */
    uint64_t n_submitted, n_arrived;
    uint64_t arrived; /* position */
    uint64_t last_pos, last_tail;
};

static void model_submit(struct model *model, const struct hr_plan_block *block)
{
    const struct hr_plan *plan = &model->plan;
    const uint64_t a = plan->align_bytes, r = plan->ring_bytes;

    assert_true(block->size_bytes > 0 && block->size_bytes <= plan->block_bytes);
    assert_int_equal(block->pos % a, 0);
    assert_int_equal(block->offset_bytes % a, 0);
    assert_int_equal(block->size_bytes % a, 0);
    assert_true(block->pos >= model->last_pos);
    assert_true(block->pos >= plan->tail && block->pos + block->size_bytes <= plan->head);
    assert_true(plan->head - plan->tail <= r);
    assert_true(block->pos / r == (block->pos + block->size_bytes - 1) / r);
    model->last_pos = block->pos + block->size_bytes;
    model->blocks[model->n_submitted++ % IN_FLIGHT_MAX] = *block;
}

static void model_arrive(struct model *model)
{
    const struct hr_plan_block *block = &model->blocks[model->n_arrived++ % IN_FLIGHT_MAX];
    const uint64_t a = model->plan.align_bytes, r = model->plan.ring_bytes;

    /* Its memory must not have been given to others meanwhile. */
    assert_true(block->pos >= model->plan.tail);
    for (uint64_t i = 0; i < block->size_bytes; i += a) {
        model->piece_offset[(block->pos + i) % r / a] = block->offset_bytes + i + 1;
        model->piece_file[(block->pos + i) % r / a] = block->file_idx;
    }
    model->arrived = block->pos + block->size_bytes;
}

/* A live range that has arrived must still hold its bytes. */
static void model_check(const struct model *model, uint64_t seq)
{
    const struct hr_plan *plan = &model->plan;
    const struct hr_read_range *range = hr_plan_range(plan, seq);
    const uint64_t a = plan->align_bytes, pos = hr_plan_pos(plan, seq);

    assert_int_equal(pos % a, range->offset_bytes % a);
    assert_true(pos >= plan->tail && pos + range->size_bytes <= plan->head);
    for (uint64_t at = hr_align_down(range->offset_bytes, a);
         at < range->offset_bytes + range->size_bytes; at += a) {
        const uint64_t piece = (pos - range->offset_bytes + at) % plan->ring_bytes / a;

        assert_int_equal(model->piece_offset[piece], at + 1);
        assert_int_equal(model->piece_file[piece], range->file_idx);
    }
}

static void run_model(uint64_t seed)
{
    static const uint64_t aligns[] = {4096, 8192, 65536};
    struct io_files files = {.n = 3};
    struct hr_read_range ranges[200];
    uint64_t random = seed, n_ready = 0, first_live = 0;
    struct model model = {0};

    for (uint32_t i = 0; i < files.n; i++)
        files.files[i].size_bytes = 300000 + io_random(&random) % (6 * MIB);
    const uint32_t n = 1 + io_random(&random) % 200, n_passes = 1 + io_random(&random) % 4;
    io_random_ranges(&files, ranges, n, MIB + io_random(&random) % MIB / 2, &random);
    const uint64_t align = aligns[io_random(&random) % 3];
    const uint64_t ring = 2 * MIB * (1 + io_random(&random) % 3);
    model.plan = make_plan(ranges, n, n_passes, ring, align);
    if (io_random(&random) % 4 == 0)
        model.plan.window = 1u << io_random(&random) % 5; /* smaller than it was allocated */
    model.piece_offset = calloc(ring / align, sizeof(uint64_t));
    model.piece_file = calloc(ring / align, sizeof(uint32_t));
    assert_true(model.piece_offset && model.piece_file);

    struct hr_plan *plan = &model.plan;
    const uint32_t slow = 1 + io_random(&random) % 8;
    for (bool ended = false; !ended || first_live < plan->n_total;) {
        struct hr_plan_block block;
        const bool may_hold = io_random(&random) % 2;
        const enum hr_plan_result result = hr_plan_next(plan, may_hold, &block);

        ended = result == HR_PLAN_END;
        if (result == HR_PLAN_BLOCK)
            model_submit(&model, &block);
        /* Not stuck while nothing is held. */
        assert_true(result != HR_PLAN_FULL || first_live < n_ready ||
                    model.n_arrived < model.n_submitted);
        while (model.n_arrived < model.n_submitted &&
               (result != HR_PLAN_BLOCK || io_random(&random) % 2 == 0 ||
                model.n_submitted - model.n_arrived == IN_FLIGHT_MAX)) {
            model_arrive(&model);
            if (io_random(&random) % 2)
                break;
        }
        while (n_ready < plan->seq &&
               hr_plan_pos(plan, n_ready) + hr_plan_range(plan, n_ready)->size_bytes <=
                   model.arrived)
            model_check(&model, n_ready++);
        if (first_live < n_ready && (result != HR_PLAN_BLOCK || io_random(&random) % slow == 0)) {
            for (uint64_t seq = first_live; seq < n_ready; seq++)
                model_check(&model, seq);
            first_live += 1 + io_random(&random) % (n_ready - first_live);
            hr_plan_release(plan, first_live);
            assert_true(plan->tail >= model.last_tail);
            model.last_tail = plan->tail;
        }
    }
    assert_int_equal(n_ready, plan->n_total);
    free(model.piece_file);
    free(model.piece_offset);
    hr_plan_uninit(plan);
}

static void random_ranges_keep_the_rules(void **state)
{
    (void) state;
    for (uint64_t seed = 1; seed <= 300; seed++)
        run_model(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(neighbours_are_joined),
        cmocka_unit_test(ring_end_is_skipped),
        cmocka_unit_test(parts_are_held_back),
        cmocka_unit_test(random_ranges_keep_the_rules),
    };

    return cmocka_run_group_tests_name("io plan", tests, NULL, NULL);
}
