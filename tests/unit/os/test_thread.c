/* SPDX-License-Identifier: Apache-2.0 */
/* The pool: every task once, by a worker in range, results visible after the loop, over any mix of loops and
 * pauses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/heap.h"
#include "os/clock.h"
#include "os/thread.h"

enum { MAX_TASKS = 1000 };

typedef struct loop {
    uint32_t tasks, threads;
    uint32_t hits[MAX_TASKS]; /* plain: a task that ran twice, or a lost write, shows */
    atomic_uint out_of_range;
    uint32_t busy; /* rounds of work per task */
} loop;

static void body(void *context, uint32_t task, uint32_t worker)
{
    loop *l = context;
    if (task >= l->tasks || worker >= l->threads)
        atomic_fetch_add(&l->out_of_range, 1);
    for (volatile uint32_t i = 0; i < l->busy; i++)
        ;
    l->hits[task]++;
}

static void run_checked(pst_pool *pool, loop *l, uint32_t tasks, uint32_t busy)
{
    l->tasks = tasks;
    l->busy = busy;
    memset(l->hits, 0, sizeof l->hits);
    pst_pool_run(pool, tasks, body, l);
    for (uint32_t i = 0; i < MAX_TASKS; i++)
        assert_int_equal(l->hits[i], i < tasks);
    assert_int_equal(atomic_load(&l->out_of_range), 0);
}

static void test_every_task_once(void **unused)
{
    (void)unused;
    static const uint32_t threads[] = {1, 2, 3, 7};
    for (size_t t = 0; t < 4; t++) {
        pst_pool *pool;
        loop l = {.threads = threads[t]};
        assert_int_equal(pst_pool_create(threads[t], &pool, NULL), 0);
        assert_int_equal(pst_pool_threads(pool), threads[t]);
        for (uint32_t round = 0; round < 2000; round++) {
            run_checked(pool, &l, round * 7 % MAX_TASKS % (round % 3 == 0 ? 4 : MAX_TASKS), round % 50);
            if (round % 500 == 499) /* long enough for the threads to fall asleep */
                nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        }
        pst_pool_destroy(pool);
    }
}

/* A pool that is destroyed at once, while its threads start, spin or sleep. */
static void test_short_lives(void **unused)
{
    (void)unused;
    for (int i = 0; i < 50; i++) {
        pst_pool *pool;
        loop l = {.threads = 3};
        assert_int_equal(pst_pool_create(3, &pool, NULL), 0);
        if (i % 2 == 0)
            run_checked(pool, &l, 10, 10);
        if (i % 5 == 0)
            nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
        pst_pool_destroy(pool);
    }
    pst_pool_destroy(NULL);
    assert_int_equal(pst_heap_live_count(), 0);
}

/* Processor time of the process, nanoseconds. */
static uint64_t cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A pool that waits costs next to nothing. */
static void test_idle_is_free(void **unused)
{
    (void)unused;
    pst_pool *pool;
    loop l = {.threads = 4};
    assert_int_equal(pst_pool_create(4, &pool, NULL), 0);
    run_checked(pool, &l, 100, 10);
    uint64_t before = cpu_ns();
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    assert_true(cpu_ns() - before < 50000000);
    pst_pool_destroy(pool);
}

static void test_limits(void **unused)
{
    (void)unused;
    pst_pool *pool = NULL;
    pst_error err;
    assert_true(pst_os_processors() >= 1);
    assert_int_equal(pst_pool_create(1000000, &pool, &err), PST_E_USAGE);
    assert_null(pool);
    pst_heap_fail_after(0, 1); /* also within pst_os_processors, which then knows of no quota */
    assert_int_equal(pst_pool_create(2, &pool, &err), -12);
    pst_heap_fail_after(-1, 0);
    assert_null(pool);
    assert_int_equal(pst_pool_create(0, &pool, &err), 0);
    assert_int_equal(pst_pool_threads(pool), pst_os_processors());
    pst_pool_destroy(pool);
    uint64_t first = pst_clock_ns(), second = pst_clock_ns();
    assert_true(second >= first && first > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_task_once),
        cmocka_unit_test(test_short_lives),
        cmocka_unit_test(test_idle_is_free),
        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
