/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The small files beside the weights: config.json as transformers writes it for the family, and a byte-level
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

static void add_rope_scaling(pst_json_text *text, const pst_rope_scaling *rope)
{
    if (rope->factor == 0) {
        pst_json_text_add(text, "  \"rope_scaling\": null,\n");
        return;
    }
    pst_json_text_add(text,
                      "  \"rope_scaling\": {\n    \"factor\": %.1f,\n    \"high_freq_factor\": %.1f,\n"
                      "    \"low_freq_factor\": %.1f,\n    \"original_max_position_embeddings\": %u,\n"
                      "    \"rope_type\": \"llama3\"\n  },\n",
                      rope->factor, rope->high, rope->low, rope->original_context);
}

int pst_shape_config(const pst_shape *shape, uint32_t layers, pst_dtype dtype, char **out, pst_error *err)
{
    pst_json_text text = {0};
    pst_json_text_add(&text, "{\n  \"architectures\": [\n    \"%s\"\n  ],\n  \"model_type\": \"%s\",\n",
                      shape->architecture, shape->model_type);
    pst_json_text_add(&text, "  \"bos_token_id\": %u,\n  \"eos_token_id\": %u,\n", shape->begin.id, shape->end.id);
    pst_json_text_add(&text, "  \"hidden_act\": \"silu\",\n  \"hidden_size\": %u,\n  \"intermediate_size\": %u,\n",
                      shape->hidden, shape->intermediate);
    pst_json_text_add(&text,
                      "  \"num_attention_heads\": %u,\n  \"num_key_value_heads\": %u,\n  \"num_hidden_layers\": %u,\n",
                      shape->heads, shape->kv_heads, layers);
    pst_json_text_add(&text, "  \"max_position_embeddings\": %u,\n  \"vocab_size\": %u,\n  \"rms_norm_eps\": %s,\n",
                      shape->context, shape->vocab, shape->rms_norm_eps);
    pst_json_text_add(&text, "  \"rope_theta\": %.1f,\n", shape->rope_theta);
    add_rope_scaling(&text, &shape->rope);
    pst_json_text_add(&text,
                      "  \"attention_dropout\": 0.0,\n  \"initializer_range\": %.2f,\n  \"use_cache\": true,\n%s",
                      (double)shape->deviation, shape->config);
    pst_json_text_add(&text, "  \"tie_word_embeddings\": %s,\n  \"torch_dtype\": \"%s\"\n}\n",
                      shape->tied ? "true" : "false",
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

int pst_shape_tokenizer(const pst_shape *shape, char **out, pst_error *err)
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
    for (uint32_t id = 0; id < shape->vocab; id++) {
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

int pst_shape_tokenizer_config(const pst_shape *shape, char **out, pst_error *err)
{
    pst_json_text text = {0};
    pst_json_text_add(&text, "{\n");
    if (shape->begins_text)
        pst_json_text_add(&text, "  \"bos_token\": \"%s\",\n", shape->begin.text);
    pst_json_text_add(&text,
                      "  \"clean_up_tokenization_spaces\": false,\n  \"eos_token\": \"%s\",\n"
                      "  \"model_max_length\": %u,\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n",
                      shape->end.text, shape->context);
    return finish(&text, "tokenizer_config.json", out, err);
}
