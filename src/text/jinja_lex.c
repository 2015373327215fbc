/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Template source to tokens, with what Jinja does about white space: "-" inside a tag takes all of it on that side; a
 * newline after a statement or comment goes (trim_blocks); blanks between a line's beginning and a statement or
 * comment go (lstrip_blocks); "+" inside a tag keeps them.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja_syntax.h"
#include "text/unicode.h"

typedef struct lexer {
    const char *path, *text;
    size_t bytes, at;
    unsigned line;
    size_t counted;   /* up to where lines are counted */
    bool line_begins; /* what was read last ended with a newline */
    jinja_arena *arena;
    jinja_tokens *out;
    pst_error *err;
} lexer;

static unsigned line_at(lexer *x, size_t at)
{
    for (; x->counted < at; x->counted++)
        x->line += x->text[x->counted] == '\n';
    return x->line;
}

static int fail(lexer *x, const char *what)
{
    return pst_fail(x->err, PST_E_FORMAT, x->path, "line %u of the chat template: %s", line_at(x, x->at), what);
}

static int add(lexer *x, jinja_token_kind kind, size_t start, size_t end, jinja_token **out)
{
    PST_TRY(pst_array_grow(&x->out->data, &x->out->capacity, x->out->count + 1, sizeof *x->out->data, x->err));
    jinja_token *token = &x->out->data[x->out->count++];
    *token = (jinja_token){.kind = kind, .line = line_at(x, start), .text = x->text + start, .bytes = end - start};
    if (out != NULL)
        *out = token;
    return 0;
}

static bool here(const lexer *x, size_t at, const char *what)
{
    size_t length = strlen(what);
    return x->bytes - at >= length && memcmp(x->text + at, what, length) == 0;
}

/* The width of the white space at `at`; 0: none. */
static size_t space(const lexer *x, size_t at)
{
    if (at >= x->bytes)
        return 0;
    size_t width;
    uint32_t c = pst_utf8_get(x->text + at, &width);
    return pst_unicode_is_space(c) || (c >= 0x1C && c <= 0x1F) ? width : 0;
}

static size_t skip_space(const lexer *x, size_t at)
{
    size_t width;
    while ((width = space(x, at)) > 0)
        at += width;
    return at;
}

/* The end of [start, end) without the white space at its end. */
static size_t strip_end(const lexer *x, size_t start, size_t end)
{
    while (end > start) {
        size_t before = end - 1;
        while (before > start && ((unsigned char)x->text[before] & 0xC0) == 0x80)
            before--;
        if (space(x, before) == 0)
            break;
        end = before;
    }
    return end;
}

/* Text up to a tag, whose sign and kind decide about the white space before it. */
static int add_text(lexer *x, size_t start, size_t end, char sign, bool is_output)
{
    if (sign == '-') {
        end = strip_end(x, start, end);
    } else if (sign != '+' && !is_output) {
        size_t line = end;
        while (line > start && x->text[line - 1] != '\n')
            line--;
        if ((line > start || x->line_begins) && strip_end(x, line, end) == line)
            end = line;
    }
    return end > start ? add(x, TOKEN_TEXT, start, end, NULL) : 0;
}

/* Reads the end of a tag at x->at, if it is there: "-" takes white space, a newline goes unless there is a "+". */
static bool take_end(lexer *x, const char *end, bool trims)
{
    size_t at = x->at;
    char sign = x->text[at];
    bool has_sign = sign == '-' || (sign == '+' && trims);
    if (!here(x, at + has_sign, end))
        return false;
    size_t after = at + has_sign + 2;
    if (has_sign && sign == '-')
        after = skip_space(x, after);
    else if (!has_sign && trims && after < x->bytes && x->text[after] == '\n')
        after++;
    x->at = after;
    x->line_begins = x->text[after - 1] == '\n';
    return true;
}

static int skip_comment(lexer *x)
{
    for (; x->at < x->bytes; x->at++) {
        if (take_end(x, "#}", true))
            return 0;
    }
    return fail(x, "a comment without its end #}");
}

static bool is_name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           (unsigned char)c >= 0x80;
}

/* At a word, after white space: where it ends; 0 when another stands there. */
static size_t word(const lexer *x, size_t at, const char *what)
{
    at = skip_space(x, at);
    size_t end = at + strlen(what);
    return at < x->bytes && here(x, at, what) && (end >= x->bytes || !is_name_byte(x->text[end])) ? end : 0;
}

/* After "{%" and its sign: whether it is {% raw %}; then its text is taken, up to {% endraw %}. */
static int take_raw(lexer *x, bool *is_raw)
{
    size_t at = word(x, x->at, "raw");
    *is_raw = false;
    if (at == 0)
        return 0;
    at = skip_space(x, at);
    if (here(x, at, "-%}"))
        at = skip_space(x, at + 3);
    else if (here(x, at, "%}"))
        at += 2;
    else
        return 0;
    *is_raw = true;
    x->line_begins = x->text[at - 1] == '\n';
    for (size_t end = at; end < x->bytes; end++) {
        if (!here(x, end, "{%"))
            continue;
        char sign = end + 2 < x->bytes && strchr("+-", x->text[end + 2]) ? x->text[end + 2] : 0;
        size_t after = word(x, end + 2 + (sign != 0), "endraw");
        if (after == 0)
            continue;
        x->at = skip_space(x, after);
        if (x->at >= x->bytes || !take_end(x, "%}", true))
            continue;
        return add_text(x, at, end, sign, false);
    }
    return fail(x, "{% raw %} without its end {% endraw %}");
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

/* The code point of `digits` hexadecimal digits, or -1. */
static int64_t escaped_point(const lexer *x, size_t at, size_t digits, size_t end)
{
    int64_t point = 0;
    if (end - at < digits)
        return -1;
    for (size_t i = 0; i < digits; i++) {
        if (hex(x->text[at + i]) < 0)
            return -1;
        point = point * 16 + hex(x->text[at + i]);
    }
    return point > 0x10FFFF || (point >= 0xD800 && point < 0xE000) ? -1 : point;
}

/* Decodes the escape after the backslash at *at; appends to out. */
static int unescape(lexer *x, size_t *at, size_t end, char **out)
{
    static const char names[] = "abfnrtv\\'\"", values[] = "\a\b\f\n\r\t\v\\'\"";
    char c = x->text[++*at];
    const char *simple = strchr(names, c);
    if (c != 0 && simple != NULL) {
        *(*out)++ = values[simple - names];
        ++*at;
        return 0;
    }
    size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits > 0) {
        int64_t point = escaped_point(x, *at + 1, digits, end);
        if (point < 0)
            return fail(x, "a text with an escape that is no character");
        *out += pst_utf8_put((uint32_t)point, *out);
        *at += 1 + digits;
    } else if (c >= '0' && c <= '7') {
        unsigned point = 0;
        for (int i = 0; i < 3 && *at < end && x->text[*at] >= '0' && x->text[*at] <= '7'; i++)
            point = point * 8 + (unsigned)(x->text[(*at)++] - '0');
        *out += pst_utf8_put(point, *out);
    } else if (c == '\n') {
        ++*at;
    } else if (c == 'N') {
        return fail(x, "characters by their names (\\N) are not supported");
    } else {
        *(*out)++ = '\\'; /* as it stands */
    }
    return 0;
}

static int take_string(lexer *x)
{
    char quote = x->text[x->at];
    size_t start = x->at + 1, end = start;
    while (end < x->bytes && x->text[end] != quote)
        end += x->text[end] == '\\' ? 2 : 1;
    if (end >= x->bytes)
        return fail(x, "a text without its end");
    char *text = pst_jinja_alloc(x->arena, end - start + 1, 1, x->err), *to = text;
    jinja_string *string = pst_jinja_alloc(x->arena, sizeof *string, _Alignof(jinja_string), x->err);
    if (text == NULL || string == NULL)
        return -ENOMEM;
    for (size_t at = start; at < end;) {
        if (x->text[at] == '\\')
            PST_TRY(unescape(x, &at, end, &to));
        else
            *to++ = x->text[at++];
    }
    *string = (jinja_string){.text = text, .bytes = (size_t)(to - text)};
    for (size_t i = 0; i < string->bytes; i++)
        string->points += ((unsigned char)text[i] & 0xC0) != 0x80;
    jinja_token *token;
    PST_TRY(add(x, TOKEN_STRING, x->at, end + 1, &token));
    token->value = (jinja_value){.kind = JINJA_STRING, .as.string = string};
    x->at = end + 1;
    return 0;
}

/* The end of digits with single '_' between them. */
static size_t digits_end(const lexer *x, size_t at)
{
    while (at < x->bytes &&
           ((x->text[at] >= '0' && x->text[at] <= '9') ||
            (x->text[at] == '_' && at + 1 < x->bytes && x->text[at + 1] >= '0' && x->text[at + 1] <= '9')))
        at++;
    return at;
}

static int take_number(lexer *x)
{
    size_t start = x->at, end = digits_end(x, start);
    bool is_real = false;
    if (!(start > 0 && x->text[start - 1] == '.')) {
        size_t after = end;
        if (after + 1 < x->bytes && x->text[after] == '.' && digits_end(x, after + 1) > after + 1 &&
            x->text[after + 1] != '_')
            after = digits_end(x, after + 1);
        size_t exponent = after;
        if (exponent < x->bytes && (x->text[exponent] | 32) == 'e') {
            exponent++;
            exponent += exponent < x->bytes && (x->text[exponent] == '+' || x->text[exponent] == '-');
            if (exponent < x->bytes && x->text[exponent] != '_' && digits_end(x, exponent) > exponent)
                after = digits_end(x, exponent);
        }
        is_real = after > end;
        end = after;
    }
    int base = 10;
    if (!is_real && x->text[start] == '0' && end == start + 1 && end < x->bytes) {
        char kind = (char)(x->text[end] | 32);
        base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
        for (end += base != 10; base != 10 && end < x->bytes && (hex(x->text[end]) >= 0 || x->text[end] == '_');)
            end++;
    }
    jinja_token *token;
    PST_TRY(add(x, TOKEN_NUMBER, start, end, &token));
    jinja_string text = {.text = x->text + start, .bytes = end - start, .points = end - start};
    token->value.kind = is_real ? JINJA_FLOAT : JINJA_INT;
    if (is_real ? !pst_jinja_parse_float(&text, &token->value.as.real)
                : !pst_jinja_parse_int(&text, base, &token->value.as.whole))
        return fail(x, "a number that is none, or too large");
    x->at = end;
    return 0;
}

static int take_operator(lexer *x, char *open, size_t *depth)
{
    static const struct {
        const char *text;
        int op;
    } two[] = {{"//", OP_FLOOR},   {"**", OP_POWER},    {"==", OP_EQUAL},
               {"!=", OP_UNEQUAL}, {">=", OP_AT_LEAST}, {"<=", OP_AT_MOST}};
    jinja_token *token;
    char c = x->text[x->at];
    for (size_t i = 0; i < sizeof two / sizeof two[0]; i++) {
        if (here(x, x->at, two[i].text)) {
            PST_TRY(add(x, TOKEN_OPERATOR, x->at, x->at + 2, &token));
            token->op = two[i].op;
            x->at += 2;
            return 0;
        }
    }
    if (c == 0 || strchr("+-/*%~[](){}><=.:|,;", c) == NULL)
        return fail(x, "an unexpected character in a tag");
    if (strchr("([{", c) != NULL) {
        if (*depth == JINJA_PARSE_DEPTH)
            return fail(x, "too many brackets within each other");
        open[(*depth)++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (strchr(")]}", c) != NULL) {
        if (*depth == 0 || open[--*depth] != c)
            return fail(x, "a bracket that closes what was not opened");
    }
    PST_TRY(add(x, TOKEN_OPERATOR, x->at, x->at + 1, &token));
    token->op = c;
    x->at++;
    return 0;
}

static int take_token(lexer *x, char *open, size_t *depth)
{
    char c = x->text[x->at];
    if (c == '"' || c == '\'')
        return take_string(x);
    if (c >= '0' && c <= '9')
        return take_number(x);
    if (!is_name_byte(c))
        return take_operator(x, open, depth);
    size_t end = x->at;
    while (end < x->bytes && is_name_byte(x->text[end]))
        end++;
    PST_TRY(add(x, TOKEN_NAME, x->at, end, NULL));
    x->at = end;
    return 0;
}

/* What is between the beginning and the end of a statement or an output. */
static int take_tag(lexer *x, bool is_output)
{
    char open[JINJA_PARSE_DEPTH];
    size_t depth = 0;
    const unsigned line = line_at(x, x->at);
    PST_TRY(add(x, is_output ? TOKEN_OUTPUT_BEGIN : TOKEN_BLOCK_BEGIN, x->at, x->at, NULL));
    for (;;) {
        x->at = skip_space(x, x->at);
        if (x->at >= x->bytes) {
            x->line = line;
            x->counted = x->at;
            return fail(x, is_output ? "{{ without its end }}" : "{% without its end %}");
        }
        size_t end = x->at;
        if (depth == 0 && take_end(x, is_output ? "}}" : "%}", !is_output))
            return add(x, is_output ? TOKEN_OUTPUT_END : TOKEN_BLOCK_END, end, end, NULL);
        PST_TRY(take_token(x, open, &depth));
    }
}

/* From a tag's beginning to its end; the text before it began at `start`. */
static int take_one(lexer *x, size_t start)
{
    char kind = x->text[x->at + 1];
    size_t begin = x->at;
    x->at += 2;
    char sign = x->at < x->bytes && (x->text[x->at] == '-' || x->text[x->at] == '+') ? x->text[x->at] : 0;
    x->at += sign != 0;
    PST_TRY(add_text(x, start, begin, sign, kind == '{'));
    if (kind == '#')
        return skip_comment(x);
    bool is_raw = false;
    if (kind == '%')
        PST_TRY(take_raw(x, &is_raw));
    return is_raw ? 0 : take_tag(x, kind == '{');
}

int pst_jinja_lex(const char *path, const char *source, size_t bytes, jinja_arena *arena, jinja_tokens *out,
                  pst_error *err)
{
    lexer x = {.path = path,
               .text = source,
               .bytes = bytes,
               .line = 1,
               .line_begins = true,
               .arena = arena,
               .out = out,
               .err = err};
    size_t start = 0;
    while (x.at + 1 < bytes) {
        if (source[x.at] != '{' || strchr("{%#", source[x.at + 1]) == NULL || source[x.at + 1] == 0) {
            x.at++;
            continue;
        }
        PST_TRY(take_one(&x, start));
        start = x.at;
    }
    x.at = bytes;
    if (bytes > start)
        PST_TRY(add(&x, TOKEN_TEXT, start, bytes, NULL));
    return add(&x, TOKEN_END, bytes, bytes, NULL);
}
