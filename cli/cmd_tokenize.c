/* SPDX-License-Identifier: Apache-2.0 */
/* penstock tokenize: text to token ids and back, one at a time or line by line. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/heap.h"
#include "base/json.h"
#include "common.h"
#include "input.h"
#include "output.h"

typedef struct tokenize_values {
    cli_report report;
    cli_lookup lookup;
    pst_option_strings texts;
    pst_option_ids token_ids;
    const char *file, *jsonl, *chat;
    bool decode, skip_special, no_special, render;
} tokenize_values;

#define AT(member) .offset = offsetof(tokenize_values, member)

static const pst_option rows[] = {
    {.name = "text",
     .short_name = 't',
     .type = PST_OPTION_STRINGS,
     AT(texts),
     .metavar = "TEXT",
     .help = "a text to encode; may be given several times, each has its line of ids"},
    {.name = "file",
     .short_name = 'f',
     .type = PST_OPTION_STRING,
     AT(file),
     .metavar = "FILE",
     .help = "a file whose whole text is encoded (with --decode: a file of ids), at most 64 MiB; - is standard input"},
    {.name = "jsonl",
     .type = PST_OPTION_STRING,
     AT(jsonl),
     .metavar = "FILE",
     .help = "a JSON string per line; a JSON array of ids per line comes out (with --decode the other way round); - is "
             "standard input"},
    {.name = "chat",
     .type = PST_OPTION_STRING,
     AT(chat),
     .metavar = "FILE",
     .help = "a conversation as JSON, put as the model's chat template has it: an array of messages, or an object with "
             "\"messages\", and \"tools\", \"documents\", \"chat_template_kwargs\", \"add_generation_prompt\" where "
             "wanted; - "
             "is standard input"},
    {.name = "render", .type = PST_OPTION_FLAG, AT(render), .help = "with --chat: print the text instead of its ids"},
    {.name = "decode", .short_name = 'd', .type = PST_OPTION_FLAG, AT(decode), .help = "token ids to text"},
    {.name = "token-ids",
     .type = PST_OPTION_IDS,
     AT(token_ids),
     .metavar = "ID,...",
     .help = "ids to decode; may be given several times, each has its line of text"},
    {.name = "no-special", .type = PST_OPTION_FLAG, AT(no_special), .help = "add no token that begins or ends a text"},
    {.name = "skip-special", .type = PST_OPTION_FLAG, AT(skip_special), .help = "decode without special tokens"},
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Texts and ids", rows),
    CLI_SHARED_GROUP("Model lookup", cli_lookup_rows, tokenize_values, lookup),
    CLI_SHARED_GROUP("Output", cli_report_rows, tokenize_values, report),
};

/* A folder with nothing but a tokenizer is enough; a name is looked up as a model. */
typedef struct tokenize_job {
    const tokenize_values *values;
    pst_model *model;
    pst_tokenizer *own;
    const pst_tokenizer *tokenizer;
} tokenize_job;

static int open_tokenizer(tokenize_job *job, const char *name, pst_error *err)
{
    struct stat about;
    if (stat(name, &about) == 0) {
        PST_TRY(pst_tokenizer_open(name, &job->own, err));
        job->tokenizer = job->own;
        return 0;
    }
    PST_TRY(pst_model_open(name, cli_hf_cache(&job->values->lookup), &job->model, err));
    return pst_model_tokenizer(job->model, &job->tokenizer, err);
}

static int print_ids(const tokenize_job *job, const char *text, size_t bytes, bool special, json_t *results,
                     pst_error *err)
{
    pst_tokens tokens;
    PST_TRY(pst_tokenizer_encode(job->tokenizer, text, bytes, special, &tokens, err));
    int status = 0;
    if (results != NULL) {
        json_t *entry = json_pack("{s:o, s:o}", "text", cli_json_text(text, bytes), "token_ids",
                                  cli_json_ids(tokens.ids, tokens.count));
        if (cli_json_append(results, entry) != 0)
            status = pst_fail_memory(err, "the JSON document", 0);
    } else {
        for (size_t i = 0; status >= 0 && i < tokens.count; i++)
            status = cli_out_printf(err, i > 0 ? " %u" : "%u", tokens.ids[i]);
        if (status >= 0)
            status = cli_out_text("\n", err);
    }
    pst_tokens_free(&tokens);
    return status;
}

static int print_text(const tokenize_job *job, const uint32_t *ids, size_t count, json_t *results, pst_error *err)
{
    char *text;
    size_t bytes;
    PST_TRY(pst_tokenizer_decode(job->tokenizer, ids, count, job->values->skip_special, &text, &bytes, err));
    int status = 0;
    if (results != NULL) {
        json_t *entry =
            json_pack("{s:o, s:o}", "text", cli_json_text(text, bytes), "token_ids", cli_json_ids(ids, count));
        if (cli_json_append(results, entry) != 0)
            status = pst_fail_memory(err, "the JSON document", 0);
    } else {
        status = cli_out_write(text, bytes, err);
        if (status >= 0)
            status = cli_out_text("\n", err);
    }
    pst_text_free(text);
    return status;
}

static int encode_texts(const tokenize_job *job, json_t *results, pst_error *err)
{
    static const pst_option_ids no_ids;
    const cli_source source = {.noun = "text",
                               .texts = &job->values->texts,
                               .ids = &no_ids,
                               .whole_file = job->values->file,
                               .stdin_default = true};
    cli_inputs inputs;
    PST_TRY(cli_inputs_gather(&source, &inputs, err));
    int status = 0;
    for (size_t i = 0; status >= 0 && i < inputs.count; i++)
        status =
            print_ids(job, inputs.items[i].text, inputs.items[i].text_bytes, !job->values->no_special, results, err);
    cli_inputs_free(&inputs);
    return status;
}

static int encode_chat(const tokenize_job *job, const char *folder, json_t *results, pst_error *err)
{
    const pst_chat_template *chat_template;
    pst_chat_template *own = NULL;
    pst_chat_text made = {0};
    int status = job->model != NULL ? pst_model_chat_template(job->model, &chat_template, err)
                                    : pst_chat_template_open(folder, &own, err);
    if (status >= 0)
        status = cli_chat_render_file(own != NULL ? own : chat_template, job->values->chat, &made, err);
    if (status >= 0 && job->values->render && results == NULL)
        status = cli_out_write(made.text, made.bytes, err);
    else if (status >= 0)
        status = print_ids(job, made.text, made.bytes, false, results, err);
    pst_chat_text_free(&made);
    pst_chat_template_close(own);
    return status;
}

/* Ids of a file: digits apart from each other by spaces, commas, line ends or JSON's brackets. */
static int parse_id_text(char *text, size_t bytes, const char *path, pst_option_id_list *out, pst_error *err)
{
    size_t kept = 0;
    bool gap = false;
    for (size_t i = 0; i < bytes; i++) {
        if (strchr(" ,\t\r\n[]", text[i]) != NULL && text[i] != '\0') {
            gap = true;
            continue;
        }
        if (gap && kept > 0)
            text[kept++] = ',';
        gap = false;
        text[kept++] = text[i];
    }
    text[kept] = '\0';
    if (kept == 0) {
        *out = (pst_option_id_list){0};
        return 0;
    }
    if (memchr(text, '\0', kept) != NULL || pst_parse_ids(text, out, NULL) < 0)
        return pst_fail(err, PST_E_FORMAT, path, "not a list of token ids such as 1 2 3");
    return 0;
}

static int decode_texts(const tokenize_job *job, json_t *results, pst_error *err)
{
    const tokenize_values *values = job->values;
    if (values->token_ids.count > 0) {
        for (size_t i = 0; i < values->token_ids.count; i++)
            PST_TRY(print_text(job, values->token_ids.lists[i].ids, values->token_ids.lists[i].count, results, err));
        return 0;
    }
    const char *path = values->file != NULL ? values->file : "-";
    char *text;
    size_t bytes;
    PST_TRY(cli_read_file(path, &text, &bytes, err));
    pst_option_id_list list = {0};
    int status = parse_id_text(text, bytes, strcmp(path, "-") == 0 ? "standard input" : path, &list, err);
    if (status >= 0)
        status = print_text(job, list.ids, list.count, results, err);
    pst_heap_free(list.ids);
    pst_heap_free(text);
    return status;
}

/* ---- line by line ---- */

/* The document of a line holds one value in brackets: jansson reads arrays and objects only. */
static int parse_line(const char *line, size_t bytes, const char *path, size_t number, json_t **out, pst_error *err)
{
    char *wrapped = pst_heap_alloc(bytes + 3);
    if (wrapped == NULL)
        return pst_fail_memory(err, path, bytes + 3);
    wrapped[0] = '[';
    memcpy(wrapped + 1, line, bytes);
    memcpy(wrapped + 1 + bytes, "]", 2);
    json_t *document = NULL;
    pst_error cause = {.offset = PST_NO_OFFSET};
    int status = pst_json_parse(wrapped, bytes + 2, path, &document, &cause);
    pst_heap_free(wrapped);
    if (status >= 0 && json_array_size(document) == 1) {
        *out = document;
        return 0;
    }
    json_decref(document);
    if (status < 0 && status != PST_E_FORMAT)
        return pst_fail(err, status, path, "%s", cause.message);
    return pst_fail(err, PST_E_FORMAT, path, "line %zu is not one JSON value", number);
}

static int encode_line(const tokenize_job *job, const json_t *value, const char *path, size_t number, pst_error *err)
{
    if (!json_is_string(value))
        return pst_fail(err, PST_E_FORMAT, path, "line %zu is not a JSON string", number);
    pst_tokens tokens;
    PST_TRY(pst_tokenizer_encode(job->tokenizer, json_string_value(value), json_string_length(value),
                                 !job->values->no_special, &tokens, err));
    int status = cli_out_text("[", err);
    for (size_t i = 0; status >= 0 && i < tokens.count; i++)
        status = cli_out_printf(err, i > 0 ? ", %u" : "%u", tokens.ids[i]);
    pst_tokens_free(&tokens);
    PST_TRY(status);
    return cli_out_text("]\n", err);
}

static int collect_ids(const json_t *value, uint32_t *ids)
{
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *item = json_array_get(value, i);
        if (!json_is_integer(item) || json_integer_value(item) < 0 || json_integer_value(item) > UINT32_MAX)
            return -1;
        ids[i] = (uint32_t)json_integer_value(item);
    }
    return 0;
}

static int decode_line(const tokenize_job *job, const json_t *value, const char *path, size_t number, pst_error *err)
{
    size_t count = json_array_size(value);
    uint32_t *ids = pst_heap_reallocarray(NULL, count, sizeof *ids);
    if (ids == NULL)
        return pst_fail_memory(err, path, count * sizeof *ids);
    char *text = NULL;
    size_t bytes = 0;
    int status;
    if (!json_is_array(value) || collect_ids(value, ids) < 0)
        status = pst_fail(err, PST_E_FORMAT, path, "line %zu is not a JSON array of token ids", number);
    else
        status = pst_tokenizer_decode(job->tokenizer, ids, count, job->values->skip_special, &text, &bytes, err);
    pst_heap_free(ids);
    PST_TRY(status);
    json_t *string = cli_json_text(text, bytes);
    pst_text_free(text);
    char *encoded = string != NULL ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
    json_decref(string);
    if (encoded == NULL)
        return pst_fail_memory(err, path, bytes);
    status = cli_out_text(encoded, err);
    free(encoded);
    PST_TRY(status);
    return cli_out_text("\n", err);
}

static int run_lines(const tokenize_job *job, FILE *from, const char *path, pst_error *err)
{
    char *line = NULL;
    size_t capacity = 0, bytes, number = 0;
    int status;
    while ((status = cli_read_line(from, path, &line, &capacity, &bytes, err)) == 0) {
        json_t *document;
        number++;
        status = parse_line(line, bytes, path, number, &document, err);
        if (status < 0)
            break;
        const json_t *value = json_array_get(document, 0);
        status = job->values->decode ? decode_line(job, value, path, number, err)
                                     : encode_line(job, value, path, number, err);
        json_decref(document);
        if (status < 0)
            break;
    }
    pst_heap_free(line);
    return status < 0 ? status : 0;
}

static int run_jsonl(const tokenize_job *job, pst_error *err)
{
    const char *path = job->values->jsonl;
    if (strcmp(path, "-") == 0)
        return run_lines(job, stdin, "standard input", err);
    FILE *from = fopen(path, "rbe");
    if (from == NULL)
        return pst_fail(err, -errno, path, "cannot open: %s", strerror(errno));
    int status = run_lines(job, from, path, err);
    fclose(from);
    return status;
}

static int check_usage(const tokenize_values *values, pst_error *err)
{
    if (values->jsonl != NULL && (values->texts.count > 0 || values->token_ids.count > 0 || values->file != NULL))
        return cli_usage(err, "--jsonl excludes --text, --file and --token-ids");
    if (values->decode && values->texts.count > 0)
        return cli_usage(err, "--decode takes --token-ids, --file or standard input, not --text");
    if (values->chat != NULL && (values->jsonl != NULL || values->texts.count > 0 || values->token_ids.count > 0 ||
                                 values->file != NULL || values->decode))
        return cli_usage(err, "--chat is alone: without other texts or ids, and without --decode");
    if (values->render && values->chat == NULL)
        return cli_usage(err, "--render goes with --chat");
    if (!values->decode && values->token_ids.count > 0)
        return cli_usage(err, "--token-ids goes with --decode");
    if (values->token_ids.count > 0 && values->file != NULL)
        return cli_usage(err, "--token-ids and --file exclude each other");
    return 0;
}

static int run_job(tokenize_job *job, const char *model, pst_error *err)
{
    PST_TRY(check_usage(job->values, err));
    PST_TRY(open_tokenizer(job, model, err));
    if (job->values->jsonl != NULL)
        return run_jsonl(job, err);
    json_t *results = job->values->report.json ? json_array() : NULL;
    if (job->values->report.json && results == NULL)
        return pst_fail_memory(err, "the JSON document", 0);
    int status;
    if (job->values->chat != NULL)
        status = encode_chat(job, model, results, err);
    else
        status = job->values->decode ? decode_texts(job, results, err) : encode_texts(job, results, err);
    if (status < 0 || results == NULL) {
        json_decref(results);
        return status;
    }
    return cli_out_json(json_pack("{s:o}", "results", results), err);
}

static int tokenize(const void *values, const pst_options_found *found, pst_error *err)
{
    tokenize_job job = {.values = values};
    cli_notes_start(&job.values->report);
    int status = run_job(&job, found->operands[0], err);
    pst_tokenizer_close(job.own);
    pst_model_close(job.model);
    return status;
}

const cli_command cli_command_tokenize = {
    .spec = {.name = "tokenize",
             .operands = "MODEL",
             .min_operands = 1,
             .max_operands = 1,
             .summary = "text to token ids and back",
             .description =
                 "Encodes texts with the tokenizer of MODEL (a folder with a tokenizer is enough): one line of "
                 "ids per text. With --decode it turns ids into text, special tokens included. Without texts "
                 "or ids it takes them from standard input (a text less one newline at its end).",
             .example = "  penstock tokenize MODEL --text \"Hello world\"\n"
                        "  penstock tokenize MODEL --chat messages.json --render\n"
                        "  penstock tokenize MODEL --decode --token-ids 9906,1917\n",
             .groups = groups,
             .group_count = CLI_COUNT(groups),
             .values_bytes = sizeof(tokenize_values)},
    .run = tokenize,
};
