/* SPDX-License-Identifier: Apache-2.0 */
/* Finding added tokens: a trie is walked from each place whose byte begins one. */
#include "text/added.h"

#include "base/error.h"
#include "base/heap.h"
#include "text/unicode.h"

void pst_trie_destroy(pst_trie *trie)
{
    pst_heap_free(trie->nodes);
    *trie = (pst_trie){0};
}

void pst_added_destroy(pst_added *added)
{
    pst_vocab_destroy(&added->vocab);
    pst_heap_free(added->tokens);
    pst_heap_free(added->shown);
    pst_bytes_free(&added->texts);
    pst_trie_destroy(&added->raw);
    pst_trie_destroy(&added->normalized);
    *added = (pst_added){0};
}

/* The child of a node with this byte, or 0. */
static uint32_t find_child(const pst_trie *trie, uint32_t node, unsigned char byte)
{
    if (node == 0)
        return trie->roots[byte];
    uint32_t child = trie->nodes[node].child;
    while (child != 0 && trie->nodes[child].byte != byte)
        child = trie->nodes[child].sibling;
    return child;
}

int pst_trie_add(pst_trie *trie, const char *text, size_t bytes, uint32_t token, pst_error *err)
{
    PST_TRY(pst_array_grow(&trie->nodes, &trie->capacity, trie->count + bytes + 1, sizeof *trie->nodes, err));
    if (trie->count == 0)
        trie->nodes[trie->count++] = (pst_trie_node){0};
    uint32_t node = 0;
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)text[i];
        uint32_t child = find_child(trie, node, byte);
        if (child == 0) {
            child = (uint32_t)trie->count++;
            trie->nodes[child] = (pst_trie_node){.sibling = node ? trie->nodes[node].child : 0, .byte = byte};
            if (node == 0)
                trie->roots[byte] = child;
            else
                trie->nodes[node].child = child;
        }
        node = child;
    }
    if (trie->nodes[node].token == 0) /* of two tokens with one text, the first counts */
        trie->nodes[node].token = token + 1;
    return 0;
}

uint32_t pst_added_find(const pst_added *added, const pst_vocab *model, const char *text, size_t bytes)
{
    uint32_t id = pst_vocab_find(&added->vocab, text, bytes);
    return id != PST_NO_TOKEN ? id : pst_vocab_find(model, text, bytes);
}

const char *pst_added_text(const pst_added *added, const pst_vocab *model, uint32_t id, size_t *bytes)
{
    if (pst_vocab_text(&added->vocab, id, bytes) == NULL)
        return pst_vocab_text(model, id, bytes);
    const pst_span *shown = &added->shown[added->vocab.by_id[id] - 1];
    *bytes = shown->end - shown->start;
    return added->texts.data + shown->start;
}

bool pst_added_is_special(const pst_added *added, const char *text, size_t bytes)
{
    uint32_t id = pst_vocab_find(&added->vocab, text, bytes);
    return id != PST_NO_TOKEN && added->tokens[added->vocab.by_id[id] - 1].special;
}

/* The longest token that begins at `text`: its index and length, or false. */
static bool match_at(const pst_trie *trie, const char *text, size_t bytes, uint32_t *token, size_t *length)
{
    bool found = false;
    uint32_t node = 0;
    for (size_t i = 0; i < bytes; i++) {
        node = find_child(trie, node, (unsigned char)text[i]);
        if (node == 0)
            break;
        if (trie->nodes[node].token != 0) {
            *token = trie->nodes[node].token - 1;
            *length = i + 1;
            found = true;
        }
    }
    return found;
}

/* The character that ends just before `at` > 0. */
static uint32_t character_before(const char *text, size_t at, size_t *start)
{
    size_t width;
    do
        at--;
    while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80);
    *start = at;
    return pst_utf8_get(text + at, &width);
}

static bool stands_alone(const char *text, size_t bytes, size_t start, size_t end)
{
    size_t ignored;
    if (start > 0 && pst_unicode_is_word(character_before(text, start, &ignored)))
        return false;
    return end == bytes || !pst_unicode_is_word(pst_utf8_get(text + end, &ignored));
}

static int add_segment(pst_segments *segments, size_t start, size_t end, uint32_t id, pst_error *err)
{
    PST_TRY(pst_array_grow(&segments->data, &segments->capacity, segments->count + 1, sizeof *segments->data, err));
    segments->data[segments->count++] = (pst_segment){.start = start, .end = end, .id = id};
    return 0;
}

int pst_added_cut(const pst_added *added, const pst_trie *trie, const char *text, size_t bytes, pst_segments *segments,
                  pst_error *err)
{
    size_t done = 0, length;
    uint32_t token;
    segments->count = 0;
    for (size_t i = 0; trie->count > 0 && i < bytes;) {
        if (trie->roots[(unsigned char)text[i]] == 0 || !match_at(trie, text + i, bytes - i, &token, &length)) {
            i++;
            continue;
        }
        size_t start = i, end = i + length, before;
        i = end; /* the search goes on here, whatever white space the token takes along */
        const pst_added_token *flags = &added->tokens[token];
        if (flags->single_word && !stands_alone(text, bytes, start, end))
            continue;
        while (flags->lstrip && start > 0 && pst_unicode_is_space(character_before(text, start, &before)))
            start = before;
        if (flags->lstrip && start < done) /* what the token before took along is not taken again */
            start = done;
        while (flags->rstrip && end < bytes && pst_unicode_is_space(pst_utf8_get(text + end, &length)))
            end += length;
        if (done < start)
            PST_TRY(add_segment(segments, done, start, PST_NO_TOKEN, err));
        if (start < end) /* a token whose whole text was taken along by the one before is lost, as in the reference */
            PST_TRY(add_segment(segments, start, end, added->vocab.entries[token].id, err));
        done = end;
    }
    if (done < bytes)
        PST_TRY(add_segment(segments, done, bytes, PST_NO_TOKEN, err));
    return 0;
}
