/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The normalizer, pre-tokenizer, decoder and post-processor of tokenizer.json. A component or a setting that is not
 * known here is refused by its name: ignoring it would give other ids than the file means.
 */
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "text/parts.h"
#include "text/unicode.h"

enum { MAX_NESTING = 16 };

const char pst_gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

int pst_steps_add(pst_steps *steps, pst_step_kind kind, pst_step **out, const char *path, pst_error *err)
{
    if (steps->count == PST_MAX_STEPS)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "the tokenizer has more than %d steps", PST_MAX_STEPS);
    PST_TRY(pst_array_grow(&steps->data, &steps->capacity, steps->count + 1, sizeof *steps->data, err));
    *out = &steps->data[steps->count++];
    **out = (pst_step){.kind = kind};
    return 0;
}

static int refuse(const char *what, const char *name, const char *path, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    return pst_fail(err, PST_E_UNSUPPORTED, path, "the %s \"%s\" is not supported", what,
                    pst_text_quote(name, strlen(name), quoted));
}

/* Refuses a key that is not in the list, which is separated and enclosed by spaces. */
static int check_keys(const json_t *object, const char *known, const char *what, const char *path, pst_error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        const char *found = known;
        size_t length = strlen(key);
        while ((found = strstr(found, key)) != NULL && (found[-1] != ' ' || found[length] != ' '))
            found++;
        if (found == NULL || length == 0 || strchr(key, ' ') != NULL) {
            char quoted[PST_QUOTE_BYTES];
            return pst_fail(err, PST_E_UNSUPPORTED, path, "the setting \"%s\" of the %s is not supported",
                            pst_text_quote(key, length, quoted), what);
        }
    }
    return 0;
}

static int read_content(const json_t *object, const char *key, pst_step *step, const char *path, pst_error *err)
{
    const char *text;
    PST_TRY(pst_json_string(object, key, true, &text, path, err));
    step->content_bytes = json_string_length(json_object_get(object, key));
    step->content = pst_heap_strndup(text, step->content_bytes);
    return step->content ? 0 : pst_fail_memory(err, "the tokenizer", step->content_bytes);
}

/* The same, for what has to be a single character. */
static int read_character(const json_t *object, const char *key, pst_step *step, const char *path, pst_error *err)
{
    PST_TRY(read_content(object, key, step, path, err));
    if (step->content_bytes == 0 || pst_utf8_width((unsigned char)step->content[0]) != step->content_bytes)
        return pst_fail(err, PST_E_FORMAT, path, "\"%s\" is not a single character", key);
    return 0;
}

static int set_literal(pst_pattern *pattern, const char *text, size_t bytes, pst_error *err)
{
    pattern->literal = pst_heap_strndup(text, bytes);
    pattern->literal_bytes = bytes;
    return pattern->literal ? 0 : pst_fail_memory(err, "the tokenizer", bytes);
}

/* "pattern": {"String": ...} or {"Regex": ...}, in old files also a plain string. */
static int read_pattern(const json_t *object, pst_tokenizer *tokenizer, pst_pattern *pattern, const char *path,
                        pst_error *err)
{
    const json_t *value = json_object_get(object, "pattern");
    const json_t *regex = json_object_get(value, "Regex");
    const json_t *string = json_is_string(value) ? value : json_object_get(value, "String");
    if (json_is_object(value) && json_object_size(value) == 1 && json_is_string(regex)) {
        tokenizer->has_regex = true;
        return pst_regex_open(json_string_value(regex), json_string_length(regex), &pattern->regex, path, err);
    }
    if (!json_is_string(string) || (json_is_object(value) && json_object_size(value) != 1))
        return pst_fail(err, PST_E_FORMAT, path, "\"pattern\" is neither a String nor a Regex");
    if (json_string_length(string) == 0)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "an empty \"pattern\" is not supported");
    return set_literal(pattern, json_string_value(string), json_string_length(string), err);
}

/* The type of a component; borrowed. */
static int read_type(const json_t *value, const char *what, const char **type, const char *path, pst_error *err)
{
    if (!json_is_object(value))
        return pst_fail(err, PST_E_FORMAT, path, "the %s is not an object", what);
    return pst_json_string(value, "type", true, type, path, err);
}

typedef int component_reader(const json_t *value, pst_tokenizer *tokenizer, int depth, const char *path,
                             pst_error *err);

/* Reads each member of a sequence. */
static int read_sequence(const json_t *value, const char *key, component_reader *reader, pst_tokenizer *tokenizer,
                         int depth, const char *path, pst_error *err)
{
    json_t *list;
    PST_TRY(pst_json_array(value, key, true, &list, path, err));
    if (depth >= MAX_NESTING)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "sequences are nested too deep");
    for (size_t i = 0; i < json_array_size(list); i++)
        PST_TRY(reader(json_array_get(list, i), tokenizer, depth + 1, path, err));
    return 0;
}

static int read_replace(const json_t *value, pst_tokenizer *tokenizer, pst_steps *steps, const char *path,
                        pst_error *err)
{
    pst_step *step;
    PST_TRY(check_keys(value, " type pattern content ", "Replace", path, err));
    PST_TRY(pst_steps_add(steps, PST_STEP_REPLACE, &step, path, err));
    PST_TRY(read_content(value, "content", step, path, err));
    return read_pattern(value, tokenizer, &step->pattern, path, err);
}

static int read_normalizer(const json_t *value, pst_tokenizer *tokenizer, int depth, const char *path, pst_error *err)
{
    static const char *const forms[] = {[PST_NFC] = "NFC", [PST_NFD] = "NFD", [PST_NFKC] = "NFKC", [PST_NFKD] = "NFKD"};
    pst_steps *steps = &tokenizer->normalizers;
    const char *type;
    pst_step *step;
    PST_TRY(read_type(value, "normalizer", &type, path, err));
    for (int form = 0; form < 4; form++) {
        if (strcmp(type, forms[form]) != 0)
            continue;
        PST_TRY(check_keys(value, " type ", "normalizer", path, err));
        PST_TRY(pst_steps_add(steps, PST_STEP_NORMAL_FORM, &step, path, err));
        step->form = form;
        return 0;
    }
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(value, "normalizers", read_normalizer, tokenizer, depth, path, err);
    if (strcmp(type, "Replace") == 0)
        return read_replace(value, tokenizer, steps, path, err);
    if (strcmp(type, "Prepend") == 0) {
        PST_TRY(check_keys(value, " type prepend ", "normalizer", path, err));
        PST_TRY(pst_steps_add(steps, PST_STEP_PREPEND, &step, path, err));
        return read_content(value, "prepend", step, path, err);
    }
    if (strcmp(type, "Lowercase") == 0) {
        PST_TRY(check_keys(value, " type ", "normalizer", path, err));
        return pst_steps_add(steps, PST_STEP_LOWERCASE, &step, path, err);
    }
    if (strcmp(type, "Strip") == 0) {
        PST_TRY(check_keys(value, " type strip_left strip_right ", "normalizer", path, err));
        PST_TRY(pst_steps_add(steps, PST_STEP_STRIP, &step, path, err));
        PST_TRY(pst_json_bool(value, "strip_left", true, &step->strip_left, path, err));
        return pst_json_bool(value, "strip_right", true, &step->strip_right, path, err);
    }
    return refuse("normalizer", type, path, err);
}

/* ByteLevel, as a pre-tokenizer, decoder or post-processor; *use_regex defaults to true. */
static int read_byte_level(const json_t *value, bool *prefix_space, bool *use_regex, const char *path, pst_error *err)
{
    bool ignored = true;
    *use_regex = true;
    PST_TRY(check_keys(value, " type add_prefix_space trim_offsets use_regex ", "ByteLevel", path, err));
    PST_TRY(pst_json_bool(value, "add_prefix_space", true, prefix_space, path, err));
    PST_TRY(pst_json_bool(value, "trim_offsets", false, &ignored, path, err)); /* ids do not depend on offsets */
    PST_TRY(pst_json_bool(value, "use_regex", false, use_regex, path, err));
    return 0;
}

/* Metaspace, as a pre-tokenizer or decoder. */
static int read_metaspace(const json_t *value, pst_steps *steps, const char *path, pst_error *err)
{
    static const char *const schemes[] = {
        [PST_PREPEND_ALWAYS] = "always", [PST_PREPEND_FIRST] = "first", [PST_PREPEND_NEVER] = "never"};
    pst_step *step;
    const char *scheme = "always";
    bool prefix_space = true;
    int kind = 0;
    PST_TRY(
        check_keys(value, " type replacement prepend_scheme split add_prefix_space str_rep ", "Metaspace", path, err));
    PST_TRY(pst_steps_add(steps, PST_STEP_METASPACE, &step, path, err));
    step->split = true;
    step->behavior = PST_SPLIT_MERGED_WITH_NEXT;
    PST_TRY(read_character(value, "replacement", step, path, err));
    PST_TRY(pst_json_string(value, "prepend_scheme", false, &scheme, path, err));
    PST_TRY(pst_json_bool(value, "split", false, &step->split, path, err));
    PST_TRY(pst_json_bool(value, "add_prefix_space", false, &prefix_space, path, err));
    while (kind < 3 && strcmp(scheme, schemes[kind]) != 0)
        kind++;
    if (kind == 3)
        return refuse("prepend_scheme", scheme, path, err);
    step->prepend = (pst_prepend_scheme)kind;
    if (!prefix_space && step->prepend != PST_PREPEND_NEVER)
        return pst_fail(err, PST_E_FORMAT, path, "\"add_prefix_space\" contradicts the prepend scheme of Metaspace");
    return set_literal(&step->pattern, step->content, step->content_bytes, err);
}

static int read_behavior(const json_t *value, pst_split_behavior *out, const char *path, pst_error *err)
{
    static const char *const names[] = {
        [PST_SPLIT_REMOVED] = "Removed",
        [PST_SPLIT_ISOLATED] = "Isolated",
        [PST_SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [PST_SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
        [PST_SPLIT_CONTIGUOUS] = "Contiguous",
    };
    const char *name;
    int status = pst_json_string(value, "behavior", false, &name, path, err);
    if (status != 0)
        return status < 0 ? status : 0;
    for (int i = 0; i < 5; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (pst_split_behavior)i;
            return 0;
        }
    }
    return refuse("split behavior", name, path, err);
}

static int add_class_split(pst_steps *steps, bool (*character)(uint32_t), pst_split_behavior behavior, const char *path,
                           pst_error *err)
{
    pst_step *step;
    PST_TRY(pst_steps_add(steps, PST_STEP_SPLIT, &step, path, err));
    step->pattern.character = character;
    step->behavior = behavior;
    return 0;
}

static int read_split(const json_t *value, pst_tokenizer *tokenizer, const char *path, pst_error *err)
{
    pst_step *step;
    PST_TRY(check_keys(value, " type pattern behavior invert ", "Split", path, err));
    PST_TRY(pst_steps_add(&tokenizer->pretokenizers, PST_STEP_SPLIT, &step, path, err));
    if (json_object_get(value, "behavior") == NULL)
        return pst_fail(err, PST_E_FORMAT, path, "\"behavior\" of Split is missing");
    PST_TRY(read_behavior(value, &step->behavior, path, err));
    PST_TRY(pst_json_bool(value, "invert", true, &step->invert, path, err));
    return read_pattern(value, tokenizer, &step->pattern, path, err);
}

/* The pre-tokenizers that split at a class of characters: 1 read, 0 it is none of them. */
static int read_class_pretokenizer(const json_t *value, const char *type, pst_steps *steps, const char *path,
                                   pst_error *err)
{
    pst_step *step;
    if (strcmp(type, "Digits") == 0) {
        bool individual;
        PST_TRY(check_keys(value, " type individual_digits ", type, path, err));
        PST_TRY(pst_json_bool(value, "individual_digits", true, &individual, path, err));
        PST_TRY(add_class_split(steps, pst_unicode_is_numeric, individual ? PST_SPLIT_ISOLATED : PST_SPLIT_CONTIGUOUS,
                                path, err));
    } else if (strcmp(type, "Punctuation") == 0) {
        pst_split_behavior behavior = PST_SPLIT_ISOLATED;
        PST_TRY(check_keys(value, " type behavior ", type, path, err));
        PST_TRY(read_behavior(value, &behavior, path, err));
        PST_TRY(add_class_split(steps, pst_unicode_is_punctuation, behavior, path, err));
    } else if (strcmp(type, "WhitespaceSplit") == 0 || strcmp(type, "Whitespace") == 0 ||
               strcmp(type, "BertPreTokenizer") == 0) {
        PST_TRY(check_keys(value, " type ", type, path, err));
        PST_TRY(add_class_split(steps, pst_unicode_is_space, PST_SPLIT_REMOVED, path, err));
        if (strcmp(type, "Whitespace") == 0)
            PST_TRY(add_class_split(steps, pst_unicode_is_word, PST_SPLIT_CONTIGUOUS, path, err));
        else if (strcmp(type, "BertPreTokenizer") == 0)
            PST_TRY(add_class_split(steps, pst_unicode_is_punctuation, PST_SPLIT_ISOLATED, path, err));
    } else if (strcmp(type, "CharDelimiterSplit") == 0) {
        PST_TRY(check_keys(value, " type delimiter ", type, path, err));
        PST_TRY(pst_steps_add(steps, PST_STEP_SPLIT, &step, path, err));
        step->behavior = PST_SPLIT_REMOVED;
        PST_TRY(read_character(value, "delimiter", step, path, err));
        PST_TRY(set_literal(&step->pattern, step->content, step->content_bytes, err));
    } else {
        return 0;
    }
    return 1;
}

static int read_pretokenizer(const json_t *value, pst_tokenizer *tokenizer, int depth, const char *path, pst_error *err)
{
    pst_steps *steps = &tokenizer->pretokenizers;
    const char *type;
    pst_step *step;
    PST_TRY(read_type(value, "pre-tokenizer", &type, path, err));
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(value, "pretokenizers", read_pretokenizer, tokenizer, depth, path, err);
    if (strcmp(type, "Split") == 0)
        return read_split(value, tokenizer, path, err);
    if (strcmp(type, "Metaspace") == 0)
        return read_metaspace(value, steps, path, err);
    if (strcmp(type, "ByteLevel") == 0) {
        bool use_regex;
        PST_TRY(pst_steps_add(steps, PST_STEP_BYTE_LEVEL, &step, path, err));
        step->behavior = PST_SPLIT_ISOLATED;
        PST_TRY(read_byte_level(value, &step->prefix_space, &use_regex, path, err));
        tokenizer->has_regex |= use_regex;
        return use_regex ? pst_regex_open(pst_gpt2_pattern, strlen(pst_gpt2_pattern), &step->pattern.regex, path, err)
                         : 0;
    }
    int status = read_class_pretokenizer(value, type, steps, path, err);
    if (status != 0)
        return status < 0 ? status : 0;
    return refuse("pre-tokenizer", type, path, err);
}

static int read_decoder(const json_t *value, pst_tokenizer *tokenizer, int depth, const char *path, pst_error *err)
{
    pst_steps *steps = &tokenizer->decoders;
    const char *type;
    pst_step *step;
    PST_TRY(read_type(value, "decoder", &type, path, err));
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(value, "decoders", read_decoder, tokenizer, depth, path, err);
    if (strcmp(type, "Replace") == 0)
        return read_replace(value, tokenizer, steps, path, err);
    if (strcmp(type, "Metaspace") == 0)
        return read_metaspace(value, steps, path, err);
    if (strcmp(type, "ByteLevel") == 0) {
        bool ignored;
        PST_TRY(read_byte_level(value, &ignored, &ignored, path, err));
        return pst_steps_add(steps, PST_STEP_BYTE_LEVEL, &step, path, err);
    }
    if (strcmp(type, "ByteFallback") == 0 || strcmp(type, "Fuse") == 0) {
        PST_TRY(check_keys(value, " type ", "decoder", path, err));
        return pst_steps_add(steps, type[0] == 'F' ? PST_STEP_FUSE : PST_STEP_BYTE_FALLBACK, &step, path, err);
    }
    if (strcmp(type, "Strip") == 0) {
        uint64_t start, stop;
        PST_TRY(check_keys(value, " type content start stop ", "decoder", path, err));
        PST_TRY(pst_json_u64(value, "start", true, 0, UINT32_MAX, &start, path, err));
        PST_TRY(pst_json_u64(value, "stop", true, 0, UINT32_MAX, &stop, path, err));
        PST_TRY(pst_steps_add(steps, PST_STEP_STRIP_CHARACTER, &step, path, err));
        step->start = (uint32_t)start;
        step->stop = (uint32_t)stop;
        return read_character(value, "content", step, path, err);
    }
    return refuse("decoder", type, path, err);
}

/* A special token of a template: all its ids. */
static int add_template_token(const json_t *specials, const char *name, pst_words *templates, const char *path,
                              pst_error *err)
{
    const json_t *special = json_object_get(specials, name);
    const json_t *ids = json_object_get(special, "ids");
    char quoted[PST_QUOTE_BYTES];
    if (!json_is_array(ids))
        return pst_fail(err, PST_E_FORMAT, path, "the template's token \"%s\" has no ids",
                        pst_text_quote(name, strlen(name), quoted));
    for (size_t i = 0; i < json_array_size(ids); i++) {
        json_int_t id = json_integer_value(json_array_get(ids, i));
        if (!json_is_integer(json_array_get(ids, i)) || id < 0 || id > PST_VOCAB_MAX_ID)
            return pst_fail(err, PST_E_FORMAT, path, "the template's token \"%s\" has an id out of range",
                            pst_text_quote(name, strlen(name), quoted));
        PST_TRY(pst_words_append(templates, (uint32_t)id, err));
    }
    return 0;
}

static int read_template(const json_t *value, pst_words *templates, const char *path, pst_error *err)
{
    json_t *single, *specials;
    PST_TRY(check_keys(value, " type single pair special_tokens ", "TemplateProcessing", path, err));
    PST_TRY(pst_json_array(value, "single", true, &single, path, err));
    PST_TRY(pst_json_object(value, "special_tokens", true, &specials, path, err));
    size_t texts = 0;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const char *name;
        json_t *part;
        if (!json_is_object(item) || json_object_size(item) != 1)
            return pst_fail(err, PST_E_FORMAT, path, "the template has an item that is not an object");
        if (json_object_get(item, "Sequence") != NULL) {
            PST_TRY(pst_json_object(item, "Sequence", true, &part, path, err));
            PST_TRY(pst_json_string(part, "id", true, &name, path, err));
            if (strcmp(name, "A") != 0)
                return refuse("template sequence", name, path, err);
            PST_TRY(pst_words_append(templates, PST_TEMPLATE_TEXT, err));
            texts++;
        } else {
            PST_TRY(pst_json_object(item, "SpecialToken", true, &part, path, err));
            PST_TRY(pst_json_string(part, "id", true, &name, path, err));
            PST_TRY(add_template_token(specials, name, templates, path, err));
        }
    }
    if (texts != 1)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "a template that does not name the text once is not supported");
    return 0;
}

/* "cls" or "sep" of BertProcessing and RobertaProcessing: [text, id]. */
static int add_pair_token(const json_t *value, const char *key, pst_words *templates, const char *path, pst_error *err)
{
    json_t *pair;
    PST_TRY(pst_json_array(value, key, true, &pair, path, err));
    const json_t *id = json_array_get(pair, 1);
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > PST_VOCAB_MAX_ID)
        return pst_fail(err, PST_E_FORMAT, path, "\"%s\" is not a token and its id", key);
    return pst_words_append(templates, (uint32_t)json_integer_value(id), err);
}

static int read_post_processor(const json_t *value, pst_tokenizer *tokenizer, int depth, const char *path,
                               pst_error *err)
{
    const char *type;
    bool ignored;
    PST_TRY(read_type(value, "post-processor", &type, path, err));
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(value, "processors", read_post_processor, tokenizer, depth, path, err);
    if (strcmp(type, "ByteLevel") == 0) /* it moves offsets only */
        return read_byte_level(value, &ignored, &ignored, path, err);
    if (tokenizer->template.count > 0)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "a second template after the first is not supported");
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(value, &tokenizer->template, path, err);
    if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0) {
        PST_TRY(check_keys(value, " type sep cls trim_offsets add_prefix_space ", type, path, err));
        PST_TRY(add_pair_token(value, "cls", &tokenizer->template, path, err));
        PST_TRY(pst_words_append(&tokenizer->template, PST_TEMPLATE_TEXT, err));
        return add_pair_token(value, "sep", &tokenizer->template, path, err);
    }
    return refuse("post-processor", type, path, err);
}

int pst_parse_normalizer(const json_t *value, pst_tokenizer *tokenizer, const char *path, pst_error *err)
{
    return value == NULL || json_is_null(value) ? 0 : read_normalizer(value, tokenizer, 0, path, err);
}

int pst_parse_pretokenizer(const json_t *value, pst_tokenizer *tokenizer, const char *path, pst_error *err)
{
    return value == NULL || json_is_null(value) ? 0 : read_pretokenizer(value, tokenizer, 0, path, err);
}

int pst_parse_decoder(const json_t *value, pst_tokenizer *tokenizer, const char *path, pst_error *err)
{
    tokenizer->has_decoder = value != NULL && !json_is_null(value);
    return tokenizer->has_decoder ? read_decoder(value, tokenizer, 0, path, err) : 0;
}

int pst_parse_post_processor(const json_t *value, pst_tokenizer *tokenizer, const char *path, pst_error *err)
{
    return value == NULL || json_is_null(value) ? 0 : read_post_processor(value, tokenizer, 0, path, err);
}
