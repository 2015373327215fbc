/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UTF-8 by hand, properties from utf8proc. Normal forms are made here from utf8proc's character decompositions and
 * compositions: its own reordering of combining marks is quadratic in their number, ours is a stable counting sort.
 */
#include "text/unicode.h"

#include <string.h>
#include <utf8proc.h>

#include "base/error.h"
#include "base/heap.h"
#include "text/unicode_tables.h"

size_t pst_utf8_put(uint32_t code_point, char out[4])
{
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    if (code_point < 0x800) {
        out[0] = (char)(0xC0 | code_point >> 6);
        out[1] = (char)(0x80 | (code_point & 0x3F));
        return 2;
    }
    if (code_point < 0x10000) {
        out[0] = (char)(0xE0 | code_point >> 12);
        out[1] = (char)(0x80 | (code_point >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code_point & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code_point >> 18);
    out[1] = (char)(0x80 | (code_point >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code_point >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code_point & 0x3F));
    return 4;
}

int pst_utf8_step(const char *text, size_t bytes)
{
    const unsigned char *u = (const unsigned char *)text;
    unsigned char lead = u[0];
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2 || lead > 0xF4)
        return -1;
    int width = (int)pst_utf8_width(lead);
    /* The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF. */
    unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    for (int i = 1; i < width; i++) {
        if ((size_t)i == bytes)
            return 0;
        if (u[i] < low || u[i] > high)
            return -i;
        low = 0x80;
        high = 0xBF;
    }
    return width;
}

size_t pst_utf8_valid_prefix(const char *text, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        int step = pst_utf8_step(text + at, bytes - at);
        if (step <= 0)
            return at;
        at += (size_t)step;
    }
    return bytes;
}

/* The range that holds the code point, or NULL. */
static const pst_unicode_range *find_range(const pst_unicode_range *ranges, size_t count, uint32_t code_point)
{
    const pst_unicode_range *end = ranges + count;
    size_t low = 0;
    while (count > 0) {
        size_t half = count / 2;
        if (ranges[low + half].last < code_point) {
            low += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return ranges + low < end && code_point >= ranges[low].first ? &ranges[low] : NULL;
}

/* The general category by Unicode 16, in utf8proc's short spelling. */
static const char *category_of(uint32_t code_point)
{
    const char *category = utf8proc_category_string((utf8proc_int32_t)code_point);
    if (strcmp(category, "Cn") != 0)
        return category;
    const pst_unicode_range *range = find_range(pst_unicode_added, pst_unicode_added_count, code_point);
    return range ? range->category : category;
}

bool pst_unicode_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
           c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool pst_unicode_is_numeric(uint32_t c)
{
    if (c < 0x80)
        return c >= '0' && c <= '9';
    if ((c >= 0x11DE0 && c <= 0x11DE9) || (c >= 0x16FF4 && c <= 0x16FF6)) /* the reference has Unicode 17 here */
        return true;
    return category_of(c)[0] == 'N';
}

bool pst_unicode_is_word(uint32_t c)
{
    if (c < 0x80)
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    if (c == 0x200C || c == 0x200D)
        return true;
    /* Alphabetic symbols: circled and squared letters. */
    if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
        (c >= 0x1F170 && c <= 0x1F189))
        return true;
    const char *category = category_of(c);
    return category[0] == 'L' || category[0] == 'M' || strcmp(category, "Nd") == 0 || strcmp(category, "Nl") == 0 ||
           strcmp(category, "Pc") == 0;
}

bool pst_unicode_is_punctuation(uint32_t c)
{
    if (c < 0x80)
        return c > 0x20 && c < 0x7F && !((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'));
    if (c == 0x166D || c == 0x111C9) /* punctuation once */
        return true;
    return category_of(c)[0] == 'P' &&
           find_range(pst_unicode_newer_punctuation, pst_unicode_newer_punctuation_count, c) == NULL;
}

/* Lower case by Unicode 17, as the reference has it; utf8proc lacks what is in this table. */
static uint32_t lower_case(uint32_t c)
{
    static const struct {
        uint32_t first, last;
        int32_t distance;
    } added[] = {{0x1C89, 0x1C89, 1},    {0xA7CB, 0xA7CB, -0xA567}, {0xA7CC, 0xA7CC, 1}, {0xA7CE, 0xA7CE, 1},
                 {0xA7D2, 0xA7D2, 1},    {0xA7D4, 0xA7D4, 1},       {0xA7DA, 0xA7DA, 1}, {0xA7DC, 0xA7DC, -0xA641},
                 {0x10D50, 0x10D65, 32}, {0x16EA0, 0x16EB8, 27}};
    for (size_t i = 0; c >= 0x1C89 && i < sizeof added / sizeof added[0]; i++) {
        if (c >= added[i].first && c <= added[i].last)
            return (uint32_t)((int32_t)c + added[i].distance);
    }
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
}

int pst_unicode_lowercase(const char *text, size_t bytes, pst_bytes *out, pst_error *err)
{
    for (size_t i = 0, width; i < bytes; i += width) {
        uint32_t code_point = pst_utf8_get(text + i, &width);
        char lower[8];
        size_t count;
        if (code_point == 0x130) { /* the one character whose lower case is two */
            memcpy(lower, "i\xCC\x87", 3);
            count = 3;
        } else {
            count = pst_utf8_put(lower_case(code_point), lower);
        }
        PST_TRY(pst_bytes_append(out, lower, count, err));
    }
    return 0;
}

/* Newer than the reference's normal forms. */
static bool is_not_normalized(uint32_t code_point)
{
    return code_point >= pst_unicode_not_normalized[0].first &&
           find_range(pst_unicode_not_normalized, pst_unicode_not_normalized_count, code_point) != NULL;
}

static unsigned combining_class(uint32_t code_point)
{
    if (is_not_normalized(code_point))
        return 0;
    return (unsigned)utf8proc_get_property((utf8proc_int32_t)code_point)->combining_class;
}

/* Appends the full decomposition, unordered. */
static int decompose(pst_normal_form form, const char *text, size_t bytes, pst_words *out, pst_error *err)
{
    int options = UTF8PROC_DECOMPOSE;
    if (form == PST_NFKC || form == PST_NFKD)
        options |= UTF8PROC_COMPAT;
    for (size_t i = 0, width; i < bytes; i += width) {
        uint32_t code_point = pst_utf8_get(text + i, &width);
        if (code_point < 0x80 || is_not_normalized(code_point)) {
            PST_TRY(pst_words_append(out, code_point, err));
            continue;
        }
        utf8proc_int32_t parts[32]; /* the longest decomposition has 18 */
        int class_before = 0;
        utf8proc_ssize_t count =
            utf8proc_decompose_char((utf8proc_int32_t)code_point, parts, 32, (utf8proc_option_t)options, &class_before);
        if (count < 0 || count > 32) {
            parts[0] = (utf8proc_int32_t)code_point;
            count = 1;
        }
        for (utf8proc_ssize_t k = 0; k < count; k++)
            PST_TRY(pst_words_append(out, (uint32_t)parts[k], err));
    }
    return 0;
}

/* Sorts a run of combining marks by class, stably. `spare` has room for the run. */
static void sort_marks(uint32_t *marks, size_t count, uint32_t *spare)
{
    size_t place[257] = {0};
    for (size_t i = 0; i < count; i++)
        place[combining_class(marks[i]) + 1]++;
    for (size_t class = 1; class < 257; class ++)
        place[class] += place[class - 1];
    for (size_t i = 0; i < count; i++)
        spare[place[combining_class(marks[i])]++] = marks[i];
    memcpy(marks, spare, count * sizeof *marks);
}

/* Puts every run of combining marks into canonical order. */
static int reorder(pst_words *text, pst_error *err)
{
    uint32_t *spare = NULL;
    size_t spare_capacity = 0;
    int status = 0;
    for (size_t i = 0; i < text->count && status == 0;) {
        if (text->data[i] < 0x300 || combining_class(text->data[i]) == 0) {
            i++;
            continue;
        }
        size_t end = i + 1;
        while (end < text->count && combining_class(text->data[end]) != 0)
            end++;
        if (end - i > 1) {
            status = pst_array_grow(&spare, &spare_capacity, end - i, sizeof *spare, err);
            if (status == 0)
                sort_marks(text->data + i, end - i, spare);
        }
        i = end;
    }
    pst_heap_free(spare);
    return status;
}

/* Composes in place what lies between the characters that are not to be composed. */
static void compose(pst_words *text)
{
    size_t made = 0;
    for (size_t i = 0; i < text->count;) {
        size_t end = i + 1; /* the first of each run stands as it is, or composes with what follows */
        bool alone = is_not_normalized(text->data[i]);
        while (!alone && end < text->count && !is_not_normalized(text->data[end]))
            end++;
        utf8proc_ssize_t count = (utf8proc_ssize_t)(end - i);
        if (!alone)
            count =
                utf8proc_normalize_utf32((utf8proc_int32_t *)text->data + i, count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (count < 0)
            count = (utf8proc_ssize_t)(end - i);
        memmove(text->data + made, text->data + i, (size_t)count * sizeof *text->data);
        made += (size_t)count;
        i = end;
    }
    text->count = made;
}

int pst_unicode_normalize(pst_normal_form form, const char *text, size_t bytes, pst_bytes *out, pst_error *err)
{
    size_t ascii = 0;
    while (ascii < bytes && (unsigned char)text[ascii] < 0x80)
        ascii++;
    if (ascii == bytes)
        return pst_bytes_append(out, text, bytes, err);
    pst_words points = {0};
    int status = decompose(form, text, bytes, &points, err);
    if (status == 0)
        status = reorder(&points, err);
    if (status == 0 && (form == PST_NFC || form == PST_NFKC))
        compose(&points);
    for (size_t i = 0; i < points.count && status == 0; i++) {
        char encoded[4];
        status = pst_bytes_append(out, encoded, pst_utf8_put(points.data[i], encoded), err);
    }
    pst_words_free(&points);
    return status;
}
