/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stages of experts as the ring runs them, but by hand: units that no row chose are left out, which changes no bit; and
 * look-ahead routing, in a model whose attention and experts add nothing: there the residual stream never changes, so that
 * what the next layer's router will say is known exactly. In the model as it is, guesses that are mostly wrong end.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "nn/forward.h"
#include "os/file.h"
#include "os/thread.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases/"

enum { TOKENS = 12, MAX_UNITS = 64 };

typedef struct model {
    pst_transformer t;
    pst_store *store;
    pst_program *program;
    pst_pool *pool;
    pst_device *device;
    pst_kv *kv;
    pst_forward_config config;
    pst_forward *forward;
    unsigned char **data; /* by tensor of the store */
    bool all_units;
    /* What the last pass did. */
    uint32_t guesses, exact_guesses, skipped;
} model;

static size_t number_of(const model *m, const pst_tensor *tensor)
{
    for (size_t i = 0; i < pst_store_tensor_count(m->store); i++)
        if (pst_store_tensor_at(m->store, i) == tensor)
            return i;
    fail();
    return 0;
}

static void open_model(const char *name, bool silent, model *m)
{
    char folder[512], path[600], *text;
    size_t bytes;
    pst_error err;
    *m = (model){0};
    snprintf(folder, sizeof folder, CASES "%s", name);
    snprintf(path, sizeof path, "%s/config.json", folder);
    assert_int_equal(pst_file_read_all(path, 1 << 20, &text, &bytes, NULL), 0);
    if (pst_transformer_parse(text, bytes, path, NULL, 0, NULL, &m->t, &err) < 0 ||
        pst_store_open(folder, &m->store, &err) < 0 || pst_program_create(&m->t, m->store, &m->program, &err) < 0)
        fail_msg("%s", err.message);
    pst_heap_free(text);
    size_t count = pst_store_tensor_count(m->store);
    m->data = calloc(count, sizeof *m->data);
    for (size_t i = 0; i < count; i++) {
        const pst_tensor *tensor = pst_store_tensor_at(m->store, i);
        const char *file = pst_store_file_path(m->store, tensor->file);
        bool adds = strstr(tensor->name, "o_proj") || strstr(tensor->name, "down_proj") || strstr(tensor->name, ".w2.");
        m->data[i] = calloc(1, tensor->bytes);
        if (!silent || !adds)
            assert_int_equal(pst_file_read_at(file, tensor->offset, m->data[i], tensor->bytes, NULL), 0);
    }
    assert_int_equal(pst_pool_create(2, &m->pool, NULL), 0);
    assert_int_equal(pst_device_host_create(m->pool, NULL, &m->device, NULL), 0);
    pst_kv_config kv = {
        .layout = pst_kv_layout_of(&m->t, PST_KV_F32), .layers = m->t.layers, .max_sequences = 1, .max_tokens = TOKENS};
    assert_int_equal(pst_kv_create(&kv, &m->kv, NULL), 0);
    m->config = (pst_forward_config){.transformer = &m->t,
                                     .program = m->program,
                                     .device = m->device,
                                     .max_rows = 1,
                                     .max_logit_rows = 1,
                                     .max_sequences = 1,
                                     .max_tokens = TOKENS,
                                     .compute_type = PST_F32,
                                     .kv_type = PST_KV_F32,
                                     .kv = m->kv,
                                     .look_ahead = true};
    assert_int_equal(pst_forward_create(&m->config, &m->forward, NULL), 0);
}

static void close_model(model *m)
{
    for (size_t i = 0; i < pst_store_tensor_count(m->store); i++)
        free(m->data[i]);
    free(m->data);
    pst_forward_destroy(m->forward);
    pst_kv_destroy(m->kv);
    pst_device_destroy(m->device);
    pst_pool_destroy(m->pool);
    pst_program_destroy(m->program);
    pst_store_close(m->store);
    pst_transformer_destroy(&m->t);
}

/* Gives the stage's function tensors [first, end), each as a part of its own. */
static void run_tensors(const model *m, const pst_stage *stage, uint32_t first, uint32_t end)
{
    for (uint32_t i = first; i < end; i++) {
        pst_error err;
        const pst_piece piece = {.tensor = i, .rows = stage->tensors[i].rows};
        const pst_part_view part = {&piece, 1, m->data[number_of(m, stage->tensors[i].tensor)]};
        if (stage->compute(stage->context, stage, &part, &err) < 0)
            fail_msg("%s", err.message);
    }
}

static void guess(const pst_program *program, uint32_t from, bool *out, uint32_t *count)
{
    *count = 0;
    for (uint32_t s = from; s < program->stage_count; s++) {
        if (program->stages[s].unit_count > 1 && program->stages[s].guess != NULL) {
            *count = program->stages[s].guess(program->stages[s].context, &program->stages[s], out);
            return;
        }
    }
}

static void run_pass(model *m, uint32_t position, uint32_t id, float *logits)
{
    pst_row row = {.position = position, .prompt = 1, .id = id, .wants_logits = true};
    pst_error err;
    const pst_tensor *embedding = m->program->stages[0].tensors[0].tensor;
    uint64_t row_bytes = m->program->stages[0].tensors[0].row_bytes;
    pst_kv_reach(m->kv, 0, position + 1);
    if (pst_forward_begin(m->forward, &row, 1, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(pst_forward_embed(m->forward, 0, m->data[number_of(m, embedding)] + id * row_bytes), 0);
    bool guessed[MAX_UNITS] = {false}, wanted[MAX_UNITS];
    uint32_t guessed_count;
    m->guesses = m->exact_guesses = m->skipped = 0;
    guess(m->program, 1, guessed, &guessed_count);
    for (uint32_t s = 1; s < m->program->stage_count; s++) {
        const pst_stage *stage = &m->program->stages[s];
        if (stage->unit_count < 2) {
            run_tensors(m, stage, 0, stage->tensor_count);
            continue;
        }
        assert_true(stage->unit_count <= MAX_UNITS);
        uint32_t count = stage->choose(stage->context, stage, wanted);
        assert_int_equal(count, m->t.experts_per_token);
        m->guesses += guessed_count > 0;
        m->exact_guesses += guessed_count > 0 && memcmp(guessed, wanted, stage->unit_count) == 0;
        guess(m->program, s + 1, guessed, &guessed_count);
        for (uint32_t u = 0; u < stage->unit_count; u++) {
            m->skipped += !wanted[u] && !m->all_units;
            if (wanted[u] || m->all_units)
                run_tensors(m, stage, stage->unit_first_tensor[u], stage->unit_first_tensor[u + 1]);
        }
    }
    memcpy(logits, pst_forward_logits(m->forward).data, m->t.vocab * sizeof *logits);
}

static uint32_t layers_with_experts(const pst_transformer *t)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < t->layers; i++)
        count += t->sparse[i];
    return count;
}

static const char *const names[] = {"mixtral_top1_tied", "qwen3_moe_mixed_layers", "qwen3_moe_bf16", "deepseek_v3",
                                    "deepseek_v2"};

static void test_guesses_are_exact_where_layers_add_nothing(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        model m;
        float logits[256];
        open_model(names[n], true, &m);
        for (uint32_t position = 0; position < TOKENS; position++) {
            run_pass(&m, position, 3 + position, logits);
            assert_int_equal(m.guesses,
                             position == 0 ? 0 : layers_with_experts(&m.t)); /* routers are unknown at first */
            assert_int_equal(m.exact_guesses, m.guesses);
        }
        close_model(&m);
    }
}

static void test_unwanted_units_are_not_missed(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        model some, all;
        float a[256], b[256];
        open_model(names[n], false, &some);
        open_model(names[n], false, &all);
        all.all_units = true;
        for (uint32_t position = 0; position < TOKENS; position++) {
            run_pass(&some, position, 7 * position % 50, a);
            run_pass(&all, position, 7 * position % 50, b);
            assert_memory_equal(a, b, some.t.vocab * sizeof *a);
            assert_true(some.skipped > 0 && all.skipped == 0);
        }
        close_model(&some);
        close_model(&all);
    }
}

/* Look-ahead says the same of every layer in test_guesses..., but here layers change much: it must be wrong at times, and
 * where it mostly is, it ends. */
static void test_bad_guesses_end(void **state)
{
    (void)state;
    model m;
    float logits[256];
    uint32_t early = 0, late = 0, exact = 0;
    open_model("qwen3_moe_window", false, &m); /* one of 17 experts */
    for (uint32_t position = 1; position < TOKENS; position++) {
        run_pass(&m, position - 1, 5 * position % 60, logits);
        early += position == 2 ? m.guesses : 0;
        late += position == TOKENS - 1 ? m.guesses : 0;
        exact += m.exact_guesses;
    }
    assert_int_equal(early, layers_with_experts(&m.t));
    assert_true(late < early && exact < TOKENS);
    close_model(&m);
}

/* The planner knows what recording and replaying take of every row. */
static void test_memory_of_rows(void **state)
{
    (void)state;
    model m;
    open_model("deepseek_v3", false, &m);
    pst_forward_memory plain, recorded, both;
    pst_routing_trace *trace;
    assert_int_equal(pst_routing_trace_open("uniform", &m.t, &trace, NULL), 0);
    pst_forward_config config = m.config;
    pst_forward_measure(&config, &plain);
    config.record_routing = true;
    pst_forward_measure(&config, &recorded);
    config.routing_trace = trace;
    pst_forward_measure(&config, &both);
    uint64_t row = (uint64_t)layers_with_experts(&m.t) * m.t.experts_per_token * sizeof(uint32_t);
    assert_true(row > 0);
    assert_int_equal(recorded.row_bytes - plain.row_bytes, row);
    assert_true(both.row_bytes >= recorded.row_bytes + sizeof(uint64_t) + sizeof(uint32_t));
    pst_routing_trace_destroy(trace);
    close_model(&m);
}

/* Making a pass with everything that a family has: whatever allocation fails, nothing is left. */
static void test_allocation_failures(void **state)
{
    (void)state;
    model m;
    open_model("deepseek_v3", false, &m);
    pst_forward_destroy(m.forward);
    pst_routing_trace *trace;
    assert_int_equal(pst_routing_trace_open("uniform", &m.t, &trace, NULL), 0);
    pst_forward_config config = m.config;
    config.routing_trace = trace;
    config.record_routing = true;
    int64_t live = pst_heap_live_count();
    int status = -1;
    for (int64_t n = 0; status < 0; n++) {
        m.forward = NULL;
        pst_heap_fail_after(n, 0);
        status = pst_forward_create(&config, &m.forward, NULL);
        pst_heap_fail_after(-1, 0);
        assert_true(status == 0 || (status == -ENOMEM && pst_heap_live_count() == live));
        assert_true(n < 1000);
    }
    pst_forward_destroy(m.forward);
    assert_int_equal(pst_heap_live_count(), live);
    m.forward = NULL;
    pst_routing_trace_destroy(trace);
    close_model(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_of_rows),
        cmocka_unit_test(test_guesses_are_exact_where_layers_add_nothing),
        cmocka_unit_test(test_unwanted_units_are_not_missed),
        cmocka_unit_test(test_bad_guesses_end),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests_name("experts", tests, NULL, NULL);
}
