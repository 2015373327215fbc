/* SPDX-License-Identifier: Apache-2.0 */
/* Normalizers: each step writes the whole text anew, from one scratch buffer to the other. */
#include "base/error.h"
#include "base/heap.h"
#include "text/steps.h"
#include "text/unicode.h"

void pst_steps_destroy(pst_steps *steps)
{
    for (size_t i = 0; i < steps->count; i++) {
        pst_pattern_destroy(&steps->data[i].pattern);
        pst_heap_free(steps->data[i].content);
    }
    pst_heap_free(steps->data);
    *steps = (pst_steps){0};
}

void pst_text_scratch_free(pst_text_scratch *scratch)
{
    pst_regex_scratch_close(scratch->regexes);
    pst_spans_free(&scratch->spans);
    pst_bytes_free(&scratch->text);
    pst_bytes_free(&scratch->other);
    pst_heap_free(scratch->pieces.data);
    pst_heap_free(scratch->other_pieces.data);
    *scratch = (pst_text_scratch){0};
}

static int replace(const pst_step *step, pst_text_scratch *scratch, bool *first, pst_error *err)
{
    const pst_bytes *text = &scratch->text;
    PST_TRY(pst_pattern_cut(&step->pattern, scratch->regexes, text->data, text->count, &scratch->spans, err));
    for (size_t i = 0; i < scratch->spans.count; i++) {
        const pst_span *span = &scratch->spans.data[i];
        if (span->matched) {
            /* What replaces several characters counts as standing where the last of them stood. */
            if (span->start == 0 && span->end > 0 &&
                (step->content_bytes == 0 || span->end > pst_utf8_width((unsigned char)text->data[0])))
                *first = false;
            PST_TRY(pst_bytes_append(&scratch->other, step->content, step->content_bytes, err));
        } else {
            PST_TRY(pst_bytes_append(&scratch->other, text->data + span->start, span->end - span->start, err));
        }
    }
    return 0;
}

static int strip(const pst_step *step, pst_text_scratch *scratch, bool *first, pst_error *err)
{
    const pst_bytes *text = &scratch->text;
    size_t start = 0, end = text->count, width;
    while (step->strip_left && start < end && pst_unicode_is_space(pst_utf8_get(text->data + start, &width)))
        start += width;
    while (step->strip_right && end > start) {
        size_t at = end - 1;
        while (at > start && ((unsigned char)text->data[at] & 0xC0) == 0x80)
            at--;
        if (!pst_unicode_is_space(pst_utf8_get(text->data + at, &width)))
            break;
        end = at;
    }
    if (start > 0)
        *first = false;
    return pst_bytes_append(&scratch->other, text->data + start, end - start, err);
}

static int normalize_step(const pst_step *step, pst_text_scratch *scratch, bool *first, pst_error *err)
{
    const pst_bytes *text = &scratch->text;
    scratch->other.count = 0;
    switch (step->kind) {
    case PST_STEP_NORMAL_FORM:
        return pst_unicode_normalize((pst_normal_form)step->form, text->data, text->count, &scratch->other, err);
    case PST_STEP_LOWERCASE: return pst_unicode_lowercase(text->data, text->count, &scratch->other, err);
    case PST_STEP_STRIP: return strip(step, scratch, first, err);
    case PST_STEP_REPLACE: return replace(step, scratch, first, err);
    default: /* PST_STEP_PREPEND: not to an empty text */
        if (text->count > 0)
            PST_TRY(pst_bytes_append(&scratch->other, step->content, step->content_bytes, err));
        return pst_bytes_append(&scratch->other, text->data, text->count, err);
    }
}

int pst_normalize(const pst_steps *normalizers, pst_text_scratch *scratch, const char *text, size_t bytes, bool *first,
                  pst_error *err)
{
    scratch->text.count = 0;
    PST_TRY(pst_bytes_append(&scratch->text, text, bytes, err));
    for (size_t i = 0; i < normalizers->count && scratch->text.count > 0; i++) {
        PST_TRY(normalize_step(&normalizers->data[i], scratch, first, err));
        pst_bytes_swap(&scratch->text, &scratch->other);
    }
    return 0;
}
