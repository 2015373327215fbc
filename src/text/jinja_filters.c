/* SPDX-License-Identifier: Apache-2.0 */
/* Filters of texts, numbers and single values; those of lists are in jinja_filters_list.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja.h"
#include "text/unicode.h"

#define FILTER(name)                                                                                                   \
    static int name(jinja_run *run, jinja_value self, const jinja_value *given, const jinja_args *all, jinja_value *out)
#define UNUSED (void)given, (void)all

static bool is_given(jinja_value v)
{
    return v.kind != JINJA_MISSING;
}

static int whole_argument(jinja_run *run, jinja_value v, int64_t preset, int64_t *out)
{
    *out = preset;
    if (is_given(v) && !pst_jinja_whole(v, out))
        return pst_jinja_fail(run, "%s where a whole number belongs", pst_jinja_kind_name(v));
    return 0;
}

static int recased(jinja_run *run, jinja_case how, jinja_value self, jinja_value *out)
{
    const jinja_string *text;
    PST_TRY(pst_jinja_to_string(run, self, &text));
    return pst_jinja_recase(run, how, text, out);
}

FILTER(filter_upper)
{
    UNUSED;
    return recased(run, JINJA_UPPER, self, out);
}

FILTER(filter_lower)
{
    UNUSED;
    return recased(run, JINJA_LOWER, self, out);
}

FILTER(filter_capitalize)
{
    UNUSED;
    return recased(run, JINJA_CAPITALIZE, self, out);
}

/* Words begin after white space, '-' and opening brackets: the first letter upper, the others lower case. */
FILTER(filter_title)
{
    const jinja_string *text;
    jinja_buffer *buffer;
    UNUSED;
    PST_TRY(pst_jinja_to_string(run, self, &text));
    PST_TRY(pst_jinja_buffer(run, &buffer));
    for (size_t at = 0, width; at < text->bytes;) {
        size_t end = at;
        jinja_value first, rest;
        uint32_t c = pst_utf8_get(text->text + at, &width);
        bool separates = pst_unicode_is_space(c) || (c < 0x80 && c != 0 && strchr("-({[<\x1C\x1D\x1E\x1F", (int)c));
        if (separates) {
            PST_TRY(pst_jinja_write(run, buffer, text->text + at, width));
            at += width;
            continue;
        }
        while (end < text->bytes) {
            c = pst_utf8_get(text->text + end, &width);
            if (pst_unicode_is_space(c) || (c < 0x80 && c != 0 && strchr("-({[<\x1C\x1D\x1E\x1F", (int)c)))
                break;
            end += width;
        }
        width = pst_utf8_width((unsigned char)text->text[at]);
        PST_TRY(pst_jinja_view(run, text->text + at, width, 1, &first));
        PST_TRY(pst_jinja_view(run, text->text + at + width, end - at - width, SIZE_MAX, &rest));
        PST_TRY(pst_jinja_recase(run, JINJA_UPPER, first.as.string, &first));
        PST_TRY(pst_jinja_recase(run, JINJA_LOWER, rest.as.string, &rest));
        PST_TRY(pst_jinja_print(run, buffer, first));
        PST_TRY(pst_jinja_print(run, buffer, rest));
        at = end;
    }
    return pst_jinja_take(run, buffer, out);
}

FILTER(filter_trim)
{
    const jinja_string *text;
    UNUSED;
    PST_TRY(pst_jinja_to_string(run, self, &text));
    return pst_jinja_strip(run, text, given[0], true, true, out);
}

FILTER(filter_string)
{
    const jinja_string *text;
    UNUSED;
    PST_TRY(pst_jinja_to_string(run, self, &text));
    *out = (jinja_value){.kind = JINJA_STRING, .as.string = text};
    return 0;
}

FILTER(filter_replace)
{
    const jinja_string *text, *old, *new;
    int64_t most = -1;
    UNUSED;
    PST_TRY(pst_jinja_to_string(run, self, &text));
    PST_TRY(pst_jinja_to_string(run, given[0], &old));
    PST_TRY(pst_jinja_to_string(run, given[1], &new));
    if (given[2].kind != JINJA_NONE)
        PST_TRY(whole_argument(run, given[2], -1, &most));
    return pst_jinja_replace(run, text, old, new, most, out);
}

FILTER(filter_default)
{
    UNUSED;
    bool absent = self.kind == JINJA_UNDEFINED || (pst_jinja_truth(given[1]) && !pst_jinja_truth(self));
    if (!absent)
        *out = self;
    else if (is_given(given[0]))
        *out = given[0];
    else
        return pst_jinja_string(run, "", 0, out);
    return 0;
}

FILTER(filter_escape)
{
    static const char *const escapes[][2] = {
        {"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"'", "&#39;"}, {"\"", "&#34;"}};
    const jinja_string *text;
    UNUSED;
    PST_TRY(pst_jinja_to_string(run, self, &text));
    for (size_t i = 0; i < sizeof escapes / sizeof escapes[0]; i++) {
        const jinja_string from = {escapes[i][0], 1, 1},
                           to = {escapes[i][1], strlen(escapes[i][1]), strlen(escapes[i][1])};
        PST_TRY(pst_jinja_replace(run, text, &from, &to, -1, out));
        text = out->as.string;
    }
    return 0;
}

FILTER(filter_length)
{
    size_t length;
    UNUSED;
    PST_TRY(pst_jinja_length(run, self, &length));
    *out = pst_jinja_int((int64_t)length);
    return 0;
}

/* ---- numbers ---- */

/* A double cut to a whole number: 1, or 0 when it is none of 64 bits. */
static int cut(double number, jinja_value *out)
{
    if (!(number > -0x1p63 && number < 0x1p63))
        return 0;
    *out = pst_jinja_int((int64_t)number);
    return 1;
}

FILTER(filter_int)
{
    int64_t whole, base;
    double number;
    UNUSED;
    PST_TRY(whole_argument(run, given[1], 10, &base));
    PST_TRY(pst_jinja_charge(run, self.kind == JINJA_STRING ? self.as.string->bytes : 0));
    if (base < 2 || base > 36)
        return pst_jinja_fail(run, "a base that is not 2 to 36");
    if (self.kind == JINJA_UNDEFINED)
        return pst_jinja_fail(run, "int of an undefined value");
    if (self.kind == JINJA_STRING && pst_jinja_parse_int(self.as.string, (int)base, &whole))
        *out = pst_jinja_int(whole);
    else if (pst_jinja_whole(self, &whole))
        *out = pst_jinja_int(whole);
    else if (self.kind == JINJA_FLOAT && cut(self.as.real, out))
        return 0;
    else if (self.kind == JINJA_STRING && pst_jinja_parse_float(self.as.string, &number) && cut(number, out))
        return 0;
    else
        *out = is_given(given[0]) ? given[0] : pst_jinja_int(0);
    return 0;
}

FILTER(filter_float)
{
    double number;
    UNUSED;
    PST_TRY(pst_jinja_charge(run, self.kind == JINJA_STRING ? self.as.string->bytes : 0));
    if (self.kind == JINJA_UNDEFINED)
        return pst_jinja_fail(run, "float of an undefined value");
    if (pst_jinja_number(self, &number) ||
        (self.kind == JINJA_STRING && pst_jinja_parse_float(self.as.string, &number)))
        *out = pst_jinja_float(number);
    else
        *out = is_given(given[0]) ? given[0] : pst_jinja_float(0);
    return 0;
}

FILTER(filter_abs)
{
    int64_t whole;
    UNUSED;
    if (self.kind == JINJA_FLOAT) {
        *out = pst_jinja_float(fabs(self.as.real));
        return 0;
    }
    if (!pst_jinja_whole(self, &whole))
        return pst_jinja_fail(run, "%s has no absolute value", pst_jinja_kind_name(self));
    *out = pst_jinja_int(whole);
    return whole < 0 ? pst_jinja_negate(run, *out, out) : 0;
}

FILTER(filter_round)
{
    int64_t digits, whole;
    char text[400];
    double number;
    UNUSED;
    PST_TRY(whole_argument(run, given[0], 0, &digits));
    if (!pst_jinja_number(self, &number))
        return pst_jinja_fail(run, "%s cannot be rounded", pst_jinja_kind_name(self));
    if (digits < 0 || digits > 300)
        return pst_jinja_fail(run, "round takes 0 to 300 digits");
    if (!is_given(given[1]) || pst_jinja_is(given[1], "common")) {
        if (pst_jinja_whole(self, &whole)) {
            *out = pst_jinja_int(whole);
            return 0;
        }
        if (fabs(number) < 1e22) { /* beyond, all digits are before the point */
            snprintf(text, sizeof text, "%.*f", (int)digits, number);
            number = strtod(text, NULL);
        }
        *out = pst_jinja_float(number);
        return 0;
    }
    if (!pst_jinja_is(given[1], "ceil") && !pst_jinja_is(given[1], "floor"))
        return pst_jinja_fail(run, "round takes \"common\", \"ceil\" or \"floor\"");
    double scale = pow(10, (double)digits);
    number *= scale;
    *out = pst_jinja_float((pst_jinja_is(given[1], "ceil") ? ceil(number) : floor(number)) / scale);
    return 0;
}

/* ---- more of texts ---- */

FILTER(filter_indent)
{
    jinja_value pad;
    jinja_buffer *buffer;
    jinja_list *lines;
    int64_t width = 4;
    UNUSED;
    if (self.kind != JINJA_STRING)
        return pst_jinja_fail(run, "%s cannot be indented", pst_jinja_kind_name(self));
    if (given[0].kind == JINJA_STRING) {
        pad = given[0];
    } else {
        const jinja_string none = {"", 0, 0};
        PST_TRY(whole_argument(run, given[0], 4, &width));
        PST_TRY(pst_jinja_pad(run, &none, width, '<', " ", 1, &pad));
    }
    /* A newline is added first, so that a text which ends with one keeps it. */
    const jinja_string end = {"\n", 1, 1};
    PST_TRY(pst_jinja_join(run, self.as.string, &end, &self));
    PST_TRY(pst_jinja_split_lines(run, self.as.string, false, &lines));
    PST_TRY(pst_jinja_buffer(run, &buffer));
    for (size_t i = 0; i < lines->count; i++) {
        bool padded =
            i == 0 ? pst_jinja_truth(given[1]) : lines->items[i].as.string->bytes > 0 || pst_jinja_truth(given[2]);
        if (i > 0)
            PST_TRY(pst_jinja_write(run, buffer, "\n", 1));
        if (padded)
            PST_TRY(pst_jinja_print(run, buffer, pad));
        PST_TRY(pst_jinja_print(run, buffer, lines->items[i]));
    }
    return pst_jinja_take(run, buffer, out);
}

FILTER(filter_tojson)
{
    jinja_json_style style = {.ascii = pst_jinja_truth(given[0]), .sort = pst_jinja_truth(given[3])};
    jinja_buffer *buffer;
    jinja_value pad;
    int64_t width;
    UNUSED;
    if (is_given(given[1]) && given[1].kind != JINJA_NONE) {
        style.multiline = true;
        const jinja_string none = {"", 0, 0};
        if (given[1].kind == JINJA_STRING) {
            style.indent = given[1].as.string;
        } else {
            PST_TRY(whole_argument(run, given[1], 0, &width));
            PST_TRY(pst_jinja_pad(run, &none, width, '<', " ", 1, &pad));
            style.indent = pad.as.string;
        }
    }
    if (is_given(given[2]) && given[2].kind != JINJA_NONE) {
        jinja_list *pair;
        PST_TRY(pst_jinja_items(run, given[2], &pair));
        if (pair->count != 2 || pair->items[0].kind != JINJA_STRING || pair->items[1].kind != JINJA_STRING)
            return pst_jinja_fail(run, "separators are not a pair of strings");
        style.item_separator = pair->items[0].as.string;
        style.key_separator = pair->items[1].as.string;
    }
    PST_TRY(pst_jinja_buffer(run, &buffer));
    PST_TRY(pst_jinja_json(run, buffer, &style, self));
    return pst_jinja_take(run, buffer, out);
}

FILTER(filter_truncate)
{
    int64_t length, leeway;
    const jinja_string *text, *end;
    jinja_value ellipsis = given[2];
    UNUSED;
    size_t points;
    PST_TRY(pst_jinja_length(run, self, &points));
    PST_TRY(whole_argument(run, given[0], 255, &length));
    PST_TRY(whole_argument(run, given[3], 5, &leeway));
    if (!is_given(ellipsis))
        PST_TRY(pst_jinja_string(run, "...", 3, &ellipsis));
    PST_TRY(pst_jinja_to_string(run, ellipsis, &end));
    if (length < (int64_t)end->points || leeway < 0)
        return pst_jinja_fail(run, "truncate to less than its end has");
    if ((int64_t)points <= length || (int64_t)points - length <= leeway) {
        *out = self;
        return 0;
    }
    if (self.kind != JINJA_STRING)
        return pst_jinja_fail(run, "truncate of %s", pst_jinja_kind_name(self));
    text = self.as.string;
    PST_TRY(pst_jinja_charge(run, text->bytes));
    size_t bytes = pst_jinja_offset(text, (size_t)length - end->points), cut_at = bytes;
    while (!pst_jinja_truth(given[1]) && cut_at > 0 && text->text[cut_at - 1] != ' ')
        cut_at--;
    if (!pst_jinja_truth(given[1]) && cut_at > 0) /* back to the last blank; without one, within the word */
        bytes = cut_at - 1;
    jinja_value head;
    PST_TRY(pst_jinja_view(run, text->text, bytes, SIZE_MAX, &head));
    return pst_jinja_join(run, head.as.string, end, out);
}

FILTER(filter_center)
{
    int64_t width;
    const jinja_string *text;
    UNUSED;
    PST_TRY(pst_jinja_to_string(run, self, &text));
    PST_TRY(whole_argument(run, given[0], 80, &width));
    return pst_jinja_pad(run, text, width, 'c', " ", 1, out);
}

FILTER(filter_wordcount)
{
    const jinja_string *text;
    int64_t words = 0;
    bool in_word = false;
    UNUSED;
    PST_TRY(pst_jinja_to_string(run, self, &text));
    PST_TRY(pst_jinja_charge(run, text->bytes));
    for (size_t at = 0, width; at < text->bytes; at += width) {
        bool is_word = pst_unicode_is_word(pst_utf8_get(text->text + at, &width));
        words += is_word && !in_word;
        in_word = is_word;
    }
    *out = pst_jinja_int(words);
    return 0;
}

FILTER(filter_format)
{
    const jinja_string *text;
    jinja_list *values;
    UNUSED;
    PST_TRY(pst_jinja_to_string(run, self, &text));
    PST_TRY(pst_jinja_list(run, 0, &values));
    values->items = all->values;
    values->count = all->count;
    return pst_jinja_percent(run, text, pst_jinja_of_list(JINJA_TUPLE, values), all, out);
}

FILTER(filter_attr)
{
    const jinja_string *name;
    UNUSED;
    PST_TRY(pst_jinja_to_string(run, given[0], &name));
    /* Attributes alone: an item of a dict is none. */
    if (self.kind == JINJA_DICT && pst_jinja_find_method(JINJA_DICT, name->text, name->bytes) == NULL) {
        *out = (jinja_value){.kind = JINJA_UNDEFINED, .as.string = name};
        return 0;
    }
    return pst_jinja_attribute(run, self, name, out);
}

static const jinja_builtin filters[] = {{"upper", "", filter_upper},
                                        {"lower", "", filter_lower},
                                        {"capitalize", "", filter_capitalize},
                                        {"title", "", filter_title},
                                        {"trim", "chars", filter_trim},
                                        {"string", "", filter_string},
                                        {"safe", "", filter_string},
                                        {"replace", "!old,!new,count", filter_replace},
                                        {"default", "default_value,boolean", filter_default},
                                        {"d", "default_value,boolean", filter_default},
                                        {"escape", "", filter_escape},
                                        {"e", "", filter_escape},
                                        {"forceescape", "", filter_escape},
                                        {"length", "", filter_length},
                                        {"count", "", filter_length},
                                        {"int", "default,base", filter_int},
                                        {"float", "default", filter_float},
                                        {"abs", "", filter_abs},
                                        {"round", "precision,method", filter_round},
                                        {"indent", "width,first,blank", filter_indent},
                                        {"tojson", "ensure_ascii,indent,separators,sort_keys", filter_tojson},
                                        {"truncate", "length,killwords,end,leeway", filter_truncate},
                                        {"center", "width", filter_center},
                                        {"wordcount", "", filter_wordcount},
                                        {"format", "*", filter_format},
                                        {"attr", "!name", filter_attr}};

const jinja_builtin *pst_jinja_find_filter(const char *name, size_t bytes)
{
    const jinja_builtin *found = pst_jinja_find(filters, sizeof filters / sizeof filters[0], name, bytes);
    return found != NULL ? found : pst_jinja_find_list_filter(name, bytes);
}
