/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many sequences a long job runs at once: pure functions.
 *
 * A pass over the weights takes max(bytes / drive, bytes / link, computing), and makes a token for every sequence that it
 * carries. Keys and values of one sequence more take memory in which weights could stay instead, so the bytes of a pass rise
 * with the number of sequences; but while the drive sets the pace and the weights do not fit anyway, they rise more slowly than the tokens do,
 * and memory goes to sequences before it goes to weights. Where computing sets the pace, or all weights stay, another
 * sequence lowers the time per token by its share of what a pass costs whatever it carries, and soon by nothing.
 *
 * So the rule: of the numbers that fit in the budget, the smallest whose time per token comes within 5 % of the best of all.
 * What lies beyond would cost memory, and answers that are lost when a job is killed, for next to nothing. A job has no use
 * for more sequences than requests.
 */
#ifndef PST_INFER_BATCH_SIZE_H
#define PST_INFER_BATCH_SIZE_H

#include <stddef.h>
#include <stdint.h>

/* A pass in the long run of a job with so many sequences in flight, where as many join as end. */
typedef struct pst_batch_point {
    uint32_t sequences;
    double tokens;     /* that the pass makes (or scores) */
    double bytes;      /* from the drive */
    double parameters; /* that it multiplies with, each counted once */
    double operations;
    double link_bytes; /* to an accelerator */
} pst_batch_point;

typedef struct pst_batch_rates {
    double disk_bytes_per_second;
    double operations_per_second; /* with many rows; above 0 */
    double parameter_seconds;     /* what a parameter costs a pass beside its operations: fetching it from memory */
    double link_bytes_per_second; /* 0: there is no link */
} pst_batch_rates;

/* From two measured rates: with one row, and with many. disk may be 0 where no point reads anything. */
pst_batch_rates pst_batch_rates_of(double disk, double one_row, double many_rows);
double pst_batch_token_seconds(const pst_batch_point *point, const pst_batch_rates *rates);
/* The index of the chosen one of `count` (1 or more) points that rise in sequences. */
size_t pst_batch_choose(const pst_batch_point *points, size_t count, const pst_batch_rates *rates);

/* Positions that a cache needs so that so many sequences are in flight nearly always: one is as long as any, the others are
 * like all on average. `requests` of `total` positions in all, at most `longest` each. */
uint64_t pst_batch_kv_tokens(uint32_t sequences, uint64_t requests, uint64_t total, uint32_t longest);

#endif
