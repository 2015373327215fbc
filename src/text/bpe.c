/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The merge loop keeps candidates in a binary heap ordered by (rank, position) and checks each when it comes out:
 * the pair at that position may have changed since. So a word of n characters takes n log n, however long it is.
 */
#include "text/bpe.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "text/unicode.h"

enum { MAX_PIECE_BYTES = 1 << 30 }; /* positions are 31 bits wide */

void pst_bpe_prepare(pst_bpe *bpe)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8];
        int length = snprintf(name, sizeof name, "<0x%02X>", byte);
        bpe->byte_ids[byte] = pst_vocab_find(&bpe->vocab, name, (size_t)length);
    }
    for (uint32_t code_point = 0; code_point < PST_BPE_DIRECT; code_point++) {
        char text[4];
        bpe->direct[code_point] = pst_vocab_find(&bpe->vocab, text, pst_utf8_put(code_point, text));
    }
}

void pst_bpe_destroy(pst_bpe *bpe)
{
    pst_vocab_destroy(&bpe->vocab);
    pst_merges_destroy(&bpe->merges);
    pst_heap_free(bpe->unk_token);
    bpe->unk_token = NULL;
}

void pst_bpe_scratch_free(pst_bpe_scratch *scratch)
{
    pst_heap_free(scratch->symbols);
    pst_heap_free(scratch->heap);
    *scratch = (pst_bpe_scratch){0};
}

/* Room for every symbol was made before. */
static void add_symbol(pst_bpe_scratch *scratch, uint32_t id)
{
    int32_t at = (int32_t)scratch->count;
    if (at > 0)
        scratch->symbols[at - 1].next = at;
    scratch->symbols[at] = (pst_bpe_symbol){.id = id, .previous = at - 1, .next = -1, .alive = 1};
    scratch->count++;
}

/* Adds the byte tokens of an unknown character: false when one of them is missing. */
static bool add_bytes(const pst_bpe *bpe, pst_bpe_scratch *scratch, const char *text, size_t width)
{
    for (size_t i = 0; i < width; i++) {
        if (bpe->byte_ids[(unsigned char)text[i]] == PST_NO_TOKEN)
            return false;
    }
    for (size_t i = 0; i < width; i++)
        add_symbol(scratch, bpe->byte_ids[(unsigned char)text[i]]);
    return true;
}

static int fail_unknown(const pst_bpe *bpe, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    return pst_fail(err, PST_E_FORMAT, NULL, "the tokenizer's unknown token \"%s\" is not in its vocabulary",
                    pst_text_quote(bpe->unk_token, strlen(bpe->unk_token), quoted));
}

/*
 * Fills the list with one symbol per character. An unknown token waits for the next known character, so that a run of
 * them can be fused; byte tokens do not end the wait (as in the reference implementation).
 */
static int fill_symbols(const pst_bpe *bpe, pst_bpe_scratch *scratch, const char *text, size_t bytes, pst_error *err)
{
    /* A character gives at most one symbol for each of its bytes. */
    PST_TRY(pst_array_grow(&scratch->symbols, &scratch->symbol_capacity, bytes + 1, sizeof *scratch->symbols, err));
    scratch->count = 0;
    uint32_t waiting = PST_NO_TOKEN;
    for (size_t i = 0, width; i < bytes; i += width) {
        uint32_t code_point = pst_utf8_get(text + i, &width);
        uint32_t id =
            code_point < PST_BPE_DIRECT ? bpe->direct[code_point] : pst_vocab_find(&bpe->vocab, text + i, width);
        if (id != PST_NO_TOKEN) {
            if (waiting != PST_NO_TOKEN)
                add_symbol(scratch, waiting);
            waiting = PST_NO_TOKEN;
            add_symbol(scratch, id);
            continue;
        }
        if ((bpe->byte_fallback && add_bytes(bpe, scratch, text + i, width)) || bpe->unk_token == NULL)
            continue;
        if (waiting != PST_NO_TOKEN && bpe->fuse_unk)
            continue;
        if (waiting != PST_NO_TOKEN)
            add_symbol(scratch, waiting);
        waiting = pst_vocab_find(&bpe->vocab, bpe->unk_token, strlen(bpe->unk_token));
        if (waiting == PST_NO_TOKEN)
            return fail_unknown(bpe, err);
    }
    if (waiting != PST_NO_TOKEN)
        add_symbol(scratch, waiting);
    return 0;
}

static bool comes_before(const pst_bpe_candidate *a, const pst_bpe_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->position < b->position;
}

static void sift_down(pst_bpe_candidate *heap, size_t count, size_t at)
{
    pst_bpe_candidate moved = heap[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && comes_before(&heap[child + 1], &heap[child]))
            child++;
        if (!comes_before(&heap[child], &moved))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static int push_candidate(const pst_bpe *bpe, pst_bpe_scratch *scratch, int32_t position, pst_error *err)
{
    int32_t next = position < 0 ? -1 : scratch->symbols[position].next;
    if (next < 0)
        return 0;
    const pst_merge *merge = pst_merges_find(&bpe->merges, scratch->symbols[position].id, scratch->symbols[next].id);
    if (merge == NULL)
        return 0;
    PST_TRY(
        pst_array_grow(&scratch->heap, &scratch->heap_capacity, scratch->heap_count + 1, sizeof *scratch->heap, err));
    pst_bpe_candidate candidate = {.rank = merge->rank, .position = (uint32_t)position, .result = merge->result};
    size_t at = scratch->heap_count++;
    while (at > 0 && comes_before(&candidate, &scratch->heap[(at - 1) / 2])) {
        scratch->heap[at] = scratch->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    scratch->heap[at] = candidate;
    return 0;
}

/* All pairs of neighbours, made a heap at once. */
static int fill_heap(const pst_bpe *bpe, pst_bpe_scratch *scratch, pst_error *err)
{
    scratch->heap_count = 0;
    PST_TRY(pst_array_grow(&scratch->heap, &scratch->heap_capacity, scratch->count, sizeof *scratch->heap, err));
    for (size_t i = 0; i + 1 < scratch->count; i++) {
        const pst_merge *merge = pst_merges_find(&bpe->merges, scratch->symbols[i].id, scratch->symbols[i + 1].id);
        if (merge != NULL)
            scratch->heap[scratch->heap_count++] = (pst_bpe_candidate){merge->rank, (uint32_t)i, merge->result};
    }
    for (size_t i = scratch->heap_count / 2; i-- > 0;)
        sift_down(scratch->heap, scratch->heap_count, i);
    return 0;
}

static int merge_symbols(const pst_bpe *bpe, pst_bpe_scratch *scratch, pst_error *err)
{
    PST_TRY(fill_heap(bpe, scratch, err));
    pst_bpe_symbol *symbols = scratch->symbols;
    while (scratch->heap_count > 0) {
        pst_bpe_candidate top = scratch->heap[0];
        scratch->heap[0] = scratch->heap[--scratch->heap_count];
        if (scratch->heap_count > 1)
            sift_down(scratch->heap, scratch->heap_count, 0);

        pst_bpe_symbol *left = &symbols[top.position];
        if (!left->alive || left->next < 0)
            continue;
        pst_bpe_symbol *right = &symbols[left->next];
        const pst_merge *merge = pst_merges_find(&bpe->merges, left->id, right->id);
        if (merge == NULL || merge->result != top.result)
            continue;
        left->id = top.result;
        left->next = right->next;
        right->alive = 0;
        if (right->next >= 0)
            symbols[right->next].previous = (int32_t)top.position;
        PST_TRY(push_candidate(bpe, scratch, left->previous, err));
        PST_TRY(push_candidate(bpe, scratch, (int32_t)top.position, err));
    }
    return 0;
}

int pst_bpe_encode(const pst_bpe *bpe, pst_bpe_scratch *scratch, const char *text, size_t bytes, pst_words *ids,
                   pst_error *err)
{
    if (bytes == 0)
        return 0;
    if (bytes > MAX_PIECE_BYTES)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "a word of %zu bytes is too long to tokenize", bytes);
    if (bpe->ignore_merges) {
        uint32_t whole = pst_vocab_find(&bpe->vocab, text, bytes);
        if (whole != PST_NO_TOKEN)
            return pst_words_append(ids, whole, err);
    }
    PST_TRY(fill_symbols(bpe, scratch, text, bytes, err));
    if (scratch->count == 0)
        return 0;
    PST_TRY(merge_symbols(bpe, scratch, err));
    for (int32_t i = 0; i >= 0; i = scratch->symbols[i].next)
        PST_TRY(pst_words_append(ids, scratch->symbols[i].id, err));
    return 0;
}
