/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines with conversations: the model's chat template makes their prompts, what it refuses is an error of the line,
 * and a job that goes on another day answers as if it were still the day of its first start.
 */
#include "unit/store/files.h"

#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

#include "penstock/batch.h"

#define TALES PST_TEST_SOURCE_DIR "/models/penstock-tales/"
#define DAY   86400

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* The model of the repository with a chat template beside it. */
static pst_model *open_model(const char *chat_template)
{
    static const char *const names[] = {"config.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "model-00001-of-00003.safetensors",
                                        "model-00002-of-00003.safetensors",
                                        "model-00003-of-00003.safetensors",
                                        "model.safetensors.index.json"};
    char path[700], target[700], folder[500];
    pst_model *model;
    pst_error err;
    snprintf(folder, sizeof folder, "%s", files_path("model"));
    mkdir(folder, 0755);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        snprintf(target, sizeof target, TALES "%s", names[i]);
        unlink(path);
        assert_int_equal(symlink(target, path), 0);
    }
    snprintf(path, sizeof path, "%s/chat_template.jinja", folder);
    unlink(path);
    if (chat_template != NULL)
        write_text(path, chat_template);
    if (pst_model_open(folder, NULL, &model, &err) < 0)
        fail_msg("%s", err.message);
    return model;
}

static int stop_at(void *user, const pst_batch_progress *progress)
{
    const uint64_t *lines = user;
    return progress->phase == PST_BATCH_RUNNING && progress->done >= *lines;
}

/* Runs the job until so many lines are answered. */
static int run(pst_model *model, const char *in, const char *out, int64_t time, uint64_t lines)
{
    const pst_batch_options options = {.struct_size = sizeof options,
                                       .input = in,
                                       .output = out,
                                       .max_new_tokens = 3,
                                       .on_progress = stop_at,
                                       .user = &lines,
                                       .sync_seconds = -1,
                                       .has_time = true,
                                       .time_seconds = time};
    pst_batch *batch;
    pst_session *session = NULL;
    pst_batch_info info;
    pst_error err;
    if (pst_batch_open(model, &options, &batch, &err) < 0)
        fail_msg("%s", err.message);
    pst_batch_get_info(batch, &info);
    const pst_session_options shape = {.struct_size = sizeof shape,
                                       .max_sequences = 1,
                                       .max_tokens = info.max_tokens,
                                       .threads = 1,
                                       .logprobs = info.logprobs};
    if (info.max_tokens > 0 && pst_session_open(model, &shape, &session, &err) < 0)
        fail_msg("%s", err.message);
    int status = pst_batch_run(batch, session, NULL, NULL, &err);
    if (status < 0 && status != PST_E_CANCELLED)
        fail_msg("%s", err.message);
    pst_batch_close(batch);
    pst_session_close(session);
    return status;
}

static json_t *read_answers(const char *path)
{
    json_t *answers = json_array();
    char line[20000];
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL)
        assert_int_equal(json_array_append_new(answers, json_loads(line, 0, NULL)), 0);
    fclose(file);
    return answers;
}

#define CHAT(id, body)                                                                                                 \
    "{\"custom_id\":\"" id "\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{" body "}}\n"
#define ASK "\"messages\":[{\"role\":\"user\",\"content\":\"Tell\"}]"

static const char plain_template[] =
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m.content }}{% endfor %}{{ tools | length if tools else '' }}{{ suffix }}";

/* The ids of a prompt, counted. */
static long long prompt_tokens(const json_t *answers, size_t i)
{
    const json_t *answer = json_array_get(answers, i), *response = json_object_get(answer, "response");
    const json_t *body = response != NULL ? json_object_get(response, "body") : answer;
    return json_integer_value(json_object_get(json_object_get(body, "usage"), "prompt_tokens"));
}

static void test_answers(void **state)
{
    (void)state;
    char in[600], out[600];
    snprintf(in, sizeof in, "%s", files_path("in.jsonl"));
    snprintf(out, sizeof out, "%s", files_path("out.jsonl"));
    write_text(in, CHAT("a", ASK ",\"n\":2,\"logprobs\":true,\"top_logprobs\":2,\"temperature\":1")
                       CHAT("b", "\"messages\":[{\"role\":\"system\",\"content\":\"x\"}]")
                           CHAT("c", ASK ",\"tools\":[{},{}],\"chat_template_kwargs\":{\"suffix\":\" a a a a\"}")
                               CHAT("d", ASK ",\"tool_choice\":\"required\"") CHAT("e", "\"prompt\":\"x\"")
                                   CHAT("f", ASK ",\"top_logprobs\":2") "{" ASK ",\"id\":7}\n{" ASK ",\"echo\":true}\n"
                                                                        "{\"prompt\":\"Tell\"}\n{\"messages\":3}\n");
    pst_model *model = open_model(plain_template);
    assert_int_equal(run(model, in, out, 0, UINT64_MAX), 0);
    json_t *answers = read_answers(out);
    assert_int_equal(json_array_size(answers), 10);
    const json_t *body = json_object_get(json_object_get(json_array_get(answers, 0), "response"), "body");
    assert_string_equal(json_string_value(json_object_get(body, "object")), "chat.completion");
    assert_int_equal(json_array_size(json_object_get(body, "choices")), 2);
    const json_t *choice = json_array_get(json_object_get(body, "choices"), 1),
                 *message = json_object_get(choice, "message");
    assert_string_equal(json_string_value(json_object_get(message, "role")), "assistant");
    assert_true(json_string_length(json_object_get(message, "content")) > 0);
    const json_t *told = json_object_get(json_object_get(choice, "logprobs"), "content");
    assert_int_equal(json_array_size(told), 3);
    assert_int_equal(json_array_size(json_object_get(json_array_get(told, 0), "top_logprobs")), 2);
    assert_null(json_object_get(choice, "text"));
    /* The template's text is the prompt: as if it had been given, with the token that begins a text only once. */
    assert_int_equal(prompt_tokens(answers, 0), prompt_tokens(answers, 8));
    assert_int_equal(prompt_tokens(answers, 6), prompt_tokens(answers, 8));
    assert_true(prompt_tokens(answers, 2) > prompt_tokens(answers, 0) + 4);
    message = json_object_get(json_array_get(answers, 6), "message");
    assert_string_equal(json_string_value(json_object_get(message, "content")),
                        json_string_value(json_object_get(json_array_get(answers, 8), "text")));
    static const struct {
        size_t line;
        const char *says;
    } wrong[] = {{1, "no system"},    {3, "tool_choice"}, {4, "messages"},
                 {5, "top_logprobs"}, {7, "echo"},        {9, "messages"}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        const json_t *error = json_object_get(json_array_get(answers, wrong[i].line), "error");
        const char *says = json_string_value(json_object_get(error, "message"));
        if (says == NULL || strstr(says, wrong[i].says) == NULL)
            fail_msg("line %zu says %s", wrong[i].line, says);
    }
    json_decref(answers);
    pst_model_close(model);
}

/* Without a template, and with one that is wrong, the other lines are answered all the same. */
static void test_no_template(void **state)
{
    (void)state;
    static const char *const templates[] = {NULL, "{% if %}"}, *const says[] = {"has none", "line 1"};
    char in[600], out[600];
    snprintf(in, sizeof in, "%s", files_path("none.jsonl"));
    write_text(in, "{" ASK "}\n{\"prompt\":\"Tell\"}\n");
    for (size_t i = 0; i < 2; i++) {
        snprintf(out, sizeof out, "%s%zu", files_path("none.out"), i);
        pst_model *model = open_model(templates[i]);
        assert_int_equal(run(model, in, out, 0, UINT64_MAX), 0);
        json_t *answers = read_answers(out);
        const json_t *error = json_object_get(json_array_get(answers, 0), "error");
        assert_string_equal(json_string_value(json_object_get(error, "code")), "unsupported");
        assert_non_null(strstr(json_string_value(json_object_get(error, "message")), says[i]));
        assert_non_null(json_object_get(json_array_get(answers, 1), "text"));
        json_decref(answers);
        pst_model_close(model);
    }
}

/* The template says a year by the number of its tokens; the job is begun in one year and goes on in another. */
static void test_time_of_the_first_start(void **state)
{
    (void)state;
    char in[600], whole[600], parts[600];
    snprintf(in, sizeof in, "%s", files_path("time.jsonl"));
    snprintf(whole, sizeof whole, "%s", files_path("whole.out"));
    snprintf(parts, sizeof parts, "%s", files_path("parts.out"));
    write_text(in, "{" ASK "}\n{" ASK "}\n{" ASK "}\n{" ASK "}\n");
    pst_model *model = open_model("{{ messages[0].content }}{{ ' a' * (strftime_now('%Y')|int - 1969) }}");
    assert_int_equal(run(model, in, whole, 0, UINT64_MAX), 0);
    assert_int_equal(run(model, in, parts, 0, 2), PST_E_CANCELLED);
    assert_int_equal(run(model, in, parts, (int64_t)3000 * DAY, UINT64_MAX), 0);
    json_t *first = read_answers(whole), *second = read_answers(parts);
    assert_int_equal(json_array_size(second), 4);
    assert_true(json_equal(first, second));
    json_decref(first);
    json_decref(second);
    pst_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_no_template),
        cmocka_unit_test(test_time_of_the_first_start),
    };
    return cmocka_run_group_tests(tests, files_create, files_remove);
}
