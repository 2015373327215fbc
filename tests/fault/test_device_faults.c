/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole sessions on a device whose calls fail: every kind of call, the first ones, the last one and random others, at once or
 * reported by a later wait. A failure reaches the caller with its code and a line, and the session says so from
 * then on; nothing is leaked, nothing crashes, and what does not fail has the right bits. The device is one that the host pretends to be, with
 * memory of its own, which does its work late.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/heap.h"
#include "device/fault.h"
#include "penstock/model.h"
#include "support/random.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases/"

enum { TOKENS = 7, STRIKES = 8 /* of a kind, in a session */ };

static pst_device_fault fault;
static char folder[] = "/tmp/penstock-device-faults-XXXXXX";
static int failed, survived; /* sessions that a call failed in */

typedef struct scene {
    pst_model *model;
    pst_session_options options;
    size_t vocab;
    uint32_t ids[TOKENS];
    float *expected, *got; /* TOKENS x vocab */
} scene;

static int take_row(void *user, size_t request, uint32_t position, const float *logits, size_t vocab)
{
    (void)request;
    memcpy((float *)user + position * vocab, logits, vocab * sizeof *logits);
    return 0;
}

static int score(scene *s, pst_session *session, float *to, pst_error *err)
{
    double logprobs[TOKENS];
    pst_score_request request = {s->ids, TOKENS, logprobs};
    memset(to, 0, TOKENS * s->vocab * sizeof *to);
    return pst_score(session, &request, 1, take_row, to, NULL, err);
}

static void require_right(const scene *s, const char *what)
{
    if (memcmp(s->expected, s->got, TOKENS * s->vocab * sizeof *s->got) != 0)
        fail_msg("%s: other bits", what);
}

static void require_told(int status, const pst_error *err, const char *what)
{
    if (status != -EIO || err->code != -EIO || err->message[0] == '\0' || strchr(err->message, '\n') != NULL)
        fail_msg("%s: status %d, code %d, \"%s\"", what, status, err->code, err->message);
}

/* A session with a failure at the call after `skip` others. */
static void strike(scene *s, pst_device_call kind, int64_t skip, bool deferred)
{
    char what[100];
    snprintf(what, sizeof what, "call kind %d number %" PRId64 "%s", (int)kind, skip, deferred ? ", told late" : "");
    const int64_t live = pst_heap_live_count();
    pst_device_fault_fail(&fault, kind, skip, 1, -EIO);
    fault.plan[kind].deferred = deferred;
    fault.failures = 0;
    pst_session *session = NULL;
    pst_error err = {.offset = PST_NO_OFFSET};
    int status = pst_session_open(s->model, &s->options, &session, &err);
    if (status >= 0) {
        status = score(s, session, s->got, &err);
        if (status >= 0)
            require_right(s, what);
        fault.plan[kind].times = 0;
        if (status < 0) {
            pst_error again = {.offset = PST_NO_OFFSET};
            if (score(s, session, s->got, &again) != status || strcmp(again.message, err.message) != 0)
                fail_msg("%s: \"%s\", and then \"%s\"", what, err.message, again.message);
        }
    }
    if (status < 0)
        require_told(status, &err, what);
    failed += status < 0;
    survived += status >= 0;
    pst_session_close(session);
    fault.plan[kind].times = 0;
    if (fault.misuses > 0)
        fail_msg("%s: %s", what, fault.misuse);
    assert_int_equal(pst_device_fault_held(&fault), 0);
    assert_int_equal(pst_heap_live_count(), live);
}

static void strike_everywhere(scene *s)
{
    int64_t calls[PST_DEVICE_CALLS];
    pst_session *session;
    pst_error err;
    memset(fault.calls, 0, sizeof fault.calls);
    if (pst_session_open(s->model, &s->options, &session, &err) < 0 || score(s, session, s->got, &err) < 0)
        fail_msg("%s", err.message);
    require_right(s, "without failures");
    memcpy(calls, fault.calls, sizeof calls);
    pst_session_close(session);
    for (int kind = 0; kind < PST_DEVICE_CALLS; kind++) {
        for (int64_t i = 0; i < STRIKES && i < calls[kind]; i++) {
            int64_t skip = i < 2 ? i : i == 2 ? calls[kind] - 1 : (int64_t)random_below((uint64_t)calls[kind]);
            strike(s, (pst_device_call)kind, skip, false);
            if (kind == PST_DEVICE_COPY || kind == PST_DEVICE_OPERATOR)
                strike(s, (pst_device_call)kind, skip, true);
        }
    }
}

static void check_model(const char *name)
{
    char path[512];
    pst_error err;
    pst_model_info info;
    scene s = {
        .options = {.struct_size = sizeof s.options, .max_tokens = 2 * TOKENS, .threads = 2, .all_logits = true}};
    snprintf(path, sizeof path, CASES "%s", name);
    if (pst_model_open(path, NULL, &s.model, &err) < 0)
        fail_msg("%s", err.message);
    pst_model_get_info(s.model, &info);
    s.vocab = info.vocab;
    s.expected = calloc(TOKENS * s.vocab, sizeof *s.expected);
    s.got = calloc(TOKENS * s.vocab, sizeof *s.got);
    assert_true(s.expected != NULL && s.got != NULL);
    for (size_t i = 0; i < TOKENS; i++)
        s.ids[i] = (uint32_t)random_below(s.vocab);
    pst_session *session;
    assert_int_equal(pst_session_open(s.model, &s.options, &session, &err), 0);
    assert_int_equal(score(&s, session, s.expected, &err), 0);
    pst_session_close(session);

    /* All weights on the device, and as few as can be: then they come through the link, from the host or from the drive. */
    s.options.device = "pretended";
    strike_everywhere(&s);
    s.options.device_memory_bytes = 1;
    assert_int_equal(pst_session_open(s.model, &s.options, &session, &err), PST_E_BUDGET);
    const char *least = strstr(err.message, "works is ");
    assert_non_null(least);
    s.options.device_memory_bytes = strtoull(least + 9, NULL, 10) << 20;
    s.options.resident_set = true;
    strike_everywhere(&s);
    s.options.resident_share = 1;
    strike_everywhere(&s);
    /* Keys and values come through a window. */
    s.options.kv_offload = true;
    s.options.kv_window_bytes = 1;
    strike_everywhere(&s);
    s.options.kv_folder = folder;
    strike_everywhere(&s);
    pst_model_close(s.model);
    free(s.expected);
    free(s.got);
}

static void test_sessions(void **state)
{
    (void)state;
    random_start("device faults");
    check_model("llama_bf16_sharded");
    check_model("mixtral_top3_window");
    check_model("deepseek_v3");
    printf("%d sessions failed, %d did without what failed\n", failed, survived);
    assert_true(failed > survived);
}

static int open_device(void *context, const char *name, pst_pool *pool, const char *kernels, pst_device **out,
                       pst_error *err)
{
    return name == NULL ? pst_device_host_create(pool, kernels, out, err)
                        : pst_device_fault_open(context, name, pool, kernels, out, err);
}

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return rmdir(folder); /* fails when something was left in it */
}

int main(void)
{
    fault.separate = fault.late = true;
    pst_device_replace_open(open_device, &fault);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sessions)};
    return cmocka_run_group_tests_name("device faults", tests, set_up, tear_down);
}
