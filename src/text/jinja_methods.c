/* SPDX-License-Identifier: Apache-2.0 */
/* Methods of strings. */
#include <string.h>

#include "base/error.h"
#include "text/jinja.h"
#include "text/unicode.h"

#define METHOD(name)                                                                                                   \
    static int name(jinja_run *run, jinja_value self, const jinja_value *given, const jinja_args *all, jinja_value *out)
#define UNUSED (void)run, (void)given, (void)all

static const jinja_string *text_of(jinja_value self)
{
    return self.as.string;
}

static int string_argument(jinja_run *run, jinja_value v, const jinja_string **out)
{
    if (v.kind != JINJA_STRING)
        return pst_jinja_fail(run, "%s where a string belongs", pst_jinja_kind_name(v));
    *out = v.as.string;
    return 0;
}

static int whole_argument(jinja_run *run, jinja_value v, int64_t preset, int64_t *out)
{
    *out = preset;
    if (v.kind != JINJA_MISSING && !pst_jinja_whole(v, out))
        return pst_jinja_fail(run, "%s where a whole number belongs", pst_jinja_kind_name(v));
    return 0;
}

/* ---- case and white space ---- */

#define CASE_METHOD(name, how)                                                                                         \
    METHOD(name)                                                                                                       \
    {                                                                                                                  \
        UNUSED;                                                                                                        \
        return pst_jinja_recase(run, how, text_of(self), out);                                                         \
    }
CASE_METHOD(string_upper, JINJA_UPPER)
CASE_METHOD(string_lower, JINJA_LOWER)
CASE_METHOD(string_title, JINJA_TITLE)
CASE_METHOD(string_capitalize, JINJA_CAPITALIZE)
CASE_METHOD(string_swapcase, JINJA_SWAPCASE)

#define STRIP_METHOD(name, left, right)                                                                                \
    METHOD(name)                                                                                                       \
    {                                                                                                                  \
        UNUSED;                                                                                                        \
        return pst_jinja_strip(run, text_of(self), given[0], left, right, out);                                        \
    }
STRIP_METHOD(string_strip, true, true)
STRIP_METHOD(string_lstrip, true, false)
STRIP_METHOD(string_rstrip, false, true)

/* ---- splitting ---- */

static int push_part(jinja_run *run, jinja_list *list, const char *text, size_t bytes)
{
    jinja_value part;
    PST_TRY(pst_jinja_view(run, text, bytes, SIZE_MAX, &part));
    return pst_jinja_push(run, list, part);
}

static bool is_space_at(const jinja_string *s, size_t at, size_t *width)
{
    uint32_t c = pst_utf8_get(s->text + at, width);
    return pst_unicode_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

static int split_words(jinja_run *run, const jinja_string *s, int64_t most, jinja_list *parts)
{
    size_t at = 0, width;
    for (;;) {
        while (at < s->bytes && is_space_at(s, at, &width))
            at += width;
        if (at == s->bytes)
            return 0;
        size_t end = at;
        if (most >= 0 && (int64_t)parts->count >= most) /* the rest, with white space at its end */
            return push_part(run, parts, s->text + at, s->bytes - at);
        while (end < s->bytes && !is_space_at(s, end, &width))
            end += width;
        PST_TRY(push_part(run, parts, s->text + at, end - at));
        at = end;
    }
}

static void reverse(jinja_list *list)
{
    for (size_t i = 0; i < list->count / 2; i++) {
        jinja_value other = list->items[i];
        list->items[i] = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = other;
    }
}

static int split_words_right(jinja_run *run, const jinja_string *s, int64_t most, jinja_list *parts)
{
    size_t end = s->bytes, width;
    while (end > 0) {
        size_t before = end;
        while (before > 0 && ((unsigned char)s->text[--before] & 0xC0) == 0x80)
            ;
        if (is_space_at(s, before, &width)) {
            end = before;
            continue;
        }
        if (most >= 0 && (int64_t)parts->count >= most) { /* the rest, with white space at its beginning */
            PST_TRY(push_part(run, parts, s->text, end));
            break;
        }
        size_t start = before;
        while (start > 0) {
            before = start;
            while (before > 0 && ((unsigned char)s->text[--before] & 0xC0) == 0x80)
                ;
            if (is_space_at(s, before, &width))
                break;
            start = before;
        }
        PST_TRY(push_part(run, parts, s->text + start, end - start));
        end = start;
    }
    reverse(parts);
    return 0;
}

static int split_at(jinja_run *run, const jinja_string *s, const jinja_string *separator, int64_t most,
                    jinja_list *parts)
{
    size_t at = 0;
    while (most < 0 || (int64_t)parts->count < most) {
        const char *found = memmem(s->text + at, s->bytes - at, separator->text, separator->bytes);
        if (found == NULL)
            break;
        PST_TRY(push_part(run, parts, s->text + at, (size_t)(found - s->text) - at));
        at = (size_t)(found - s->text) + separator->bytes;
    }
    return push_part(run, parts, s->text + at, s->bytes - at);
}

/* The last place of `what` that ends at or before `end`, or SIZE_MAX. */
static int find_right(jinja_run *run, const jinja_string *s, size_t start, size_t end, const jinja_string *what,
                      size_t *out)
{
    *out = SIZE_MAX;
    if (end < what->bytes)
        return 0;
    for (size_t at = end - what->bytes + 1; at-- > start;) {
        if (what->bytes > 0 && s->text[at] != what->text[0])
            continue;
        PST_TRY(pst_jinja_charge(run, what->bytes)); /* all of it may be compared at each place */
        if (memcmp(s->text + at, what->text, what->bytes) == 0) {
            *out = at;
            return 0;
        }
    }
    return 0;
}

static int split_at_right(jinja_run *run, const jinja_string *s, const jinja_string *separator, int64_t most,
                          jinja_list *parts)
{
    size_t end = s->bytes, at;
    while (most < 0 || (int64_t)parts->count < most) {
        PST_TRY(find_right(run, s, 0, end, separator, &at));
        if (at == SIZE_MAX)
            break;
        PST_TRY(pst_jinja_charge(run, end - at));
        PST_TRY(push_part(run, parts, s->text + at + separator->bytes, end - at - separator->bytes));
        end = at;
    }
    PST_TRY(push_part(run, parts, s->text, end));
    reverse(parts);
    return 0;
}

static int split(jinja_run *run, const jinja_string *s, const jinja_value *given, bool right, jinja_value *out)
{
    jinja_list *parts;
    const jinja_string *separator = NULL;
    int64_t most;
    PST_TRY(whole_argument(run, given[1], -1, &most));
    PST_TRY(pst_jinja_charge(run, s->bytes));
    PST_TRY(pst_jinja_list(run, 0, &parts));
    if (given[0].kind == JINJA_MISSING || given[0].kind == JINJA_NONE) {
        PST_TRY(right ? split_words_right(run, s, most, parts) : split_words(run, s, most, parts));
    } else {
        PST_TRY(string_argument(run, given[0], &separator));
        if (separator->bytes == 0)
            return pst_jinja_fail(run, "a split at nothing");
        PST_TRY(right ? split_at_right(run, s, separator, most, parts) : split_at(run, s, separator, most, parts));
    }
    *out = pst_jinja_of_list(JINJA_LIST, parts);
    return 0;
}

METHOD(string_split)
{
    UNUSED;
    return split(run, text_of(self), given, false, out);
}

METHOD(string_rsplit)
{
    UNUSED;
    return split(run, text_of(self), given, true, out);
}

METHOD(string_splitlines)
{
    jinja_list *lines;
    UNUSED;
    PST_TRY(pst_jinja_split_lines(run, text_of(self), pst_jinja_truth(given[0]), &lines));
    *out = pst_jinja_of_list(JINJA_LIST, lines);
    return 0;
}

/* Before, the separator, after; when it is not there, the whole on the outer side. */
static int partition(jinja_run *run, const jinja_string *s, jinja_value separator, bool right, jinja_value *out)
{
    const jinja_string *what = NULL;
    jinja_list *parts;
    PST_TRY(string_argument(run, separator, &what));
    if (what->bytes == 0)
        return pst_jinja_fail(run, "a split at nothing");
    PST_TRY(pst_jinja_charge(run, s->bytes));
    PST_TRY(pst_jinja_list(run, 3, &parts));
    const char *found = memmem(s->text, s->bytes, what->text, what->bytes);
    size_t at = found != NULL ? (size_t)(found - s->text) : SIZE_MAX;
    if (right && found != NULL)
        PST_TRY(find_right(run, s, 0, s->bytes, what, &at));
    if (at != SIZE_MAX) {
        PST_TRY(push_part(run, parts, s->text, at));
        PST_TRY(push_part(run, parts, what->text, what->bytes));
        PST_TRY(push_part(run, parts, s->text + at + what->bytes, s->bytes - at - what->bytes));
    } else {
        PST_TRY(push_part(run, parts, s->text, right ? 0 : s->bytes));
        PST_TRY(push_part(run, parts, "", 0));
        PST_TRY(push_part(run, parts, s->text, right ? s->bytes : 0));
    }
    *out = pst_jinja_of_list(JINJA_TUPLE, parts);
    return 0;
}

METHOD(string_partition)
{
    UNUSED;
    return partition(run, text_of(self), given[0], false, out);
}

METHOD(string_rpartition)
{
    UNUSED;
    return partition(run, text_of(self), given[0], true, out);
}

/* ---- looking for texts ---- */

/* The bytes of s[start:end]. false: the start is beyond the text, where Python finds not even the empty text. */
static int range_of(jinja_run *run, const jinja_string *s, jinja_value start, jinja_value end, size_t bounds[2],
                    bool *in)
{
    const jinja_value given[2] = {start, end};
    int64_t points = (int64_t)s->points, at[2] = {0, points};
    for (int i = 0; i < 2; i++) {
        if (given[i].kind != JINJA_NONE)
            PST_TRY(whole_argument(run, given[i], at[i], &at[i]));
        at[i] += at[i] < 0 ? points : 0;
        at[i] = at[i] < 0 ? 0 : at[i];
    }
    *in = at[0] <= points && at[0] <= at[1];
    at[1] = at[1] > points ? points : at[1];
    if (!*in)
        return 0;
    PST_TRY(pst_jinja_charge(run, s->bytes));
    bounds[0] = pst_jinja_offset(s, (size_t)at[0]);
    bounds[1] = pst_jinja_offset(s, (size_t)at[1]);
    return 0;
}

/* Whether one of the texts begins (or ends) s[start:end]. */
static int has_affix(jinja_run *run, const jinja_string *s, const jinja_value *given, bool at_end, jinja_value *out)
{
    size_t bounds[2];
    bool in, found = false;
    jinja_list one = {.items = (jinja_value[]){given[0]}, .count = 1}, *texts = &one;
    PST_TRY(range_of(run, s, given[1], given[2], bounds, &in));
    if (given[0].kind == JINJA_TUPLE)
        texts = given[0].as.list;
    for (size_t i = 0; i < texts->count; i++) {
        const jinja_string *text = NULL;
        PST_TRY(string_argument(run, texts->items[i], &text));
        PST_TRY(pst_jinja_charge(run, text->bytes));
        if (in && text->bytes <= bounds[1] - bounds[0])
            found |= memcmp(s->text + (at_end ? bounds[1] - text->bytes : bounds[0]), text->text, text->bytes) == 0;
    }
    *out = pst_jinja_bool(found);
    return 0;
}

METHOD(string_startswith)
{
    UNUSED;
    return has_affix(run, text_of(self), given, false, out);
}

METHOD(string_endswith)
{
    UNUSED;
    return has_affix(run, text_of(self), given, true, out);
}

static int find(jinja_run *run, const jinja_string *s, const jinja_value *given, bool right, bool must,
                jinja_value *out)
{
    const jinja_string *what = NULL;
    size_t bounds[2], at = SIZE_MAX;
    bool in;
    PST_TRY(string_argument(run, given[0], &what));
    PST_TRY(range_of(run, s, given[1], given[2], bounds, &in));
    if (in && right) {
        PST_TRY(find_right(run, s, bounds[0], bounds[1], what, &at));
    } else if (in) {
        const char *found = memmem(s->text + bounds[0], bounds[1] - bounds[0], what->text, what->bytes);
        at = found != NULL ? (size_t)(found - s->text) : SIZE_MAX;
    }
    if (at == SIZE_MAX && must)
        return pst_jinja_fail(run, "the text is not in the string");
    int64_t points = 0;
    for (size_t i = 0; at != SIZE_MAX && i < at; i++)
        points += ((unsigned char)s->text[i] & 0xC0) != 0x80;
    *out = pst_jinja_int(at == SIZE_MAX ? -1 : points);
    return 0;
}

#define FIND_METHOD(name, right, must)                                                                                 \
    METHOD(name)                                                                                                       \
    {                                                                                                                  \
        UNUSED;                                                                                                        \
        return find(run, text_of(self), given, right, must, out);                                                      \
    }
FIND_METHOD(string_find, false, false)
FIND_METHOD(string_rfind, true, false)
FIND_METHOD(string_index, false, true)
FIND_METHOD(string_rindex, true, true)

METHOD(string_count)
{
    const jinja_string *what = NULL, *s = text_of(self);
    size_t bounds[2];
    bool in;
    int64_t count = 0;
    UNUSED;
    PST_TRY(string_argument(run, given[0], &what));
    PST_TRY(range_of(run, s, given[1], given[2], bounds, &in));
    for (size_t at = bounds[0]; in && what->bytes > 0; count++) {
        const char *found = memmem(s->text + at, bounds[1] - at, what->text, what->bytes);
        if (found == NULL)
            break;
        at = (size_t)(found - s->text) + what->bytes;
    }
    if (in && what->bytes == 0) { /* between all characters */
        for (size_t at = bounds[0]; at < bounds[1]; at++)
            count += ((unsigned char)s->text[at] & 0xC0) != 0x80;
        count++;
    }
    *out = pst_jinja_int(count);
    return 0;
}

/* ---- changing and joining ---- */

METHOD(string_replace)
{
    const jinja_string *old = NULL, *new = NULL;
    int64_t most;
    UNUSED;
    PST_TRY(string_argument(run, given[0], &old));
    PST_TRY(string_argument(run, given[1], &new));
    PST_TRY(whole_argument(run, given[2], -1, &most));
    return pst_jinja_replace(run, text_of(self), old, new, most, out);
}

METHOD(string_join)
{
    jinja_list *list;
    UNUSED;
    PST_TRY(pst_jinja_items(run, given[0], &list));
    return pst_jinja_join_list(run, text_of(self), list, false, out);
}

METHOD(string_format)
{
    (void)given;
    return pst_jinja_braces(run, text_of(self), all, out);
}

static int without_affix(jinja_run *run, const jinja_string *s, jinja_value affix, bool at_end, jinja_value *out)
{
    jinja_value has;
    const jinja_value given[3] = {affix, {0}, {0}};
    if (affix.kind != JINJA_STRING)
        return pst_jinja_fail(run, "%s where a string belongs", pst_jinja_kind_name(affix));
    PST_TRY(has_affix(run, s, given, at_end, &has));
    size_t cut = has.as.truth ? affix.as.string->bytes : 0, points = has.as.truth ? affix.as.string->points : 0;
    return pst_jinja_view(run, s->text + (at_end ? 0 : cut), s->bytes - cut, s->points - points, out);
}

METHOD(string_removeprefix)
{
    UNUSED;
    return without_affix(run, text_of(self), given[0], false, out);
}

METHOD(string_removesuffix)
{
    UNUSED;
    return without_affix(run, text_of(self), given[0], true, out);
}

static int padded(jinja_run *run, const jinja_string *s, const jinja_value *given, char how, jinja_value *out)
{
    int64_t width;
    const jinja_string space = {" ", 1, 1}, *fill = &space;
    PST_TRY(whole_argument(run, given[0], 0, &width));
    if (given[1].kind != JINJA_MISSING)
        PST_TRY(string_argument(run, given[1], &fill));
    if (fill->points != 1)
        return pst_jinja_fail(run, "a fill that is not one character");
    return pst_jinja_pad(run, s, width, how, fill->text, fill->bytes, out);
}

#define PAD_METHOD(name, how)                                                                                          \
    METHOD(name)                                                                                                       \
    {                                                                                                                  \
        UNUSED;                                                                                                        \
        return padded(run, text_of(self), given, how, out);                                                            \
    }
PAD_METHOD(string_ljust, '<')
PAD_METHOD(string_rjust, '>')
PAD_METHOD(string_center, 'c')

METHOD(string_zfill)
{
    const jinja_string *s = text_of(self);
    int64_t width;
    jinja_value digits;
    UNUSED;
    PST_TRY(whole_argument(run, given[0], 0, &width));
    bool has_sign = s->bytes > 0 && (s->text[0] == '+' || s->text[0] == '-');
    jinja_value rest;
    PST_TRY(pst_jinja_view(run, s->text + has_sign, s->bytes - has_sign, s->points - has_sign, &rest));
    if (width < INT64_MIN + 1)
        width = INT64_MIN + 1;
    PST_TRY(pst_jinja_pad(run, rest.as.string, width - has_sign, '>', "0", 1, &digits));
    const jinja_string sign = {s->text, has_sign, has_sign};
    return pst_jinja_join(run, &sign, digits.as.string, out);
}

/* ---- what it is made of ---- */

/* Whether the string is not empty and all its characters are such. */
static int consists(jinja_run *run, const jinja_string *s, bool (*is)(uint32_t), jinja_value *out)
{
    bool holds = s->bytes > 0;
    PST_TRY(pst_jinja_charge(run, s->bytes));
    for (size_t at = 0, width; at < s->bytes && holds; at += width)
        holds = is(pst_utf8_get(s->text + at, &width));
    *out = pst_jinja_bool(holds);
    return 0;
}

static bool is_alnum(uint32_t c)
{
    return pst_unicode_is_alpha(c) || pst_unicode_is_numeric(c);
}

static bool is_python_space(uint32_t c)
{
    return pst_unicode_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

static bool is_ascii(uint32_t c)
{
    return c < 0x80;
}

#define CLASS_METHOD(name, is)                                                                                         \
    METHOD(name)                                                                                                       \
    {                                                                                                                  \
        UNUSED;                                                                                                        \
        return consists(run, text_of(self), is, out);                                                                  \
    }
CLASS_METHOD(string_isalpha, pst_unicode_is_alpha)
CLASS_METHOD(string_isdecimal, pst_unicode_is_decimal)
CLASS_METHOD(string_isdigit, pst_unicode_is_digit)
CLASS_METHOD(string_isnumeric, pst_unicode_is_numeric)
CLASS_METHOD(string_isalnum, is_alnum)
CLASS_METHOD(string_isspace, is_python_space)

METHOD(string_isascii)
{
    UNUSED;
    PST_TRY(consists(run, text_of(self), is_ascii, out));
    out->as.truth |= text_of(self)->bytes == 0;
    return 0;
}

#define TEST_METHOD(name, test)                                                                                        \
    METHOD(name)                                                                                                       \
    {                                                                                                                  \
        UNUSED;                                                                                                        \
        return pst_jinja_call_builtin(run, pst_jinja_find_test(test, strlen(test)), self, all, out);                   \
    }
TEST_METHOD(string_isupper, "upper")
TEST_METHOD(string_islower, "lower")

static const jinja_builtin methods[] = {{"strip", "chars", string_strip},
                                        {"lstrip", "chars", string_lstrip},
                                        {"rstrip", "chars", string_rstrip},
                                        {"split", "sep,maxsplit", string_split},
                                        {"rsplit", "sep,maxsplit", string_rsplit},
                                        {"splitlines", "keepends", string_splitlines},
                                        {"partition", "!sep", string_partition},
                                        {"rpartition", "!sep", string_rpartition},
                                        {"startswith", "!prefix,start,end", string_startswith},
                                        {"endswith", "!suffix,start,end", string_endswith},
                                        {"upper", "", string_upper},
                                        {"lower", "", string_lower},
                                        {"casefold", "", string_lower},
                                        {"title", "", string_title},
                                        {"capitalize", "", string_capitalize},
                                        {"swapcase", "", string_swapcase},
                                        {"replace", "!old,!new,count", string_replace},
                                        {"find", "!sub,start,end", string_find},
                                        {"rfind", "!sub,start,end", string_rfind},
                                        {"index", "!sub,start,end", string_index},
                                        {"rindex", "!sub,start,end", string_rindex},
                                        {"count", "!sub,start,end", string_count},
                                        {"join", "!iterable", string_join},
                                        {"format", "*", string_format},
                                        {"removeprefix", "!prefix", string_removeprefix},
                                        {"removesuffix", "!suffix", string_removesuffix},
                                        {"ljust", "!width,fillchar", string_ljust},
                                        {"rjust", "!width,fillchar", string_rjust},
                                        {"center", "!width,fillchar", string_center},
                                        {"zfill", "!width", string_zfill},
                                        {"isalpha", "", string_isalpha},
                                        {"isdecimal", "", string_isdecimal},
                                        {"isdigit", "", string_isdigit},
                                        {"isnumeric", "", string_isnumeric},
                                        {"isalnum", "", string_isalnum},
                                        {"isspace", "", string_isspace},
                                        {"isascii", "", string_isascii},
                                        {"isupper", "", string_isupper},
                                        {"islower", "", string_islower}};

const jinja_builtin *pst_jinja_find_string_method(const char *name, size_t bytes)
{
    return pst_jinja_find(methods, sizeof methods / sizeof methods[0], name, bytes);
}
