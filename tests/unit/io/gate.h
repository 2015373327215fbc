/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An engine of the tests' own: it holds requests back until the test lets them go, one by one and in random order. So
 * order, depth, cancelling, waiting and closing are seen as they are, not as a drive happens to be fast.
 * One queue at a time is enough: the handles of these tests have one worker.
 */
#ifndef PST_TEST_GATE_H
#define PST_TEST_GATE_H

#include <pthread.h>
#include <stdbool.h>

#include "penstock/io_engine.h"

enum { HELD_MAX = 512, MAX_LOG = 4096 };

typedef struct gate_state {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pst_io_request *held[HELD_MAX];
    uint32_t held_count, most_held, allowance; /* requests that may go */
    bool woken, free_running;
    uint64_t started[MAX_LOG]; /* offsets in order of submission */
    uint32_t started_count;
    uint32_t files, buffers; /* slots in use */
    uint32_t refusals;       /* rounds in which all that is held comes back with EAGAIN */
    uint64_t random;
    uint32_t most_submitted; /* requests in one call of submit */
    void (*on_submit)(void); /* called once, by the worker, at the end of the next submit; NULL: nothing */
} gate_state;

extern gate_state gate;
extern const pst_io_engine gate_engine;

/* Lets `count` requests go. */
void gate_allow(uint32_t count);
/* Lets all go from now on, or none. */
void gate_allow_all(bool all);
/* Waits until the engine holds `count` requests. */
void gate_await_held(uint32_t count);
/* The same for ten seconds at most; whether it does. */
bool gate_comes_to_hold(uint32_t count);

#endif
