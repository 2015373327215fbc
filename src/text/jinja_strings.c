/* SPDX-License-Identifier: Apache-2.0 */
/* What Python's strings can do, over UTF-8. Lengths and positions are of code points. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja.h"
#include "text/unicode.h"

size_t pst_jinja_offset(const jinja_string *s, size_t index)
{
    if (s->points == s->bytes)
        return index;
    size_t at = 0;
    while (index-- > 0)
        at += pst_utf8_width((unsigned char)s->text[at]);
    return at;
}

/* ---- case ---- */

/* A capital sigma is "ς" at the end of a word: cased letters before it, none after, not counting what is ignored. */
static bool is_final_sigma(const jinja_string *s, size_t at)
{
    size_t before = at, width;
    bool cased = false;
    while (before > 0) {
        while (before > 0 && ((unsigned char)s->text[--before] & 0xC0) == 0x80)
            ;
        uint32_t c = pst_utf8_get(s->text + before, &width);
        if (pst_unicode_is_case_ignorable(c))
            continue;
        cased = pst_unicode_is_cased(c);
        break;
    }
    if (!cased)
        return false;
    for (size_t after = at + 2; after < s->bytes; after += width) {
        uint32_t c = pst_utf8_get(s->text + after, &width);
        if (!pst_unicode_is_case_ignorable(c))
            return !pst_unicode_is_cased(c);
    }
    return true;
}

static int write_point(jinja_run *run, jinja_buffer *buffer, uint32_t c, bool upper, bool title)
{
    char text[16];
    return pst_jinja_write(run, buffer, text, pst_unicode_case(c, upper, title, text));
}

int pst_jinja_recase(jinja_run *run, jinja_case how, const jinja_string *s, jinja_value *out)
{
    jinja_buffer *buffer;
    bool in_word = false;
    PST_TRY(pst_jinja_buffer(run, &buffer));
    for (size_t at = 0, width; at < s->bytes; at += width) {
        uint32_t c = pst_utf8_get(s->text + at, &width);
        bool upper = how == JINJA_UPPER, title = false;
        if (how == JINJA_TITLE)
            upper = title = !in_word;
        else if (how == JINJA_CAPITALIZE)
            upper = title = at == 0;
        else if (how == JINJA_SWAPCASE)
            upper = pst_unicode_is_lower(c);
        in_word = pst_unicode_is_cased(c);
        if (c == 0x3A3 && !upper && is_final_sigma(s, at))
            PST_TRY(pst_jinja_write(run, buffer, "ς", 2));
        else
            PST_TRY(write_point(run, buffer, c, upper, title));
    }
    return pst_jinja_take(run, buffer, out);
}

/* ---- stripping ---- */

static bool is_space(uint32_t c)
{
    return pst_unicode_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

/* Whether the character at text is one of chars (NULL: white space). */
static bool is_stripped(const char *text, size_t width, const jinja_string *chars)
{
    size_t unused;
    if (chars == NULL)
        return is_space(pst_utf8_get(text, &unused));
    /* UTF-8 has no character within another one */
    return memmem(chars->text, chars->bytes, text, width) != NULL;
}

int pst_jinja_strip(jinja_run *run, const jinja_string *s, jinja_value chars, bool left, bool right, jinja_value *out)
{
    const jinja_string *set = chars.kind == JINJA_STRING ? chars.as.string : NULL;
    if (set == NULL && chars.kind != JINJA_MISSING && chars.kind != JINJA_NONE)
        return pst_jinja_fail(run, "%s cannot be stripped", pst_jinja_kind_name(chars));
    size_t start = 0, end = s->bytes, points = s->points, cost = 1 + (set != NULL ? set->bytes / 16 : 0);
    while (left && start < end) {
        size_t width = pst_utf8_width((unsigned char)s->text[start]);
        if (!is_stripped(s->text + start, width, set))
            break;
        start += width;
        points--;
        PST_TRY(pst_jinja_charge(run, cost));
    }
    while (right && end > start) {
        size_t before = end - 1;
        while (((unsigned char)s->text[before] & 0xC0) == 0x80)
            before--;
        if (!is_stripped(s->text + before, end - before, set))
            break;
        end = before;
        points--;
        PST_TRY(pst_jinja_charge(run, cost));
    }
    return pst_jinja_view(run, s->text + start, end - start, points, out);
}

/* ---- putting together and taking apart ---- */

int pst_jinja_replace(jinja_run *run, const jinja_string *s, const jinja_string *old, const jinja_string *new,
                      int64_t most, jinja_value *out)
{
    jinja_buffer *buffer;
    size_t at = 0;
    PST_TRY(pst_jinja_charge(run, s->bytes));
    PST_TRY(pst_jinja_buffer(run, &buffer));
    for (int64_t made = 0; most < 0 || made < most; made++) {
        const char *found = old->bytes > 0 ? memmem(s->text + at, s->bytes - at, old->text, old->bytes) : s->text + at;
        if (found == NULL)
            break;
        size_t before = (size_t)(found - s->text) - at;
        PST_TRY(pst_jinja_write(run, buffer, s->text + at, before));
        PST_TRY(pst_jinja_write(run, buffer, new->text, new->bytes));
        at += before + old->bytes;
        if (old->bytes == 0) { /* between all characters, and around them */
            if (at == s->bytes)
                break;
            size_t width = pst_utf8_width((unsigned char)s->text[at]);
            PST_TRY(pst_jinja_write(run, buffer, s->text + at, width));
            at += width;
        }
    }
    PST_TRY(pst_jinja_write(run, buffer, s->text + at, s->bytes - at));
    return pst_jinja_take(run, buffer, out);
}

int pst_jinja_join_list(jinja_run *run, const jinja_string *between, const jinja_list *list, bool convert,
                        jinja_value *out)
{
    jinja_buffer *buffer;
    PST_TRY(pst_jinja_buffer(run, &buffer));
    for (size_t i = 0; i < list->count; i++) {
        if (!convert && list->items[i].kind != JINJA_STRING)
            return pst_jinja_fail(run, "%s among the strings to join", pst_jinja_kind_name(list->items[i]));
        if (i > 0)
            PST_TRY(pst_jinja_write(run, buffer, between->text, between->bytes));
        PST_TRY(pst_jinja_print(run, buffer, list->items[i]));
    }
    return pst_jinja_take(run, buffer, out);
}

static bool is_line_end(uint32_t c)
{
    return (c >= '\n' && c <= '\r') || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

int pst_jinja_split_lines(jinja_run *run, const jinja_string *s, bool keep_ends, jinja_list **out)
{
    jinja_list *lines;
    PST_TRY(pst_jinja_list(run, 0, &lines));
    for (size_t at = 0; at < s->bytes;) {
        size_t end = at, width = 0;
        while (end < s->bytes && !is_line_end(pst_utf8_get(s->text + end, &width)))
            end += width;
        size_t after = end;
        if (after < s->bytes)
            after += s->text[after] == '\r' && after + 1 < s->bytes && s->text[after + 1] == '\n' ? 2 : width;
        jinja_value line;
        PST_TRY(pst_jinja_view(run, s->text + at, (keep_ends ? after : end) - at, SIZE_MAX, &line));
        PST_TRY(pst_jinja_push(run, lines, line));
        at = after;
    }
    *out = lines;
    return 0;
}

int pst_jinja_pad(jinja_run *run, const jinja_string *s, int64_t width, char how, const char *fill, size_t fill_bytes,
                  jinja_value *out)
{
    jinja_buffer *buffer;
    if (width <= (int64_t)s->points)
        return pst_jinja_view(run, s->text, s->bytes, s->points, out);
    int64_t total = width - (int64_t)s->points, left;
    if ((uint64_t)total > run->limits.output_bytes)
        return pst_jinja_fail(run, "it makes a text of more than %zu MiB", run->limits.output_bytes >> 20);
    left = how == '<' ? 0 : how == '>' ? total : total / 2;
    if (how == 'c') /* Python's str.center gives the odd one to the left of an odd width */
        left += total & width & 1;
    PST_TRY(pst_jinja_buffer(run, &buffer));
    for (int64_t i = 0; i < left; i++)
        PST_TRY(pst_jinja_write(run, buffer, fill, fill_bytes));
    PST_TRY(pst_jinja_write(run, buffer, s->text, s->bytes));
    for (int64_t i = left; i < total; i++)
        PST_TRY(pst_jinja_write(run, buffer, fill, fill_bytes));
    return pst_jinja_take(run, buffer, out);
}

/* ---- numbers ---- */

/* Copies a number's text without white space around it and '_' between digits; its length, or 0 when it cannot be
 * one. */
static size_t number_text(const jinja_string *s, char *out, size_t size)
{
    size_t start = 0, end = s->bytes, count = 0, width;
    while (start < end && is_space(pst_utf8_get(s->text + start, &width)))
        start += width;
    while (end > start) {
        size_t before = end - 1;
        while (((unsigned char)s->text[before] & 0xC0) == 0x80)
            before--;
        if (!is_space(pst_utf8_get(s->text + before, &width)))
            break;
        end = before;
    }
    if (end - start >= size)
        return 0;
    for (size_t i = start; i < end; i++) {
        bool between = i > start && i + 1 < end && s->text[i - 1] != '_' && s->text[i + 1] != '_';
        if (s->text[i] == '_' && !between)
            return 0;
        if (s->text[i] == 0)
            return 0;
        if (s->text[i] != '_')
            out[count++] = s->text[i];
    }
    out[count] = '\0';
    return count;
}

int pst_jinja_parse_int(const jinja_string *s, int base, int64_t *out)
{
    char text[128], *end;
    size_t count = number_text(s, text, sizeof text);
    const char *digits = text + (text[0] == '+' || text[0] == '-');
    char prefix = base == 16 ? 'x' : base == 8 ? 'o' : base == 2 ? 'b' : 0;
    if (count == 0)
        return 0;
    if (prefix != 0 && digits[0] == '0' && (digits[1] | 32) == prefix) {
        memmove(text + (digits - text), digits + 2, strlen(digits + 2) + 1);
        if (*digits == '\0' || *digits == '+' || *digits == '-')
            return 0;
    }
    if (!(*digits >= '0' && *digits <= '9') && !((*digits | 32) >= 'a' && (*digits | 32) <= 'z'))
        return 0;
    errno = 0;
    long long number = strtoll(text, &end, base);
    if (errno != 0 || *end != '\0')
        return 0;
    *out = number;
    return 1;
}

int pst_jinja_parse_float(const jinja_string *s, double *out)
{
    static const char *const names[] = {"inf", "infinity", "nan"};
    char text[512], *end;
    size_t count = number_text(s, text, sizeof text);
    const char *digits = text + (count > 0 && (text[0] == '+' || text[0] == '-'));
    if (count == 0)
        return 0;
    bool named = false;
    for (size_t i = 0; i < 3; i++)
        named |= strcasecmp(digits, names[i]) == 0;
    if (!named && strspn(digits, "0123456789.eE+-") != strlen(digits)) /* strtod would take more than Python does */
        return 0;
    *out = strtod(text, &end);
    return *end == '\0' && end > text;
}
