/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session on an emulated device whose allocations, registrations, streams, copies and launches fail in turn, at once or when
 * they are carried out: an error of one line, nothing left behind, no crash, and the next session is as good as the first.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "device/ops.h"
#include "penstock/model.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases/"

enum { PROMPT = 9, NEW_TOKENS = 4 };

typedef struct outcome {
    int status;
    pst_error err;
    uint32_t ids[NEW_TOKENS];
} outcome;

/* Opens, generates, closes. device_bytes 0: all is on the device, and passes are recorded where they may be; else some weights
 * are, and the others pass through it. */
static outcome run_session(pst_model *model, uint64_t device_bytes)
{
    outcome o = {.err = {.offset = PST_NO_OFFSET}};
    uint32_t prompt[PROMPT];
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = 3 + i;
    const pst_session_options options = {.struct_size = sizeof options,
                                         .max_tokens = PROMPT + NEW_TOKENS,
                                         .threads = 1,
                                         .resident_set = device_bytes > 0,
                                         .resident_share = 0.5,
                                         .io_engine = "threads",
                                         .device = ops_file(),
                                         .device_memory_bytes = device_bytes};
    const pst_request request = {
        .prompt_ids = prompt, .prompt_count = PROMPT, .max_new_tokens = NEW_TOKENS, .ignore_end = true};
    pst_session *session = NULL;
    pst_result result;
    o.status = pst_session_open(model, &options, &session, &o.err);
    if (o.status >= 0)
        o.status = pst_generate(session, &request, 1, NULL, NULL, &result, NULL, &o.err);
    if (o.status >= 0) {
        memcpy(o.ids, result.ids.ids, sizeof o.ids);
        pst_result_free(&result);
    }
    pst_session_close(session);
    return o;
}

static pst_emulated_counts alive(void)
{
    pst_emulated_counts counts;
    ops_emulator()->count(&counts);
    counts.most_device_bytes = 0;
    return counts;
}

static const char *const call_names[PST_EMULATED_CALLS] = {"allocation",
                                                           "registration",
                                                           "creation",
                                                           "copy",
                                                           "copy when it is carried out",
                                                           "launch",
                                                           "launch when it is carried out",
                                                           "graph"};

typedef struct scene {
    pst_model *model;
    uint64_t device_bytes, calls[PST_EMULATED_CALLS]; /* calls: of a run */
    uint32_t ids[NEW_TOKENS];
    pst_emulated_counts before;
    int64_t heap_before;
} scene;

/* The least memory that works, as a refusal names it: so that weights have to pass through. */
static uint64_t least_memory(pst_model *model)
{
    const outcome o = run_session(model, 1);
    assert_int_equal(o.status, PST_E_BUDGET);
    const char *number = strstr(o.err.message, "works is ");
    assert_non_null(number);
    return (strtoull(number + 9, NULL, 10) + 1) << 20;
}

static void set_up_scene(scene *s, const char *name, bool whole)
{
    char path[600];
    pst_error err;
    snprintf(path, sizeof path, CASES "%s", name);
    *s = (scene){0};
    if (pst_model_open(path, NULL, &s->model, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    s->device_bytes = whole ? 0 : least_memory(s->model);
    outcome o = run_session(s->model, s->device_bytes); /* what only a first session allocates */
    s->before = alive();
    s->heap_before = pst_heap_live_count();
    for (int call = 0; call < PST_EMULATED_CALLS; call++)
        s->calls[call] = ops_emulator()->calls((pst_emulated_call)call);
    o = run_session(s->model, s->device_bytes);
    if (o.status < 0)
        fail_msg("%s: %s", name, o.err.message);
    memcpy(s->ids, o.ids, sizeof s->ids);
    for (int call = 0; call < PST_EMULATED_CALLS; call++)
        s->calls[call] = ops_emulator()->calls((pst_emulated_call)call) - s->calls[call];
}

static void check_left_over(const scene *s, const char *text)
{
    const pst_emulated_counts now = alive();
    if (memcmp(&now, &s->before, sizeof now) != 0)
        fail_msg("%s: left on the device: %d buffers, %d pinned, %d registered, %d streams, %d events", text,
                 (int)(now.device_memory - s->before.device_memory), (int)(now.host_memory - s->before.host_memory),
                 (int)(now.registered - s->before.registered), (int)(now.streams - s->before.streams),
                 (int)(now.events - s->before.events));
    if (pst_heap_live_count() != s->heap_before)
        fail_msg("%s: %lld allocations are left", text, (long long)(pst_heap_live_count() - s->heap_before));
}

/* The nth call of a run fails. What is only for speed (locking memory for the device) may be done without, and a copy ahead for
 * a pass that never came need not be told. Returns whether the run failed. */
static bool check_failure(scene *s, pst_emulated_call call, uint64_t nth)
{
    char text[200];
    snprintf(text, sizeof text, "%s number %llu fails", call_names[call], (unsigned long long)nth);
    ops_emulator()->fail_nth(call, nth);
    const outcome o = run_session(s->model, s->device_bytes);
    ops_emulator()->fail_nth(call, 0);
    /* A pass that could not be recorded is launched. */
    const bool may_pass = call == PST_EMULATED_REGISTER || call == PST_EMULATED_COPY ||
                          call == PST_EMULATED_COPY_LATER || call == PST_EMULATED_GRAPH ||
                          (call == PST_EMULATED_LAUNCH && s->calls[PST_EMULATED_GRAPH] > 0);
    if (o.status >= 0 && !may_pass)
        fail_msg("%s, and nothing says so", text);
    if (o.status >= 0 && memcmp(o.ids, s->ids, sizeof o.ids) != 0)
        fail_msg("%s, nothing says so, and the tokens are others", text);
    if (o.status < 0 && (o.err.message[0] == '\0' || strchr(o.err.message, '\n') != NULL || o.err.code != o.status))
        fail_msg("%s: code %d of %d, \"%s\"", text, o.err.code, o.status, o.err.message);
    if (call == PST_EMULATED_LAUNCH_LATER) { /* such a device gives nothing back any more, nor does a vendor's */
        ops_emulator()->reset();
        s->before = alive();
    }
    check_left_over(s, text);
    return o.status < 0;
}

static void check_family(const char *name, bool whole)
{
    scene s;
    set_up_scene(&s, name, whole);
    const uint64_t most = ops_cases(12);
    for (int call = 0; call < PST_EMULATED_CALLS; call++) {
        /* All of a few; of many the first ones, the last, and others. */
        const uint64_t count = s.calls[call];
        uint64_t tried = 0, failed = 0;
        for (uint64_t i = 0; i < count && i < 2 * most; i++) {
            const bool all = count <= 2 * most;
            const uint64_t nth = all || i < most / 2 ? i + 1 : i == most / 2 ? count : ref_between(most / 2, count);
            tried++;
            failed += check_failure(&s, (pst_emulated_call)call, nth);
        }
        if (call != PST_EMULATED_REGISTER && call != PST_EMULATED_GRAPH &&
            failed * 4 < tried * (s.calls[PST_EMULATED_GRAPH] > 0 ? 1 : 3))
            fail_msg("%s: of %llu that failed, %llu were told", call_names[call], (unsigned long long)tried,
                     (unsigned long long)failed);
        const outcome o = run_session(s.model, s.device_bytes);
        if (o.status < 0)
            fail_msg("%s: after every %s has failed: %s", name, call_names[call], o.err.message);
        assert_memory_equal(o.ids, s.ids, sizeof o.ids);
    }
    printf("%s: %llu allocations, %llu registrations, %llu creations, %llu copies, %llu launches, %llu of graphs\n",
           name, (unsigned long long)s.calls[PST_EMULATED_ALLOCATE], (unsigned long long)s.calls[PST_EMULATED_REGISTER],
           (unsigned long long)s.calls[PST_EMULATED_CREATE], (unsigned long long)s.calls[PST_EMULATED_COPY],
           (unsigned long long)s.calls[PST_EMULATED_LAUNCH], (unsigned long long)s.calls[PST_EMULATED_GRAPH]);
    assert_true(s.calls[PST_EMULATED_ALLOCATE] > 0 && s.calls[PST_EMULATED_COPY] > 0);
    assert_true(s.calls[PST_EMULATED_LAUNCH] > 0);
    assert_int_equal(s.calls[PST_EMULATED_GRAPH] > 0, whole);
    pst_model_close(s.model);
}

static void test_failures(void **state)
{
    (void)state;
    if (!ops_begin("failures") || ops_emulator() == NULL)
        return;
    ops_emulator()->protect(false); /* which takes most of the time, and other tests do it */
    check_family("llama_gqa2", false);
    check_family("llama_gqa2", true);
    check_family("deepseek_v3", false);
}

/* The same where the host's own memory runs out while a session on a device is made. */
static void test_heap(void **state)
{
    (void)state;
    if (!ops_begin("the host's memory") || ops_emulator() == NULL)
        return;
    ops_emulator()->protect(false);
    scene s;
    set_up_scene(&s, "llama_gqa2", ref_between(0, 1));
    for (int64_t nth = 0, step = 1; nth < 4000; nth += step) {
        char text[80];
        pst_heap_fail_after(nth, 0);
        const outcome o = run_session(s.model, s.device_bytes);
        pst_heap_fail_after(-1, 0);
        snprintf(text, sizeof text, "heap allocation number %lld", (long long)nth);
        check_left_over(&s, text);
        if (o.status >= 0 && memcmp(o.ids, s.ids, sizeof o.ids) != 0)
            fail_msg("%s: other tokens", text);
        if (o.status < 0 && o.err.message[0] == '\0')
            fail_msg("%s fails without a word", text);
        step = 1 + (int64_t)ref_between(0, nth / 4);
    }
    pst_model_close(s.model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_failures), cmocka_unit_test(test_heap)};
    return cmocka_run_group_tests_name("failures of a device", tests, ops_set_up, ops_tear_down);
}
