/* SPDX-License-Identifier: Apache-2.0 */
/* Settings of bench io that may be lists, and sizes as people of storage write them. */
#include <inttypes.h>
#include <string.h>

#include "base/stats.h"
#include "cmd_bench_io.h"

enum { ITEM_BYTES = 40 };

typedef int parse_item(const char *text, uint64_t *out, pst_error *err);

static int parse_list(const char *option, const char *text, parse_item *parse, uint64_t min, uint64_t max,
                      uint64_t multiple, io_list *out, pst_error *err)
{
    io_list list = {.count = 0};
    for (const char *at = text;; at++) {
        char item[ITEM_BYTES];
        size_t length = strcspn(at, ",");
        if (length == 0 || length >= sizeof item)
            return cli_usage(err, "--%s: \"%.80s\" is no list such as 1,2,4", option, text);
        memcpy(item, at, length);
        item[length] = '\0';
        pst_error cause;
        uint64_t value;
        if (parse(item, &value, &cause) < 0)
            return cli_usage(err, "--%s: %s", option, cause.message);
        if (value < min || value > max)
            return cli_usage(err, "--%s: %s is not within %" PRIu64 " to %" PRIu64, option, item, min, max);
        if (multiple != 0 && value % multiple != 0)
            return cli_usage(err, "--%s: %s is not a multiple of %" PRIu64, option, item, multiple);
        if (list.count == IO_LIST_MAX)
            return cli_usage(err, "--%s: a list has %d values at most", option, IO_LIST_MAX);
        for (size_t i = 0; i < list.count; i++) {
            if (list.items[i] == value)
                return cli_usage(err, "--%s: %s stands there twice", option, item);
        }
        list.items[list.count++] = value;
        at += length;
        if (*at == '\0')
            break;
    }
    *out = list;
    return 0;
}

int io_parse_sizes(const char *option, const char *text, uint64_t min, uint64_t max, uint64_t multiple, io_list *out,
                   pst_error *err)
{
    return parse_list(option, text, pst_parse_binary_size, min, max, multiple, out, err);
}

int io_parse_counts(const char *option, const char *text, uint64_t max, io_list *out, pst_error *err)
{
    return parse_list(option, text, pst_parse_u64, 1, max, 0, out, err);
}

char *io_size_text(uint64_t bytes, char *text, size_t text_bytes)
{
    static const char *const units[] = {"", "Ki", "Mi", "Gi", "Ti"};
    size_t unit = 0;
    uint64_t value = bytes;
    while (unit + 1 < CLI_COUNT(units) && value >= 1024 && value % 1024 == 0) {
        value /= 1024;
        unit++;
    }
    if (value >= 100000)
        return pst_format_bytes((double)bytes, text, text_bytes);
    snprintf(text, text_bytes, "%" PRIu64 "%s", value, units[unit]);
    return text;
}
