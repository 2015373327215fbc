/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks that are threads of the test. */
#ifndef PST_TEST_THREAD_RANKS_H
#define PST_TEST_THREAD_RANKS_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "penstock/ckpt.h"

enum { THREAD_RANKS_MAX = 8 };

typedef struct thread_ranks {
    pthread_barrier_t barrier;
    uint32_t count;
    const void *mine[THREAD_RANKS_MAX];
    size_t bytes[THREAD_RANKS_MAX];
    atomic_int calls;
} thread_ranks;

typedef struct thread_rank {
    thread_ranks *all;
    pst_ckpt_ranks ranks;
    pthread_t thread;
    void *context;
    int status;
    pst_error err;
} thread_rank;

static int thread_gather(void *user, const void *mine, size_t bytes, void *all)
{
    thread_rank *self = user;
    thread_ranks *r = self->all;
    int status = 0;
    atomic_fetch_add(&r->calls, 1);
    r->mine[self->ranks.rank] = mine;
    r->bytes[self->ranks.rank] = bytes;
    pthread_barrier_wait(&r->barrier);
    for (uint32_t i = 0; i < r->count; i++) {
        if (r->bytes[i] != bytes)
            status = -EPROTO;
        else
            memcpy((char *)all + i * bytes, r->mine[i], bytes);
    }
    pthread_barrier_wait(&r->barrier);
    return status;
}

/* Runs body in `count` threads at once; each gets its thread_rank. */
static inline void thread_ranks_run(uint32_t count, thread_rank *ranks, void *(*body)(void *rank), void *context)
{
    thread_ranks all = {.count = count};
    pthread_barrier_init(&all.barrier, NULL, count);
    for (uint32_t i = 0; i < count; i++) {
        ranks[i] = (thread_rank){
            .all = &all, .ranks = {.rank = i, .count = count, .all_gather = thread_gather}, .context = context};
        ranks[i].ranks.user = &ranks[i];
        if (pthread_create(&ranks[i].thread, NULL, body, &ranks[i]) != 0)
            abort();
    }
    for (uint32_t i = 0; i < count; i++)
        pthread_join(ranks[i].thread, NULL);
    pthread_barrier_destroy(&all.barrier);
}

#endif
