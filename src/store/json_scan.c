/* SPDX-License-Identifier: Apache-2.0 */
/* The scanner never reads at or past text[bytes]: the text need not be terminated. */
#include "store/json_scan.h"

#include <string.h>

#include "base/error.h"

enum { MAX_DEPTH = 127 };

static int fail(const pst_scan *scan, size_t at, const char *what)
{
    return pst_fail_at(scan->err, PST_E_FORMAT, scan->path, scan->file_offset + at, "not valid JSON: %s", what);
}

/* Length of the well-formed UTF-8 sequence at text (table 3-7 of the Unicode standard), or 0. */
static size_t utf8_length(const unsigned char *text, size_t bytes)
{
    unsigned char lead = text[0];
    if (lead < 0x80)
        return 1;
    size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || bytes < length)
        return 0;
    unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;  /* no overlong forms */
    unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf; /* no surrogates, nothing past U+10FFFF */
    if (text[1] < low || text[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    return length;
}

size_t pst_scan_utf8_length(const pst_scan *scan)
{
    const unsigned char *text = (const unsigned char *)scan->text;
    size_t at = 0, length;
    while (at < scan->bytes && (length = utf8_length(text + at, scan->bytes - at)) > 0)
        at += length;
    return at;
}

int pst_scan_utf8(const pst_scan *scan)
{
    size_t good = pst_scan_utf8_length(scan);
    return good < scan->bytes ? fail(scan, good, "invalid UTF-8") : 0;
}

static void skip_space(pst_scan *scan)
{
    while (scan->at < scan->bytes) {
        char c = scan->text[scan->at];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t')
            return;
        scan->at++;
    }
}

bool pst_scan_take(pst_scan *scan, char c)
{
    skip_space(scan);
    if (scan->at >= scan->bytes || scan->text[scan->at] != c)
        return false;
    scan->at++;
    return true;
}

int pst_scan_expect(pst_scan *scan, char c)
{
    if (pst_scan_take(scan, c))
        return 0;
    char what[40] = "expected ' ', the text ends";
    what[10] = c;
    if (scan->at < scan->bytes)
        what[12] = '\0';
    return fail(scan, scan->at, what);
}

/* Four hexadecimal digits at scan->at, consumed; -1 when they are not. */
static int32_t hex4(pst_scan *scan)
{
    if (scan->bytes - scan->at < 4)
        return -1;
    int32_t value = 0;
    for (int i = 0; i < 4; i++) {
        char c = scan->text[scan->at + (size_t)i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    scan->at += 4;
    return value;
}

/* The code point of an escape \uXXXX whose "\u" is consumed, with its second half where it is a surrogate
 * pair; 0 or below when it is none that a name may hold. */
static int32_t escaped_point(pst_scan *scan)
{
    int32_t point = hex4(scan);
    if (point < 0xd800 || point > 0xdfff)
        return point;
    if (point > 0xdbff || scan->bytes - scan->at < 2 || scan->text[scan->at] != '\\' || scan->text[scan->at + 1] != 'u')
        return -1;
    scan->at += 2;
    int32_t low = hex4(scan);
    if (low < 0xdc00 || low > 0xdfff)
        return -1;
    return 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
}

static size_t put_utf8(char *out, int32_t point)
{
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    if (point < 0x800) {
        out[0] = (char)(0xc0 | point >> 6);
        out[1] = (char)(0x80 | (point & 0x3f));
        return 2;
    }
    if (point < 0x10000) {
        out[0] = (char)(0xe0 | point >> 12);
        out[1] = (char)(0x80 | (point >> 6 & 0x3f));
        out[2] = (char)(0x80 | (point & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | point >> 18);
    out[1] = (char)(0x80 | (point >> 12 & 0x3f));
    out[2] = (char)(0x80 | (point >> 6 & 0x3f));
    out[3] = (char)(0x80 | (point & 0x3f));
    return 4;
}

/* The escape whose backslash is consumed, decoded to out; 0 when it is none. */
static size_t decode_escape(pst_scan *scan, char *out)
{
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    if (scan->at >= scan->bytes)
        return 0;
    char letter = scan->text[scan->at++];
    if (letter == 'u') {
        int32_t point = escaped_point(scan);
        return point <= 0 ? 0 : put_utf8(out, point);
    }
    const char *found = letter ? strchr(letters, letter) : NULL;
    if (found == NULL)
        return 0;
    out[0] = meanings[found - letters];
    return 1;
}

int pst_scan_string(pst_scan *scan, char *out, size_t *out_bytes)
{
    skip_space(scan);
    if (scan->at >= scan->bytes || scan->text[scan->at] != '"')
        return fail(scan, scan->at, "expected a string");
    size_t begin = scan->at++, length = 0;
    while (scan->at < scan->bytes) {
        char c = scan->text[scan->at++];
        if (c == '"') {
            out[length] = '\0';
            *out_bytes = length;
            return 0;
        }
        if ((unsigned char)c < 0x20)
            return fail(scan, scan->at - 1, "a control character in a string");
        if (c != '\\') {
            out[length++] = c;
            continue;
        }
        size_t escape_at = scan->at - 1;
        size_t decoded = decode_escape(scan, out + length);
        if (decoded == 0)
            return fail(scan, escape_at, "an escape that stands for no character that may be here");
        length += decoded;
    }
    return fail(scan, begin, "a string that does not end");
}

static bool is_digit(const pst_scan *scan)
{
    return scan->at < scan->bytes && scan->text[scan->at] >= '0' && scan->text[scan->at] <= '9';
}

int pst_scan_u64(pst_scan *scan, uint64_t *out)
{
    skip_space(scan);
    size_t begin = scan->at;
    if (!is_digit(scan))
        return fail(scan, begin, "expected a whole number of at least 0");
    uint64_t value = 0;
    while (is_digit(scan)) {
        uint64_t digit = (uint64_t)(scan->text[scan->at] - '0');
        if (__builtin_mul_overflow(value, (uint64_t)10, &value) || __builtin_add_overflow(value, digit, &value))
            return fail(scan, begin, "a number of more than 64 bits");
        scan->at++;
    }
    if (scan->text[begin] == '0' && scan->at - begin > 1)
        return fail(scan, begin, "a number with leading zeros");
    if (scan->at < scan->bytes && strchr(".eE", scan->text[scan->at]) != NULL && scan->text[scan->at] != '\0')
        return fail(scan, begin, "expected a whole number in plain digits");
    *out = value;
    return 0;
}

static bool take_literal(pst_scan *scan, const char *literal)
{
    skip_space(scan);
    size_t length = strlen(literal);
    if (scan->bytes - scan->at < length || memcmp(scan->text + scan->at, literal, length) != 0)
        return false;
    scan->at += length;
    return true;
}

bool pst_scan_null(pst_scan *scan)
{
    return take_literal(scan, "null");
}

static size_t skip_digits(pst_scan *scan)
{
    size_t begin = scan->at;
    while (is_digit(scan))
        scan->at++;
    return scan->at - begin;
}

static int skip_number(pst_scan *scan)
{
    size_t begin = scan->at;
    if (scan->at < scan->bytes && scan->text[scan->at] == '-')
        scan->at++;
    size_t first = scan->at;
    size_t whole = skip_digits(scan);
    if (whole == 0 || (whole > 1 && scan->text[first] == '0'))
        return fail(scan, begin, "expected a value");
    if (scan->at < scan->bytes && scan->text[scan->at] == '.') {
        scan->at++;
        if (skip_digits(scan) == 0)
            return fail(scan, begin, "a malformed number");
    }
    if (scan->at < scan->bytes && (scan->text[scan->at] == 'e' || scan->text[scan->at] == 'E')) {
        scan->at++;
        if (scan->at < scan->bytes && (scan->text[scan->at] == '+' || scan->text[scan->at] == '-'))
            scan->at++;
        if (skip_digits(scan) == 0)
            return fail(scan, begin, "a malformed number");
    }
    return 0;
}

/* A string whose value does not matter: decoded four bytes at most at a time into a scratch that is thrown
 * away. */
static int skip_string(pst_scan *scan)
{
    size_t begin = scan->at++;
    char scratch[4];
    while (scan->at < scan->bytes) {
        char c = scan->text[scan->at++];
        if (c == '"')
            return 0;
        if ((unsigned char)c < 0x20)
            return fail(scan, scan->at - 1, "a control character in a string");
        if (c == '\\' && decode_escape(scan, scratch) == 0)
            return fail(scan, begin, "an escape that stands for no character that may be here");
    }
    return fail(scan, begin, "a string that does not end");
}

static int skip_value(pst_scan *scan, int depth)
{
    skip_space(scan);
    char c = scan->at < scan->bytes ? scan->text[scan->at] : '\0';
    if (c == '"')
        return skip_string(scan);
    if (take_literal(scan, "null") || take_literal(scan, "true") || take_literal(scan, "false"))
        return 0;
    if (c != '[' && c != '{')
        return skip_number(scan);
    if (depth == 0)
        return fail(scan, scan->at, "values nested too deep");
    char close = c == '[' ? ']' : '}';
    scan->at++;
    if (pst_scan_take(scan, close))
        return 0;
    do {
        if (c == '{') {
            skip_space(scan);
            if (scan->at >= scan->bytes || scan->text[scan->at] != '"')
                return fail(scan, scan->at, "expected a string");
            PST_TRY(skip_string(scan));
            PST_TRY(pst_scan_expect(scan, ':'));
        }
        PST_TRY(skip_value(scan, depth - 1));
    } while (pst_scan_take(scan, ','));
    return pst_scan_expect(scan, close);
}

int pst_scan_skip(pst_scan *scan)
{
    return skip_value(scan, MAX_DEPTH - 2); /* the header itself and the tensor's entry are two levels already */
}

int pst_scan_end(pst_scan *scan)
{
    skip_space(scan);
    return scan->at == scan->bytes ? 0 : fail(scan, scan->at, "text after the end of the value");
}
