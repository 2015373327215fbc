/* SPDX-License-Identifier: Apache-2.0 */
/* Values as text: as Python prints them, as its repr() writes them, and as its json module does. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja.h"
#include "text/unicode.h"

/* ---- numbers ---- */

/* The shortest digits that give the same number again, as repr() has them. Text of the C locale whatever the process
 * has. */
void pst_jinja_print_float(double number, char out[32])
{
    char text[40];
    int exponent = 0, precision;
    if (isnan(number) || isinf(number)) {
        strcpy(out, isnan(number) ? "nan" : number < 0 ? "-inf" : "inf");
        return;
    }
    for (precision = 0; precision < 17; precision++) {
        snprintf(text, sizeof text, "%.*e", precision, number);
        if (strtod(text, NULL) == number)
            break;
    }
    char digits[24] = "", *to = out;
    int count = 0;
    for (const char *at = text; *at != 'e' && count < 17; at++) {
        if (*at >= '0' && *at <= '9')
            digits[count++] = *at;
    }
    exponent = atoi(strchr(text, 'e') + 1);
    while (count > 1 && digits[count - 1] == '0')
        digits[--count] = '\0';
    if (signbit(number))
        *to++ = '-';
    if (exponent < -4 || exponent >= 16) {
        *to++ = digits[0];
        if (count > 1)
            *to++ = '.';
        to = stpcpy(to, digits + 1);
        snprintf(to, 6, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent) % 1000);
        return;
    }
    if (exponent < 0)
        to = stpcpy(to, "0.");
    for (int i = exponent + 1; i < 0; i++)
        *to++ = '0';
    for (int i = 0; i < count || i <= exponent; i++) {
        if (i == exponent + 1 && exponent >= 0)
            *to++ = '.';
        *to++ = i < count ? digits[i] : '0';
    }
    strcpy(to, exponent >= 0 && count <= exponent + 1 ? ".0" : "");
}

/* ---- repr ---- */

static int repr_string(jinja_run *run, jinja_buffer *b, const jinja_string *s)
{
    bool single = s->bytes > 0 && memchr(s->text, '\'', s->bytes) != NULL;
    char quote = single && memchr(s->text, '"', s->bytes) == NULL ? '"' : '\'';
    PST_TRY(pst_jinja_write(run, b, &quote, 1));
    for (size_t at = 0, width; at < s->bytes; at += width) {
        uint32_t c = pst_utf8_get(s->text + at, &width);
        const char *escape = c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : c == '\\' ? "\\\\" : NULL;
        if (escape != NULL)
            PST_TRY(pst_jinja_write(run, b, escape, 2));
        else if (c == (unsigned char)quote)
            PST_TRY(pst_jinja_writef(run, b, "\\%c", quote));
        else if (pst_unicode_is_printable(c))
            PST_TRY(pst_jinja_write(run, b, s->text + at, width));
        else
            PST_TRY(pst_jinja_writef(run, b, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c));
    }
    return pst_jinja_write(run, b, &quote, 1);
}

static int repr_dict(jinja_run *run, jinja_buffer *b, const jinja_dict *dict)
{
    PST_TRY(pst_jinja_write(run, b, "{", 1));
    for (size_t i = 0; i < dict->count; i++) {
        if (i > 0)
            PST_TRY(pst_jinja_write(run, b, ", ", 2));
        PST_TRY(pst_jinja_repr(run, b, dict->entries[i].key));
        PST_TRY(pst_jinja_write(run, b, ": ", 2));
        PST_TRY(pst_jinja_repr(run, b, dict->entries[i].value));
    }
    return pst_jinja_write(run, b, "}", 1);
}

static int repr_list(jinja_run *run, jinja_buffer *b, jinja_value v)
{
    const jinja_list *list = v.as.list;
    const char *open = v.kind == JINJA_TUPLE    ? "("
                       : v.kind == JINJA_KEYS   ? "dict_keys(["
                       : v.kind == JINJA_VALUES ? "dict_values(["
                       : v.kind == JINJA_ITEMS  ? "dict_items(["
                                                : "[";
    const char *close = v.kind == JINJA_TUPLE ? (list->count == 1 ? ",)" : ")") : v.kind == JINJA_LIST ? "]" : "])";
    if (v.kind == JINJA_ITERATOR)
        return pst_jinja_fail(run, "an iterator is printed; a list is meant, perhaps");
    if (v.kind == JINJA_RANGE) {
        int64_t first = list->count > 0 ? list->items[0].as.whole : 0;
        int64_t step = list->count > 1 ? list->items[1].as.whole - first : 1;
        if (step != 1 || list->count == 0)
            return pst_jinja_fail(run, "a range is printed; a list is meant, perhaps");
        return pst_jinja_writef(run, b, "range(%lld, %lld)", (long long)first,
                                (long long)(first + (int64_t)list->count));
    }
    PST_TRY(pst_jinja_write(run, b, open, strlen(open)));
    for (size_t i = 0; i < list->count; i++) {
        if (i > 0)
            PST_TRY(pst_jinja_write(run, b, ", ", 2));
        PST_TRY(pst_jinja_repr(run, b, list->items[i]));
    }
    return pst_jinja_write(run, b, close, strlen(close));
}

int pst_jinja_repr(jinja_run *run, jinja_buffer *b, jinja_value v)
{
    if (v.kind == JINJA_STRING)
        return repr_string(run, b, v.as.string);
    if (v.kind == JINJA_UNDEFINED)
        return pst_jinja_write(run, b, "Undefined", 9);
    return pst_jinja_print(run, b, v);
}

static int print_deep(jinja_run *run, jinja_buffer *b, jinja_value v)
{
    if (pst_jinja_has_list(v))
        return repr_list(run, b, v);
    if (v.kind == JINJA_DICT)
        return repr_dict(run, b, v.as.dict);
    PST_TRY(pst_jinja_write(run, b, "<Namespace ", 11));
    PST_TRY(repr_dict(run, b, v.as.dict));
    return pst_jinja_write(run, b, ">", 1);
}

int pst_jinja_print(jinja_run *run, jinja_buffer *b, jinja_value v)
{
    char text[32];
    switch (v.kind) {
    case JINJA_MISSING:
    case JINJA_UNDEFINED: return 0;
    case JINJA_NONE: return pst_jinja_write(run, b, "None", 4);
    case JINJA_BOOL: return pst_jinja_writef(run, b, v.as.truth ? "True" : "False");
    case JINJA_INT: return pst_jinja_writef(run, b, "%lld", (long long)v.as.whole);
    case JINJA_FLOAT: pst_jinja_print_float(v.as.real, text); return pst_jinja_write(run, b, text, strlen(text));
    case JINJA_STRING: return pst_jinja_write(run, b, v.as.string->text, v.as.string->bytes);
    case JINJA_LOOP:
    case JINJA_MACRO:
    case JINJA_METHOD:
    case JINJA_FUNCTION: return pst_jinja_fail(run, "%s is no text", pst_jinja_kind_name(v));
    default: break;
    }
    PST_TRY(pst_jinja_deeper(run));
    PST_TRY(print_deep(run, b, v));
    run->depth--;
    return 0;
}

int pst_jinja_to_string(jinja_run *run, jinja_value v, const jinja_string **out)
{
    jinja_value made = v;
    if (v.kind != JINJA_STRING) {
        jinja_buffer *buffer;
        PST_TRY(pst_jinja_buffer(run, &buffer));
        PST_TRY(pst_jinja_print(run, buffer, v));
        PST_TRY(pst_jinja_take(run, buffer, &made));
    }
    *out = made.as.string;
    return 0;
}

/* ---- JSON ---- */

static int json_escape(jinja_run *run, jinja_buffer *b, uint32_t c)
{
    static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
    const char *simple = c < 0x80 && c != 0 ? strchr(from, (int)c) : NULL;
    if (simple != NULL)
        return pst_jinja_writef(run, b, "\\%c", to[simple - from]);
    if (c < 0x10000)
        return pst_jinja_writef(run, b, "\\u%04x", c);
    c -= 0x10000;
    return pst_jinja_writef(run, b, "\\u%04x\\u%04x", 0xD800 + (c >> 10), 0xDC00 + (c & 0x3FF));
}

static int json_string(jinja_run *run, jinja_buffer *b, const jinja_json_style *style, const jinja_string *s)
{
    size_t plain = 0; /* where what needs no escape began */
    PST_TRY(pst_jinja_write(run, b, "\"", 1));
    for (size_t at = 0, width; at < s->bytes; at += width) {
        uint32_t c = pst_utf8_get(s->text + at, &width);
        if (c >= 0x20 && c != '"' && c != '\\' && (c < 0x7F || !style->ascii || c == 0x7F))
            continue;
        PST_TRY(pst_jinja_write(run, b, s->text + plain, at - plain));
        PST_TRY(json_escape(run, b, c));
        plain = at + width;
    }
    PST_TRY(pst_jinja_write(run, b, s->text + plain, s->bytes - plain));
    return pst_jinja_write(run, b, "\"", 1);
}

typedef struct json_writer {
    jinja_run *run;
    jinja_buffer *buffer;
    const jinja_json_style *style;
    size_t level;
} json_writer;

static int write_value(json_writer *w, jinja_value v);

static int new_line(json_writer *w)
{
    const jinja_string *indent = w->style->indent;
    if (!w->style->multiline)
        return 0;
    PST_TRY(pst_jinja_write(w->run, w->buffer, "\n", 1));
    for (size_t i = 0; i < w->level && indent != NULL; i++)
        PST_TRY(pst_jinja_write(w->run, w->buffer, indent->text, indent->bytes));
    return 0;
}

static int separate(json_writer *w, size_t item)
{
    const jinja_string *separator = w->style->item_separator;
    if (item > 0 && separator != NULL)
        PST_TRY(pst_jinja_write(w->run, w->buffer, separator->text, separator->bytes));
    else if (item > 0)
        PST_TRY(pst_jinja_write(w->run, w->buffer, ", ", w->style->multiline ? 1 : 2));
    return new_line(w);
}

static int write_list(json_writer *w, const jinja_list *list)
{
    if (list->count == 0)
        return pst_jinja_write(w->run, w->buffer, "[]", 2);
    PST_TRY(pst_jinja_write(w->run, w->buffer, "[", 1));
    w->level++;
    for (size_t i = 0; i < list->count; i++) {
        PST_TRY(separate(w, i));
        PST_TRY(write_value(w, list->items[i]));
    }
    w->level--;
    PST_TRY(new_line(w));
    return pst_jinja_write(w->run, w->buffer, "]", 1);
}

/* Keys that are no strings are written as strings. */
static int write_key(json_writer *w, jinja_value key)
{
    if (key.kind == JINJA_STRING)
        return json_string(w->run, w->buffer, w->style, key.as.string);
    if (key.kind == JINJA_TUPLE)
        return pst_jinja_fail(w->run, "a tuple cannot be a key in JSON");
    PST_TRY(pst_jinja_write(w->run, w->buffer, "\"", 1));
    PST_TRY(write_value(w, key));
    return pst_jinja_write(w->run, w->buffer, "\"", 1);
}

static int sort_entries(json_writer *w, const jinja_dict *dict, jinja_entry **out);

static int write_dict(json_writer *w, const jinja_dict *dict)
{
    const jinja_string *separator = w->style->key_separator;
    jinja_entry *entries = dict->entries;
    if (dict->count == 0)
        return pst_jinja_write(w->run, w->buffer, "{}", 2);
    if (w->style->sort)
        PST_TRY(sort_entries(w, dict, &entries));
    PST_TRY(pst_jinja_write(w->run, w->buffer, "{", 1));
    w->level++;
    for (size_t i = 0; i < dict->count; i++) {
        PST_TRY(separate(w, i));
        PST_TRY(write_key(w, entries[i].key));
        if (separator != NULL)
            PST_TRY(pst_jinja_write(w->run, w->buffer, separator->text, separator->bytes));
        else
            PST_TRY(pst_jinja_write(w->run, w->buffer, ": ", 2));
        PST_TRY(write_value(w, entries[i].value));
    }
    w->level--;
    PST_TRY(new_line(w));
    return pst_jinja_write(w->run, w->buffer, "}", 1);
}

static int write_float(json_writer *w, double number)
{
    char text[32];
    if (isnan(number) || isinf(number))
        return pst_jinja_writef(w->run, w->buffer, isnan(number) ? "NaN" : number < 0 ? "-Infinity" : "Infinity");
    pst_jinja_print_float(number, text);
    return pst_jinja_write(w->run, w->buffer, text, strlen(text));
}

static int write_deep(json_writer *w, jinja_value v)
{
    if (v.kind == JINJA_LIST || v.kind == JINJA_TUPLE)
        return write_list(w, v.as.list);
    if (v.kind == JINJA_DICT)
        return write_dict(w, v.as.dict);
    return pst_jinja_fail(w->run, "%s cannot be written as JSON", pst_jinja_kind_name(v));
}

static int write_value(json_writer *w, jinja_value v)
{
    switch (v.kind) {
    case JINJA_NONE: return pst_jinja_write(w->run, w->buffer, "null", 4);
    case JINJA_BOOL: return pst_jinja_writef(w->run, w->buffer, v.as.truth ? "true" : "false");
    case JINJA_INT: return pst_jinja_writef(w->run, w->buffer, "%lld", (long long)v.as.whole);
    case JINJA_FLOAT: return write_float(w, v.as.real);
    case JINJA_STRING: return json_string(w->run, w->buffer, w->style, v.as.string);
    default: break;
    }
    PST_TRY(pst_jinja_deeper(w->run));
    PST_TRY(write_deep(w, v));
    w->run->depth--;
    return 0;
}

/* By key, stably: merging runs of doubled length. */
static int sort_entries(json_writer *w, const jinja_dict *dict, jinja_entry **out)
{
    jinja_entry *from = pst_jinja_alloc(&w->run->values, 2 * dict->count * sizeof *from, 16, w->run->err), *to;
    if (from == NULL)
        return pst_jinja_no_memory(w->run);
    memcpy(from, dict->entries, dict->count * sizeof *from);
    to = from + dict->count;
    for (size_t run = 1; run < dict->count; run *= 2) {
        for (size_t start = 0; start < dict->count; start += 2 * run) {
            size_t middle = start + run < dict->count ? start + run : dict->count;
            size_t end = middle + run < dict->count ? middle + run : dict->count;
            for (size_t a = start, b = middle, k = start; k < end; k++) {
                int order = 0;
                if (a < middle && b < end)
                    PST_TRY(pst_jinja_order(w->run, from[a].key, from[b].key, &order));
                to[k] = b == end || (a < middle && order <= 0) ? from[a++] : from[b++];
            }
        }
        jinja_entry *swap = from;
        from = to;
        to = swap;
    }
    *out = from;
    return 0;
}

int pst_jinja_json(jinja_run *run, jinja_buffer *buffer, const jinja_json_style *style, jinja_value v)
{
    json_writer writer = {.run = run, .buffer = buffer, .style = style};
    return write_value(&writer, v);
}
