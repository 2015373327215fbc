/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compute pool. A loop is a door that the owner opens and closes: `door` holds {generation, open,
 * inside}. A thread enters by a compare-and-swap that counts it in, only while the door is open; it then
 * takes tasks from `next` until they run out, and counts itself out. The owner takes tasks too, closes the
 * door, and waits until nobody is inside. So a thread that wakes late finds the door closed and can neither
 * touch a finished loop nor steal a task of the next one, and the loop never waits for a sleeper that has
 * nothing to do.
 *
 * Order: what the owner wrote before opening is seen by whoever enters (release/acquire on `door`), and what
 * the tasks wrote is seen by the owner after the count returned to zero. `door` and `sleepers` are
 * sequentially consistent, because the owner writes one and reads the other while a thread that falls asleep
 * does the opposite.
 */
#include "os/thread.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/cgroup.h"
#include "os/clock.h"

/* Loops of a decode step follow each other within this time; longer gaps are waits for the drive. */
enum { SPIN_NS = 40 * 1000, MAX_THREADS = 4096 };
/* The shortest that Linux grants. */
enum { SHORT_SLICE_NS = 100 * 1000 };

#define DOOR_INSIDE_MASK 0xffffu
#define DOOR_OPEN        0x10000u
#define DOOR_GENERATION  (1ull << 32)

typedef struct worker {
    pst_pool *pool;
    pthread_t thread;
    uint32_t index;
} worker;

struct pst_pool {
    uint32_t threads;
    uint32_t started; /* of workers[0 .. threads-1) */
    uint64_t spin_ns; /* 0 where spinning would take a processor from another thread of the pool */
    pst_pool_body *body;
    void *context;
    uint32_t tasks;

    _Alignas(64) atomic_ullong door;
    _Alignas(64) atomic_uint next;
    _Alignas(64) atomic_uint sleepers;
    atomic_bool owner_sleeps;
    bool stop; /* under lock */
    pthread_mutex_t lock;
    pthread_cond_t opened, emptied;
    worker workers[];
};

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void work(pst_pool *pool, uint32_t worker_index)
{
    for (;;) {
        uint32_t task = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (task >= pool->tasks)
            return;
        pool->body(pool->context, task, worker_index);
    }
}

/* Enters a loop later than `last`, if one is open; *last becomes its generation. */
static bool enter(pst_pool *pool, uint32_t *last)
{
    unsigned long long door = atomic_load(&pool->door);
    while ((door & DOOR_OPEN) != 0 && (uint32_t)(door / DOOR_GENERATION) != *last) {
        if (atomic_compare_exchange_weak(&pool->door, &door, door + 1)) {
            *last = (uint32_t)(door / DOOR_GENERATION);
            return true;
        }
    }
    return false;
}

static void leave(pst_pool *pool)
{
    unsigned long long before = atomic_fetch_sub(&pool->door, 1);
    if ((before & DOOR_INSIDE_MASK) == 1 && atomic_load(&pool->owner_sleeps)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_signal(&pool->emptied);
        pthread_mutex_unlock(&pool->lock);
    }
}

/* Returns true when entered, false when the pool stops. */
static bool wait_for_loop(pst_pool *pool, uint32_t *last)
{
    uint64_t until = 0;
    for (unsigned i = 0; pool->spin_ns > 0; i++) {
        if (enter(pool, last))
            return true;
        pause_briefly();
        if (i % 16 == 15) {
            uint64_t now = pst_clock_ns();
            if (until == 0)
                until = now + pool->spin_ns;
            else if (now >= until)
                break;
        }
    }
    bool entered = false;
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (!pool->stop && !(entered = enter(pool, last)))
        pthread_cond_wait(&pool->opened, &pool->lock);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
    return entered;
}

static void *thread_main(void *argument)
{
    worker *self = argument;
    uint32_t last = 0;
    while (wait_for_loop(self->pool, &last)) {
        work(self->pool, self->index);
        leave(self->pool);
    }
    return NULL;
}

/* Waits until nobody is inside the closed door. */
static void wait_empty(pst_pool *pool)
{
    uint64_t until = 0;
    for (unsigned i = 0; pool->spin_ns > 0; i++) {
        if ((atomic_load(&pool->door) & DOOR_INSIDE_MASK) == 0)
            return;
        pause_briefly();
        if (i % 16 == 15) {
            uint64_t now = pst_clock_ns();
            if (until == 0)
                until = now + pool->spin_ns;
            else if (now >= until)
                break;
        }
    }
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->owner_sleeps, true);
    while ((atomic_load(&pool->door) & DOOR_INSIDE_MASK) != 0)
        pthread_cond_wait(&pool->emptied, &pool->lock);
    atomic_store(&pool->owner_sleeps, false);
    pthread_mutex_unlock(&pool->lock);
}

void pst_pool_run(pst_pool *pool, uint32_t tasks, pst_pool_body *body, void *context)
{
    if (pool->threads == 1 || tasks <= 1) {
        for (uint32_t task = 0; task < tasks; task++)
            body(context, task, 0);
        return;
    }
    pool->body = body;
    pool->context = context;
    pool->tasks = tasks;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    unsigned long long generation = (atomic_load(&pool->door) / DOOR_GENERATION + 1) & 0xffffffffu;
    atomic_store(&pool->door, generation * DOOR_GENERATION | DOOR_OPEN);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->opened);
        pthread_mutex_unlock(&pool->lock);
    }
    work(pool, 0);
    unsigned long long before = atomic_fetch_and(&pool->door, ~(unsigned long long)DOOR_OPEN);
    if ((before & DOOR_INSIDE_MASK) != 0)
        wait_empty(pool);
}

uint32_t pst_pool_threads(const pst_pool *pool)
{
    return pool->threads;
}

/* Signals are for the program's own threads: every signal is blocked in the pool's. */
static int start_threads(pst_pool *pool)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int status = 0;
    for (uint32_t i = 0; i + 1 < pool->threads && status == 0; i++) {
        pool->workers[i] = (worker){.pool = pool, .index = i + 1};
        status = pthread_create(&pool->workers[i].thread, NULL, thread_main, &pool->workers[i]);
        if (status == 0)
            pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -status;
}

int pst_pool_create(uint32_t threads, pst_pool **out, pst_error *err)
{
    uint32_t processors = pst_os_processors();
    if (threads == 0)
        threads = processors;
    if (threads > MAX_THREADS)
        return pst_fail(err, PST_E_USAGE, NULL, "%u threads; at most %d work", threads, MAX_THREADS);
    size_t bytes = sizeof(pst_pool) + threads * sizeof(worker);
    bytes = (bytes + 63) / 64 * 64;
    /* The heap aligns to 16 bytes; the counters need cache lines of their own only for speed, so align by
     * hand. */
    void *block = pst_heap_calloc(1, bytes + 64 + sizeof(void *));
    if (block == NULL)
        return pst_fail_memory(err, "the thread pool", bytes);
    pst_pool *pool = (pst_pool *)(((uintptr_t)block + sizeof(void *) + 63) / 64 * 64);
    ((void **)pool)[-1] = block;
    pool->threads = threads;
    pool->spin_ns = threads <= processors ? SPIN_NS : 0;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->opened, NULL);
    pthread_cond_init(&pool->emptied, NULL);
    int status = start_threads(pool);
    if (status < 0) {
        pst_pool_destroy(pool);
        return pst_fail(err, status, NULL, "cannot start %u threads: %s", threads, pst_strerror(status));
    }
    *out = pool;
    return 0;
}

void pst_pool_destroy(pst_pool *pool)
{
    if (pool == NULL)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->opened);
    pthread_mutex_unlock(&pool->lock);
    for (uint32_t i = 0; i < pool->started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->emptied);
    pthread_cond_destroy(&pool->opened);
    pthread_mutex_destroy(&pool->lock);
    pst_heap_free(((void **)pool)[-1]);
}

void pst_os_processor_name(char *out, size_t out_bytes)
{
    char text[2048]; /* the first processor's lines, of which the name is the fifth */
    snprintf(out, out_bytes, "unknown");
    if (pst_os_read_text("/proc/cpuinfo", text, sizeof text) <= 0)
        return;
    const char *line = strstr(text, "model name"), *colon = line != NULL ? strchr(line, ':') : NULL;
    if (colon == NULL)
        return;
    colon += 1 + strspn(colon + 1, " ");
    snprintf(out, out_bytes, "%.*s", (int)strcspn(colon, "\n"), colon);
}

uint32_t pst_os_processors(void)
{
    cpu_set_t set;
    long count;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        count = CPU_COUNT(&set);
    else
        count = sysconf(_SC_NPROCESSORS_ONLN);
    pst_cgroup_limits limits;
    pst_cgroup_read("", &limits);
    if (limits.processors > 0 && ceil(limits.processors) < (double)count)
        count = (long)ceil(limits.processors);
    return count > 0 ? (uint32_t)count : 1;
}

/* struct sched_attr of the kernel, as far as its first version goes; the C library has none. */
typedef struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
} scheduling;

void pst_os_thread_prompt(void)
{
    scheduling s = {.size = sizeof s};
    if (syscall(SYS_sched_getattr, 0, &s, sizeof s, 0) != 0 || s.policy != SCHED_OTHER)
        return;
    s.size = sizeof s;
    s.flags = 0;
    s.runtime_ns = SHORT_SLICE_NS;
    s.deadline_ns = s.period_ns = 0;
    syscall(SYS_sched_setattr, 0, &s, 0);
}
