/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Command line options from tables. One row describes one option: it feeds the parser, the help text and the manual
 * page, so the three cannot differ. A command is a list of groups of rows; a group that several commands share is
 * written once and placed in each command's value structure by its base offset.
 *
 * Spelling: `--name value`, `--name=value`; hyphens and underscores are the same letter; no abbreviations; `-x value`
 * or `-xvalue` for rows with a short name; `--` ends the options; the last of a repeated single option counts.
 *
 * Values: defaults are written as text and go through the same parser as given values. Strings are borrowed from argv
 * (or from the table); lists are allocated and freed by pst_options_free.
 */
#ifndef PST_BASE_OPTIONS_H
#define PST_BASE_OPTIONS_H

#include <stdbool.h>
#include <stdio.h>

#include "penstock/types.h"

typedef enum pst_option_type {
    PST_OPTION_FLAG,    /* bool; takes no value */
    PST_OPTION_LEVEL,   /* uint64_t; the value may be left out and is 1 then */
    PST_OPTION_U64,     /* uint64_t */
    PST_OPTION_SIZE,    /* uint64_t; "1500M", "2Gi", "1.5G" */
    PST_OPTION_DOUBLE,  /* double */
    PST_OPTION_SHARE,   /* pst_option_share; "50%" or a size */
    PST_OPTION_STRING,  /* const char * */
    PST_OPTION_CHOICE,  /* const char *, one of `choices` */
    PST_OPTION_STRINGS, /* pst_option_strings; repeatable */
    PST_OPTION_IDS      /* pst_option_ids; "1,2,3"; repeatable, each a list of its own */
} pst_option_type;

typedef struct pst_option_share {
    bool is_share; /* share is meant, else bytes */
    double share;  /* 0 to 1 */
    uint64_t bytes;
} pst_option_share;

typedef struct pst_option_strings {
    const char **items;
    size_t count;
} pst_option_strings;

typedef struct pst_option_id_list {
    uint32_t *ids;
    size_t count;
} pst_option_id_list;

typedef struct pst_option_ids {
    pst_option_id_list *lists;
    size_t count;
} pst_option_ids;

typedef struct pst_option {
    const char *name; /* with hyphens, without the leading ones */
    pst_option_type type;
    size_t offset;       /* of the value in its group's structure */
    const char *metavar; /* "SIZE"; NULL for flags */
    const char *help;    /* one or more sentences in small letters, no full stop at the end */
    const char *initial; /* default as text; NULL: zero, and the help says what that means */
    const char *choices; /* "auto|f32|bf16" */
    double min, max;     /* numbers: both 0 is no limit, max 0 beside a min none above; exact up to 2^53 */
    uint64_t multiple;   /* sizes and counts: of what the value must be a multiple; 0: any */
    char short_name;     /* 0: none */
    bool hidden;         /* accepted, but not in the short help (it is in the manual) */
    bool binary;         /* sizes: K M G T are powers of 1024, as Ki Mi Gi Ti; for blocks of I/O */
} pst_option;

typedef struct pst_option_group {
    const char *title; /* "Memory and streaming" */
    const pst_option *options;
    size_t count;
    size_t base; /* offset of the group's structure in the command's values */
} pst_option_group;

typedef struct pst_command {
    const char *name;     /* "generate", "bench infer" */
    const char *operands; /* "MODEL", "SHAPE OUT", "" */
    size_t min_operands, max_operands;
    const char *summary;     /* a few words */
    const char *description; /* paragraphs, separated by empty lines */
    const char *example;     /* lines, or NULL */
    const pst_option_group *groups;
    size_t group_count;
    size_t values_bytes; /* of the command's value structure */
} pst_command;

enum { PST_OPTIONS_MAX = 128, PST_OPERANDS_MAX = 64 };

/* What was found besides the values. */
typedef struct pst_options_found {
    bool help; /* -h or --help stood there: nothing else was checked */
    const char *operands[PST_OPERANDS_MAX];
    size_t operand_count;
    bool given[PST_OPTIONS_MAX]; /* by row number over all groups */
} pst_options_found;

/* Parses argv[0..argc) (program and command name already taken off) into `values`, a structure of
 * command->values_bytes that is cleared first. A mistake is PST_E_USAGE with one line that names it. On failure nothing
 * needs freeing. */
int pst_options_parse(const pst_command *command, int argc, char *const *argv, void *values, pst_options_found *found,
                      pst_error *err);
/* Frees the lists in `values`. */
void pst_options_free(const pst_command *command, void *values);
/* Whether the option stood on the command line (rather than its default). The name must be in the tables. */
bool pst_options_given(const pst_command *command, const pst_options_found *found, const char *name);

/* Values by themselves. "1500M", "2Gi", "1.5G", "4096": K M G T are powers of 1000, Ki Mi Gi Ti of 1024, small letters
 * mean the same, a final B is allowed; fractions are rounded down to bytes. */
int pst_parse_size(const char *text, uint64_t *out, pst_error *err);
/* The same with K M G T as powers of 1024: tools of storage mean that, and blocks of 10^6 bytes are no blocks. */
int pst_parse_binary_size(const char *text, uint64_t *out, pst_error *err);
int pst_parse_u64(const char *text, uint64_t *out, pst_error *err);
int pst_parse_double(const char *text, double *out, pst_error *err);
int pst_parse_share(const char *text, pst_option_share *out, pst_error *err);
/* "1,2,3", spaces allowed; the caller frees out->ids with pst_heap_free. */
int pst_parse_ids(const char *text, pst_option_id_list *out, pst_error *err);

/* How the help and the manual show an option: its metavar or choices ("" for a flag), and its limits and default
 * ("1 to 65536; default 128", "" for none). */
const char *pst_option_metavar(const pst_option *option);
void pst_option_limits(const pst_option *option, char *text, size_t text_bytes);

/* The help of one command, wrapped to 100 columns. */
void pst_options_help(const char *program, const pst_command *command, FILE *to);
/* Words of `text` wrapped and indented by `indent` columns, the first line starting at `column`. */
void pst_options_wrap(const char *text, size_t column, size_t indent, FILE *to);

/* The nearest of `count` names to a mistyped word, or NULL when none is near. */
const char *pst_nearest_name(const char *word, const char *const *names, size_t count);

#endif
