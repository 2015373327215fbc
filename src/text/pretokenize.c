/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pre-tokenizers: the text is cut into pieces, and each step cuts or rewrites every piece of the step before. A step
 * that rewrites builds the text anew in the other scratch buffer; one that cuts only makes new pieces.
 */
#include <string.h>

#include "base/error.h"
#include "text/steps.h"
#include "text/unicode.h"

/* The byte-level alphabet of GPT-2: printable Latin-1 stands for itself, the rest for U+0100 and up, in order. */
static int is_plain(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

/* How many bytes below this one do not stand for themselves: 0 to 20, 7F to A0, AD. */
static unsigned moved_below(unsigned byte)
{
    if (byte <= 0x20)
        return byte;
    if (byte < 0x7F)
        return 33;
    return byte <= 0xA0 ? 33 + byte - 0x7F : 33 + 34;
}

uint32_t pst_byte_level_character(unsigned char byte)
{
    return is_plain(byte) ? byte : 0x100 + moved_below(byte);
}

int pst_byte_level_byte(uint32_t code_point)
{
    if (code_point < 0x100)
        return is_plain(code_point) ? (int)code_point : -1;
    uint32_t moved = code_point - 0x100;
    if (moved <= 0x20)
        return (int)moved;
    if (moved < 33 + 34)
        return (int)(moved - 33 + 0x7F);
    return moved == 33 + 34 ? 0xAD : -1;
}

static int add_piece(pst_pieces *pieces, size_t start, size_t end, bool first, pst_error *err)
{
    if (start == end)
        return 0;
    if (pieces->count == pieces->capacity)
        PST_TRY(pst_array_grow(&pieces->data, &pieces->capacity, pieces->count + 1, sizeof *pieces->data, err));
    pieces->data[pieces->count++] = (pst_piece){.start = start, .end = end, .first = first};
    return 0;
}

/*
 * Joins the spans of a cut text into pieces, in place: spans that are left are the pieces, `matched` says drop it.
 * A match joins its neighbour only when the span next to it, on the side away from that neighbour, is no match itself.
 */
static void join_spans(pst_spans *spans, pst_split_behavior behavior)
{
    size_t count = 0;
    bool before = false;
    if (behavior == PST_SPLIT_REMOVED)
        return;
    if (behavior == PST_SPLIT_MERGED_WITH_NEXT) {
        size_t at = spans->count; /* built from the end */
        for (size_t i = spans->count; i-- > 0;) {
            pst_span span = spans->data[i];
            if (span.matched && !before && at < spans->count)
                spans->data[at].start = span.start;
            else
                spans->data[--at] = span;
            before = span.matched;
        }
        count = spans->count - at;
        memmove(spans->data, spans->data + at, count * sizeof *spans->data);
    } else {
        for (size_t i = 0; i < spans->count; i++) {
            pst_span span = spans->data[i];
            bool join = behavior == PST_SPLIT_CONTIGUOUS
                            ? span.matched == before
                            : behavior == PST_SPLIT_MERGED_WITH_PREVIOUS && span.matched && !before;
            if (join && count > 0)
                spans->data[count - 1].end = span.end;
            else
                spans->data[count++] = span;
            before = span.matched;
        }
    }
    spans->count = count;
    for (size_t i = 0; i < count; i++)
        spans->data[i].matched = false;
}

/* Cuts one piece of `text`, adding what comes out to scratch->other_pieces. */
static int split_piece(const pst_step *step, pst_text_scratch *scratch, const char *text, pst_piece piece,
                       pst_error *err)
{
    pst_spans *spans = &scratch->spans;
    PST_TRY(pst_pattern_cut(&step->pattern, scratch->regexes, text + piece.start, piece.end - piece.start, spans, err));
    for (size_t i = 0; step->invert && i < spans->count; i++)
        spans->data[i].matched = !spans->data[i].matched;
    join_spans(spans, step->behavior);
    for (size_t i = 0; i < spans->count; i++) {
        const pst_span *span = &spans->data[i];
        if (!span->matched)
            PST_TRY(add_piece(&scratch->other_pieces, piece.start + span->start, piece.start + span->end,
                              piece.first && span->start == 0, err));
    }
    return 0;
}

/* The pieces that were made become the current ones. */
static void take_pieces(pst_text_scratch *scratch)
{
    pst_pieces pieces = scratch->pieces;
    scratch->pieces = scratch->other_pieces;
    scratch->other_pieces = pieces;
    scratch->other_pieces.count = 0;
}

static int split_all(const pst_step *step, pst_text_scratch *scratch, pst_error *err)
{
    scratch->other_pieces.count = 0;
    for (size_t i = 0; i < scratch->pieces.count; i++)
        PST_TRY(split_piece(step, scratch, scratch->text.data, scratch->pieces.data[i], err));
    take_pieces(scratch);
    return 0;
}

/* Writes every piece anew with a space before it where it has none. */
static int prefix_spaces(pst_text_scratch *scratch, pst_error *err)
{
    scratch->other.count = 0;
    for (size_t i = 0; i < scratch->pieces.count; i++) {
        pst_piece *piece = &scratch->pieces.data[i];
        size_t start = scratch->other.count;
        if (scratch->text.data[piece->start] != ' ')
            PST_TRY(pst_bytes_append(&scratch->other, " ", 1, err));
        PST_TRY(pst_bytes_append(&scratch->other, scratch->text.data + piece->start, piece->end - piece->start, err));
        piece->start = start;
        piece->end = scratch->other.count;
    }
    pst_bytes_swap(&scratch->text, &scratch->other);
    return 0;
}

static int byte_level(const pst_step *step, pst_text_scratch *scratch, pst_error *err)
{
    if (step->prefix_space)
        PST_TRY(prefix_spaces(scratch, err));
    if (step->pattern.regex != NULL)
        PST_TRY(split_all(step, scratch, err));
    scratch->other.count = 0;
    for (size_t i = 0; i < scratch->pieces.count; i++) {
        pst_piece *piece = &scratch->pieces.data[i];
        PST_TRY(pst_bytes_reserve(&scratch->other, 2 * (piece->end - piece->start), err));
        size_t start = scratch->other.count;
        for (size_t k = piece->start; k < piece->end; k++) {
            uint32_t character = pst_byte_level_character((unsigned char)scratch->text.data[k]);
            scratch->other.count += pst_utf8_put(character, scratch->other.data + scratch->other.count);
        }
        piece->start = start;
        piece->end = scratch->other.count;
    }
    pst_bytes_swap(&scratch->text, &scratch->other);
    return 0;
}

/* Spaces become the replacement, which is put before the piece by the scheme; then a cut before each replacement. */
static int metaspace(const pst_step *step, pst_text_scratch *scratch, pst_error *err)
{
    scratch->other.count = 0;
    for (size_t i = 0; i < scratch->pieces.count; i++) {
        pst_piece *piece = &scratch->pieces.data[i];
        const char *text = scratch->text.data + piece->start;
        size_t bytes = piece->end - piece->start, start = scratch->other.count;
        bool has =
            text[0] == ' ' || (bytes >= step->content_bytes && memcmp(text, step->content, step->content_bytes) == 0);
        if (!has && (step->prepend == PST_PREPEND_ALWAYS || (step->prepend == PST_PREPEND_FIRST && piece->first)))
            PST_TRY(pst_bytes_append(&scratch->other, step->content, step->content_bytes, err));
        for (size_t k = 0; k < bytes; k++) {
            if (text[k] == ' ')
                PST_TRY(pst_bytes_append(&scratch->other, step->content, step->content_bytes, err));
            else
                PST_TRY(pst_bytes_append(&scratch->other, text + k, 1, err));
        }
        piece->start = start;
        piece->end = scratch->other.count;
    }
    pst_bytes_swap(&scratch->text, &scratch->other);
    return step->split ? split_all(step, scratch, err) : 0;
}

int pst_pretokenize(const pst_steps *pretokenizers, pst_text_scratch *scratch, const char *text, size_t bytes,
                    bool first, pst_error *err)
{
    scratch->text.count = 0;
    scratch->pieces.count = 0;
    PST_TRY(pst_bytes_append(&scratch->text, text, bytes, err));
    PST_TRY(add_piece(&scratch->pieces, 0, bytes, first, err));
    for (size_t i = 0; i < pretokenizers->count; i++) {
        const pst_step *step = &pretokenizers->data[i];
        if (step->kind == PST_STEP_BYTE_LEVEL)
            PST_TRY(byte_level(step, scratch, err));
        else if (step->kind == PST_STEP_METASPACE)
            PST_TRY(metaspace(step, scratch, err));
        else
            PST_TRY(split_all(step, scratch, err));
    }
    return 0;
}
