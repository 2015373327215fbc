/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache's blocks: random reaching and releasing never gives a block to two sequences, keeps what was written, and uses no
 * more memory than was said beforehand; prefixes are found by whoever begins with the same ids, and by nobody else; sizes
 * beyond 64 bits are refused; memory that runs out is an error.
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
            void *const *blocks = pst_kv_bind(kv, s);
            for (uint32_t b = 0; b < (reached[s] + PST_KV_BLOCK - 1) / PST_KV_BLOCK; b++) {
                const unsigned char *memory = (unsigned char *)blocks[b] + pst_kv_layer_offset(kv, layer);
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
                void *const *blocks = pst_kv_bind(kv, s);
                for (uint32_t b = before; b < now; b++)
                    memset((char *)blocks[b] + pst_kv_layer_offset(kv, layer), mark(s, b, layer, age[s]),
                           pst_kv_block_bytes(&config.layout));
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
    /* The tables that are searched by hash have twice as many places, of 32 bits. */
    pst_kv_config many = config;
    many.sharing = true;
    many.max_sequences = 1 << 12;
    for (uint32_t tokens = 1u << 30; tokens > 1u << 22; tokens -= 1u << 29) {
        many.max_tokens = tokens;
        pst_kv_measure(&many, &memory);
        assert_true(memory.kv_bytes == UINT64_MAX);
    }
    many.max_tokens = 1 << 24;
    pst_kv_measure(&many, &memory);
    assert_int_equal(memory.kv_bytes, (1ull << 30) * LAYERS * 64 * 2 * (6 + 4) * 2);
    assert_true(memory.table_bytes > (1ull << 30) * (PST_KV_BLOCK + 1) * sizeof(uint32_t));
    many.folder = "/"; /* only named */
    many.max_tokens++;
    pst_kv_measure(&many, &memory);
    assert_true(memory.kv_bytes == UINT64_MAX && memory.disk_bytes == UINT64_MAX);
    /* Latent attention: one head, no values of their own. */
    pst_transformer t = {.kv_heads = 128, .head_dim = 192, .latent = {.kv_lora_rank = 512, .rope_dim = 64}};
    pst_kv_layout layout = pst_kv_layout_of(&t, PST_KV_Q8);
    assert_int_equal(layout.kv_heads, 1);
    assert_int_equal(layout.key_dim, 576);
    assert_int_equal(layout.value_dim, 512);
    assert_true(layout.shared && layout.type == PST_KV_Q8);
}

/* A cache that shares, of 4 sequences of 3 blocks. */
static pst_kv *make_sharing(void)
{
    pst_kv_config sharing = config;
    sharing.sharing = true;
    sharing.max_sequences = 4;
    sharing.max_tokens = 3 * PST_KV_BLOCK;
    pst_kv *kv;
    assert_int_equal(pst_kv_create(&sharing, &kv, NULL), 0);
    return kv;
}

static void fill_ids(uint32_t *ids, uint32_t first, uint32_t second, uint32_t third)
{
    for (uint32_t i = 0; i < PST_KV_BLOCK; i++) {
        ids[i] = first * 1000 + i;
        ids[PST_KV_BLOCK + i] = second * 1000 + i;
        ids[2 * PST_KV_BLOCK + i] = third * 1000 + i;
    }
}

static void test_sharing(void **state)
{
    (void)state;
    enum { B = PST_KV_BLOCK };
    uint32_t a[3 * B], b[3 * B];
    fill_ids(a, 1, 2, 3);
    fill_ids(b, 1, 2, 4);
    pst_kv *kv = make_sharing();
    /* Who comes first computes; others wait until all rows are in the pass, then take the block. */
    assert_int_equal(pst_kv_share(kv, 0, a), PST_KV_COMPUTE);
    assert_int_equal(pst_kv_share(kv, 1, b), PST_KV_WAIT);
    pst_kv_advance(kv, 0, 0, B - 1, a, true);
    assert_int_equal(pst_kv_share(kv, 1, b), PST_KV_WAIT);
    pst_kv_advance(kv, 0, B - 1, B, a, true);
    assert_int_equal(pst_kv_share(kv, 1, b), PST_KV_TAKEN);
    assert_ptr_equal(pst_kv_bind(kv, 0)[0], pst_kv_bind(kv, 1)[0]);
    assert_int_equal(pst_kv_free_blocks(kv), 11);
    /* The same ids after another prefix are another block. */
    assert_int_equal(pst_kv_share(kv, 2, a + B), PST_KV_COMPUTE);
    pst_kv_advance(kv, 2, 0, B, a + B, true);
    assert_int_equal(pst_kv_share(kv, 1, b + B), PST_KV_COMPUTE);
    pst_kv_advance(kv, 1, B, 2 * B, b, true);
    assert_ptr_not_equal(pst_kv_bind(kv, 1)[1], pst_kv_bind(kv, 2)[0]);
    assert_int_equal(pst_kv_free_blocks(kv), 9);
    /* Who gives up a block that is not whole leaves nothing behind: the next one computes. */
    assert_int_equal(pst_kv_share(kv, 1, b + 2 * B), PST_KV_COMPUTE);
    pst_kv_advance(kv, 1, 2 * B, 2 * B + 9, b, true);
    pst_kv_release(kv, 1);
    assert_int_equal(pst_kv_share(kv, 3, b), PST_KV_TAKEN);
    assert_int_equal(pst_kv_share(kv, 3, b + B), PST_KV_TAKEN); /* kept without a holder */
    assert_int_equal(pst_kv_share(kv, 3, b + 2 * B), PST_KV_COMPUTE);
    /* One differing id, the last. */
    uint32_t other[B];
    memcpy(other, a, sizeof other);
    other[B - 1]++;
    assert_int_equal(pst_kv_share(kv, 1, other), PST_KV_COMPUTE);
    pst_kv_destroy(kv);
}

/* A block made row by row (generated, not given) is found when it is whole; the one made last without being found is the
 * maker's own. */
static void test_sharing_generated(void **state)
{
    (void)state;
    enum { B = PST_KV_BLOCK };
    uint32_t a[3 * B];
    fill_ids(a, 1, 2, 3);
    pst_kv *kv = make_sharing();
    for (uint32_t i = 0; i < B; i++)
        for (uint32_t sequence = 0; sequence < 2; sequence++)
            pst_kv_advance(kv, sequence, i, i + 1, a, true);
    assert_int_equal(pst_kv_free_blocks(kv), 10);
    assert_int_equal(pst_kv_share(kv, 2, a), PST_KV_TAKEN);
    assert_ptr_equal(pst_kv_bind(kv, 0)[0], pst_kv_bind(kv, 2)[0]);
    /* What follows a block that nobody can find cannot be found either; and it is free when it is left. */
    assert_int_equal(pst_kv_share(kv, 1, a + B), PST_KV_COMPUTE);
    pst_kv_advance(kv, 1, B, 2 * B, a, true);
    assert_int_equal(pst_kv_share(kv, 2, a + B), PST_KV_COMPUTE);
    pst_kv_release(kv, 1);
    pst_kv_release(kv, 0);
    pst_kv_release(kv, 2);
    assert_int_equal(pst_kv_free_blocks(kv), 12);
    assert_int_equal(pst_kv_share(kv, 3, a), PST_KV_TAKEN);
    pst_kv_destroy(kv);
}

/* Kept blocks make room, the one left longest ago first, and never one before those that follow it. */
static void test_sharing_forgets(void **state)
{
    (void)state;
    enum { B = PST_KV_BLOCK };
    uint32_t ids[5][3 * B];
    pst_kv *kv = make_sharing();
    for (uint32_t i = 0; i < 4; i++) { /* four texts fill the pool and leave */
        fill_ids(ids[i], 10 + i, 20, 30);
        for (uint32_t b = 0; b < 3; b++)
            assert_int_equal(pst_kv_share(kv, 0, ids[i] + b * B), PST_KV_COMPUTE);
        pst_kv_advance(kv, 0, 0, 3 * B, ids[i], true);
        pst_kv_release(kv, 0);
    }
    /* The first one is used again, so that the second one is the oldest. */
    assert_int_equal(pst_kv_share(kv, 0, ids[0]), PST_KV_TAKEN);
    assert_int_equal(pst_kv_share(kv, 0, ids[0] + B), PST_KV_TAKEN);
    assert_int_equal(pst_kv_share(kv, 0, ids[0] + 2 * B), PST_KV_TAKEN);
    pst_kv_release(kv, 0);
    fill_ids(ids[4], 99, 98, 97);
    assert_int_equal(pst_kv_share(kv, 1, ids[4]), PST_KV_COMPUTE);
    assert_int_equal(pst_kv_share(kv, 1, ids[4] + B), PST_KV_COMPUTE);
    /* Two blocks of the second text are gone, its last ones. */
    assert_int_equal(pst_kv_share(kv, 2, ids[1]), PST_KV_TAKEN);
    assert_int_equal(pst_kv_share(kv, 2, ids[1] + B), PST_KV_COMPUTE);
    assert_int_equal(pst_kv_share(kv, 3, ids[0]), PST_KV_TAKEN);
    assert_int_equal(pst_kv_share(kv, 3, ids[0] + B), PST_KV_TAKEN);
    /* All at full length at once: there is always a block. */
    for (uint32_t i = 0; i < 4; i++) {
        pst_kv_release(kv, i);
        pst_kv_reach(kv, i, 3 * B);
    }
    assert_int_equal(pst_kv_free_blocks(kv), 0);
    pst_kv_destroy(kv);
}

/* In a file: a block of this layout takes 4096 bytes there; the second of three layers looks at 100 positions. */
static void test_disk_sizes(void **state)
{
    (void)state;
    static const bool windowed[LAYERS] = {false, true, false};
    pst_kv_config disk = config;
    disk.folder = "/tmp";
    disk.windowed = windowed;
    disk.window = 100;
    pst_kv_memory memory, in_memory;
    pst_kv_measure(&config, &in_memory);
    pst_kv_measure(&disk, &memory);
    const uint64_t block = 64 * 2 * (6 + 4) * 2;
    assert_int_equal(memory.disk_bytes, SEQUENCES * BLOCKS * LAYERS * 4096);
    /* The default window has room for everything here: three parts of all blocks of a layer. */
    assert_int_equal(memory.kv_bytes, SEQUENCES * LAYERS * block + 3 * SEQUENCES * BLOCKS * 4096);
    assert_true(memory.table_bytes > in_memory.table_bytes);
    disk.window_bytes = 1; /* one sequence in a part */
    pst_kv_measure(&disk, &memory);
    assert_int_equal(memory.kv_bytes, SEQUENCES * LAYERS * block + 3 * BLOCKS * 4096);
    assert_int_equal(pst_kv_row_traffic(&config, 300).bytes_read, 0);
    assert_int_equal(pst_kv_row_traffic(&disk, 63).bytes_read, 0);
    assert_int_equal(pst_kv_row_traffic(&disk, 64).bytes_read, 3 * 4096);
    /* Position 300 is in block 4 and sees from 0 on, or from 201 on, which is in block 3. */
    assert_int_equal(pst_kv_row_traffic(&disk, 300).bytes_read, (4 + 1 + 4) * 4096);
    disk.layers = 1 << 14;
    disk.max_sequences = 1 << 16;
    disk.max_tokens = 1 << 21;
    disk.layout.kv_heads = 1 << 14;
    disk.layout.key_dim = disk.layout.value_dim = 1 << 12;
    pst_kv_measure(&disk, &memory);
    assert_true(memory.kv_bytes == UINT64_MAX && memory.disk_bytes == UINT64_MAX);
}

static void test_allocation(void **state)
{
    (void)state;
    int64_t live = pst_heap_live_count();
    pst_kv_config all = config;
    all.sharing = true;
    for (int64_t i = 0;; i++) {
        pst_kv *kv = NULL;
        pst_heap_fail_after(i, 0);
        int status = pst_kv_create(&all, &kv, NULL);
        pst_heap_fail_after(-1, 0);
        if (status == 0) {
            assert_true(i >= 8);
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
        cmocka_unit_test(test_sharing),
        cmocka_unit_test(test_sharing_generated),
        cmocka_unit_test(test_sharing_forgets),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_disk_sizes),
        cmocka_unit_test(test_allocation),
    };
    return cmocka_run_group_tests_name("kv", tests, NULL, NULL);
}
