/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any words as a command line (zero bytes part them): no crash, no leak, failures are usage errors of one line, and
 * what is accepted lies within what the table allows. The table has an option of every type.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/heap.h"
#include "base/options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct fuzz_values {
    bool flag;
    uint64_t level, number, size;
    double real;
    pst_option_share share;
    const char *text, *choice;
    pst_option_strings texts;
    pst_option_ids ids;
} fuzz_values;

#define AT(member) .offset = offsetof(fuzz_values, member)

static const pst_option rows[] = {
    {.name = "flag", .type = PST_OPTION_FLAG, AT(flag), .help = "h"},
    {.name = "verbose", .short_name = 'v', .type = PST_OPTION_LEVEL, AT(level), .help = "h"},
    {.name = "max-new-tokens",
     .short_name = 'n',
     .type = PST_OPTION_U64,
     AT(number),
     .initial = "7",
     .min = 1,
     .max = 100,
     .help = "h"},
    {.name = "host-memory", .type = PST_OPTION_SIZE, AT(size), .help = "h"},
    {.name = "top-p", .type = PST_OPTION_DOUBLE, AT(real), .min = 0, .max = 1, .help = "h"},
    {.name = "resident", .type = PST_OPTION_SHARE, AT(share), .help = "h"},
    {.name = "text", .type = PST_OPTION_STRING, AT(text), .help = "h"},
    {.name = "io-engine",
     .type = PST_OPTION_CHOICE,
     AT(choice),
     .choices = "auto|io_uring|threads",
     .initial = "auto",
     .help = "h"},
    {.name = "prompt", .short_name = 'p', .type = PST_OPTION_STRINGS, AT(texts), .help = "h"},
    {.name = "token-ids", .type = PST_OPTION_IDS, AT(ids), .help = "h"},
};
static const pst_option_group groups[] = {
    {.title = "All", .options = rows, .count = sizeof rows / sizeof rows[0]},
};
static const pst_command command = {.name = "fuzz",
                                    .operands = "[A B]",
                                    .max_operands = 2,
                                    .groups = groups,
                                    .group_count = 1,
                                    .values_bytes = sizeof(fuzz_values)};

static void demand(int condition)
{
    if (!condition)
        abort();
}

static void check(const fuzz_values *values, const pst_options_found *found)
{
    demand(found->operand_count <= 2);
    if (found->help)
        return;
    demand(values->number >= 1 && values->number <= 100);
    demand(isfinite(values->real) && values->real >= 0 && values->real <= 1);
    demand(isfinite(values->share.share) && values->share.share >= 0 && values->share.share <= 1);
    demand(strcmp(values->choice, "auto") == 0 || strcmp(values->choice, "io_uring") == 0 ||
           strcmp(values->choice, "threads") == 0);
    demand(pst_options_given(&command, found, "prompt") == (values->texts.count > 0));
    demand(pst_options_given(&command, found, "token-ids") == (values->ids.count > 0));
    for (size_t i = 0; i < values->ids.count; i++)
        demand(values->ids.lists[i].count > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { MOST_WORDS = 32 };
    int64_t live = pst_heap_live_count();
    char *words = malloc(size + 1), *argv[MOST_WORDS];
    demand(words != NULL);
    if (size > 0)
        memcpy(words, data, size);
    words[size] = '\0';
    int argc = 0;
    for (size_t at = 0; at <= size && argc < MOST_WORDS; at += strlen(words + at) + 1)
        argv[argc++] = words + at;
    fuzz_values values;
    pst_options_found found;
    pst_error err = {.code = 0};
    int status = pst_options_parse(&command, argc, argv, &values, &found, &err);
    if (status == 0) {
        check(&values, &found);
        pst_options_free(&command, &values);
    } else {
        demand(status == PST_E_USAGE && err.code == PST_E_USAGE && err.message[0] != '\0');
    }
    demand(pst_heap_live_count() == live);
    free(words);
    return 0;
}
