/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stats registry: one table says what each field of a record is called, its unit and its kind. Text, JSON and
 * the choice among repetitions all use the table, so a new figure is one new row. No state; any thread.
 */
#ifndef PST_BASE_STATS_H
#define PST_BASE_STATS_H

#include <jansson.h>
#include <stdio.h>

#include "penstock/types.h"

typedef enum pst_stat_kind {
    PST_STAT_COUNT, /* uint64_t */
    PST_STAT_REAL,  /* double */
    PST_STAT_TEXT   /* const char *, borrowed; NULL prints as nothing known */
} pst_stat_kind;

typedef struct pst_stat {
    const char *name; /* the key in JSON */
    const char *unit; /* "bytes", "seconds", "tokens", "tokens/s", "bytes/s", "flop/s", "" */
    pst_stat_kind kind;
    size_t offset; /* of the field in the record */
    const char *help;
} pst_stat;

/* The table of pst_run_stats (penstock/model.h). */
extern const pst_stat pst_run_stat_table[];
extern const size_t pst_run_stat_count;

/* A JSON object with one key per row; a number that is not finite and a text that is NULL become null.
 * The caller owns *out (json_decref). */
int pst_stats_to_json(const pst_stat *table, size_t count, const void *record, json_t **out, pst_error *err);
/* One line per row, "name  value unit", for people. */
void pst_stats_print(const pst_stat *table, size_t count, const void *record, FILE *to);
/* The index of the record whose number `key` is the median over records[0..repetitions), the lower middle of an even
 * count. One whole record, and not a median of each figure: those come from different repetitions and need not agree
 * with each other. The key must be in the table, repetitions at least 1. */
size_t pst_stats_median(const pst_stat *table, size_t count, const char *key, const void *records, size_t record_bytes,
                        size_t repetitions);

/* "41.2 GB" (powers of 1000), "512 bytes". Returns text. */
char *pst_format_bytes(double bytes, char *text, size_t text_bytes);
/* "3.21 s", "4 min 05 s", "2 h 03 min". Returns text. */
char *pst_format_seconds(double seconds, char *text, size_t text_bytes);
/* A value of the registry's units, as people read it. Returns text. */
char *pst_format_value(double value, const char *unit, char *text, size_t text_bytes);

#endif
