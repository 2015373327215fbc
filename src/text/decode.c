/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tokens travel down the chain in fragments {text, begins a token, ends it}: mostly whole, but what Fuse or ByteLevel
 * make is one single token that ends with the text, of which fragments are sent on as they come. Every fragment
 * consists of whole characters.
 */
#include "text/decode.h"

#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "text/unicode.h"

static const char replacement_character[] = "\xEF\xBF\xBD";

typedef struct fragment {
    const char *text;
    size_t bytes;
    bool begins, ends;
} fragment;

static int send(pst_decode_chain *chain, size_t at, fragment f, pst_error *err);

static int send_token(pst_decode_chain *chain, size_t at, const char *text, size_t bytes, pst_error *err)
{
    return send(chain, at, (fragment){.text = text, .bytes = bytes, .begins = true, .ends = true}, err);
}

/* A fragment of the one token that this step makes of everything. */
static int send_fused(pst_decode_chain *chain, size_t at, const char *text, size_t bytes, bool ends, pst_error *err)
{
    pst_decode_stage *stage = &chain->stages[at];
    bool begins = !stage->started;
    stage->started = true;
    return send(chain, at + 1, (fragment){.text = text, .bytes = bytes, .begins = begins, .ends = ends}, err);
}

/* Appends the token with what the step's pattern finds replaced. */
static int replace_in(pst_decode_chain *chain, const pst_step *step, fragment f, pst_bytes *made, pst_error *err)
{
    PST_TRY(pst_pattern_cut(&step->pattern, chain->regexes, f.text, f.bytes, &chain->spans, err));
    for (size_t i = 0; i < chain->spans.count; i++) {
        const pst_span *span = &chain->spans.data[i];
        if (span->matched)
            PST_TRY(pst_bytes_append(made, step->content, step->content_bytes, err));
        else
            PST_TRY(pst_bytes_append(made, f.text + span->start, span->end - span->start, err));
    }
    return 0;
}

static int replace(pst_decode_chain *chain, size_t at, fragment f, pst_error *err)
{
    pst_bytes *made = &chain->stages[at].made;
    made->count = 0;
    PST_TRY(replace_in(chain, &chain->steps->data[at], f, made, err));
    return send_token(chain, at + 1, made->data, made->count, err);
}

/* Sends on the bytes that byte tokens in a row gave: the text that they make, or U+FFFD for each. */
static int end_byte_run(pst_decode_chain *chain, size_t at, pst_error *err)
{
    pst_bytes *run = &chain->stages[at].held;
    size_t count = run->count;
    run->count = 0;
    if (count == 0)
        return 0;
    if (pst_utf8_valid_prefix(run->data, count) == count)
        return send_token(chain, at + 1, run->data, count, err);
    for (size_t i = 0; i < count; i++)
        PST_TRY(send_token(chain, at + 1, replacement_character, 3, err));
    return 0;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte that a token like <0x0A> stands for, or -1. */
static int byte_of_token(fragment f)
{
    if (f.bytes != 6 || memcmp(f.text, "<0x", 3) != 0 || f.text[5] != '>')
        return -1;
    int high = f.text[3] == '+' ? 0 : hex_digit(f.text[3]); /* the reference's number parser takes a sign */
    int low = hex_digit(f.text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static int byte_fallback(pst_decode_chain *chain, size_t at, fragment f, pst_error *err)
{
    int byte = byte_of_token(f);
    if (byte >= 0) {
        char value = (char)byte;
        return pst_bytes_append(&chain->stages[at].held, &value, 1, err);
    }
    PST_TRY(end_byte_run(chain, at, err));
    return send_token(chain, at + 1, f.text, f.bytes, err);
}

/* Appends the bytes of a byte-level token; one with any other character stands for its own bytes. */
static int append_byte_level(pst_bytes *out, fragment f, pst_error *err)
{
    size_t before = out->count;
    for (size_t i = 0, width; i < f.bytes; i += width) {
        int byte = pst_byte_level_byte(pst_utf8_get(f.text + i, &width));
        if (byte < 0) {
            out->count = before;
            return pst_bytes_append(out, f.text, f.bytes, err);
        }
        char value = (char)byte;
        PST_TRY(pst_bytes_append(out, &value, 1, err));
    }
    return 0;
}

/* Moves whole characters from held to made, with U+FFFD for what is none; at the end, for what is unfinished too. */
static int take_characters(pst_decode_stage *stage, bool end, pst_error *err)
{
    size_t at = 0;
    stage->made.count = 0;
    while (at < stage->held.count) {
        int step = pst_utf8_step(stage->held.data + at, stage->held.count - at);
        if (step == 0 && !end)
            break;
        if (step > 0) {
            PST_TRY(pst_bytes_append(&stage->made, stage->held.data + at, (size_t)step, err));
            at += (size_t)step;
            continue;
        }
        PST_TRY(pst_bytes_append(&stage->made, replacement_character, 3, err));
        at = step == 0 ? stage->held.count : at + (size_t)-step;
    }
    stage->held.count -= at;
    if (stage->held.count > 0)
        memmove(stage->held.data, stage->held.data + at, stage->held.count);
    return 0;
}

static int byte_level(pst_decode_chain *chain, size_t at, fragment f, pst_error *err)
{
    pst_decode_stage *stage = &chain->stages[at];
    PST_TRY(append_byte_level(&stage->held, f, err));
    PST_TRY(take_characters(stage, false, err));
    return send_fused(chain, at, stage->made.data, stage->made.count, false, err);
}

/* Drops up to `start` of the character from the beginning of the token: works on fragments. */
static int strip_start(pst_decode_chain *chain, size_t at, fragment f, pst_error *err)
{
    const pst_step *step = &chain->steps->data[at];
    pst_decode_stage *stage = &chain->stages[at];
    if (f.begins) {
        stage->count = 0;
        stage->leading = true;
    }
    while (stage->leading && f.bytes > 0) {
        if (stage->count == step->start || f.bytes < step->content_bytes ||
            memcmp(f.text, step->content, step->content_bytes) != 0) {
            stage->leading = false;
            break;
        }
        stage->count++;
        f.text += step->content_bytes;
        f.bytes -= step->content_bytes;
    }
    return send(chain, at + 1, f, err);
}

/* Drops them from both ends of a whole token. */
static int strip_both(pst_decode_chain *chain, size_t at, fragment f, pst_error *err)
{
    const pst_step *step = &chain->steps->data[at];
    size_t width = step->content_bytes;
    for (uint32_t i = 0; i < step->start && f.bytes >= width && memcmp(f.text, step->content, width) == 0; i++) {
        f.text += width;
        f.bytes -= width;
    }
    for (uint32_t i = 0; i < step->stop && f.bytes >= width; i++) {
        if (memcmp(f.text + f.bytes - width, step->content, width) != 0)
            break;
        f.bytes -= width;
    }
    return send(chain, at + 1, f, err);
}

/* Appends the token with a space, or nothing, for each replacement. */
static int append_spaced(pst_bytes *out, const pst_step *step, fragment f, bool drop, pst_error *err)
{
    for (size_t i = 0, width; i < f.bytes; i += width) {
        width = pst_utf8_width((unsigned char)f.text[i]);
        if (width != step->content_bytes || memcmp(f.text + i, step->content, width) != 0)
            PST_TRY(pst_bytes_append(out, f.text + i, width, err));
        else if (!drop)
            PST_TRY(pst_bytes_append(out, " ", 1, err));
    }
    return 0;
}

/* The replacement becomes a space, or nothing anywhere in the first token. */
static int metaspace(pst_decode_chain *chain, size_t at, fragment f, pst_error *err)
{
    const pst_step *step = &chain->steps->data[at];
    pst_decode_stage *stage = &chain->stages[at];
    if (f.begins && stage->count < 2)
        stage->count++;
    stage->made.count = 0;
    PST_TRY(append_spaced(&stage->made, step, f, stage->count == 1 && step->prepend != PST_PREPEND_NEVER, err));
    f.text = stage->made.data;
    f.bytes = stage->made.count;
    return send(chain, at + 1, f, err);
}

/* Steps that look at a token as a whole wait for its end; true when f is whole now. */
static int gather(pst_decode_stage *stage, fragment *f, pst_error *err)
{
    if (f->begins && f->ends)
        return 1;
    if (f->begins)
        stage->token.count = 0;
    PST_TRY(pst_bytes_append(&stage->token, f->text, f->bytes, err));
    if (!f->ends)
        return 0;
    f->text = stage->token.data;
    f->bytes = stage->token.count;
    f->begins = true;
    return 1;
}

static int send(pst_decode_chain *chain, size_t at, fragment f, pst_error *err)
{
    if (at == chain->steps->count)
        return pst_bytes_append(&chain->out, f.text, f.bytes, err);
    const pst_step *step = &chain->steps->data[at];
    pst_decode_stage *stage = &chain->stages[at];
    if (step->kind == PST_STEP_METASPACE)
        return metaspace(chain, at, f, err);
    if (step->kind == PST_STEP_FUSE)
        return send_fused(chain, at, f.text, f.bytes, false, err);
    if (step->kind == PST_STEP_STRIP_CHARACTER && step->stop == 0)
        return strip_start(chain, at, f, err);
    int whole = gather(stage, &f, err);
    if (whole <= 0)
        return whole;
    switch (step->kind) {
    case PST_STEP_REPLACE: return replace(chain, at, f, err);
    case PST_STEP_BYTE_FALLBACK: return byte_fallback(chain, at, f, err);
    case PST_STEP_BYTE_LEVEL: return byte_level(chain, at, f, err);
    default: return strip_both(chain, at, f, err);
    }
}

int pst_decode_open(pst_decode_chain *chain, const pst_steps *steps, bool join_with_spaces, pst_error *err)
{
    *chain = (pst_decode_chain){.steps = steps, .join_with_spaces = join_with_spaces};
    chain->stages = pst_heap_calloc(steps->count, sizeof *chain->stages);
    if (chain->stages == NULL)
        return pst_fail_memory(err, "decoding", steps->count * sizeof *chain->stages);
    for (size_t i = 0; i < steps->count; i++) {
        if (steps->data[i].pattern.regex != NULL && chain->regexes == NULL)
            PST_TRY(pst_regex_scratch_open(&chain->regexes, err));
    }
    return 0;
}

void pst_decode_close(pst_decode_chain *chain)
{
    for (size_t i = 0; chain->stages != NULL && i < chain->steps->count; i++) {
        pst_bytes_free(&chain->stages[i].token);
        pst_bytes_free(&chain->stages[i].held);
        pst_bytes_free(&chain->stages[i].made);
    }
    pst_heap_free(chain->stages);
    pst_regex_scratch_close(chain->regexes);
    pst_spans_free(&chain->spans);
    pst_bytes_free(&chain->out);
    *chain = (pst_decode_chain){0};
}

int pst_decode_push(pst_decode_chain *chain, const char *text, size_t bytes, pst_error *err)
{
    if (chain->join_with_spaces && chain->any)
        PST_TRY(pst_bytes_append(&chain->out, " ", 1, err));
    chain->any = true;
    return send_token(chain, 0, text, bytes, err);
}

int pst_decode_finish(pst_decode_chain *chain, pst_error *err)
{
    for (size_t at = 0; at < chain->steps->count; at++) {
        pst_decode_stage *stage = &chain->stages[at];
        switch (chain->steps->data[at].kind) {
        case PST_STEP_BYTE_FALLBACK: PST_TRY(end_byte_run(chain, at, err)); break;
        case PST_STEP_BYTE_LEVEL:
            PST_TRY(take_characters(stage, true, err));
            PST_TRY(send_fused(chain, at, stage->made.data, stage->made.count, true, err));
            break;
        case PST_STEP_FUSE: PST_TRY(send_fused(chain, at, "", 0, true, err)); break;
        default: break;
        }
    }
    return 0;
}

int pst_decode_alone(pst_decode_chain *chain, const char *text, size_t bytes, pst_error *err)
{
    pst_bytes made = {0};
    int status = pst_bytes_append(&made, text, bytes, err);
    for (size_t at = 0; at < chain->steps->count && status >= 0; at++) {
        const pst_step *step = &chain->steps->data[at];
        const fragment f = {.text = made.data, .bytes = made.count};
        const int byte = byte_of_token(f);
        const char value = (char)byte;
        chain->out.count = 0;
        if (step->kind == PST_STEP_REPLACE)
            status = replace_in(chain, step, f, &chain->out, err);
        else if (step->kind == PST_STEP_BYTE_LEVEL)
            status = append_byte_level(&chain->out, f, err);
        else if (step->kind == PST_STEP_METASPACE)
            status = append_spaced(&chain->out, step, f, false, err);
        else if (step->kind == PST_STEP_BYTE_FALLBACK && byte >= 0)
            status = pst_bytes_append(&chain->out, &value, 1, err);
        else /* the others join tokens, or take from the ends of the whole */
            continue;
        pst_bytes_swap(&chain->out, &made);
        if (pst_utf8_valid_prefix(made.data, made.count) < made.count)
            break; /* a part of a character, which is no text for the steps that follow */
    }
    pst_bytes_swap(&chain->out, &made);
    pst_bytes_free(&made);
    return status;
}
