/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a batch job: whose output is it, what is done already, how long are the sequences that are left.
 *
 * The whole input is read twice before anything is computed: for its digest, and (when the job begins) to encode every
 * line, because a session is planned for the longest sequence. What that gave is kept in the journal's header.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/heap.h"
#include "base/json.h"
#include "base/number.h"
#include "jobs/batch_internal.h"
#include "os/file.h"
#include "os/sys.h"

enum { DEFAULT_NEW_TOKENS = 128, DEFAULT_WINDOW_TOKENS = 2048, KV_BLOCK = 64 };
static const double DEFAULT_SYNC_SECONDS = 5;

int pst_batch_tell(pst_batch *b, pst_error *err)
{
    const pst_batch_options *o = &b->options;
    if (o->on_progress == NULL || o->on_progress(o->user, &b->progress) == 0)
        return 0;
    return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
}

/* ---- identity ---- */

static uint64_t hash_text(uint64_t hash, const char *text)
{
    return text != NULL ? pst_hash(hash, text, strlen(text) + 1) : pst_hash(hash, "", 1);
}

static uint64_t hash_number(uint64_t hash, uint64_t number)
{
    return pst_hash(hash, &number, sizeof number);
}

static uint64_t hash_real(uint64_t hash, double number)
{
    return pst_hash(hash, &number, sizeof number);
}

/* The model's shape and everything of the options that decides an answer; samples of the weights come to it. */
static uint64_t job_key(const pst_batch *b)
{
    const pst_batch_options *o = &b->options;
    const pst_model_info *m = &b->rules.info;
    uint64_t key = hash_text(PST_HASH_START, m->family);
    const uint64_t numbers[] = {m->parameters,    m->weight_bytes, m->layers,      m->hidden,         m->vocab,
                                m->context,       o->kind,         b->rules.limit, o->max_new_tokens, o->sampling.top_k,
                                o->sampling.seed, o->ignore_end,   o->stop_count};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        key = hash_number(key, numbers[i]);
    key = hash_real(hash_real(hash_real(key, o->sampling.temperature), o->sampling.top_p), o->sampling.min_p);
    for (size_t i = 0; i < o->stop_count; i++)
        key = hash_text(key, o->stop_texts[i]);
    return key;
}

static bool ends_in(const char *name, const char *suffix)
{
    size_t length = strlen(name), tail = strlen(suffix);
    return length >= tail && strcmp(name + length - tail, suffix) == 0;
}

/* Size and time of one of the model's files. */
static int digest_file(const pst_batch *b, const char *name, uint64_t *digest, pst_error *err)
{
    struct statx about;
    char *path = pst_heap_printf("%s/%s", b->rules.info.path, name);
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(name));
    int status = pst_sys->statx(AT_FDCWD, path, 0, STATX_SIZE | STATX_MTIME, &about);
    if (status < 0)
        pst_fail(err, status, path, "cannot examine: %s", pst_strerror(status));
    pst_heap_free(path);
    PST_TRY(status);
    *digest = hash_number(hash_text(*digest, name), about.stx_size);
    *digest = hash_number(hash_number(*digest, (uint64_t)about.stx_mtime.tv_sec), about.stx_mtime.tv_nsec);
    return 0;
}

/* Sizes and times of the model's files: not their content, which would take as long as a pass. */
static int digest_model(pst_batch *b, pst_error *err)
{
    static const char tools[] = "additional_chat_templates/tool_use.jinja";
    char **names;
    size_t count;
    int status = 0;
    PST_TRY(pst_file_list(b->rules.info.path, NULL, &names, &count, err));
    uint64_t digest = PST_HASH_START;
    for (size_t i = 0; i < count && status >= 0; i++) {
        if (ends_in(names[i], ".safetensors") || ends_in(names[i], ".bin") || ends_in(names[i], ".json") ||
            ends_in(names[i], ".txt") || ends_in(names[i], ".jinja"))
            status = digest_file(b, names[i], &digest, err);
    }
    pst_file_list_free(names, count);
    PST_TRY(status);
    status = digest_file(b, tools, &digest, NULL);
    if (status < 0 && status != -ENOENT && status != -ENOTDIR)
        return digest_file(b, tools, &digest, err);
    b->model_digest = digest;
    return 0;
}

void pst_batch_types(pst_session *session, char *out)
{
    pst_plan_info plan;
    pst_session_get_plan(session, &plan);
    const bool is_host = strcmp(plan.device, "host") == 0;
    snprintf(out, PST_BATCH_TYPES_BYTES, "%s %.32s, compute type %s, a cache of %u bits",
             is_host ? "kernels" : "device", is_host ? plan.kernels : plan.device, pst_dtype_name(plan.compute_type),
             plan.kv_bits);
}

char *pst_batch_header(const pst_batch *b, const char *types)
{
    const pst_batch_info *i = &b->info;
    char digests[3][17];
    const uint64_t numbers[3] = {b->input_digest, b->model_digest, b->rules.key};
    for (size_t n = 0; n < 3; n++)
        snprintf(digests[n], sizeof digests[n], "%016" PRIx64, numbers[n]);
    json_t *header = json_pack(
        "{s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i}", "format",
        "penstock batch journal 2", "kind", b->options.kind == PST_BATCH_SCORE ? "score" : "generate", "input_bytes",
        (json_int_t)pst_batch_input_bytes(b->input), "input", digests[0], "model", digests[1], "options", digests[2],
        "types", types, "lines", (json_int_t)i->lines, "requests", (json_int_t)i->requests, "max_tokens",
        (json_int_t)i->max_tokens, "max_prompt_tokens", (json_int_t)i->max_prompt_tokens, "memory_bytes",
        (json_int_t)i->memory_bytes, "fixed_bytes", (json_int_t)i->fixed_bytes, "kv_tokens", (json_int_t)i->kv_tokens,
        "prompt_tokens", (json_int_t)i->prompt_tokens, "new_tokens", (json_int_t)i->new_tokens, "logprobs",
        (int)i->logprobs, "prompt_logprobs", (int)i->prompt_logprobs);
    if (header != NULL && b->rules.has_time &&
        json_object_set_new(header, "time", json_integer((json_int_t)b->rules.time_seconds)) < 0) {
        json_decref(header);
        return NULL;
    }
    char *dumped = header != NULL ? json_dumps(header, JSON_COMPACT) : NULL;
    char *text = dumped != NULL ? pst_heap_strdup(dumped) : NULL;
    free(dumped);
    json_decref(header);
    return text;
}

/* Whether a digest in the header is the one of now. */
static bool is_same(const json_t *header, const char *key, uint64_t now)
{
    const char *then = json_string_value(json_object_get(header, key));
    char text[17];
    snprintf(text, sizeof text, "%016" PRIx64, now);
    return then != NULL && strcmp(then, text) == 0;
}

/* The job's first start: what is left is answered as if it were still that time. */
static void take_time(pst_batch *b, const json_t *header)
{
    const json_t *then = json_object_get(header, "time");
    b->rules.has_time = json_is_integer(then);
    b->rules.time_seconds = json_integer_value(then);
}

static int check_parsed(pst_batch *b, const json_t *header, pst_error *err)
{
    static const char anew[] = "--restart begins anew";
    const char *path = b->journal_path;
    pst_batch_info *i = &b->info;
    const char *format = "", *kind = "";
    uint64_t lines = 0, tokens, prompt_tokens, logprobs, prompt_logprobs;
    PST_TRY(pst_json_string(header, "format", true, &format, path, err));
    PST_TRY(pst_json_string(header, "kind", true, &kind, path, err));
    if (strcmp(format, "penstock batch journal 2") != 0)
        return pst_fail(err, PST_E_FORMAT, path, "the journal was made by another version; %s", anew);
    if (strcmp(kind, b->options.kind == PST_BATCH_SCORE ? "score" : "generate") != 0)
        return pst_fail(err, PST_E_FORMAT, path, "the unfinished job is one of the command %.20s; %s", kind, anew);
    if (!is_same(header, "input", b->input_digest))
        return pst_fail(err, PST_E_FORMAT, path, "the unfinished job has another input, or the input was changed; %s",
                        anew);
    if (!is_same(header, "model", b->model_digest))
        return pst_fail(err, PST_E_FORMAT, path, "the unfinished job was run with another model; %s", anew);
    if (!is_same(header, "options", b->rules.key))
        return pst_fail(err, PST_E_FORMAT, path, "the unfinished job was run with other options for its answers; %s",
                        anew);
    PST_TRY(pst_json_u64(header, "lines", true, 0, UINT64_MAX, &lines, path, err));
    PST_TRY(pst_json_u64(header, "requests", true, 0, UINT64_MAX, &i->requests, path, err));
    PST_TRY(pst_json_u64(header, "max_tokens", true, 0, b->rules.limit, &tokens, path, err));
    PST_TRY(pst_json_u64(header, "max_prompt_tokens", true, 0, b->rules.limit, &prompt_tokens, path, err));
    PST_TRY(pst_json_u64(header, "memory_bytes", true, 0, UINT64_MAX, &i->memory_bytes, path, err));
    PST_TRY(pst_json_u64(header, "fixed_bytes", true, 0, UINT64_MAX, &i->fixed_bytes, path, err));
    PST_TRY(pst_json_u64(header, "kv_tokens", true, 0, UINT64_MAX, &i->kv_tokens, path, err));
    PST_TRY(pst_json_u64(header, "prompt_tokens", true, 0, UINT64_MAX, &i->prompt_tokens, path, err));
    PST_TRY(pst_json_u64(header, "new_tokens", true, 0, UINT64_MAX, &i->new_tokens, path, err));
    PST_TRY(pst_json_u64(header, "logprobs", true, 0, 1, &logprobs, path, err));
    PST_TRY(pst_json_u64(header, "prompt_logprobs", true, 0, 1, &prompt_logprobs, path, err));
    i->logprobs = logprobs != 0;
    i->prompt_logprobs = prompt_logprobs != 0;
    if (lines != i->lines)
        return pst_fail(err, PST_E_FORMAT, path, "the journal counts %" PRIu64 " lines and the input has %" PRIu64,
                        lines, i->lines);
    i->max_tokens = (uint32_t)tokens;
    i->max_prompt_tokens = (uint32_t)prompt_tokens;
    take_time(b, header);
    return 0;
}

int pst_batch_check_header(pst_batch *b, const char *text, pst_error *err)
{
    json_t *header;
    PST_TRY(pst_json_parse(text, strlen(text), b->journal_path, &header, err));
    int status = check_parsed(b, header, err);
    json_decref(header);
    return status;
}

int pst_batch_check_types(const pst_batch *b, const char *types, pst_error *err)
{
    json_t *header;
    const char *then = "", *text = pst_journal_header(b->journal);
    PST_TRY(pst_json_parse(text, strlen(text), b->journal_path, &header, err));
    int status = pst_json_string(header, "types", true, &then, b->journal_path, err);
    if (status >= 0 && strcmp(then, types) != 0)
        status = pst_fail(err, PST_E_FORMAT, b->journal_path,
                          "the answers so far were made with %.*s, not with %s; give the same options, or --restart",
                          PST_BATCH_TYPES_BYTES, then, types);
    json_decref(header);
    return status;
}

/* ---- looking at the input ---- */

static int digest_input(pst_batch *b, pst_error *err)
{
    pst_batch_raw raw;
    int status;
    b->progress = (pst_batch_progress){.phase = PST_BATCH_READING, .total = pst_batch_input_bytes(b->input)};
    while ((status = pst_batch_input_next(b->input, &raw, err)) == 1) {
        b->info.lines++;
        b->progress.done = pst_batch_input_at(b->input);
        PST_TRY(pst_batch_tell(b, err));
    }
    PST_TRY(status);
    b->input_digest = pst_batch_input_digest(b->input);
    pst_batch_input_rewind(b->input);
    return 0;
}

/* A prompt's choices, or a text's windows. */
static void count_tokens(pst_batch *b, const pst_batch_line *line, uint64_t tokens, uint64_t all)
{
    pst_batch_info *i = &b->info;
    uint64_t choices = line->choices / line->prompt_count;
    i->prompt_tokens += choices * tokens;
    i->new_tokens += choices * (all - tokens);
    i->kv_tokens += choices * pst_round_up(all, KV_BLOCK);
}

static void measure_line(pst_batch *b, const pst_batch_line *line, size_t bytes)
{
    pst_batch_info *i = &b->info;
    if (line->error_code != NULL) /* answered at once */
        return;
    uint64_t memory = pst_batch_line_memory(&b->rules, line, bytes);
    i->memory_bytes = memory > i->memory_bytes ? memory : i->memory_bytes;
    i->requests += line->choices;
    const bool logprobs = b->options.kind == PST_BATCH_GENERATE && line->wants_logprobs;
    i->logprobs = i->logprobs || logprobs;
    i->prompt_logprobs = i->prompt_logprobs || (logprobs && line->echo);
    for (size_t p = 0; p < line->prompt_count; p++) {
        size_t tokens = line->prompts[p].ids.count, all;
        if (b->options.kind == PST_BATCH_SCORE)
            all = tokens = tokens < b->rules.limit ? tokens : b->rules.limit;
        else
            all = tokens + pst_batch_line_new_tokens(&b->rules, line, p);
        if (line->choices > 0 && all > i->max_tokens)
            i->max_tokens = (uint32_t)all;
        if (line->choices > 0 && tokens > i->max_prompt_tokens)
            i->max_prompt_tokens = (uint32_t)tokens;
        count_tokens(b, line, tokens, all);
    }
}

/* Bytes of memory that a line takes until a text of it is encoded; of one that is too long only the reader's buffer. */
static uint64_t reading_bytes(const pst_batch_raw *raw)
{
    enum { BUFFER = 3 };
    return (raw->too_long ? BUFFER : PST_BATCH_LINE_COST) * (uint64_t)raw->bytes;
}

/* Half of the budget may be taken for reading a line. */
static int check_reading(const pst_batch *b, const pst_batch_raw *raw, pst_error *err)
{
    const pst_batch_options *o = &b->options;
    uint64_t bytes = reading_bytes(raw);
    if (o->host_memory_bytes == 0 || bytes <= o->host_memory_bytes / 2)
        return 0;
    return pst_fail(err, PST_E_BUDGET, o->input,
                    "reading line %" PRIu64
                    " takes %.1f MiB, which is more than half of the host memory budget of %.1f "
                    "MiB; %" PRIu64 " MiB are enough",
                    raw->number, (double)bytes / 0x1p20, (double)o->host_memory_bytes / 0x1p20, (2 * bytes >> 20) + 1);
}

static int measure(pst_batch *b, pst_error *err)
{
    uint64_t budget = b->options.host_memory_bytes, most = 0;
    pst_batch_raw raw;
    int status;
    b->progress = (pst_batch_progress){.phase = PST_BATCH_MEASURING, .total = pst_batch_input_bytes(b->input)};
    while ((status = pst_batch_input_next(b->input, &raw, err)) == 1) {
        pst_batch_line line;
        PST_TRY(check_reading(b, &raw, err));
        uint64_t reading = reading_bytes(&raw);
        b->rules.most_text_bytes = budget != 0 ? 1 + (budget / 2 - reading) / PST_BATCH_TEXT_COST : 0;
        status = pst_batch_line_read(&b->rules, &raw, &line, err);
        if (status >= 0)
            measure_line(b, &line, raw.bytes);
        most = pst_max(most, reading + line.chat_bytes + PST_BATCH_TEXT_COST * (uint64_t)line.longest_text_bytes);
        pst_batch_line_free(&line);
        PST_TRY(status);
        b->progress.done = pst_batch_input_at(b->input);
        PST_TRY(pst_batch_tell(b, err));
    }
    PST_TRY(status);
    b->rules.most_text_bytes = 0;
    b->info.fixed_bytes = most + 2 * b->info.memory_bytes + (UINT64_C(2) << 20);
    pst_batch_input_rewind(b->input);
    return 0;
}

/* ---- the output that is there ---- */

/* Whether each line of the output answers the line of the input: 1 yes, 0 no. */
static int compare_output(pst_batch *b, pst_batch_input *output, pst_error *err)
{
    pst_batch_raw raw, answer;
    char key[17];
    for (;;) {
        int more = pst_batch_input_next(b->input, &raw, err),
            there = more >= 0 ? pst_batch_input_next(output, &answer, err) : 0;
        PST_TRY(more);
        PST_TRY(there);
        if (more == 0 || there == 0)
            return more == there;
        pst_batch_line_key(&b->rules, &raw, key);
        if (memmem(answer.text, answer.bytes, key, 16) == NULL)
            return 0;
    }
}

static int check_output(pst_batch *b, pst_error *err)
{
    pst_batch_input *output;
    int found = pst_file_find(b->options.output, err);
    if (found <= 0 || b->options.restart)
        return found < 0 ? found : 0;
    PST_TRY(pst_batch_input_open(b->options.output, b->options.output, &output, err));
    int same = compare_output(b, output, err);
    pst_batch_input_close(output);
    pst_batch_input_rewind(b->input);
    PST_TRY(same);
    if (same == 0)
        return pst_fail(err, PST_E_USAGE, b->options.output,
                        "it exists, and it does not answer this input with this model and these options; --restart "
                        "replaces it");
    b->info.complete = true;
    b->info.answered = b->info.lines;
    return 0;
}

/* The job writes to the output and two files beside it: an input among them would be read while it grows, or be replaced. */
static int check_input(const pst_batch_options *o, pst_error *err)
{
    static const char *const ends[] = {"", ".partial", ".partial-output"};
    struct statx in, out;
    if (strcmp(o->input, "-") == 0 || pst_sys->statx(AT_FDCWD, o->input, 0, STATX_INO, &in) < 0)
        return 0;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        char *path = pst_heap_printf("%s%s", o->output, ends[i]);
        if (path == NULL)
            return pst_fail_memory(err, o->output, strlen(o->output));
        int status = pst_sys->statx(AT_FDCWD, path, 0, STATX_INO, &out);
        pst_heap_free(path);
        if (status >= 0 && in.stx_ino == out.stx_ino && in.stx_dev_major == out.stx_dev_major &&
            in.stx_dev_minor == out.stx_dev_minor)
            return pst_fail(err, PST_E_USAGE, o->input, "is %s; choose another output",
                            i == 0 ? "the output, too" : "a file that the job writes beside its output");
    }
    return 0;
}

static int check_paths(const pst_batch_options *o, pst_error *err)
{
    struct statx out;
    if (strcmp(o->output, "-") == 0 || o->output[0] == '\0')
        return pst_fail(err, PST_E_USAGE, NULL, "a batch job writes a file, which it can go on with");
    if (pst_sys->statx(AT_FDCWD, o->output, 0, STATX_TYPE, &out) >= 0 && !S_ISREG(out.stx_mode))
        return pst_fail(err, PST_E_USAGE, o->output, "is no regular file, which an output must be");
    return check_input(o, err);
}

/* Takes away a journal of our own making in which nothing was begun, while its lock is still held. */
static void drop_empty_journal(pst_batch *b)
{
    if (b->journal == NULL || pst_journal_header(b->journal) != NULL)
        return;
    pst_file_remove(b->journal_path, NULL);
    pst_journal_close(b->journal);
    b->journal = NULL;
}

static int find_what_is_done(pst_batch *b, pst_error *err)
{
    b->journal_path = pst_heap_printf("%s.partial", b->options.output);
    if (b->journal_path == NULL)
        return pst_fail_memory(err, b->options.output, strlen(b->options.output));
    PST_TRY(pst_journal_open(b->journal_path, b->options.restart, &b->journal, err));
    const char *header = pst_journal_header(b->journal);
    if (header != NULL) {
        PST_TRY(pst_batch_check_header(b, header, err));
        b->info.answered = pst_journal_count(b->journal);
        b->info.failed = pst_journal_failed(b->journal);
        return 0;
    }
    int status = check_output(b, err);
    if (status >= 0 && !b->info.complete)
        return measure(b, err);
    drop_empty_journal(b);
    return status;
}

/* ---- opening ---- */

static int take_options(pst_batch *b, const pst_batch_options *given, pst_error *err)
{
    pst_batch_options *o = &b->options;
    if (given->struct_size != sizeof *o)
        return pst_fail(err, PST_E_USAGE, NULL, "batch options of %zu bytes, made for another version",
                        given->struct_size);
    *o = *given;
    if (o->input == NULL || o->output == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "a batch job needs an input and an output");
    o->max_new_tokens = o->max_new_tokens != 0 ? o->max_new_tokens : DEFAULT_NEW_TOKENS;
    o->sync_seconds = o->sync_seconds != 0 ? o->sync_seconds : DEFAULT_SYNC_SECONDS;
    pst_model_get_info(b->model, &b->rules.info);
    uint32_t context = b->rules.info.context;
    if (o->context > context)
        return pst_fail(err, PST_E_USAGE, b->rules.info.path, "%u tokens do not fit the model's context of %u",
                        o->context, context);
    uint32_t usual = o->kind == PST_BATCH_SCORE && context > DEFAULT_WINDOW_TOKENS ? DEFAULT_WINDOW_TOKENS : context;
    b->rules.limit = o->context != 0 ? o->context : usual;
    if (b->rules.limit < 2)
        return pst_fail(err, PST_E_USAGE, NULL, "sequences of %u tokens are too short", b->rules.limit);
    b->rules.options = o;
    b->rules.has_time = o->has_time;
    b->rules.time_seconds = o->time_seconds;
    b->rules.key = job_key(b);
    PST_TRY(pst_batch_weights_key(b->model, &b->rules.key, err));
    const char *slash = strrchr(b->rules.info.path, '/');
    b->model_name = slash != NULL && slash[1] != '\0' ? slash + 1 : b->rules.info.path;
    return check_paths(o, err);
}

static int open_tokenizer(pst_batch *b, pst_error *err)
{
    pst_error cause = {.offset = PST_NO_OFFSET};
    if (pst_model_tokenizer(b->model, &b->rules.tokenizer, &cause) >= 0)
        return 0;
    b->rules.tokenizer = NULL;
    if (cause.code == -ENOENT) /* there is none: ids do without */
        return b->options.stop_count > 0
                   ? pst_fail(err, PST_E_USAGE, b->rules.info.path, "stop texts need a tokenizer, which it has not")
                   : 0;
    if (err != NULL)
        *err = cause;
    return cause.code;
}

/* Without one, or with one that is wrong, lines with conversations are answered with an error. */
static int open_chat(pst_batch *b, pst_error *err)
{
    pst_error cause = {.offset = PST_NO_OFFSET};
    int status = b->options.kind == PST_BATCH_GENERATE ? pst_model_chat_template(b->model, &b->rules.chat, &cause) : 0;
    if (status >= 0)
        return 0;
    b->rules.chat = NULL;
    if (status == -ENOENT)
        snprintf(b->rules.no_chat, sizeof b->rules.no_chat, "this model has none");
    else
        snprintf(b->rules.no_chat, sizeof b->rules.no_chat, "this model's cannot be used: %.150s", cause.message);
    if (status == -ENOENT || status == PST_E_FORMAT || status == PST_E_UNSUPPORTED)
        return 0;
    if (err != NULL)
        *err = cause;
    return status;
}

static int open_batch(pst_batch *b, const pst_batch_options *options, pst_error *err)
{
    PST_TRY(take_options(b, options, err));
    PST_TRY(digest_model(b, err));
    PST_TRY(open_tokenizer(b, err));
    PST_TRY(open_chat(b, err));
    PST_TRY(pst_batch_input_open(b->options.input, b->options.output, &b->input, err));
    PST_TRY(digest_input(b, err));
    return find_what_is_done(b, err);
}

int pst_batch_open(pst_model *model, const pst_batch_options *options, pst_batch **out, pst_error *err)
{
    pst_batch *b = pst_heap_calloc(1, sizeof *b);
    if (b == NULL)
        return pst_fail_memory(err, "a batch job", sizeof *b);
    b->model = model;
    int status = open_batch(b, options, err);
    if (status < 0) {
        pst_batch_close(b);
        return status;
    }
    *out = b;
    return 0;
}

void pst_batch_close(pst_batch *b)
{
    if (b == NULL)
        return;
    while (b->groups != NULL)
        pst_batch_drop_group(b, b->groups);
    pst_heap_free(b->entries);
    drop_empty_journal(b);
    pst_journal_close(b->journal);
    pst_batch_input_close(b->input);
    pst_heap_free(b->journal_path);
    pst_heap_free(b);
}

void pst_batch_get_info(const pst_batch *b, pst_batch_info *out)
{
    *out = b->info;
}
