/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From Oniguruma's Ruby syntax to PCRE2's, by recursive descent. Written out anew are:
 *   white space and \w   as explicit sets: PCRE2 counts U+180E as space, and has another notion of a word;
 *   \p{..}               with the characters that PCRE2's older Unicode lacks;
 *   {n,m}+               which is a repeated interval in Ruby, but possessive in PCRE2;
 *   {,m}                 which PCRE2 takes literally.
 * Anything not listed here is refused.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/regex.h"
#include "text/unicode.h"
#include "text/unicode_tables.h"

enum { MAX_PATTERN_BYTES = 16384, MAX_DEPTH = 100, MAX_REPEAT = 65535 };

/* \s and its complement: White_Space. */
static const char space_set[] =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";
static const char not_space_set[] =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";
/* What Oniguruma counts as \w beyond letters, marks, digits and connectors: the symbols that Unicode calls alphabetic,
 * and outside of a [set] also the superscripts and fractions of Latin-1. */
static const char word_symbols[] = "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";
static const char word_latin1[] = "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";

typedef struct translator {
    const char *pattern;
    size_t bytes, at;
    bool caseless;
    int depth;
    char previous_literal; /* in a caseless part: to see sequences that fold to one character */
    pst_bytes *out;
    const char *path;
    pst_error *err;
} translator;

static int refuse(translator *t, const char *what)
{
    char quoted[PST_QUOTE_BYTES];
    return pst_fail(t->err, PST_E_UNSUPPORTED, t->path, "the pattern \"%s\" uses %s (at its byte %zu)",
                    pst_text_quote(t->pattern, t->bytes, quoted), what, t->at);
}

static int put(translator *t, const char *text)
{
    return pst_bytes_append(t->out, text, strlen(text), t->err);
}

static int put_code_point(translator *t, pst_bytes *out, uint32_t code_point)
{
    char text[16];
    bool plain = (code_point >= '0' && code_point <= '9') || (code_point >= 'a' && code_point <= 'z') ||
                 (code_point >= 'A' && code_point <= 'Z');
    int length = snprintf(text, sizeof text, plain ? "%c" : "\\x{%x}", code_point);
    return pst_bytes_append(out, text, (size_t)length, t->err);
}

static int peek(const translator *t, size_t ahead)
{
    return t->at + ahead < t->bytes ? (unsigned char)t->pattern[t->at + ahead] : -1;
}

static bool starts_with(const translator *t, const char *text)
{
    size_t length = strlen(text);
    return t->bytes - t->at >= length && memcmp(t->pattern + t->at, text, length) == 0;
}

/* The general categories that may be named, by their short and long names. Not C, of which unassigned is a part. */
static const char *const categories[][2] = {
    {"L", "Letter"},
    {"Lu", "Uppercase_Letter"},
    {"Ll", "Lowercase_Letter"},
    {"Lt", "Titlecase_Letter"},
    {"Lm", "Modifier_Letter"},
    {"Lo", "Other_Letter"},
    {"M", "Mark"},
    {"Mn", "Nonspacing_Mark"},
    {"Mc", "Spacing_Mark"},
    {"Me", "Enclosing_Mark"},
    {"N", "Number"},
    {"Nd", "Decimal_Number"},
    {"Nl", "Letter_Number"},
    {"No", "Other_Number"},
    {"P", "Punctuation"},
    {"Pc", "Connector_Punctuation"},
    {"Pd", "Dash_Punctuation"},
    {"Ps", "Open_Punctuation"},
    {"Pe", "Close_Punctuation"},
    {"Pi", "Initial_Punctuation"},
    {"Pf", "Final_Punctuation"},
    {"Po", "Other_Punctuation"},
    {"S", "Symbol"},
    {"Sm", "Math_Symbol"},
    {"Sc", "Currency_Symbol"},
    {"Sk", "Modifier_Symbol"},
    {"So", "Other_Symbol"},
    {"Z", "Separator"},
    {"Zs", "Space_Separator"},
    {"Zl", "Line_Separator"},
    {"Zp", "Paragraph_Separator"},
    {"Cc", "Control"},
    {"Cf", "Format"},
};

/* Scripts, with what Unicode 15 and 16 added to them. PCRE2 must be told to mean the script, not its extensions. */
static const char *const scripts[][2] = {
    {"Han", "\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"},
    {"Hiragana", "\\x{1b132}"},
    {"Katakana", "\\x{1b155}"},
    {"Hangul", ""},
    {"Hebrew", ""},
    {"Thai", ""},
};

/* Appends a category (one or two letters) as set members. */
static int put_category(translator *t, pst_bytes *out, const char *category)
{
    char text[40];
    int length = snprintf(text, sizeof text, "\\p{%s}", category);
    PST_TRY(pst_bytes_append(out, text, (size_t)length, t->err));
    for (size_t i = 0; i < pst_unicode_added_count; i++) {
        const pst_unicode_range *range = &pst_unicode_added[i];
        if (strncmp(range->category, category, strlen(category)) != 0)
            continue;
        length = snprintf(text, sizeof text, "\\x{%x}-\\x{%x}", range->first, range->last);
        PST_TRY(pst_bytes_append(out, text, (size_t)length, t->err));
    }
    return 0;
}

static int put_word(translator *t, bool in_set, pst_bytes *out)
{
    static const char *const parts[] = {"L", "M", "Nd", "Nl", "Pc"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        PST_TRY(put_category(t, out, parts[i]));
    if (!in_set)
        PST_TRY(pst_bytes_append(out, word_latin1, strlen(word_latin1), t->err));
    return pst_bytes_append(out, word_symbols, strlen(word_symbols), t->err);
}

/* Reads {name} after \p or \P and appends its members; *negated is flipped by a leading ^. */
static int parse_property(translator *t, pst_bytes *out, bool *negated)
{
    char name[40];
    const char *open = t->pattern + t->at;
    const char *close = peek(t, 0) == '{' ? memchr(open, '}', t->bytes - t->at) : NULL;
    if (close == NULL || (size_t)(close - open) > sizeof name)
        return refuse(t, "a property without {name}");
    size_t skip = open[1] == '^' ? 2 : 1;
    *negated ^= skip == 2;
    snprintf(name, sizeof name, "%.*s", (int)(close - open - (ptrdiff_t)skip), open + skip);
    for (size_t i = 0; i < sizeof categories / sizeof categories[0]; i++) {
        if (strcmp(name, categories[i][0]) != 0 && strcmp(name, categories[i][1]) != 0)
            continue;
        const char *category = categories[i][0];
        if (t->caseless && (strcmp(category, "Lu") == 0 || strcmp(category, "Ll") == 0 || strcmp(category, "Lt") == 0))
            return refuse(t, "a case property where case is ignored");
        t->at = (size_t)(close + 1 - t->pattern);
        return put_category(t, out, category);
    }
    for (size_t i = 0; i < sizeof scripts / sizeof scripts[0]; i++) {
        if (strcmp(name, scripts[i][0]) != 0)
            continue;
        char text[48];
        int length = snprintf(text, sizeof text, "\\p{sc:%s}", name);
        PST_TRY(pst_bytes_append(out, text, (size_t)length, t->err));
        t->at = (size_t)(close + 1 - t->pattern);
        return pst_bytes_append(out, scripts[i][1], strlen(scripts[i][1]), t->err);
    }
    return refuse(t, "a property that is not supported");
}

/* Up to `most` hexadecimal digits at t->at; at least one. */
static int parse_hex(translator *t, int least, int most, uint32_t *out)
{
    uint32_t value = 0;
    int digits = 0;
    for (; digits < most; digits++, t->at++) {
        int c = peek(t, 0);
        if (c >= '0' && c <= '9')
            value = value * 16 + (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            value = value * 16 + (uint32_t)((c | 32) - 'a' + 10);
        else
            break;
    }
    if (digits < least || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
        return refuse(t, "an escape that is no character");
    *out = value;
    return 0;
}

/* An escape that stands for one character, with t->at on the letter after the backslash: 1 parsed, 0 it is none. */
static int parse_character_escape(translator *t, uint32_t *out)
{
    static const char letters[] = "tnrfvae";
    static const char values[] = "\t\n\r\f\v\a\x1b";
    int c = peek(t, 0);
    const char *letter = c > 0 ? strchr(letters, c) : NULL;
    if (letter != NULL) {
        *out = (uint32_t)(unsigned char)values[letter - letters];
    } else if (c == 'x' && peek(t, 1) == '{') {
        t->at += 2;
        PST_TRY(parse_hex(t, 1, 8, out));
        if (peek(t, 0) != '}')
            return refuse(t, "an escape that is no character");
    } else if (c == 'x' || c == 'u') {
        t->at++;
        PST_TRY(parse_hex(t, c == 'x' ? 1 : 4, c == 'x' ? 2 : 4, out));
        if (c == 'x' && *out > 0x7F)
            return refuse(t, "an escape of a single byte");
        return 1;
    } else if (c > 0x20 && c < 0x7F && !((c | 32) >= 'a' && (c | 32) <= 'z') && !(c >= '0' && c <= '9')) {
        *out = (uint32_t)c;
    } else {
        return 0;
    }
    t->at++;
    return 1;
}

/* A set: members that can be listed, and sets whose complement belongs to it. */
typedef struct set {
    pst_bytes members;
    pst_bytes complements; /* "[^...]" alternatives, each after a | */
} set;

static int add_complement(translator *t, set *result, const pst_bytes *members)
{
    PST_TRY(pst_bytes_append(&result->complements, "|[^", 3, t->err));
    PST_TRY(pst_bytes_append(&result->complements, members->data, members->count, t->err));
    return pst_bytes_append(&result->complements, "]", 1, t->err);
}

/*
 * An escape that stands for a set, with t->at on the letter after the backslash. Appends its members to out and says
 * in *negated whether the set is the complement of them. 1 parsed, 0 it is none.
 */
static int parse_set_escape(translator *t, bool in_set, pst_bytes *out, bool *negated)
{
    int c = peek(t, 0);
    *negated = c == 'D' || c == 'W' || c == 'P' || c == 'H';
    if (c <= 0 || strchr("sSdDwWpPhH", c) == NULL)
        return 0;
    t->at++;
    switch (c) {
    case 's': PST_TRY(pst_bytes_append(out, space_set, strlen(space_set), t->err)); break;
    case 'S': PST_TRY(pst_bytes_append(out, not_space_set, strlen(not_space_set), t->err)); break;
    case 'd':
    case 'D': PST_TRY(put_category(t, out, "Nd")); break;
    case 'w':
    case 'W': PST_TRY(put_word(t, in_set, out)); break;
    case 'h':
    case 'H': PST_TRY(pst_bytes_append(out, "0-9a-fA-F", 9, t->err)); break;
    default: PST_TRY(parse_property(t, out, negated));
    }
    return 1;
}

static int parse_members(translator *t, set *result);

/* A [set] within a set, with t->at on its bracket: its members belong to the outer one. */
static int parse_inner_set(translator *t, set *result)
{
    bool negated = peek(t, 1) == '^';
    t->at += negated ? 2 : 1;
    if (peek(t, 0) == ':' || t->depth >= MAX_DEPTH)
        return refuse(t, "a set that is not supported");
    t->depth++;
    set inner = {0};
    int status = parse_members(t, negated ? &inner : result);
    if (status == 0 && inner.complements.count > 0)
        status = refuse(t, "a complement within a complement");
    if (status == 0 && negated)
        status = add_complement(t, result, &inner.members);
    pst_bytes_free(&inner.members);
    pst_bytes_free(&inner.complements);
    t->depth--;
    return status;
}

/* An escape within a [set], with t->at after the backslash: 1 a character, which may begin a range; 0 a set, added. */
static int parse_member_escape(translator *t, set *result, uint32_t *character)
{
    bool negated;
    pst_bytes members = {0};
    int status = parse_set_escape(t, true, &members, &negated);
    if (status == 0) {
        status = parse_character_escape(t, character);
        if (status == 0)
            status = refuse(t, "an escape that is not supported");
    } else if (status > 0) {
        status = negated ? add_complement(t, result, &members)
                         : pst_bytes_append(&result->members, members.data, members.count, t->err);
    }
    pst_bytes_free(&members);
    return status;
}

/* The character that ends a range. */
static int parse_range_end(translator *t, uint32_t *last)
{
    size_t width;
    if (peek(t, 0) == '[')
        return refuse(t, "a range that ends in a set");
    if (peek(t, 0) == '\\') {
        t->at++;
        int status = parse_character_escape(t, last);
        return status == 0 ? refuse(t, "a range that ends in a set") : status;
    }
    *last = pst_utf8_get(t->pattern + t->at, &width);
    t->at += width;
    return 0;
}

/* One member of a [set], or a range of them. */
static int parse_member(translator *t, set *result)
{
    uint32_t first, last;
    int c = peek(t, 0);
    if (c == '[')
        return parse_inner_set(t, result);
    if (starts_with(t, "&&"))
        return refuse(t, "an intersection of sets");
    if (c == '\\') {
        t->at++;
        int status = parse_member_escape(t, result, &first);
        if (status <= 0)
            return status;
    } else {
        size_t width;
        first = pst_utf8_get(t->pattern + t->at, &width);
        t->at += width;
    }
    if (t->caseless && first > 0x7F)
        return refuse(t, "a character beyond ASCII where case is ignored");
    PST_TRY(put_code_point(t, &result->members, first));
    if (peek(t, 0) != '-' || peek(t, 1) == ']' || peek(t, 1) < 0)
        return 0;
    t->at++;
    PST_TRY(parse_range_end(t, &last));
    if (last < first || (t->caseless && last > 0x7F))
        return refuse(t, "a range that cannot be used");
    PST_TRY(pst_bytes_append(&result->members, "-", 1, t->err));
    return put_code_point(t, &result->members, last);
}

/* Writes [members], or where complements are among them the alternatives that mean the same. */
static int put_set(translator *t, const set *s, bool negated)
{
    if (s->complements.count == 0) {
        PST_TRY(put(t, negated ? "[^" : "["));
        PST_TRY(pst_bytes_append(t->out, s->members.data, s->members.count, t->err));
        return put(t, "]");
    }
    PST_TRY(put(t, negated ? "(?:(?!" : "(?:"));
    size_t skip = 1; /* the first | */
    if (s->members.count > 0) {
        PST_TRY(put(t, "["));
        PST_TRY(pst_bytes_append(t->out, s->members.data, s->members.count, t->err));
        PST_TRY(put(t, "]"));
        skip = 0;
    }
    PST_TRY(pst_bytes_append(t->out, s->complements.data + skip, s->complements.count - skip, t->err));
    return put(t, negated ? ")(?s:.))" : ")");
}

/* All members up to the closing bracket, and that. */
static int parse_members(translator *t, set *result)
{
    if (peek(t, 0) == ']')
        return refuse(t, "an empty set");
    while (peek(t, 0) >= 0 && peek(t, 0) != ']')
        PST_TRY(parse_member(t, result));
    if (peek(t, 0) < 0)
        return refuse(t, "a set without its end");
    t->at++;
    return 0;
}

/* [...], with t->at after the bracket. */
static int parse_set(translator *t)
{
    bool negated = peek(t, 0) == '^';
    t->at += negated;
    set s = {0};
    int status = parse_members(t, &s);
    if (status == 0)
        status = put_set(t, &s, negated);
    pst_bytes_free(&s.members);
    pst_bytes_free(&s.complements);
    return status;
}

static int put_literal(translator *t, uint32_t code_point)
{
    if (t->caseless) {
        /* ss, st, ff, fi, fl have a one-character equivalent that Oniguruma finds and PCRE2 does not. */
        char lower = (char)(code_point >= 'A' && code_point <= 'Z' ? code_point + 32 : code_point);
        if (code_point > 0x7F)
            return refuse(t, "a character beyond ASCII where case is ignored");
        if ((t->previous_literal == 's' && (lower == 's' || lower == 't')) ||
            (t->previous_literal == 'f' && (lower == 'f' || lower == 'i' || lower == 'l')))
            return refuse(t, "letters that have a ligature where case is ignored");
        t->previous_literal = lower;
    }
    return put_code_point(t, t->out, code_point);
}

/* \..., with t->at after the backslash. 1: an atom that can be repeated; 0: an anchor. */
static int parse_escape(translator *t)
{
    int c = peek(t, 0);
    if (c == 'A' || c == 'z' || c == 'Z') {
        t->at++;
        PST_TRY(put(t, c == 'A' ? "\\A" : c == 'z' ? "\\z" : "\\Z"));
        return 0;
    }
    uint32_t code_point;
    pst_bytes members = {0};
    bool negated;
    int status = parse_set_escape(t, false, &members, &negated);
    if (status > 0) {
        set s = {.members = members};
        status = put_set(t, &s, negated);
    } else if (status == 0) {
        status = parse_character_escape(t, &code_point);
        if (status == 0)
            status = refuse(t, "an escape that is not supported");
        else if (status > 0)
            status = put_literal(t, code_point);
    }
    pst_bytes_free(&members);
    return status < 0 ? status : 1;
}

static int parse_alternatives(translator *t);

/* (?flags) or (?flags:...), with t->at after the question mark. */
static int parse_flags(translator *t, bool at_start)
{
    bool on = true, caseless = t->caseless;
    int c;
    for (; (c = peek(t, 0)) != ':' && c != ')'; t->at++) {
        if (c == '-')
            on = false;
        else if (c == 'i')
            caseless = on;
        else
            return refuse(t, "a group that is not supported");
    }
    t->at++;
    PST_TRY(put(t, caseless ? "(?i" : "(?-i"));
    if (c == ')') { /* for the rest of the group: in the middle of one, the engines differ on what that is */
        if (!at_start)
            return refuse(t, "flags in the middle of a group");
        t->caseless = caseless;
        PST_TRY(put(t, ")"));
        return 0;
    }
    bool outside = t->caseless;
    t->caseless = caseless;
    PST_TRY(put(t, ":"));
    PST_TRY(parse_alternatives(t));
    t->caseless = outside;
    return 1;
}

/* (...), with t->at after the parenthesis. 1: can be repeated; 0: not. */
static int parse_group(translator *t, bool at_start)
{
    static const char *const openings[] = {"?:", "?>", "?=", "?!", "?<=", "?<!"};
    bool outside = t->caseless;
    int result = 1;
    size_t i = 0;
    while (i < 6 && !starts_with(t, openings[i]))
        i++;
    if (i < 6) {
        t->at += strlen(openings[i]);
        PST_TRY(put(t, "("));
        PST_TRY(put(t, openings[i]));
        PST_TRY(parse_alternatives(t));
        result = i < 2;
    } else if (starts_with(t, "?#")) {
        const char *close = memchr(t->pattern + t->at, ')', t->bytes - t->at);
        if (close == NULL)
            return refuse(t, "a comment without its end");
        t->at = (size_t)(close + 1 - t->pattern);
        return 0;
    } else if (peek(t, 0) == '?') {
        t->at++;
        result = parse_flags(t, at_start);
        if (result <= 0)
            return result;
    } else if (peek(t, 0) == '*') {
        return refuse(t, "a group that is not supported");
    } else { /* nothing refers to what a group captured */
        PST_TRY(put(t, "(?:"));
        PST_TRY(parse_alternatives(t));
    }
    t->caseless = outside;
    if (peek(t, 0) != ')')
        return refuse(t, "a group without its end");
    t->at++;
    PST_TRY(put(t, ")"));
    return result;
}

/* {n}, {n,}, {,m} or {n,m} at t->at: 1 and its bounds (high -1: none), 0 when it is none. */
static int parse_interval(translator *t, long *low, long *high, size_t *length)
{
    char text[32];
    snprintf(text, sizeof text, "%.*s", (int)(t->bytes - t->at < 31 ? t->bytes - t->at : 31), t->pattern + t->at);
    char *end = text + 1;
    bool has_low = *end >= '0' && *end <= '9';
    *low = has_low ? strtol(end, &end, 10) : 0;
    *high = *low;
    if (*end == ',') {
        end++;
        bool has_high = *end >= '0' && *end <= '9';
        *high = has_high ? strtol(end, &end, 10) : -1;
        if (!has_low && !has_high)
            return 0;
    } else if (!has_low) {
        return 0;
    }
    *length = (size_t)(end + 1 - text);
    return *end == '}';
}

/* The repetition of the atom that was written from `atom` on, if there is one. */
static int parse_repetition(translator *t, size_t atom, bool repeatable)
{
    int c = peek(t, 0);
    long low, high;
    size_t length = 1;
    bool interval = c == '{' && parse_interval(t, &low, &high, &length);
    if (c != '*' && c != '+' && c != '?' && !interval)
        return 0;
    if (!repeatable)
        return refuse(t, "a repetition of nothing");
    char text[48] = {(char)c, 0};
    if (interval) {
        if (low > MAX_REPEAT || high > MAX_REPEAT || (high >= 0 && high < low))
            return refuse(t, "a repetition out of range");
        if (high < 0)
            snprintf(text, sizeof text, "{%ld,}", low);
        else
            snprintf(text, sizeof text, "{%ld,%ld}", low, high);
    }
    t->at += length;
    t->previous_literal = 0;
    PST_TRY(put(t, text));
    c = peek(t, 0);
    if (c == '+' && interval) {
        PST_TRY(pst_bytes_append(t->out, ")+", 2, t->err));
        PST_TRY(pst_bytes_append(t->out, "   ", 3, t->err));
        memmove(t->out->data + atom + 3, t->out->data + atom, t->out->count - 3 - atom);
        memcpy(t->out->data + atom, "(?:", 3);
        t->at++;
    } else if (c == '+' || c == '?') {
        if (interval && low == high)
            return refuse(t, "a lazy repetition of a fixed number");
        char suffix[2] = {(char)c, 0};
        PST_TRY(put(t, suffix));
        t->at++;
    }
    c = peek(t, 0);
    if (c == '*' || c == '+' || c == '?' || (c == '{' && parse_interval(t, &low, &high, &length)))
        return refuse(t, "a repetition of a repetition");
    return 0;
}

static int parse_atom(translator *t, bool at_start)
{
    int c = peek(t, 0);
    if (c != '\\' && c != '(' && c != '[')
        t->previous_literal = c == '.' || c == '^' || c == '$' ? 0 : t->previous_literal;
    if (c == '\\') {
        t->at++;
        return parse_escape(t);
    }
    if (c == '(' || c == '[') {
        t->at++;
        t->previous_literal = 0;
        int status = c == '(' ? parse_group(t, at_start) : parse_set(t);
        t->previous_literal = 0;
        return status < 0 ? status : c == '(' ? status : 1;
    }
    if (c == '^' || c == '$' || c == '.') {
        char text[2] = {(char)c, 0};
        t->at++;
        PST_TRY(put(t, text));
        return c == '.';
    }
    if (c == '*' || c == '+' || c == '?')
        return refuse(t, "a repetition of nothing");
    size_t width;
    uint32_t code_point = pst_utf8_get(t->pattern + t->at, &width);
    t->at += width;
    PST_TRY(put_literal(t, code_point));
    return 1;
}

/* Up to the closing parenthesis (left for the caller) or the end. */
static int parse_alternatives(translator *t)
{
    if (++t->depth > MAX_DEPTH)
        return refuse(t, "groups nested too deep");
    t->previous_literal = 0;
    size_t start = t->at;
    for (int c; (c = peek(t, 0)) >= 0 && c != ')';) {
        if (c == '|') {
            t->at++;
            t->previous_literal = 0;
            PST_TRY(put(t, "|"));
            continue;
        }
        size_t atom = t->out->count;
        int repeatable = parse_atom(t, t->at == start);
        PST_TRY(repeatable);
        PST_TRY(parse_repetition(t, atom, repeatable > 0));
    }
    t->depth--;
    return 0;
}

int pst_regex_translate(const char *pattern, size_t bytes, pst_bytes *out, const char *path, pst_error *err)
{
    translator t = {.pattern = pattern, .bytes = bytes, .out = out, .path = path, .err = err};
    if (bytes > MAX_PATTERN_BYTES)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "a pattern of %zu bytes is too long (at most %d)", bytes,
                        MAX_PATTERN_BYTES);
    PST_TRY(parse_alternatives(&t));
    if (t.at < t.bytes)
        return refuse(&t, "an unmatched parenthesis");
    return 0;
}
