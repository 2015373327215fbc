/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vocab.json and merges.txt: the older layout. The pipeline is fixed by the class that tokenizer_config.json names
 * (GPT-2's without it); added tokens come from that file, else from special_tokens_map.json and added_tokens.json, and are
 * added in the order of their ids, then the named special ones, as the transformers library does.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "text/parts.h"
#include "text/unicode.h"

enum { MAX_ADDED_TOKENS = 16384 };

static const char qwen2_pattern[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
    "\\s+(?!\\S)|\\s+";

typedef enum tokenizer_class { CLASS_GPT2, CLASS_QWEN2 } tokenizer_class;

/* The documents, each NULL or owned, and the tokens found in them. */
typedef struct layout {
    const pst_tokenizer_source *source;
    pst_tokenizer *tokenizer;
    json_t *vocab, *config, *specials, *added;
    tokenizer_class class;
    bool has_decoder_list; /* tokenizer_config.json lists all added tokens; the two other files do not count then */
    pst_added_entry *entries;
    uint32_t *ids; /* what each entry of a list is sorted by */
    size_t count, capacity, id_capacity;
} layout;

static const char *const special_names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                            "pad_token", "cls_token", "mask_token"};

/* Where nothing is said of a named token, its class has a default. */
static const char *default_special(tokenizer_class class, size_t name)
{
    bool has = class == CLASS_GPT2 ? name <= 2 : name == 1 || name == 2 || name == 4;
    return has ? "<|endoftext|>" : NULL;
}

static int read_optional(const pst_text_file *file, json_t **out, pst_error *err)
{
    if (file->bytes == NULL)
        return 0;
    PST_TRY(pst_json_parse(file->bytes, file->count, file->path, out, err));
    if (!json_is_object(*out))
        return pst_fail(err, PST_E_FORMAT, file->path, "not a JSON object");
    return 0;
}

static int read_class(layout *l, pst_error *err)
{
    const char *path = l->source->tokenizer_config_json.path;
    const char *name = "GPT2Tokenizer";
    if (l->config != NULL)
        PST_TRY(pst_json_string(l->config, "tokenizer_class", false, &name, path, err));
    if (strcmp(name, "GPT2Tokenizer") == 0 || strcmp(name, "GPT2TokenizerFast") == 0) {
        l->class = CLASS_GPT2;
    } else if (strcmp(name, "Qwen2Tokenizer") == 0 || strcmp(name, "Qwen2TokenizerFast") == 0) {
        l->class = CLASS_QWEN2;
    } else {
        char quoted[PST_QUOTE_BYTES];
        return pst_fail(err, PST_E_UNSUPPORTED, path,
                        "the tokenizer class \"%s\" without a tokenizer.json is not supported",
                        pst_text_quote(name, strlen(name), quoted));
    }
    return 0;
}

/* One merge per line, and comments that begin with #version. */
static int read_merges(layout *l, pst_error *err)
{
    const pst_text_file *file = &l->source->merges_txt;
    pst_bpe *bpe = &l->tokenizer->bpe;
    pst_bytes scratch = {0};
    size_t lines = 1;
    for (size_t i = 0; i < file->count; i++)
        lines += file->bytes[i] == '\n';
    int status = pst_merges_init(&bpe->merges, lines, err);
    uint32_t rank = 0;
    const char *line = file->bytes, *end = file->bytes + file->count;
    while (line < end && status == 0) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        const char *next = stop ? stop + 1 : end;
        size_t bytes = (size_t)((stop ? stop : end) - line);
        if (bytes > 0 && line[bytes - 1] == '\r')
            bytes--;
        const char *space = memchr(line, ' ', bytes);
        if (bytes == 0 || (bytes >= 8 && memcmp(line, "#version", 8) == 0)) {
            line = next;
            continue;
        }
        if (space == NULL || memchr(space + 1, ' ', (size_t)(line + bytes - space - 1)) != NULL)
            status = pst_fail_at(err, PST_E_FORMAT, file->path, (uint64_t)(line - file->bytes),
                                 "the line is not a pair of tokens");
        else
            status = pst_parse_merge(bpe, line, (size_t)(space - line), space + 1, (size_t)(line + bytes - space - 1),
                                     rank++, &scratch, file->path, err);
        line = next;
    }
    pst_bytes_free(&scratch);
    return status;
}

static int add_byte_level(layout *l, bool use_regex, pst_error *err)
{
    pst_step *step;
    const char *path = l->source->tokenizer_config_json.path;
    PST_TRY(pst_steps_add(&l->tokenizer->pretokenizers, PST_STEP_BYTE_LEVEL, &step, path, err));
    step->behavior = PST_SPLIT_ISOLATED;
    if (l->config != NULL)
        PST_TRY(pst_json_bool(l->config, "add_prefix_space", false, &step->prefix_space, path, err));
    if (!use_regex)
        return 0;
    return pst_regex_open(pst_gpt2_pattern, strlen(pst_gpt2_pattern), &step->pattern.regex, path, err);
}

static int make_pipeline(layout *l, pst_error *err)
{
    pst_tokenizer *tokenizer = l->tokenizer;
    const char *path = l->source->vocab_json.path;
    pst_step *step;
    tokenizer->has_regex = tokenizer->has_decoder = true;
    PST_TRY(pst_steps_add(&tokenizer->decoders, PST_STEP_BYTE_LEVEL, &step, path, err));
    if (l->class == CLASS_GPT2)
        return add_byte_level(l, true, err);
    PST_TRY(pst_steps_add(&tokenizer->normalizers, PST_STEP_NORMAL_FORM, &step, path, err));
    step->form = PST_NFC;
    PST_TRY(pst_steps_add(&tokenizer->pretokenizers, PST_STEP_SPLIT, &step, path, err));
    step->behavior = PST_SPLIT_ISOLATED;
    PST_TRY(pst_regex_open(qwen2_pattern, strlen(qwen2_pattern), &step->pattern.regex, path, err));
    return add_byte_level(l, false, err);
}

/* A token as a string or as an object with its flags. Special ones are not normalized unless that says so. */
static int read_token(const json_t *value, bool special, pst_added_entry *entry, const char *path, pst_error *err)
{
    *entry = (pst_added_entry){.flags = {.special = special, .normalized = !special}};
    const json_t *content = json_is_object(value) ? json_object_get(value, "content") : value;
    if (!json_is_string(content))
        return pst_fail(err, PST_E_FORMAT, path, "a token is neither a string nor an object with its content");
    entry->text = json_string_value(content);
    entry->bytes = json_string_length(content);
    if (!json_is_object(value))
        return 0;
    if (!special) /* a named token is special whatever it says */
        PST_TRY(pst_json_bool(value, "special", false, &entry->flags.special, path, err));
    entry->flags.normalized = !entry->flags.special;
    PST_TRY(pst_json_bool(value, "single_word", false, &entry->flags.single_word, path, err));
    PST_TRY(pst_json_bool(value, "lstrip", false, &entry->flags.lstrip, path, err));
    PST_TRY(pst_json_bool(value, "rstrip", false, &entry->flags.rstrip, path, err));
    PST_TRY(pst_json_bool(value, "normalized", false, &entry->flags.normalized, path, err));
    return 0;
}

static pst_added_entry *find_entry(layout *l, const char *text, size_t bytes)
{
    for (size_t i = 0; i < l->count; i++) {
        if (l->entries[i].bytes == bytes && memcmp(l->entries[i].text, text, bytes) == 0)
            return &l->entries[i];
    }
    return NULL;
}

static int add_entry(layout *l, const pst_added_entry *entry, uint32_t id, pst_error *err)
{
    PST_TRY(pst_array_grow(&l->entries, &l->capacity, l->count + 1, sizeof *l->entries, err));
    PST_TRY(pst_array_grow(&l->ids, &l->id_capacity, l->count + 1, sizeof *l->ids, err));
    size_t at = l->count++;
    while (at > 0 && l->ids[at - 1] > id) { /* in the order of their ids; files are nearly sorted */
        l->entries[at] = l->entries[at - 1];
        l->ids[at] = l->ids[at - 1];
        at--;
    }
    l->entries[at] = *entry;
    l->ids[at] = id;
    return 0;
}

/* tokenizer_config.json: {"50256": {"content": ...}, ...} */
static int read_decoder_list(layout *l, const json_t *list, pst_error *err)
{
    const char *path = l->source->tokenizer_config_json.path, *key;
    json_t *value;
    l->has_decoder_list = true;
    if (json_object_size(list) > MAX_ADDED_TOKENS)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "too many added tokens");
    json_object_foreach((json_t *)list, key, value)
    {
        char *end;
        unsigned long id = strtoul(key, &end, 10);
        pst_added_entry entry;
        if (key[0] < '0' || key[0] > '9' || *end != '\0' || id > PST_VOCAB_MAX_ID || !json_is_object(value))
            return pst_fail(err, PST_E_FORMAT, path, "\"added_tokens_decoder\" is not a table of ids and tokens");
        PST_TRY(read_token(value, false, &entry, path, err));
        if (find_entry(l, entry.text, entry.bytes) != NULL)
            return pst_fail(err, PST_E_FORMAT, path, "\"added_tokens_decoder\" has a token twice");
        PST_TRY(add_entry(l, &entry, (uint32_t)id, err));
    }
    return 0;
}

/* The value of a setting: special_tokens_map.json's before tokenizer_config.json's; *path is the file's. */
static const json_t *setting(const layout *l, const char *name, const char **path)
{
    *path = l->source->special_tokens_map_json.path;
    const json_t *value = l->has_decoder_list ? NULL : json_object_get(l->specials, name);
    if (value != NULL)
        return value;
    *path = l->source->tokenizer_config_json.path;
    return json_object_get(l->config, name);
}

/* A named token as its file has it, or the class's default: 1 there is one, 0 there is none. */
static int read_special(const layout *l, size_t name, pst_added_entry *entry, pst_error *err)
{
    const char *path;
    const json_t *value = setting(l, special_names[name], &path);
    if (value == NULL) {
        const char *text = default_special(l->class, name);
        *entry = (pst_added_entry){.text = text, .bytes = text ? strlen(text) : 0, .flags = {.special = true}};
        return text != NULL;
    }
    if (json_is_null(value))
        return 0;
    PST_TRY(read_token(value, true, entry, path, err));
    return 1;
}

/* Adds a special token behind the others, unless its text is there: then that one becomes special. */
static int add_special(layout *l, const pst_added_entry *entry, pst_error *err)
{
    pst_added_entry *known = find_entry(l, entry->text, entry->bytes);
    if (known == NULL)
        return add_entry(l, entry, UINT32_MAX, err);
    known->flags.special = true;
    return 0;
}

/* added_tokens.json: {"<tool>": 50257, ...} */
static int read_added_list(layout *l, pst_error *err)
{
    const char *path = l->source->added_tokens_json.path, *key;
    json_t *value;
    if (json_object_size(l->added) > MAX_ADDED_TOKENS)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "too many added tokens");
    json_object_foreach(l->added, key, value)
    {
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id > PST_VOCAB_MAX_ID)
            return pst_fail(err, PST_E_FORMAT, path, "the id of an added token is not a number in range");
        pst_added_entry entry = {.text = key, .bytes = strlen(key), .flags = {.normalized = true}}, special;
        for (size_t name = 0; name < sizeof special_names / sizeof special_names[0]; name++) {
            int found = read_special(l, name, &special, err);
            PST_TRY(found);
            if (found && special.bytes == entry.bytes && memcmp(special.text, entry.text, entry.bytes) == 0)
                entry.flags = (pst_added_token){.special = true};
        }
        PST_TRY(add_entry(l, &entry, (uint32_t)id, err));
    }
    return 0;
}

static int read_added_tokens(layout *l, pst_error *err)
{
    json_t *list;
    pst_added_entry entry;
    if (l->config != NULL && pst_json_object(l->config, "added_tokens_decoder", false, &list,
                                             l->source->tokenizer_config_json.path, err) == 0)
        PST_TRY(read_decoder_list(l, list, err));
    else if (l->config != NULL && json_object_get(l->config, "added_tokens_decoder") != NULL)
        return pst_fail(err, PST_E_FORMAT, l->source->tokenizer_config_json.path,
                        "\"added_tokens_decoder\" is not an object");
    if (!l->has_decoder_list && l->added != NULL)
        PST_TRY(read_added_list(l, err));
    for (size_t name = 0; name < sizeof special_names / sizeof special_names[0]; name++) {
        int found = read_special(l, name, &entry, err);
        PST_TRY(found);
        if (found)
            PST_TRY(add_special(l, &entry, err));
    }
    static const char *const lists[] = {"additional_special_tokens", "extra_special_tokens"};
    for (size_t k = 0; k < 2; k++) {
        const char *path;
        const json_t *more = setting(l, lists[k], &path);
        for (size_t i = 0; i < json_array_size(more); i++) {
            PST_TRY(read_token(json_array_get(more, i), true, &entry, path, err));
            PST_TRY(add_special(l, &entry, err));
        }
    }
    return pst_add_tokens(l->tokenizer, l->entries, l->count, l->source->vocab_json.path, err);
}

/* add_bos_token and add_eos_token: a template around the text. */
static int make_template(layout *l, pst_error *err)
{
    const char *path = l->source->tokenizer_config_json.path;
    bool wanted[2] = {false, false};
    uint32_t ids[2] = {0, 0};
    if (l->config == NULL)
        return 0;
    PST_TRY(pst_json_bool(l->config, "add_bos_token", false, &wanted[0], path, err));
    PST_TRY(pst_json_bool(l->config, "add_eos_token", false, &wanted[1], path, err));
    for (size_t name = 0; name < 2; name++) {
        pst_added_entry entry;
        int found = wanted[name] ? read_special(l, name, &entry, err) : 0;
        PST_TRY(found);
        wanted[name] = found > 0;
        if (found)
            ids[name] = pst_added_find(&l->tokenizer->added, &l->tokenizer->bpe.vocab, entry.text, entry.bytes);
    }
    if (!wanted[0] && !wanted[1])
        return 0;
    pst_words *template = &l->tokenizer->template;
    if (wanted[0])
        PST_TRY(pst_words_append(template, ids[0], err));
    PST_TRY(pst_words_append(template, PST_TEMPLATE_TEXT, err));
    return wanted[1] ? pst_words_append(template, ids[1], err) : 0;
}

static int read_layout(layout *l, pst_error *err)
{
    const pst_tokenizer_source *source = l->source;
    PST_TRY(read_optional(&source->tokenizer_config_json, &l->config, err));
    PST_TRY(read_optional(&source->special_tokens_map_json, &l->specials, err));
    PST_TRY(read_optional(&source->added_tokens_json, &l->added, err));
    PST_TRY(read_class(l, err));
    PST_TRY(read_optional(&source->vocab_json, &l->vocab, err));
    PST_TRY(pst_parse_vocab(l->vocab, &l->tokenizer->bpe, source->vocab_json.path, err));
    PST_TRY(read_merges(l, err));
    pst_bpe_prepare(&l->tokenizer->bpe);
    PST_TRY(make_pipeline(l, err));
    PST_TRY(read_added_tokens(l, err));
    return make_template(l, err);
}

int pst_parse_vocab_and_merges(const pst_tokenizer_source *source, pst_tokenizer *tokenizer, pst_error *err)
{
    if (source->vocab_json.bytes == NULL || source->merges_txt.bytes == NULL)
        return pst_fail(err, PST_E_USAGE, NULL,
                        "there is neither a tokenizer.json nor a vocab.json with its merges.txt");
    layout l = {.source = source, .tokenizer = tokenizer};
    int status = read_layout(&l, err);
    json_decref(l.vocab);
    json_decref(l.config);
    json_decref(l.specials);
    json_decref(l.added);
    pst_heap_free(l.entries);
    pst_heap_free(l.ids);
    return status;
}
