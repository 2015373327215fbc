/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tokenizer.json: its model, its added tokens, and the way from the document to a tokenizer. The document is several
 * times as large as what is made of it, and is gone before anything is returned.
 */
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "text/parts.h"

int pst_parse_vocab(const json_t *vocab, pst_bpe *bpe, const char *path, pst_error *err)
{
    const char *token;
    json_t *id;
    PST_TRY(pst_vocab_init(&bpe->vocab, json_object_size(vocab), err));
    json_object_foreach((json_t *)vocab, token, id)
    {
        json_int_t number = json_integer_value(id);
        if (!json_is_integer(id) || number < 0 || number > PST_VOCAB_MAX_ID) {
            char quoted[PST_QUOTE_BYTES];
            return pst_fail(err, PST_E_FORMAT, path, "the id of token \"%s\" is not a number from 0 to %d",
                            pst_text_quote(token, strlen(token), quoted), PST_VOCAB_MAX_ID);
        }
        PST_TRY(pst_vocab_add(&bpe->vocab, token, strlen(token), (uint32_t)number, path, err));
    }
    return 0;
}

static int find_part(const pst_bpe *bpe, const char *text, size_t bytes, uint32_t *id, const char *path, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    *id = pst_vocab_find(&bpe->vocab, text, bytes);
    if (*id != PST_NO_TOKEN)
        return 0;
    return pst_fail(err, PST_E_FORMAT, path, "a merge names \"%s\", which is not in the vocabulary",
                    pst_text_quote(text, bytes, quoted));
}

int pst_parse_merge(pst_bpe *bpe, const char *left, size_t left_bytes, const char *right, size_t right_bytes,
                    uint32_t rank, pst_bytes *scratch, const char *path, pst_error *err)
{
    uint32_t left_id, right_id, result;
    PST_TRY(find_part(bpe, left, left_bytes, &left_id, path, err));
    PST_TRY(find_part(bpe, right, right_bytes, &right_id, path, err));
    scratch->count = 0;
    PST_TRY(pst_bytes_append(scratch, left, left_bytes, err));
    PST_TRY(pst_bytes_append(scratch, right, right_bytes, err));
    if (left_bytes == 0 || right_bytes == 0)
        return pst_fail(err, PST_E_FORMAT, path, "a merge has an empty half");
    PST_TRY(find_part(bpe, scratch->data, scratch->count, &result, path, err));
    pst_merges_add(&bpe->merges, left_id, right_id, rank, result);
    return 0;
}

/* "a b" or ["a", "b"]. 1: read; 0: a comment. */
static int read_merge(const json_t *merge, pst_bpe *bpe, uint32_t rank, pst_bytes *scratch, const char *path,
                      pst_error *err)
{
    if (json_is_array(merge) && json_array_size(merge) == 2 && json_is_string(json_array_get(merge, 0)) &&
        json_is_string(json_array_get(merge, 1))) {
        const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
        PST_TRY(pst_parse_merge(bpe, json_string_value(left), json_string_length(left), json_string_value(right),
                                json_string_length(right), rank, scratch, path, err));
        return 1;
    }
    const char *text = json_string_value(merge);
    const char *space = text ? strchr(text, ' ') : NULL;
    if (text != NULL && strncmp(text, "#version", 8) == 0)
        return 0;
    if (space == NULL || strchr(space + 1, ' ') != NULL)
        return pst_fail(err, PST_E_FORMAT, path, "merge %u is not a pair of tokens", rank);
    size_t left_bytes = (size_t)(space - text);
    PST_TRY(pst_parse_merge(bpe, text, left_bytes, space + 1, json_string_length(merge) - left_bytes - 1, rank, scratch,
                            path, err));
    return 1;
}

static int read_merges(const json_t *merges, pst_bpe *bpe, const char *path, pst_error *err)
{
    pst_bytes scratch = {0};
    uint32_t rank = 0;
    int status = pst_merges_init(&bpe->merges, json_array_size(merges), err);
    for (size_t i = 0; i < json_array_size(merges) && status >= 0; i++) {
        status = read_merge(json_array_get(merges, i), bpe, rank, &scratch, path, err);
        rank += status > 0;
    }
    pst_bytes_free(&scratch);
    return status < 0 ? status : 0;
}

/* A setting that must be absent, null or empty. */
static int check_empty(const json_t *model, const char *key, const char *path, pst_error *err)
{
    const char *text = "";
    PST_TRY(pst_json_string(model, key, false, &text, path, err));
    if (text[0] != '\0')
        return pst_fail(err, PST_E_UNSUPPORTED, path, "the setting \"%s\" of the BPE model is not supported", key);
    return 0;
}

static int read_settings(const json_t *model, pst_bpe *bpe, const char *path, pst_error *err)
{
    const char *type = "BPE", *unk_token = NULL;
    double dropout = 0;
    PST_TRY(pst_json_string(model, "type", false, &type, path, err));
    if (strcmp(type, "BPE") != 0) {
        char quoted[PST_QUOTE_BYTES];
        return pst_fail(err, PST_E_UNSUPPORTED, path, "the tokenizer model \"%s\" is not supported (BPE is)",
                        pst_text_quote(type, strlen(type), quoted));
    }
    PST_TRY(pst_json_double(model, "dropout", false, &dropout, path, err));
    if (dropout != 0)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "the setting \"dropout\" of the BPE model is not supported");
    PST_TRY(check_empty(model, "continuing_subword_prefix", path, err));
    PST_TRY(check_empty(model, "end_of_word_suffix", path, err));
    PST_TRY(pst_json_bool(model, "fuse_unk", false, &bpe->fuse_unk, path, err));
    PST_TRY(pst_json_bool(model, "byte_fallback", false, &bpe->byte_fallback, path, err));
    PST_TRY(pst_json_bool(model, "ignore_merges", false, &bpe->ignore_merges, path, err));
    PST_TRY(pst_json_string(model, "unk_token", false, &unk_token, path, err));
    if (unk_token != NULL && (bpe->unk_token = pst_heap_strdup(unk_token)) == NULL)
        return pst_fail_memory(err, "the tokenizer", strlen(unk_token));
    return 0;
}

int pst_parse_model(const json_t *value, pst_tokenizer *tokenizer, const char *path, pst_error *err)
{
    static const char *const known[] = {"type",     "dropout",       "unk_token",     "continuing_subword_prefix",
                                        "fuse_unk", "byte_fallback", "ignore_merges", "end_of_word_suffix",
                                        "vocab",    "merges"};
    json_t *vocab, *merges, *member;
    const char *key;
    if (!json_is_object(value))
        return pst_fail(err, PST_E_FORMAT, path, "\"model\" is not an object");
    PST_TRY(read_settings(value, &tokenizer->bpe, path, err));
    json_object_foreach((json_t *)value, key, member)
    {
        size_t i = 0;
        while (i < sizeof known / sizeof known[0] && strcmp(key, known[i]) != 0)
            i++;
        char quoted[PST_QUOTE_BYTES];
        if (i == sizeof known / sizeof known[0])
            return pst_fail(err, PST_E_UNSUPPORTED, path, "the setting \"%s\" of the BPE model is not supported",
                            pst_text_quote(key, strlen(key), quoted));
    }
    PST_TRY(pst_json_object(value, "vocab", true, &vocab, path, err));
    PST_TRY(pst_json_array(value, "merges", true, &merges, path, err));
    PST_TRY(pst_parse_vocab(vocab, &tokenizer->bpe, path, err));
    PST_TRY(read_merges(merges, &tokenizer->bpe, path, err));
    pst_bpe_prepare(&tokenizer->bpe);
    return 0;
}

static bool same_flags(const pst_added_token *a, const pst_added_token *b)
{
    return a->single_word == b->single_word && a->lstrip == b->lstrip && a->rstrip == b->rstrip &&
           a->normalized == b->normalized && a->special == b->special;
}

/* Gives the entry an id and remembers its flags. */
static int register_token(pst_tokenizer *tokenizer, const pst_added_entry *entry, uint32_t *largest, const char *path,
                          pst_error *err)
{
    pst_added *added = &tokenizer->added;
    const pst_vocab *model = &tokenizer->bpe.vocab;
    uint32_t id = pst_vocab_find(&added->vocab, entry->text, entry->bytes);
    if (id != PST_NO_TOKEN) {
        char quoted[PST_QUOTE_BYTES];
        if (same_flags(&added->tokens[added->vocab.by_id[id] - 1], &entry->flags))
            return 0;
        return pst_fail(err, PST_E_FORMAT, path, "the added token \"%s\" is there twice, with different flags",
                        pst_text_quote(entry->text, entry->bytes, quoted));
    }
    id = pst_vocab_find(model, entry->text, entry->bytes);
    if (id == PST_NO_TOKEN) /* the next after the added ones, or after the model's count where those lie within it */
        id = added->vocab.count > 0 && (*largest >= model->count || model->count == 0) ? *largest + 1
                                                                                       : (uint32_t)model->count;
    PST_TRY(pst_vocab_add(&added->vocab, entry->text, entry->bytes, id, path, err));
    added->tokens[added->vocab.count - 1] = entry->flags;
    if (id > *largest)
        *largest = id;
    return 0;
}

/* Stores the text that each added token decodes to. */
static int make_shown(pst_tokenizer *tokenizer, const char *path, pst_error *err)
{
    pst_added *added = &tokenizer->added;
    pst_text_scratch scratch = {0};
    int status = tokenizer->has_regex ? pst_regex_scratch_open(&scratch.regexes, err) : 0;
    for (size_t i = 0; i < added->vocab.count && status == 0; i++) {
        const pst_vocab_entry *entry = &added->vocab.entries[i];
        const char *text = added->vocab.pool.data + entry->offset;
        size_t start = added->texts.count;
        bool ignored;
        if (!added->tokens[i].normalized) {
            status = pst_bytes_append(&added->texts, text, entry->bytes, err);
        } else {
            status = pst_normalize(&tokenizer->normalizers, &scratch, text, entry->bytes, &ignored, err);
            if (status == 0 && scratch.text.count == 0)
                status = pst_fail(err, PST_E_UNSUPPORTED, path, "an added token is empty after normalization");
            if (status == 0)
                status = pst_bytes_append(&added->texts, scratch.text.data, scratch.text.count, err);
        }
        added->shown[i] = (pst_span){.start = start, .end = added->texts.count};
    }
    pst_text_scratch_free(&scratch);
    return status;
}

/* Puts each token into the trie that it is looked for in, by the text that it decodes to. Of two tokens whose texts
 * normalize to the same, the special one counts, then the earlier one. */
static int fill_tries(pst_added *added, pst_error *err)
{
    for (int special = 1; special >= 0; special--) { /* 1, then 0 */
        for (uint32_t i = 0; i < added->vocab.count; i++) {
            const pst_span *shown = &added->shown[i];
            if (added->tokens[i].special == special)
                PST_TRY(pst_trie_add(added->tokens[i].normalized ? &added->normalized : &added->raw,
                                     added->texts.data + shown->start, shown->end - shown->start, i, err));
        }
    }
    return 0;
}

int pst_add_tokens(pst_tokenizer *tokenizer, const pst_added_entry *entries, size_t count, const char *path,
                   pst_error *err)
{
    pst_added *added = &tokenizer->added;
    uint32_t largest = 0;
    PST_TRY(pst_vocab_init(&added->vocab, count, err));
    added->tokens = pst_heap_calloc(count, sizeof *added->tokens);
    added->shown = pst_heap_calloc(count, sizeof *added->shown);
    if (added->tokens == NULL || added->shown == NULL)
        return pst_fail_memory(err, "the added tokens", count * sizeof *added->tokens);
    for (size_t i = 0; i < count; i++) {
        if (entries[i].bytes > 0)
            PST_TRY(register_token(tokenizer, &entries[i], &largest, path, err));
    }
    PST_TRY(make_shown(tokenizer, path, err));
    return fill_tries(added, err);
}

static int read_added_entry(const json_t *value, pst_added_entry *entry, const char *path, pst_error *err)
{
    uint64_t id;
    if (!json_is_object(value))
        return pst_fail(err, PST_E_FORMAT, path, "an added token is not an object");
    PST_TRY(pst_json_string(value, "content", true, &entry->text, path, err));
    entry->bytes = json_string_length(json_object_get(value, "content"));
    PST_TRY(pst_json_u64(value, "id", true, 0, PST_VOCAB_MAX_ID, &id, path, err));
    PST_TRY(pst_json_bool(value, "single_word", true, &entry->flags.single_word, path, err));
    PST_TRY(pst_json_bool(value, "lstrip", true, &entry->flags.lstrip, path, err));
    PST_TRY(pst_json_bool(value, "rstrip", true, &entry->flags.rstrip, path, err));
    PST_TRY(pst_json_bool(value, "normalized", true, &entry->flags.normalized, path, err));
    return pst_json_bool(value, "special", true, &entry->flags.special, path, err);
}

static int read_added_tokens(const json_t *list, pst_tokenizer *tokenizer, const char *path, pst_error *err)
{
    size_t count = json_array_size(list);
    pst_added_entry *entries = pst_heap_calloc(count, sizeof *entries);
    int status = entries ? 0 : pst_fail_memory(err, "the added tokens", count * sizeof *entries);
    for (size_t i = 0; i < count && status == 0; i++)
        status = read_added_entry(json_array_get(list, i), &entries[i], path, err);
    if (status == 0)
        status = pst_add_tokens(tokenizer, entries, count, path, err);
    pst_heap_free(entries);
    return status;
}

/* Truncation and padding are left to the caller: what is encoded here is the whole text, as it is. */
static int read_document(const json_t *document, pst_tokenizer *tokenizer, const char *path, pst_error *err)
{
    const char *version = "1.0";
    json_t *added = NULL;
    if (!json_is_object(document))
        return pst_fail(err, PST_E_FORMAT, path, "not a JSON object");
    PST_TRY(pst_json_string(document, "version", false, &version, path, err));
    if (strcmp(version, "1.0") != 0)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "the version of the tokenizer file is not 1.0");
    PST_TRY(pst_parse_model(json_object_get(document, "model"), tokenizer, path, err));
    PST_TRY(pst_parse_normalizer(json_object_get(document, "normalizer"), tokenizer, path, err));
    PST_TRY(pst_parse_pretokenizer(json_object_get(document, "pre_tokenizer"), tokenizer, path, err));
    PST_TRY(pst_parse_post_processor(json_object_get(document, "post_processor"), tokenizer, path, err));
    PST_TRY(pst_parse_decoder(json_object_get(document, "decoder"), tokenizer, path, err));
    PST_TRY(pst_json_array(document, "added_tokens", false, &added, path, err));
    return read_added_tokens(added, tokenizer, path, err);
}

static uint32_t largest_id(const pst_vocab *vocab)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < vocab->count; i++) {
        if (vocab->entries[i].id > largest)
            largest = vocab->entries[i].id;
    }
    return largest;
}

static int parse(const pst_tokenizer_source *source, pst_tokenizer *tokenizer, pst_error *err)
{
    const pst_text_file *file = &source->tokenizer_json;
    if (file->bytes != NULL) {
        json_t *document;
        PST_TRY(pst_json_parse(file->bytes, file->count, file->path, &document, err));
        int status = read_document(document, tokenizer, file->path, err);
        json_decref(document);
        PST_TRY(status);
    } else {
        PST_TRY(pst_parse_vocab_and_merges(source, tokenizer, err));
    }
    uint32_t model = largest_id(&tokenizer->bpe.vocab), added = largest_id(&tokenizer->added.vocab);
    if (tokenizer->bpe.vocab.count + tokenizer->added.vocab.count > 0)
        tokenizer->vocab_size = (model > added ? model : added) + 1;
    return 0;
}

int pst_tokenizer_parse(const pst_tokenizer_source *source, pst_tokenizer **out, pst_error *err)
{
    pst_tokenizer *tokenizer = pst_heap_calloc(1, sizeof *tokenizer);
    if (tokenizer == NULL)
        return pst_fail_memory(err, "the tokenizer", sizeof *tokenizer);
    int status = parse(source, tokenizer, err);
    if (status < 0) {
        pst_tokenizer_close(tokenizer);
        return status;
    }
    *out = tokenizer;
    return 0;
}
