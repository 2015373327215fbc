/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache's blocks: random reaching and releasing never gives a block to two sequences, keeps what was written, and uses no
 * more memory than was said beforehand; sizes beyond 64 bits are refused; memory that runs out is an error.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "nn/kv.h"
#include "unit/cpu/reference.h"

enum { SEQUENCES = 7, MAX_TOKENS = 333, LAYERS = 3, BLOCKS = (MAX_TOKENS + PST_KV_BLOCK - 1) / PST_KV_BLOCK };

static const pst_kv_config config = {
    .layout = {.type = PST_KV_F16, .kv_heads = 2, .key_dim = 6, .value_dim = 4},
    .layers = LAYERS,
    .max_sequences = SEQUENCES,
    .max_tokens = MAX_TOKENS,
};

/* What stands in a block of a layer, by whom it was written. */
static unsigned char mark(uint32_t sequence, uint32_t block, uint32_t layer, uint32_t age)
{
    return (unsigned char)(sequence * 31 + block * 7 + layer * 3 + age * 101);
}

static void check_marks(pst_kv *kv, const uint32_t *reached, const uint32_t *age)
{
    const size_t bytes = pst_kv_block_bytes(&config.layout);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t s = 0; s < SEQUENCES; s++) {
            void *const *blocks = pst_kv_bind(kv, s, layer);
            for (uint32_t b = 0; b < (reached[s] + PST_KV_BLOCK - 1) / PST_KV_BLOCK; b++) {
                const unsigned char *memory = blocks[b];
                for (size_t i = 0; i < bytes; i++)
                    assert_int_equal(memory[i], mark(s, b, layer, age[s]));
            }
        }
    }
}

static void test_random(void **state)
{
    (void)state;
    ref_seed("kv blocks");
    pst_kv *kv;
    assert_int_equal(pst_kv_create(&config, &kv, NULL), 0);
    assert_int_equal(pst_kv_free_blocks(kv), SEQUENCES * BLOCKS);
    uint32_t reached[SEQUENCES] = {0}, age[SEQUENCES] = {0}, used = 0;
    for (int round = 0; round < 200; round++) {
        uint32_t s = (uint32_t)ref_between(0, SEQUENCES - 1);
        uint32_t before = (reached[s] + PST_KV_BLOCK - 1) / PST_KV_BLOCK;
        if (ref_between(0, 3) == 0) {
            pst_kv_release(kv, s);
            used -= before;
            reached[s] = 0;
            age[s]++;
        } else {
            uint32_t to = (uint32_t)ref_between(0, MAX_TOKENS); /* possibly less than it has */
            pst_kv_reach(kv, s, to);
            reached[s] = to > reached[s] ? to : reached[s];
            uint32_t now = (reached[s] + PST_KV_BLOCK - 1) / PST_KV_BLOCK;
            used += now - before;
            for (uint32_t layer = 0; layer < LAYERS; layer++) {
                void *const *blocks = pst_kv_bind(kv, s, layer);
                for (uint32_t b = before; b < now; b++)
                    memset(blocks[b], mark(s, b, layer, age[s]), pst_kv_block_bytes(&config.layout));
            }
        }
        assert_int_equal(pst_kv_free_blocks(kv), SEQUENCES * BLOCKS - used);
        check_marks(kv, reached, age);
    }
    pst_kv_destroy(kv);
    pst_kv_destroy(NULL);
}

static void test_sizes(void **state)
{
    (void)state;
    pst_kv_memory memory;
    pst_kv_measure(&config, &memory);
    assert_int_equal(memory.kv_bytes, (uint64_t)SEQUENCES * BLOCKS * LAYERS * 64 * 2 * (6 + 4) * 2);
    pst_kv_config huge = config;
    huge.layout.kv_heads = 1 << 14;
    huge.layout.key_dim = huge.layout.value_dim = 1 << 12;
    huge.layers = 1 << 14;
    huge.max_sequences = 1 << 16;
    huge.max_tokens = 1 << 20;
    pst_kv_measure(&huge, &memory);
    assert_true(memory.kv_bytes == UINT64_MAX);
    pst_kv *kv = NULL;
    pst_error err;
    assert_int_equal(pst_kv_create(&huge, &kv, &err), PST_E_BUDGET);
    assert_null(kv);
    huge.max_tokens = UINT32_MAX; /* more blocks than 32 bits count */
    pst_kv_measure(&huge, &memory);
    assert_true(memory.kv_bytes == UINT64_MAX);
    /* Latent attention: one head, no values of their own. */
    pst_transformer t = {.kv_heads = 128, .head_dim = 192, .latent = {.kv_lora_rank = 512, .rope_dim = 64}};
    pst_kv_layout layout = pst_kv_layout_of(&t, PST_KV_Q8);
    assert_int_equal(layout.kv_heads, 1);
    assert_int_equal(layout.key_dim, 576);
    assert_int_equal(layout.value_dim, 512);
    assert_true(layout.shared && layout.type == PST_KV_Q8);
}

static void test_allocation(void **state)
{
    (void)state;
    int64_t live = pst_heap_live_count();
    for (int64_t i = 0;; i++) {
        pst_kv *kv = NULL;
        pst_heap_fail_after(i, 0);
        int status = pst_kv_create(&config, &kv, NULL);
        pst_heap_fail_after(-1, 0);
        if (status == 0) {
            assert_true(i >= 5);
            pst_kv_destroy(kv);
            break;
        }
        assert_int_equal(status, -ENOMEM);
        assert_null(kv);
        assert_int_equal(pst_heap_live_count(), live);
    }
    assert_int_equal(pst_heap_live_count(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_allocation),
    };
    return cmocka_run_group_tests_name("kv", tests, NULL, NULL);
}
