/* SPDX-License-Identifier: Apache-2.0 */
/* The pool of transfer buffers: places, budget, fallbacks, and buffers that a handle knows. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/heap.h"
#include "io_test.h"
#include "os/arena.h"
#include "os/sys_fault.h"
#include "penstock/io_pool.h"

enum { MI = 1 << 20 };

static pst_io_pool *create(pst_io *io, uint64_t budget, uint64_t arena_bytes)
{
    pst_error err;
    pst_io_pool *pool = NULL;
    pst_io_pool_options options = {.struct_size = sizeof options, .budget_bytes = budget, .arena_bytes = arena_bytes};
    assert_ok(pst_io_pool_create(io, &options, &pool, &err), &err);
    return pool;
}

static pst_io_pool_stats stats_of(const pst_io_pool *pool)
{
    pst_io_pool_stats stats;
    pst_io_pool_get_stats(pool, &stats);
    return stats;
}

/* Buffers never overlap, lie where they were asked to, keep what is written, and the budget holds. */
static void random_takes_and_gives(void **state)
{
    (void)state;
    enum { SLOTS = 40, ROUNDS = 4000, BUDGET = 24 * MI };
    struct {
        unsigned char *memory;
        uint64_t bytes;
        unsigned char key;
    } slots[SLOTS] = {0};
    uint64_t seed = test_seed(), most = 0, refused = 0;
    pst_io_pool *pool = create(NULL, BUDGET, 4 * MI);
    for (int round = 0; round < ROUNDS; round++) {
        size_t i = test_below(&seed, SLOTS);
        if (slots[i].memory != NULL) {
            for (uint64_t at = 0; at < slots[i].bytes; at += 977)
                assert_int_equal(slots[i].memory[at], slots[i].key);
            assert_true(pst_io_pool_holds(pool, slots[i].memory, slots[i].bytes));
            assert_false(pst_io_pool_holds(pool, slots[i].memory, slots[i].bytes + 1));
            assert_int_equal(pst_io_pool_give(pool, slots[i].memory, NULL), 0);
            slots[i].memory = NULL;
            continue;
        }
        uint64_t bytes = 1 + test_below(&seed, test_below(&seed, 10) == 0 ? 6 * MI : 300000);
        uint64_t alignment = 1ull << test_below(&seed, 22);
        void *memory = NULL;
        int status = pst_io_pool_take(pool, bytes, alignment, &memory, NULL);
        if (status < 0) {
            assert_int_equal(status, PST_E_BUDGET);
            assert_null(memory);
            refused++;
            continue;
        }
        assert_int_equal((uintptr_t)memory % (alignment > 4096 ? alignment : 4096), 0);
        slots[i].memory = memory;
        slots[i].bytes = bytes;
        slots[i].key = (unsigned char)round;
        memset(memory, round, bytes);
        pst_io_pool_stats stats = stats_of(pool);
        assert_true(stats.held_bytes <= BUDGET && stats.out_bytes <= stats.held_bytes);
        most = stats.held_bytes > most ? stats.held_bytes : most;
    }
    assert_true(refused > 0 && most > BUDGET / 2); /* both ends of the budget were met */
    for (size_t i = 0; i < SLOTS; i++)
        assert_int_equal(slots[i].memory == NULL ? 0 : pst_io_pool_give(pool, slots[i].memory, NULL), 0);
    pst_io_pool_stats stats = stats_of(pool);
    assert_int_equal(stats.out_bytes + stats.out_count, 0);
    assert_true(stats.held_bytes <= 6 * MI + 2 * MI); /* one free arena is kept at most */
    pst_io_pool_destroy(pool);
}

static void wrong_uses_are_refused(void **state)
{
    (void)state;
    pst_io_pool *pool = NULL;
    pst_io_pool_options none = {.struct_size = sizeof none, .budget_bytes = 4096};
    assert_int_equal(pst_io_pool_create(NULL, &none, &pool, NULL), PST_E_USAGE);
    assert_null(pool);
    pool = create(NULL, 8 * MI, 0);
    void *memory = NULL, *other = NULL;
    assert_int_equal(pst_io_pool_take(pool, 0, 0, &memory, NULL), PST_E_USAGE);
    assert_int_equal(pst_io_pool_take(pool, 1, 12288, &memory, NULL), PST_E_USAGE);
    assert_int_equal(pst_io_pool_take(pool, 1, 3, &memory, NULL), PST_E_USAGE);
    assert_int_equal(pst_io_pool_take(pool, 1, 4 * MI, &memory, NULL), PST_E_USAGE);
    assert_int_equal(pst_io_pool_take(pool, UINT64_MAX, 0, &memory, NULL), PST_E_USAGE);
    pst_error err;
    assert_int_equal(pst_io_pool_take(pool, 8 * MI + 1, 0, &memory, &err), PST_E_BUDGET);
    assert_non_null(strstr(err.message, "8388608"));
    assert_int_equal(pst_io_pool_take(pool, 8 * MI, 0, &memory, NULL), 0);
    assert_int_equal(pst_io_pool_take(pool, 1, 0, &other, NULL), PST_E_BUDGET);
    assert_int_equal(pst_io_pool_give(pool, (char *)memory + 4096, NULL), PST_E_USAGE);
    assert_int_equal(pst_io_pool_give(pool, &none, NULL), PST_E_USAGE);
    assert_int_equal(pst_io_pool_give(pool, memory, NULL), 0);
    assert_int_equal(pst_io_pool_give(pool, memory, NULL), PST_E_USAGE);
    assert_false(pst_io_pool_holds(pool, memory, 1));
    pst_io_pool_destroy(pool);
    pst_io_pool_destroy(NULL);
}

static void locking_that_is_refused_is_told(void **state)
{
    (void)state;
    pst_fault_reset();
    pst_sys_replace(&pst_sys_fault);
    pst_fault_fail(PST_FAULT_MLOCK, 0, 1000, ENOMEM);
    pst_io_pool *pool = create(NULL, 8 * MI, 2 * MI);
    char *memory = NULL;
    assert_int_equal(pst_io_pool_take(pool, MI, 0, (void **)&memory, NULL), 0);
    memset(memory, 1, MI); /* it is memory all the same */
    pst_io_pool_stats stats = stats_of(pool);
    assert_int_equal(stats.lock_status, -ENOMEM);
    assert_int_equal(stats.locked_bytes, 0);
    assert_int_equal(stats.held_bytes, 2 * MI);
    pst_io_pool_destroy(pool);
    pst_sys_replace(NULL);
    pst_fault_reset();
}

static void a_mapping_that_is_refused_fails(void **state)
{
    (void)state;
    pst_fault_reset();
    pst_sys_replace(&pst_sys_fault);
    pst_io_pool *pool = create(NULL, 8 * MI, 2 * MI);
    void *memory = NULL;
    pst_fault_fail(PST_FAULT_MMAP, 0, 2, ENOMEM); /* the huge pages, and the plain ones */
    assert_int_equal(pst_io_pool_take(pool, MI, 0, &memory, NULL), -ENOMEM);
    assert_null(memory);
    assert_int_equal(stats_of(pool).held_bytes, 0);
    assert_int_equal(pst_io_pool_take(pool, MI, 0, &memory, NULL), 0);
    pst_io_pool_destroy(pool);
    pst_sys_replace(NULL);
    pst_fault_reset();
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    int64_t before = pst_heap_live_count();
    int failures = 0;
    for (int64_t nth = 0;; nth++) {
        pst_io_pool_options options = {.struct_size = sizeof options, .budget_bytes = 8 * MI, .arena_bytes = 2 * MI};
        pst_io_pool *pool = NULL;
        void *memory[3] = {0};
        pst_heap_fail_after(nth, 0);
        int status = pst_io_pool_create(NULL, &options, &pool, NULL);
        for (int i = 0; i < 3 && status >= 0; i++)
            status = pst_io_pool_take(pool, 100000, 65536, &memory[i], NULL);
        pst_heap_fail_after(-1, 0);
        for (int i = 0; i < 3; i++)
            assert_int_equal(memory[i] == NULL ? 0 : pst_io_pool_give(pool, memory[i], NULL), 0);
        pst_io_pool_destroy(pool);
        assert_int_equal(pst_heap_live_count(), before);
        if (status >= 0)
            break;
        assert_int_equal(status, -ENOMEM);
        failures++;
    }
    assert_true(failures >= 4);
}

static void buffers_work_with_the_handle(void **state)
{
    (void)state;
    static const char *const engines[] = {"io_uring", "threads"};
    char *folder = test_folder_create(false);
    uint64_t bytes = 3 * MI + 123;
    uint8_t *content = malloc(bytes);
    test_fill(content, bytes, 7, 0);
    const char *path = test_path(folder, "data");
    test_write_file(path, content, bytes);
    for (size_t e = 0; e < 2; e++) {
        pst_io *io = test_open(engines[e], 256 * 1024, 8, 1, false);
        if (io == NULL)
            continue;
        pst_io_pool *pool = create(io, 16 * MI, 0);
        pst_error err;
        pst_io_file *file = NULL;
        void *memory = NULL;
        assert_ok(pst_io_pool_take(pool, bytes, 0, &memory, &err), &err);
        if (e == 0) {
            pst_io_pool_stats stats = stats_of(pool);
            /* Without the privilege to lock that much it is not registered, and works all the same. */
            assert_true(stats.registered_bytes == stats.held_bytes || stats.registered_bytes == 0);
        }
        assert_ok(pst_io_file_open(io, path, PST_IO_OPEN_READ, &file, &err), &err);
        pst_io_op op = {.file = file, .buffer = memory, .bytes = bytes, .kind = PST_IO_READ};
        assert_ok(pst_io_transfer(io, &op, &err), &err);
        assert_memory_equal(memory, content, bytes);
        assert_ok(pst_io_file_close(file, &err), &err);
        pst_io_pool_destroy(pool);
        pst_io_close(io);
    }
    free(content);
    test_folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_takes_and_gives),          cmocka_unit_test(wrong_uses_are_refused),
        cmocka_unit_test(locking_that_is_refused_is_told), cmocka_unit_test(a_mapping_that_is_refused_fails),
        cmocka_unit_test(every_allocation_may_fail),       cmocka_unit_test(buffers_work_with_the_handle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
