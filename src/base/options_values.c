/* SPDX-License-Identifier: Apache-2.0 */
/* The values of options: numbers, sizes, shares and id lists, parsed exactly and refused when anything is left over. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/options.h"

/* Decimal digits at *text into *out, *text moved past them; false without any. *out is UINT64_MAX and *over set beyond
 * 64 bits. */
static bool take_digits(const char **text, uint64_t *out, bool *over)
{
    const char *at = *text;
    uint64_t number = 0;
    *over = false;
    if (!isdigit((unsigned char)*at))
        return false;
    for (; isdigit((unsigned char)*at); at++) {
        if (*over || __builtin_mul_overflow(number, 10u, &number) ||
            __builtin_add_overflow(number, (uint64_t)(*at - '0'), &number))
            *over = true;
    }
    *text = at;
    *out = *over ? UINT64_MAX : number;
    return true;
}

static int fail_too_large(const char *text, pst_error *err)
{
    return pst_fail(err, PST_E_USAGE, NULL, "\"%.80s\" is too large", text);
}

int pst_parse_u64(const char *text, uint64_t *out, pst_error *err)
{
    const char *at = text;
    uint64_t number;
    bool over;
    if (!take_digits(&at, &number, &over) || *at != '\0')
        return pst_fail(err, PST_E_USAGE, NULL, "\"%.80s\" is not a whole number of at least 0", text);
    if (over)
        return fail_too_large(text, err);
    *out = number;
    return 0;
}

int pst_parse_double(const char *text, double *out, pst_error *err)
{
    char *end;
    /* strtod would also take leading spaces, hexadecimal, "inf" and "nan". */
    bool plain = text[0] != '\0' && text[strspn(text, "0123456789+-.eE")] == '\0';
    double number = plain ? strtod(text, &end) : 0;
    if (!plain || end == text || *end != '\0' || !isfinite(number))
        return pst_fail(err, PST_E_USAGE, NULL, "\"%.80s\" is not a number", text);
    *out = number;
    return 0;
}

/* The bytes that a suffix stands for ("", "K", "Ki", "M", ... each with an optional B), or 0. `binary`: without an i,
 * too. */
static uint64_t suffix_bytes(const char *suffix, bool binary)
{
    static const char letters[] = "KMGT";
    if (*suffix == '\0' || strcmp(suffix, "B") == 0)
        return 1;
    const char *letter = strchr(letters, toupper((unsigned char)*suffix));
    if (letter == NULL)
        return 0;
    bool marked = suffix[1] == 'i';
    const char *rest = suffix + (marked ? 2 : 1);
    if (*rest != '\0' && strcmp(rest, "B") != 0)
        return 0;
    uint64_t bytes = 1;
    for (const char *at = letters; at <= letter; at++)
        bytes *= binary || marked ? 1024 : 1000;
    return bytes;
}

static int parse_size(const char *text, bool binary, uint64_t *out, pst_error *err)
{
    const char *at = text;
    uint64_t whole = 0, scale = 1, fraction = 0;
    bool over;
    if (!take_digits(&at, &whole, &over))
        goto malformed;
    if (*at == '.') {
        at++;
        if (!isdigit((unsigned char)*at))
            goto malformed;
        for (; isdigit((unsigned char)*at); at++) {
            if (scale < 1000000000) { /* more digits than bytes in a gigabyte say nothing */
                fraction = fraction * 10 + (uint64_t)(*at - '0');
                scale *= 10;
            }
        }
    }
    uint64_t unit = suffix_bytes(at, binary);
    if (unit == 0)
        goto malformed;
    unsigned __int128 bytes = (unsigned __int128)whole * unit + (unsigned __int128)fraction * unit / scale;
    if (over || bytes > UINT64_MAX)
        return fail_too_large(text, err);
    *out = (uint64_t)bytes;
    return 0;
malformed:
    return pst_fail(err, PST_E_USAGE, NULL, "\"%.80s\" is not a size such as 1500M, 2Gi or 4096", text);
}

int pst_parse_size(const char *text, uint64_t *out, pst_error *err)
{
    return parse_size(text, false, out, err);
}

int pst_parse_binary_size(const char *text, uint64_t *out, pst_error *err)
{
    return parse_size(text, true, out, err);
}

int pst_parse_share(const char *text, pst_option_share *out, pst_error *err)
{
    size_t length = strlen(text);
    if (length == 0 || text[length - 1] != '%') {
        uint64_t bytes;
        if (pst_parse_size(text, &bytes, NULL) < 0)
            return pst_fail(err, PST_E_USAGE, NULL, "\"%.80s\" is neither a size (2G) nor a share (50%%)", text);
        *out = (pst_option_share){.bytes = bytes};
        return 0;
    }
    char number[32];
    double percent = -1;
    if (length <= sizeof number) {
        memcpy(number, text, length - 1);
        number[length - 1] = '\0';
        if (pst_parse_double(number, &percent, NULL) < 0)
            percent = -1;
    }
    if (!(percent >= 0 && percent <= 100))
        return pst_fail(err, PST_E_USAGE, NULL, "\"%.80s\" is not a share from 0%% to 100%%", text);
    *out = (pst_option_share){.is_share = true, .share = percent / 100};
    return 0;
}

int pst_parse_ids(const char *text, pst_option_id_list *out, pst_error *err)
{
    size_t capacity = 1;
    for (const char *at = text; *at != '\0'; at++)
        capacity += *at == ',';
    uint32_t *ids = pst_heap_reallocarray(NULL, capacity, sizeof *ids);
    if (ids == NULL)
        return pst_fail_memory(err, "token ids", capacity * sizeof *ids);
    const char *at = text;
    for (size_t count = 0; count < capacity; count++) {
        uint64_t id;
        at += strspn(at, " ");
        bool over;
        if (!take_digits(&at, &id, &over) || id > UINT32_MAX)
            break;
        ids[count] = (uint32_t)id;
        at += strspn(at, " ");
        if (*at == '\0') {
            *out = (pst_option_id_list){.ids = ids, .count = count + 1};
            return 0;
        }
        if (*at++ != ',')
            break;
    }
    pst_heap_free(ids);
    return pst_fail(err, PST_E_USAGE, NULL, "\"%.80s\" is not a list of token ids such as 1,2,3", text);
}
