/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random checkpoints by random numbers of ranks, through rings of random sizes, on any engine, on a drive that transfers less
 * than it is asked to, late, in another order, or not at once: the files are those that the plainest assembly gives.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "penstock/io_fault.h"
#include "support/ckpt_scene.h"

static uint64_t state;

static void try_one(const char *engine, unsigned round)
{
    static const int passing[] = {EIO, EAGAIN, EINTR, ENOMEM};
    char *folder = test_folder_create(test_below(&state, 4) == 0), name[64];
    if (folder == NULL)
        folder = test_folder_create(false);
    pst_error err[8] = {0};
    scene s = {0};
    bool torch = test_below(&state, 2) == 0, sharded = !torch && test_below(&state, 2) == 0;
    scene_add_random(&s, &state, test_below(&state, 40), test_below(&state, 3) == 0 ? 12000000 : 1000000);
    snprintf(name, sizeof name, "model%s", torch ? ".pt" : "");
    pst_io_engine *faulty = NULL;
    /* Errors come in a row of three at most: a fourth in a row ends a save. */
    bool errors = test_below(&state, 3) == 0;
    const uint32_t kinds = PST_IO_FAULT_SHORT | PST_IO_FAULT_DELAY | PST_IO_FAULT_REORDER;
    const pst_io_fault_options faults = {.struct_size = sizeof faults,
                                         .faults = errors ? (uint32_t)PST_IO_FAULT_ERROR
                                                          : (uint32_t)test_below(&state, 32) & kinds,
                                         .seed = test_random(&state),
                                         .rate = errors ? 0 : 0.05,
                                         .at = (int64_t)test_below(&state, 20),
                                         .times = errors ? 1 + (int64_t)test_below(&state, 3) : 0,
                                         .writes = true,
                                         .errors = passing,
                                         .error_count = 4,
                                         .max_delay_ns = 300000};
    assert_ok(pst_io_fault_create(NULL, engine, &faults, &faulty, err), err);
    pst_ckpt_options options = {.struct_size = sizeof options,
                                .path = test_path(folder, name),
                                .shard_bytes = sharded ? 1 + test_below(&state, 2000000) : 0,
                                .no_digests = test_below(&state, 4) == 0,
                                .ring_bytes = (2 << 20) + test_below(&state, 3 << 20),
                                .snapshot_bytes = test_below(&state, 2) * (test_below(&state, 4) << 20),
                                .bytes_per_second = test_below(&state, 4) == 0 ? 200000000 : 0};
    options.io = (pst_io_options){.engine_table = faulty,
                                  .block_size = 4096 << test_below(&state, 7),
                                  .queue_depth = 1 + (uint32_t)test_below(&state, 16),
                                  .workers = 1 + (uint32_t)test_below(&state, 2),
                                  .buffered = test_below(&state, 5) == 0};
    const pst_ckpt_ranks ranks = {.count = 1 + (uint32_t)test_below(&state, 5)};
    pst_ckpt_report reports[8];
    int status = scene_save_by_ranks(&options, &s, ranks.count, NULL, err, reports);
    if (status < 0)
        fail_msg("round %u on %s, %u ranks: %s: %s", round, engine, ranks.count, err[0].path, err[0].message);
    options.ranks = &ranks;
    if (!scene_is_saved(&options, options.path, &s))
        fail_msg("round %u on %s, %u ranks, %zu tensors: the file is not what it should be", round, engine, ranks.count,
                 s.count);
    for (uint32_t i = 0; i < ranks.count; i++)
        assert_true(reports[i].ring_bytes <= options.ring_bytes + options.snapshot_bytes);
    assert_int_equal(scene_count_entries(folder), 1);
    pst_io_fault_destroy(faulty);
    scene_free(&s);
    scene_remove_folder(folder);
}

static void test_random_saves(void **unused)
{
    (void)unused;
    const char *engine;
    unsigned engines = 0;
    while (test_engine(engines) != NULL)
        engines++;
    for (unsigned round = 0; round < 60; round++) {
        engine = test_engine(round % engines);
        try_one(engine, round);
    }
}

/* The same tensors by other numbers of ranks: cuts and digests of cut tensors aside, the same file. */
static void test_ranks_change_no_data(void **unused)
{
    (void)unused;
    char *folder = test_folder_create(false);
    scene s = {0};
    pst_error err[8] = {0};
    scene_add_random(&s, &state, 20, 3000000);
    for (uint32_t count = 1; count < 6; count++) {
        for (int torch = 0; torch < 2; torch++) {
            pst_ckpt_options options = {.path = test_path(folder, torch ? "x.pt" : "x.safetensors"),
                                        .no_digests = true};
            assert_ok(scene_save_by_ranks(&options, &s, count, NULL, err, NULL), err);
            assert_true(scene_is_saved(&options, options.path, &s)); /* as one rank has it */
        }
    }
    scene_free(&s);
    scene_remove_folder(folder);
}

int main(void)
{
    state = test_seed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_saves),
        cmocka_unit_test(test_ranks_change_no_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
