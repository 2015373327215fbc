/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tokens that follow the rows of a pass, chosen from what the device's operators give: it finds the largest logits of
 * every row, as many as the row among its neighbours needs that needs most, and what all come to, which also tells whether
 * there is one that is no number; only those few numbers come to the host. Rows that need all their logits are fetched some
 * at a time. Rows are shared among the host's threads.
 *
 * What a row's choice is made from is decided by its own request and logits (sample.h), never by its neighbours'.
 */
#ifndef PST_INFER_CHOOSE_H
#define PST_INFER_CHOOSE_H

#include "infer/sample.h"
#include "nn/forward.h"
#include "os/thread.h"

typedef struct pst_chooser pst_chooser;

/* A choice to make, and what came of it. */
typedef struct pst_choice {
    uint32_t row; /* of the pass's logits */
    const pst_sampling *sampling;
    uint64_t random; /* a number that changes with every choice */
    bool keep;       /* the row's logits are wanted afterwards; with the config's `keeps` */
    bool usable;     /* pst_logits_are_usable */
    bool made;       /* on the way: nothing is left to do */
    uint32_t id;     /* if usable */
} pst_choice;

typedef struct pst_chooser_config {
    pst_device *device; /* that computes */
    pst_pool *pool;
    uint32_t max_rows; /* choices in a pass */
    uint32_t vocab;
    uint32_t fetched_rows; /* of the forward, if the device is apart: one at least */
    bool keeps;            /* on the host, memory for logits that must not be used up */
} pst_chooser_config;

/* Memory that it will take, of the host's and of a device's own; pool and device do not count. */
void pst_chooser_measure(const pst_chooser_config *config, uint32_t threads, bool apart, uint64_t *out_host,
                         uint64_t *out_device);
int pst_chooser_create(const pst_chooser_config *config, pst_chooser **out, pst_error *err);
void pst_chooser_destroy(pst_chooser *chooser);

/* max_rows records for the caller to fill. */
pst_choice *pst_chooser_choices(pst_chooser *chooser);
/* Makes the first `count` of them, whose rows rise, after a pass; on the host its logits are used up but for
 * rows to keep. */
int pst_chooser_run(pst_chooser *chooser, pst_forward *forward, uint32_t count, pst_error *err);

#endif
