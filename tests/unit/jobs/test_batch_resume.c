/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs that are stopped while requests are half answered, for models whose rotary angles depend on the length of a text: a
 * request that is begun again starts from its own prompt, never from what was answered so far, which would be another text
 * to such a model. So the output is byte for byte that of a run that nothing stopped, whatever ran beside a request.
 */
#include "unit/store/files.h"

#include "penstock/batch.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases/"

enum { REQUESTS = 7, MAX_TOKENS = 90 };

static const char *write_input(uint32_t context)
{
    const char *path = files_path("in.jsonl");
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        uint32_t prompt = 5 + i % 3 * 8, made = 9 + i * 9;
        made = prompt + made > context ? context - prompt : made;
        fprintf(file, "{\"prompt\": [");
        for (uint32_t j = 0; j < prompt; j++)
            fprintf(file, "%s%u", j ? ", " : "", 3 + (i * 31 + j * 7) % 50);
        fprintf(file, "], \"max_tokens\": %u, \"temperature\": %s}\n", made, i % 2 ? "0.8" : "0");
    }
    fclose(file);
    return path;
}

/* Stops the job when it has made so many tokens in this run. */
static int stop_at(void *user, const pst_batch_progress *progress)
{
    const uint64_t *most = user;
    return progress->phase == PST_BATCH_RUNNING && progress->tokens >= *most;
}

static int run(pst_model *model, const char *in, const char *out, uint64_t most_tokens, uint32_t sequences,
               uint64_t kv_tokens, pst_batch_report *report)
{
    pst_model_info info;
    pst_error err;
    pst_model_get_info(model, &info);
    const pst_session_options shape = {.struct_size = sizeof shape,
                                       .max_sequences = sequences,
                                       .max_tokens = info.context < MAX_TOKENS ? info.context : MAX_TOKENS,
                                       .kv_tokens = kv_tokens,
                                       .threads = 1};
    const pst_batch_options options = {.struct_size = sizeof options,
                                       .input = in,
                                       .output = out,
                                       .ignore_end = true,
                                       .on_progress = stop_at,
                                       .user = &most_tokens,
                                       .sync_seconds = -1};
    pst_session *session;
    pst_batch *batch;
    if (pst_session_open(model, &shape, &session, &err) < 0 || pst_batch_open(model, &options, &batch, &err) < 0)
        fail_msg("%s", err.message);
    pst_batch_info about;
    pst_batch_get_info(batch, &about);
    assert_int_equal(about.requests, REQUESTS);
    assert_true(about.kv_tokens % 64 == 0 && about.kv_tokens >= REQUESTS * 64); /* those of a journal, too */
    assert_true(about.prompt_tokens > 0 && about.prompt_tokens + about.new_tokens <= about.kv_tokens);
    int status = pst_batch_run(batch, session, report, NULL, &err);
    if (status < 0 && status != PST_E_CANCELLED)
        fail_msg("%s", err.message);
    pst_batch_close(batch);
    pst_session_close(session);
    return status;
}

static char *read_text(const char *path)
{
    static char text[2][1 << 16];
    static int next;
    char *to = text[next++ % 2];
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    to[fread(to, 1, sizeof text[0] - 1, file)] = '\0';
    fclose(file);
    return to;
}

static void check(const char *name)
{
    pst_model *model;
    pst_model_info info;
    pst_batch_report report;
    pst_error err;
    char folder[600], out[300];
    snprintf(folder, sizeof folder, CASES "%s", name);
    assert_int_equal(pst_model_open(folder, NULL, &model, &err), 0);
    pst_model_get_info(model, &info);
    assert_true(info.context >= 64); /* beyond the length at which the scaling of these cases begins, 24 */
    const char *in = write_input(info.context < MAX_TOKENS ? info.context : MAX_TOKENS);
    snprintf(out, sizeof out, "%s", files_path("%s.whole", name));
    assert_int_equal(run(model, in, out, UINT64_MAX, 1, 0, &report), 0);
    const char *expected = read_text(out);
    assert_non_null(strstr(expected, "token_ids"));
    uint64_t resumed = 0;
    for (uint64_t step = 13; step < 80; step += 11) {
        snprintf(out, sizeof out, "%s", files_path("%s.%u", name, (unsigned)step));
        int status, runs = 0;
        do { /* each run makes a step more than the one before, so that one of them ends */
            runs++;
            status = run(model, in, out, step * (unsigned)runs, 2 + (uint32_t)runs % 4, runs % 2 ? 192 : 0, &report);
        } while (status == PST_E_CANCELLED && runs < 100);
        assert_int_equal(status, 0);
        assert_true(runs > 1);
        resumed += report.resumed;
        assert_int_equal(report.answered, REQUESTS);
        assert_string_equal(read_text(out), expected);
        expected = read_text(files_path("%s.whole", name));
    }
    assert_true(resumed > 0);
    pst_model_close(model);
}

static void test_dynamic(void **state)
{
    (void)state;
    check("llama_dynamic");
}

static void test_longrope(void **state)
{
    (void)state;
    check("mistral_longrope_crossing");
}

static void test_fixed_angles(void **state)
{
    (void)state;
    check("llama_gqa2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dynamic),
        cmocka_unit_test(test_longrope),
        cmocka_unit_test(test_fixed_angles),
    };
    return cmocka_run_group_tests(tests, files_create, files_remove);
}
