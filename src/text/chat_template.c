/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chat templates: where a model has its template, and what a template sees. As in transformers' apply_chat_template:
 * the special tokens by their names, messages, tools, documents, add_generation_prompt, and what a request adds; a
 * message's reasoning under each of the names that templates know.
 */
#include "text/chat_template.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "text/jinja.h"

static const char *const token_names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};
enum { TOKEN_NAMES = sizeof token_names / sizeof token_names[0] };

struct pst_chat_template {
    jinja_template *usual, *tool_use; /* tool_use may be NULL */
    char *tokens[TOKEN_NAMES];        /* NULL: the model has no such token */
};

void pst_chat_template_close(pst_chat_template *t)
{
    if (t == NULL)
        return;
    pst_jinja_close(t->usual);
    pst_jinja_close(t->tool_use);
    for (size_t i = 0; i < TOKEN_NAMES; i++)
        pst_heap_free(t->tokens[i]);
    pst_heap_free(t);
}

void pst_chat_text_free(pst_chat_text *text)
{
    if (text == NULL)
        return;
    pst_heap_free(text->text);
    *text = (pst_chat_text){0};
}

/* ---- files ---- */

/* The file's JSON object; NULL when there is no such file. */
static int parse_file(const pst_text_file *file, json_t **out, pst_error *err)
{
    *out = NULL;
    if (file->bytes == NULL)
        return 0;
    PST_TRY(pst_json_parse(file->bytes, file->count, file->path, out, err));
    if (json_is_object(*out))
        return 0;
    json_decref(*out);
    *out = NULL;
    return pst_fail(err, PST_E_FORMAT, file->path, "not a JSON object");
}

/* "<s>" or {"content": "<s>", ...} */
static int take_tokens(const json_t *config, const char *path, pst_chat_template *t, pst_error *err)
{
    for (size_t i = 0; config != NULL && i < TOKEN_NAMES; i++) {
        const json_t *value = json_object_get(config, token_names[i]);
        if (json_is_object(value))
            value = json_object_get(value, "content");
        if (value == NULL || json_is_null(value) || t->tokens[i] != NULL)
            continue;
        if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
            return pst_fail(err, PST_E_FORMAT, path, "\"%s\" is not a text", token_names[i]);
        t->tokens[i] = pst_heap_strdup(json_string_value(value));
        if (t->tokens[i] == NULL)
            return pst_fail_memory(err, "a chat template", json_string_length(value));
    }
    return 0;
}

static int take_text(const json_t *value, const char *path, jinja_template **out, pst_error *err)
{
    if (!json_is_string(value))
        return pst_fail(err, PST_E_FORMAT, path, "\"chat_template\" is not a text");
    pst_jinja_close(*out);
    *out = NULL;
    return pst_jinja_parse(path, json_string_value(value), json_string_length(value), out, err);
}

/* A text, or a list of {"name": ..., "template": ...}. */
static int take_templates(const json_t *config, const char *path, pst_chat_template *t, pst_error *err)
{
    const json_t *value = config != NULL ? json_object_get(config, "chat_template") : NULL;
    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_array(value))
        return take_text(value, path, &t->usual, err);
    size_t i;
    const json_t *item;
    json_array_foreach(value, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name == NULL)
            return pst_fail(err, PST_E_FORMAT, path, "an item of \"chat_template\" has no name");
        bool is_usual = strcmp(name, "default") == 0;
        if (is_usual || strcmp(name, "tool_use") == 0)
            PST_TRY(take_text(json_object_get(item, "template"), path, is_usual ? &t->usual : &t->tool_use, err));
    }
    return 0;
}

static int fill(const pst_chat_source *source, const json_t *config, const json_t *own, const json_t *map,
                pst_chat_template *t, pst_error *err)
{
    const pst_text_file *jinja = &source->chat_template_jinja, *tools = &source->tool_use_jinja;
    if (jinja->bytes != NULL) {
        PST_TRY(pst_jinja_parse(jinja->path, jinja->bytes, jinja->count, &t->usual, err));
        if (tools->bytes != NULL)
            PST_TRY(pst_jinja_parse(tools->path, tools->bytes, tools->count, &t->tool_use, err));
    } else {
        PST_TRY(take_templates(config, source->tokenizer_config_json.path, t, err));
        if (t->usual == NULL && t->tool_use == NULL)
            PST_TRY(take_templates(own, source->chat_template_json.path, t, err));
    }
    PST_TRY(take_tokens(config, source->tokenizer_config_json.path, t, err));
    return take_tokens(map, source->special_tokens_map_json.path, t, err);
}

int pst_chat_template_parse(const pst_chat_source *source, pst_chat_template **out, pst_error *err)
{
    json_t *config = NULL, *own = NULL, *map = NULL;
    int status = 0;
    pst_chat_template *t = pst_heap_calloc(1, sizeof *t);
    if (t == NULL)
        return pst_fail_memory(err, "a chat template", sizeof *t);
    PST_TRY_GOTO(done, parse_file(&source->tokenizer_config_json, &config, err));
    PST_TRY_GOTO(done, parse_file(&source->chat_template_json, &own, err));
    PST_TRY_GOTO(done, parse_file(&source->special_tokens_map_json, &map, err));
    PST_TRY_GOTO(done, fill(source, config, own, map, t, err));
    bool has_one = t->usual != NULL || t->tool_use != NULL;
    *out = has_one ? t : NULL;
    if (has_one)
        t = NULL;
done:
    json_decref(config);
    json_decref(own);
    json_decref(map);
    pst_chat_template_close(t);
    return status;
}

/* ---- what a template sees ---- */

static int convert(jinja_run *run, const json_t *from, jinja_value *out);

static int convert_text(jinja_run *run, const char *text, size_t bytes, jinja_value *out)
{
    return pst_jinja_string(run, text, bytes, out);
}

static int convert_object(jinja_run *run, const json_t *from, jinja_value *out)
{
    jinja_dict *dict;
    const char *key;
    json_t *item;
    PST_TRY(pst_jinja_dict(run, json_object_size(from), &dict));
    json_object_foreach((json_t *)from, key, item)
    {
        jinja_value name, value;
        PST_TRY(convert_text(run, key, strlen(key), &name));
        PST_TRY(convert(run, item, &value));
        PST_TRY(pst_jinja_put(run, dict, name, value));
    }
    *out = pst_jinja_of_dict(dict);
    return 0;
}

static int convert_array(jinja_run *run, const json_t *from, jinja_value *out)
{
    jinja_list *list;
    size_t i;
    const json_t *item;
    PST_TRY(pst_jinja_list(run, json_array_size(from), &list));
    json_array_foreach(from, i, item)
    {
        jinja_value value;
        PST_TRY(convert(run, item, &value));
        PST_TRY(pst_jinja_push(run, list, value));
    }
    *out = pst_jinja_of_list(JINJA_LIST, list);
    return 0;
}

static int convert(jinja_run *run, const json_t *from, jinja_value *out)
{
    PST_TRY(pst_jinja_charge(run, 0));
    switch (json_typeof(from)) {
    case JSON_OBJECT: return convert_object(run, from, out);
    case JSON_ARRAY: return convert_array(run, from, out);
    case JSON_STRING: return convert_text(run, json_string_value(from), json_string_length(from), out);
    case JSON_INTEGER: *out = pst_jinja_int(json_integer_value(from)); return 0;
    case JSON_REAL: *out = pst_jinja_float(json_real_value(from)); return 0;
    case JSON_TRUE:
    case JSON_FALSE: *out = pst_jinja_bool(json_is_true(from)); return 0;
    default: *out = pst_jinja_none(); return 0;
    }
}

/* Content is a text, null, or a list of texts: {"type": "text", "text": "..."}. */
static int check_content(size_t message, const json_t *content, pst_error *err)
{
    size_t i;
    const json_t *part;
    if (content == NULL || json_is_null(content) || json_is_string(content))
        return 0;
    if (!json_is_array(content))
        return pst_fail(err, PST_E_FORMAT, NULL, "the content of message %zu is neither a text nor a list of parts",
                        message);
    json_array_foreach(content, i, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));
        char quoted[PST_QUOTE_BYTES];
        if (type == NULL)
            return pst_fail(err, PST_E_FORMAT, NULL, "part %zu of message %zu has no type", i, message);
        if (strcmp(type, "text") != 0)
            return pst_fail(err, PST_E_FORMAT, NULL,
                            "part %zu of message %zu is of type \"%s\"; only \"text\" is supported", i, message,
                            pst_text_quote(type, strlen(type), quoted));
        if (!json_is_string(json_object_get(part, "text")))
            return pst_fail(err, PST_E_FORMAT, NULL, "part %zu of message %zu has no text", i, message);
    }
    return 0;
}

static int check_messages(const json_t *messages, pst_error *err)
{
    size_t i;
    const json_t *message;
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return pst_fail(err, PST_E_FORMAT, NULL, "\"messages\" is not a list of messages");
    json_array_foreach(messages, i, message)
    {
        if (!json_is_object(message))
            return pst_fail(err, PST_E_FORMAT, NULL, "message %zu is not an object", i);
        if (!json_is_string(json_object_get(message, "role")))
            return pst_fail(err, PST_E_FORMAT, NULL, "message %zu has no role", i);
        PST_TRY(check_content(i, json_object_get(message, "content"), err));
    }
    return 0;
}

/* A message's reasoning is there under the name that templates read, and under an older one. */
static int add_reasoning(jinja_run *run, jinja_value *message)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    const jinja_dict *from = message->as.dict;
    const jinja_value *found = NULL;
    jinja_dict *dict;
    jinja_value key;
    for (size_t i = 0; i < 3 && (found == NULL || found->kind == JINJA_NONE); i++)
        found = pst_jinja_get_text(from, names[i], strlen(names[i]));
    if (found == NULL || found->kind == JINJA_NONE)
        return 0;
    PST_TRY(pst_jinja_dict(run, from->count + 2, &dict));
    PST_TRY(convert_text(run, "thinking", 8, &key));
    PST_TRY(pst_jinja_put(run, dict, key, *found));
    for (size_t i = 0; i < from->count; i++)
        PST_TRY(pst_jinja_put(run, dict, from->entries[i].key, from->entries[i].value));
    PST_TRY(convert_text(run, "reasoning_content", 17, &key));
    PST_TRY(pst_jinja_put(run, dict, key, *found));
    *message = pst_jinja_of_dict(dict);
    return 0;
}

static int set_json(jinja_run *run, const char *name, const json_t *from)
{
    jinja_value value = pst_jinja_none();
    if (from != NULL)
        PST_TRY(convert(run, from, &value));
    if (strcmp(name, "messages") == 0) {
        for (size_t i = 0; i < value.as.list->count; i++)
            PST_TRY(add_reasoning(run, &value.as.list->items[i]));
    }
    return pst_jinja_set_global(run, name, strlen(name), value);
}

typedef struct inputs {
    json_t *messages, *tools, *documents, *variables;
} inputs;

static int set_variables(jinja_run *run, const pst_chat_template *t, const pst_chat_request *request, const inputs *in)
{
    for (size_t i = 0; i < TOKEN_NAMES; i++) {
        jinja_value text;
        if (t->tokens[i] == NULL)
            continue;
        PST_TRY(convert_text(run, t->tokens[i], strlen(t->tokens[i]), &text));
        PST_TRY(pst_jinja_set_global(run, token_names[i], strlen(token_names[i]), text));
    }
    PST_TRY(set_json(run, "tools", in->tools));
    PST_TRY(set_json(run, "documents", in->documents));
    PST_TRY(pst_jinja_set_global(run, "add_generation_prompt", 21, pst_jinja_bool(!request->is_whole)));
    const char *key;
    json_t *value;
    if (in->variables != NULL)
        json_object_foreach(in->variables, key, value) PST_TRY(set_json(run, key, value));
    return set_json(run, "messages", in->messages);
}

/* ---- rendering ---- */

static int parse_input(const char *text, size_t bytes, const char *name, json_type type, json_t **out, pst_error *err)
{
    if (text == NULL)
        return 0;
    size_t first = 0;
    while (first < bytes && strchr(" \t\r\n", text[first]) != NULL && text[first] != '\0')
        first++;
    if (first == bytes || text[first] != (type == JSON_ARRAY ? '[' : '{'))
        return pst_fail(err, PST_E_FORMAT, NULL, "\"%s\" is not %s", name, type == JSON_ARRAY ? "a list" : "an object");
    pst_error cause = {.offset = PST_NO_OFFSET};
    int status = pst_json_parse(text, bytes, NULL, out, &cause);
    return status < 0 ? pst_fail(err, status, NULL, "\"%s\": %s", name, cause.message) : 0;
}

static int parse_inputs(const pst_chat_request *r, inputs *in, pst_error *err)
{
    if (r->messages == NULL)
        return pst_fail(err, PST_E_FORMAT, NULL, "there are no messages");
    PST_TRY(parse_input(r->messages, r->messages_bytes, "messages", JSON_ARRAY, &in->messages, err));
    PST_TRY(parse_input(r->tools, r->tools_bytes, "tools", JSON_ARRAY, &in->tools, err));
    PST_TRY(parse_input(r->documents, r->documents_bytes, "documents", JSON_ARRAY, &in->documents, err));
    PST_TRY(parse_input(r->variables, r->variables_bytes, "chat_template_kwargs", JSON_OBJECT, &in->variables, err));
    if (in->variables != NULL && json_object_get(in->variables, "messages") != NULL)
        return pst_fail(err, PST_E_FORMAT, NULL, "messages are not a variable");
    return check_messages(in->messages, err);
}

static void free_inputs(inputs *in)
{
    json_decref(in->messages);
    json_decref(in->tools);
    json_decref(in->documents);
    json_decref(in->variables);
    *in = (inputs){0};
}

static int render(jinja_run *run, pst_chat_text *out)
{
    PST_TRY(pst_jinja_render(run));
    const pst_bytes *text = &run->out->bytes;
    char *copy = pst_heap_strndup(text->count > 0 ? text->data : "", text->count);
    if (copy == NULL)
        return pst_fail_memory(run->err, "a conversation's text", text->count);
    *out = (pst_chat_text){.text = copy, .bytes = text->count, .memory_bytes = run->used_bytes + text->count};
    return 0;
}

int pst_chat_render(const pst_chat_template *t, const pst_chat_request *request, pst_chat_text *out, pst_error *err)
{
    size_t memory = request->memory_bytes;
    memory = memory == 0 || memory > PST_CHAT_MOST_MEMORY_BYTES ? PST_CHAT_MOST_MEMORY_BYTES : memory;
    const jinja_limits limits = {
        .steps = PST_CHAT_STEPS, .memory_bytes = memory, .output_bytes = PST_CHAT_OUTPUT_BYTES};
    inputs in = {0};
    jinja_run run;
    const jinja_template *used =
        t->tool_use != NULL && (request->tools != NULL || t->usual == NULL) ? t->tool_use : t->usual;
    pst_jinja_open(&run, used, &limits, err);
    run.has_time = request->has_time;
    run.time = request->time_seconds;
    int status = parse_inputs(request, &in, err);
    if (status >= 0)
        status = set_variables(&run, t, request, &in);
    free_inputs(&in);
    if (status >= 0)
        status = render(&run, out);
    if (status < 0)
        out->memory_bytes = run.used_bytes;
    pst_jinja_finish(&run);
    return status < 0 ? status : 0;
}
