/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a pass's logits say of tokens: the log-probability of a given one, and the likeliest ones with theirs. It is the
 * model's own distribution, at temperature 1 and before anything is cut off. On an accelerator logits stay there, and a few
 * numbers for every row come to the host.
 *
 * log p = logit - log_sum_exp(row), in float64: bits of the row's logits and of the device's operator alone.
 */
#ifndef PST_INFER_PROBE_H
#define PST_INFER_PROBE_H

#include "infer/sample.h"
#include "nn/device_memory.h"

typedef struct pst_prober pst_prober;

/* What is asked of a row, and where the answer goes: the caller's memory. */
typedef struct pst_probe {
    uint32_t row; /* of the pass's logits */
    uint32_t id;
    uint32_t top;   /* likeliest tokens; at most the prober's, and the vocabulary */
    double *value;  /* NaN: the row's logits are not usable */
    double *values; /* top: falling, of equal ones the lower id first */
    uint32_t *ids;  /* top */
} pst_probe;

/* Memory that it will take, of the host's and of a device's own. top: the most that is asked of a row. */
void pst_prober_measure(uint32_t top, bool apart, uint64_t *out_host, uint64_t *out_device);
int pst_prober_create(pst_device *device, uint32_t top, pst_prober **out, pst_error *err);
void pst_prober_destroy(pst_prober *prober);

/* After a pass: begins with its logits, which stay as they are; then probes whose rows never fall; then the end, with which all
 * are answered. The last two return a device's failure. */
void pst_prober_begin(pst_prober *prober, const pst_matrix *logits);
int pst_prober_ask(pst_prober *prober, const pst_probe *probe, pst_error *err);
int pst_prober_end(pst_prober *prober, pst_error *err);

#endif
