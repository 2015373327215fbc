/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences that share prefixes, in memory or in a file with the smallest window, on the host and on an accelerator that it
 * pretends to be: texts drawn from random trees, added, continued and removed in random order, in sessions of random shape, get
 * at every position the bits of logits that they get alone, and what two of them have in common is computed once.
 */
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

#include "base/number.h"
#include "device/fault.h"
#include "nn/kv.h"
#include "os/file.h"
#include "penstock/model.h"
#include "support/random.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases/"

enum { TEXTS = 24, MAX_LENGTH = 420, SESSIONS = 5 };

static pst_device_fault fault = {.separate = true, .late = true};

typedef struct text {
    uint32_t ids[MAX_LENGTH];
    uint32_t count, prompt;
    float *logits; /* count x vocab */
} text;

typedef struct work {
    pst_model *model;
    char folder[64];
    size_t vocab;
    bool prompts_only; /* a text is another one if it is not given at once: its angles depend on the length given */
    text texts[TEXTS];
} work;

/* A stored case's model with room for longer texts. */
static void open_model(work *w, const char *name)
{
    char path[600], target[600], *config;
    size_t bytes;
    pst_error err;
    strcpy(w->folder, "/tmp/penstock-kv-XXXXXX");
    assert_non_null(mkdtemp(w->folder));
    snprintf(path, sizeof path, CASES "%s/config.json", name);
    assert_int_equal(pst_file_read_all(path, 1 << 20, &config, &bytes, &err), 0);
    /* Some families have no such key, and room enough. A scaling by length begins at a length that texts come to. */
    static const char key[] = "\"max_position_embeddings\": ";
    char longer[8192], *context = strstr(config, key);
    assert_true(bytes < sizeof longer - 10);
    strcpy(longer, config);
    if (context != NULL) {
        size_t before = (size_t)(context - config) + strlen(key);
        w->prompts_only = strstr(config, "dynamic") != NULL;
        snprintf(longer + before, sizeof longer - before, "%d%s", w->prompts_only ? 200 : 999,
                 context + strlen(key) + strspn(context + strlen(key), "0123456789"));
    }
    snprintf(path, sizeof path, "%s/config.json", w->folder);
    assert_int_equal(pst_file_publish(path, longer, strlen(longer), &err), 0);
    free(config);
    snprintf(path, sizeof path, "%s/model.safetensors", w->folder);
    snprintf(target, sizeof target, CASES "%s/model.safetensors", name);
    assert_int_equal(symlink(target, path), 0);
    if (pst_model_open(w->folder, NULL, &w->model, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    pst_model_info info;
    pst_model_get_info(w->model, &info);
    w->vocab = info.vocab;
}

static void close_model(work *w)
{
    char path[100];
    for (size_t i = 0; i < TEXTS; i++)
        free(w->texts[i].logits);
    pst_model_close(w->model);
    snprintf(path, sizeof path, "%s/config.json", w->folder);
    unlink(path);
    snprintf(path, sizeof path, "%s/model.safetensors", w->folder);
    unlink(path);
    rmdir(w->folder);
}

/* Each text goes on from a random place in one before it, often at a whole block or beside one. */
static void deal(work *w)
{
    for (size_t i = 0; i < TEXTS; i++) {
        text *t = &w->texts[i];
        t->count = 2 + (uint32_t)random_below(MAX_LENGTH - 1);
        uint32_t common = 0;
        if (i > 0 && random_below(5) > 0) {
            const text *from = &w->texts[random_below(i)];
            common = (uint32_t)random_below(from->count + 1);
            if (random_below(2) == 0)
                common = (common + 32) / 64 * 64 + (uint32_t)random_below(3) - 1;
            common = common < from->count ? common : from->count;
            t->count = t->count > common ? t->count : common + (uint32_t)random_below(2);
            t->count = t->count < MAX_LENGTH ? t->count : MAX_LENGTH;
            common = common < t->count ? common : t->count;
            memcpy(t->ids, from->ids, common * sizeof *t->ids);
        }
        for (uint32_t j = common; j < t->count; j++)
            t->ids[j] = (uint32_t)random_below(w->vocab);
        t->prompt = 1 + (uint32_t)random_below(t->count);
        if (random_below(2) == 0)
            t->prompt = t->count - (uint32_t)random_below(t->count < 4 ? t->count : 4);
        if (w->prompts_only)
            t->prompt = t->count;
    }
}

static pst_session *open_session(const work *w, pst_session_options options, const char *what)
{
    options.struct_size = sizeof options;
    options.max_tokens = MAX_LENGTH;
    pst_session *session;
    pst_error err;
    if (pst_session_open(w->model, &options, &session, &err) < 0)
        fail_msg("%s: %s", what, err.message);
    return session;
}

static int keep_logits(void *user, size_t request, uint32_t position, const float *logits, size_t vocab)
{
    work *w = user;
    memcpy(w->texts[request].logits + position * vocab, logits, vocab * sizeof *logits);
    return 0;
}

/* Every text alone, all of it computed. */
static void compute_yardstick(work *w, uint32_t kv_bits)
{
    static double logprobs[MAX_LENGTH];
    pst_session *session = open_session(
        w,
        (pst_session_options){
            .all_logits = true, .kv_bits = kv_bits, .threads = 1, .resident_set = true, .resident_share = 1},
        "yardstick");
    for (size_t i = 0; i < TEXTS; i++) {
        text *t = &w->texts[i];
        free(t->logits);
        assert_non_null(t->logits = calloc(t->count * w->vocab, sizeof(float)));
        pst_score_request request = {t->ids, t->count, logprobs};
        pst_error err;
        work one = {.vocab = w->vocab};
        one.texts[0].logits = t->logits;
        if (pst_score(session, &request, 1, keep_logits, &one, NULL, &err) < 0)
            fail_msg("%s", err.message);
    }
    pst_session_close(session);
}

/* A session at work on texts in random order. */
typedef struct player {
    const work *w;
    pst_session *session;
    uint32_t slots;
    uint32_t text_of[TEXTS], given[TEXTS]; /* by sequence; given 0: free */
    const char *what;
} player;

static void check_logits(player *p, const pst_logits *logits)
{
    const text *t = &p->w->texts[p->text_of[logits->sequence]];
    assert_int_equal(logits->position + 1, p->given[logits->sequence]);
    if (memcmp(logits->values, t->logits + logits->position * p->w->vocab, p->w->vocab * sizeof(float)) != 0)
        fail_msg("%s: text %u, position %u differs", p->what, p->text_of[logits->sequence], logits->position);
}

/* The sequence goes on, ends, or (now and then) is given up. */
static void answer(player *p, uint32_t sequence)
{
    const text *t = &p->w->texts[p->text_of[sequence]];
    pst_error err;
    if (p->given[sequence] == t->count || random_below(40) == 0) {
        pst_session_remove(p->session, sequence);
        p->given[sequence] = 0;
        return;
    }
    assert_int_equal(pst_session_append(p->session, sequence, t->ids[p->given[sequence]], &err), 0);
    p->given[sequence]++;
}

static void add_text(player *p, uint32_t number)
{
    const text *t = &p->w->texts[number];
    uint32_t sequence;
    pst_error err;
    assert_int_equal(pst_session_add(p->session, t->ids, t->prompt, &sequence, &err), 0);
    p->text_of[sequence] = number;
    p->given[sequence] = t->prompt;
}

static bool has_room(const player *p)
{
    for (uint32_t i = 0; i < p->slots; i++)
        if (p->given[i] == 0)
            return true;
    return false;
}

static void play(player *p, uint32_t additions)
{
    for (;;) {
        while (additions > 0 && has_room(p) && random_below(3) > 0) {
            add_text(p, (uint32_t)random_below(TEXTS));
            additions--;
        }
        if (random_below(50) == 0) { /* one is given up in the midst of its prompt, or anywhere */
            uint32_t sequence = (uint32_t)random_below(p->slots);
            pst_session_remove(p->session, sequence);
            p->given[sequence] = 0;
        }
        const pst_logits *logits;
        size_t count;
        pst_error err;
        if (pst_session_step(p->session, &logits, &count, &err) < 0)
            fail_msg("%s: %s", p->what, err.message);
        for (size_t i = 0; i < count; i++)
            check_logits(p, &logits[i]);
        uint32_t sequences[TEXTS];
        for (size_t i = 0; i < count; i++)
            sequences[i] = logits[i].sequence;
        for (size_t i = 0; i < count; i++)
            answer(p, sequences[i]);
        bool busy = additions > 0;
        for (uint32_t i = 0; i < p->slots; i++)
            busy = busy || p->given[i] > 0;
        if (!busy)
            return;
    }
}

static void check_case(const char *name, uint32_t kv_bits)
{
    static work w;
    memset(&w, 0, sizeof w);
    open_model(&w, name);
    deal(&w);
    compute_yardstick(&w, kv_bits);
    for (int i = 0; i < SESSIONS; i++) {
        char what[200];
        pst_session_options options = {.max_sequences = 1 + (uint32_t)random_below(9),
                                       .threads = 1 + (uint32_t)random_below(3),
                                       .kv_bits = kv_bits};
        /* Passes of few rows: prompts are cut, and their blocks are claimed by one and waited for by others. */
        options.max_prompt_tokens = 1 + (uint32_t)random_below(2) * (uint32_t)random_below(MAX_LENGTH);
        options.no_prefix_sharing = random_below(5) == 0;
        if (random_below(3) > 0) { /* from one sequence in a part of the window to several */
            options.kv_folder = w.folder;
            options.kv_window_bytes = 1 + random_below(2) * random_below(1 << 19);
        }
        if (random_below(2) == 0) {
            options.device = "pretended";
            options.kv_offload = random_below(3) > 0;
            if (options.kv_folder != NULL && random_below(2) == 0)
                options.kv_folder = NULL;
            options.kv_window_bytes = 1 + random_below(2) * random_below(1 << 19);
        }
        snprintf(what, sizeof what,
                 "%s, %u bits: %u sequences, prompts of %u, %u threads, shared %d, device %d, offload %d, on disk %d, "
                 "window "
                 "%" PRIu64,
                 name, kv_bits, options.max_sequences, options.max_prompt_tokens, options.threads,
                 !options.no_prefix_sharing, options.device != NULL, options.kv_offload, options.kv_folder != NULL,
                 options.kv_window_bytes);
        player p = {.w = &w, .slots = options.max_sequences, .what = what};
        p.session = open_session(&w, options, what);
        play(&p, 40);
        pst_session_close(p.session);
        if (fault.misuses > 0)
            fail_msg("%s: %s", what, fault.misuse);
        assert_int_equal(pst_device_fault_held(&fault), 0);
    }
    close_model(&w);
}

static void test_random_trees(void **state)
{
    (void)state;
    random_start("kv sessions");
    check_case("llama_gqa2", 32);
    check_case("llama_gqa2", 8);
    check_case("mistral_window", 16);
    check_case("bloom", 32);
    check_case("deepseek_v3", 8);
    check_case("qwen3_moe_window", 4);
    check_case("llama_yarn", 16);
    check_case("llama_dynamic", 32); /* shares nothing: its angles depend on a sequence's length */
}

/* Requests with a prefix in common: its rows are computed once in all, and the answers are those without sharing. */
static void test_rows_computed_once(void **state)
{
    (void)state;
    enum { REQUESTS = 12, COMMON = 200, OWN = 20, NEW = 3 };
    static work w;
    memset(&w, 0, sizeof w);
    open_model(&w, "llama_gqa2");
    static uint32_t ids[REQUESTS][COMMON + OWN];
    pst_request requests[REQUESTS];
    pst_result results[2][REQUESTS];
    for (size_t i = 0; i < REQUESTS; i++) {
        for (size_t j = 0; j < COMMON + OWN; j++)
            ids[i][j] = j < COMMON && i > 0 ? ids[0][j] : (uint32_t)random_below(w.vocab);
        requests[i] = (pst_request){.prompt_ids = ids[i],
                                    .prompt_count = COMMON + OWN,
                                    .max_new_tokens = NEW,
                                    .sampling = {.temperature = 1, .seed = i},
                                    .ignore_end = true};
    }
    /* All at once in one pass; with passes too short for one prompt; and one after the other. */
    static const pst_session_options shapes[] = {
        {.max_sequences = REQUESTS}, {.max_sequences = REQUESTS, .max_prompt_tokens = 5}, {.max_sequences = 1}};
    for (size_t shape = 0; shape < 3; shape++) {
        for (int without = 0; without <= 1; without++) {
            pst_session_options options = shapes[shape];
            options.no_prefix_sharing = without;
            pst_session *session = open_session(&w, options, "once");
            pst_run_stats stats;
            pst_error err;
            if (pst_generate(session, requests, REQUESTS, NULL, NULL, results[without], &stats, &err) < 0)
                fail_msg("%s", err.message);
            uint64_t whole = COMMON / PST_KV_BLOCK * PST_KV_BLOCK;
            assert_int_equal(stats.prompt_tokens, REQUESTS * (COMMON + OWN));
            assert_int_equal(stats.shared_tokens, without ? 0 : (REQUESTS - 1) * whole);
            if (shape == 0 && !without)
                assert_int_equal(stats.passes, NEW); /* nobody waited for the one that computes */
            pst_session_close(session);
        }
        for (size_t i = 0; i < REQUESTS; i++) {
            assert_int_equal(results[0][i].ids.count, NEW);
            assert_memory_equal(results[0][i].ids.ids, results[1][i].ids.ids, NEW * sizeof(uint32_t));
            pst_result_free(&results[0][i]);
            pst_result_free(&results[1][i]);
        }
    }
    close_model(&w);
}

static int open_device(void *context, const char *name, pst_pool *pool, const char *kernels, pst_device **out,
                       pst_error *err)
{
    return name == NULL ? pst_device_host_create(pool, kernels, out, err)
                        : pst_device_fault_open(context, name, pool, kernels, out, err);
}

int main(void)
{
    pst_device_replace_open(open_device, &fault);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_trees), cmocka_unit_test(test_rows_computed_once)};
    return cmocka_run_group_tests_name("kv sessions", tests, NULL, NULL);
}
