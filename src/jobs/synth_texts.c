/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The small files beside the weights: config.json with the family's own keys, and a byte-level
 * BPE tokenizer that encodes any text (one token per byte: there are no merges) and has a word for every
 * other id, so that whatever random weights choose can be printed.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "jobs/synth_shapes.h"
#include "store/json_text.h"

static int finish(pst_json_text *text, const char *what, char **out, pst_error *err)
{
    if (text->failed) {
        size_t bytes = text->bytes;
        pst_json_text_free(text);
        return pst_fail_memory(err, what, bytes);
    }
    *out = text->text;
    return 0;
}

/* Adds members of a JSON object written with ' for ", one to a line where they are of the outermost object. */
static void add_members(pst_json_text *text, const char *members, uint32_t layers)
{
    static const char variable[] = "$layers";
    int depth = 0;
    pst_json_text_add(text, "  ");
    for (const char *c = members; *c != '\0'; c++) {
        depth += (*c == '{' || *c == '[') - (*c == '}' || *c == ']');
        if (*c == '\'') {
            pst_json_text_add(text, "\"");
        } else if (strncmp(c, variable, strlen(variable)) == 0) {
            pst_json_text_add(text, "%u", layers);
            c += strlen(variable) - 1;
        } else if (depth == 0 && *c == ',') {
            pst_json_text_add(text, ",\n  ");
            c += c[1] == ' ';
        } else {
            pst_json_text_add(text, "%c", *c);
        }
    }
}

int pst_shape_config(const pst_shape *shape, uint32_t layers, pst_dtype dtype, char **out, pst_error *err)
{
    pst_json_text text = {0};
    pst_json_text_add(&text, "{\n");
    add_members(&text, shape->config, layers);
    if (dtype == PST_F8_E4M3)
        add_members(&text,
                    ", 'quantization_config': {'activation_scheme': 'dynamic', 'fmt': 'e4m3', 'quant_method': 'fp8', "
                    "'weight_block_size': [128, 128]}",
                    layers);
    pst_json_text_add(&text, ",\n  \"torch_dtype\": \"%s\"\n}\n",
                      dtype == PST_F32   ? "float32"
                      : dtype == PST_F16 ? "float16"
                                         : "bfloat16");
    return finish(&text, "config.json", out, err);
}

int pst_shape_generation_config(const pst_shape *shape, char **out, pst_error *err)
{
    pst_json_text text = {0};
    pst_json_text_add(&text, "{\n  \"bos_token_id\": %u,\n  \"do_sample\": false,\n  \"eos_token_id\": %u\n}\n",
                      shape->begin.id, shape->end.id);
    return finish(&text, "generation_config.json", out, err);
}

/* ---- tokenizer ---- */

static void put_point(char *out, uint32_t point) /* below 0x800 */
{
    if (point < 0x80) {
        out[0] = (char)point;
        out[1] = '\0';
        return;
    }
    out[0] = (char)(0xc0 | point >> 6);
    out[1] = (char)(0x80 | (point & 0x3f));
    out[2] = '\0';
}

/* The character that byte-level BPE writes for a byte: itself where that is visible in Latin-1, else from
 * U+0100 on. */
static uint32_t byte_character(unsigned byte)
{
    uint32_t next = 0x100;
    for (unsigned b = 0; b <= byte; b++) {
        bool visible = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte)
            return visible ? b : next;
        next += !visible;
    }
    return next;
}

/* The text of ordinary token `index`: the 256 bytes, then a space and made-up words of one, two, three
 * syllables. */
static void ordinary_token(uint32_t index, char out[16])
{
    static const char consonants[] = "bdfghjklmnprstvz", vowels[] = "aeiou";
    enum { SYLLABLES = 16 * 5 };
    if (index < 256) {
        put_point(out, byte_character(index));
        return;
    }
    uint32_t word = index - 256, count = 1, words = SYLLABLES;
    while (word >= words) {
        word -= words;
        words *= SYLLABLES;
        count++;
    }
    put_point(out, byte_character(' '));
    size_t length = strlen(out);
    for (; count > 0; count--, word /= SYLLABLES) {
        out[length++] = consonants[word % SYLLABLES / 5];
        out[length++] = vowels[word % 5];
    }
    out[length] = '\0';
}

static const char *special_text(const pst_shape *shape, uint32_t id)
{
    return id == shape->begin.id ? shape->begin.text : id == shape->end.id ? shape->end.text : NULL;
}

static void add_added_tokens(pst_json_text *text, const pst_shape *shape)
{
    pst_json_text_add(text, "  \"added_tokens\": [");
    const pst_special list[] = {shape->begin, shape->end};
    for (size_t i = 0; i < 2 && (i == 0 || list[0].id != list[1].id); i++) {
        pst_json_text_add(text, "%s\n    {\"id\": %u, \"content\": ", i ? "," : "", list[i].id);
        pst_json_text_string(text, list[i].text);
        pst_json_text_add(text,
                          ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, "
                          "\"special\": true}");
    }
    pst_json_text_add(text, "\n  ],\n  \"normalizer\": null,\n");
}

/* Splits as Llama 3 does, then maps bytes to characters. */
static const char pre_tokenizer[] =
    "  \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n"
    "    {\"type\": \"Split\", \"pattern\": {\"Regex\": "
    "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|"
    "\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}, "
    "\"behavior\": \"Isolated\", \"invert\": false},\n"
    "    {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": false}\n  ]},\n";

static const char byte_level[] =
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": false, \"use_regex\": true}";

static void add_post_processor(pst_json_text *text, const pst_shape *shape)
{
    if (!shape->begins_text) {
        pst_json_text_add(text, "  \"post_processor\": %s,\n", byte_level);
        return;
    }
    const char *begin = shape->begin.text;
    pst_json_text_add(text,
                      "  \"post_processor\": {\"type\": \"Sequence\", \"processors\": [\n    %s,\n"
                      "    {\"type\": \"TemplateProcessing\",\n",
                      byte_level);
    for (int pair = 0; pair < 2; pair++) {
        pst_json_text_add(text, "     \"%s\": [", pair ? "pair" : "single");
        for (int part = 0; part <= pair; part++)
            pst_json_text_add(text,
                              "%s{\"SpecialToken\": {\"id\": \"%s\", \"type_id\": %d}}, "
                              "{\"Sequence\": {\"id\": \"%c\", \"type_id\": %d}}",
                              part ? ", " : "", begin, part, 'A' + part, part);
        pst_json_text_add(text, "],\n");
    }
    pst_json_text_add(
        text, "     \"special_tokens\": {\"%s\": {\"id\": \"%s\", \"ids\": [%u], \"tokens\": [\"%s\"]}}}\n  ]},\n",
        begin, begin, shape->begin.id, begin);
}

int pst_shape_tokenizer(const pst_shape *shape, const pst_transformer *transformer, char **out, pst_error *err)
{
    pst_json_text text = {0};
    pst_json_text_add(&text, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n");
    add_added_tokens(&text, shape);
    pst_json_text_add(&text, "%s", pre_tokenizer);
    add_post_processor(&text, shape);
    pst_json_text_add(&text, "  \"decoder\": %s,\n", byte_level);
    pst_json_text_add(&text,
                      "  \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
                      "\"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null, \"fuse_unk\": false, "
                      "\"byte_fallback\": false, \"ignore_merges\": false,\n    \"vocab\": {");
    uint32_t ordinary = 0;
    for (uint32_t id = 0; id < transformer->vocab; id++) {
        char token[16];
        const char *special = special_text(shape, id);
        if (special == NULL)
            ordinary_token(ordinary++, token);
        pst_json_text_add(&text, id ? ",\n      " : "\n      ");
        pst_json_text_string(&text, special ? special : token);
        pst_json_text_add(&text, ": %u", id);
    }
    pst_json_text_add(&text, "\n    },\n    \"merges\": []}\n}\n");
    return finish(&text, "tokenizer.json", out, err);
}

int pst_shape_tokenizer_config(const pst_shape *shape, const pst_transformer *transformer, char **out, pst_error *err)
{
    pst_json_text text = {0};
    pst_json_text_add(&text, "{\n");
    if (shape->begins_text)
        pst_json_text_add(&text, "  \"bos_token\": \"%s\",\n", shape->begin.text);
    pst_json_text_add(&text,
                      "  \"clean_up_tokenization_spaces\": false,\n  \"eos_token\": \"%s\",\n"
                      "  \"model_max_length\": %u,\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n",
                      shape->end.text, transformer->context);
    return finish(&text, "tokenizer_config.json", out, err);
}
