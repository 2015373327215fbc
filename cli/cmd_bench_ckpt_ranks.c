/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several processes that save one checkpoint: this one forks the others, which have its tensors by sharing its memory, and
 * they gather through memory that all see. A process that ends makes the others' waiting fail.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/heap.h"
#include "cmd_bench_ckpt.h"

#define AREA_BYTES (UINT64_C(64) << 20) /* for what one rank gives; taken from the system only where it is used */

typedef struct shared_state {
    atomic_uint arrived, turn;
    atomic_bool failed;
    atomic_int status; /* of the first rank that failed */
    atomic_flag has_error;
    pst_error error;
} shared_state;

typedef struct gathering {
    shared_state *shared;
    char *areas; /* ranks * AREA_BYTES */
    uint32_t rank, count;
    pid_t *children; /* of rank 0 */
} gathering;

static void reap(gathering *g)
{
    for (uint32_t i = 1; g->children != NULL && i < g->count; i++) {
        int state;
        if (g->children[i] > 0 && waitpid(g->children[i], &state, WNOHANG) == g->children[i]) {
            g->children[i] = 0;
            if (!WIFEXITED(state) || WEXITSTATUS(state) != 0)
                atomic_store(&g->shared->failed, true);
        }
    }
}

static int wait_for_all(gathering *g, pst_error *err)
{
    shared_state *s = g->shared;
    unsigned turn = atomic_load(&s->turn);
    if (atomic_fetch_add(&s->arrived, 1) + 1 == g->count) {
        atomic_store(&s->arrived, 0);
        atomic_fetch_add(&s->turn, 1);
        return 0;
    }
    for (unsigned looks = 0; atomic_load(&s->turn) == turn; looks++) {
        if (looks % 64 == 63)
            reap(g);
        if (atomic_load(&s->failed))
            return pst_fail(err, -ECHILD, NULL, "another process of the save ended");
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    return 0;
}

static int all_gather(void *user, const void *mine, size_t bytes, void *all)
{
    gathering *g = user;
    if (bytes > AREA_BYTES)
        return -E2BIG;
    memcpy(g->areas + g->rank * AREA_BYTES, mine, bytes);
    PST_TRY(wait_for_all(g, NULL));
    for (uint32_t i = 0; i < g->count; i++)
        memcpy((char *)all + i * bytes, g->areas + i * AREA_BYTES, bytes);
    return wait_for_all(g, NULL); /* nobody writes his area again before all have read it */
}

static int save_one(gathering *g, pst_ckpt_options *options, const ckpt_set *set, pst_ckpt_report *report,
                    pst_error *err)
{
    const pst_ckpt_ranks ranks = {.rank = g->rank, .count = g->count, .all_gather = all_gather, .user = g};
    options->ranks = &ranks;
    int status = pst_ckpt_save(options, set->tensors, set->count, report, err);
    options->ranks = NULL;
    return status;
}

static void run_child(gathering *g, uint32_t rank, pst_ckpt_options *options, const ckpt_set *set)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    g->rank = rank;
    g->children = NULL;
    pst_error err = {.code = 0};
    pst_ckpt_report report = {.struct_size = sizeof report};
    int status = save_one(g, options, set, &report, &err);
    if (status < 0 && !atomic_flag_test_and_set(&g->shared->has_error))
        g->shared->error = err;
    _exit(status < 0);
}

static int run_ranks(gathering *g, pst_ckpt_options *options, const ckpt_set *set, pst_ckpt_report *report,
                     pst_error *err)
{
    int status = 0;
    for (uint32_t i = 1; i < g->count && status == 0; i++) {
        g->children[i] = fork();
        if (g->children[i] == 0)
            run_child(g, i, options, set);
        if (g->children[i] < 0)
            status = pst_fail(err, -errno, NULL, "cannot start a process: %s", strerror(errno));
    }
    if (status == 0)
        status = save_one(g, options, set, report, err);
    if (status < 0)
        atomic_store(&g->shared->failed, true);
    for (uint32_t i = 1; i < g->count; i++) {
        int state = 0;
        if (g->children[i] <= 0)
            continue;
        while (waitpid(g->children[i], &state, 0) < 0 && errno == EINTR) {
        }
        if (status >= 0 && !(WIFEXITED(state) && WEXITSTATUS(state) == 0)) {
            *err = g->shared->error;
            status = g->shared->error.code < 0 ? g->shared->error.code
                                               : pst_fail(err, -ECHILD, NULL, "a process of the save ended early");
        }
    }
    return status;
}

int ckpt_save_ranks(pst_ckpt_options *options, const ckpt_set *set, uint32_t ranks, pst_ckpt_report *report,
                    pst_error *err)
{
    uint64_t bytes = sizeof(shared_state) + ranks * AREA_BYTES;
    gathering g = {.count = ranks};
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    g.children = pst_heap_calloc(ranks, sizeof *g.children);
    int status = 0;
    if (memory == MAP_FAILED || g.children == NULL)
        status = pst_fail_memory(err, "shared memory", bytes);
    if (status == 0) {
        g.areas = memory;
        g.shared = (shared_state *)(g.areas + ranks * AREA_BYTES);
        status = run_ranks(&g, options, set, report, err);
    }
    if (memory != MAP_FAILED)
        munmap(memory, bytes);
    pst_heap_free(g.children);
    return status;
}
