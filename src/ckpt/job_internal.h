/* SPDX-License-Identifier: Apache-2.0 */
/* A job, for the files that make and run it. */
#ifndef PST_CKPT_JOB_INTERNAL_H
#define PST_CKPT_JOB_INTERNAL_H

#include "ckpt/agree.h"
#include "ckpt/job.h"
#include "ckpt/layout.h"

enum {
    PST_CKPT_RING_BYTES = 72 << 20, /* default */
    PST_CKPT_SUMS_PER_ROUND = 4096, /* that a rank tells at once */
    PST_CKPT_LEAST_TELL_BYTES = 64  /* what ranks tell besides sums */
};

/* A place among the parts of data that are a share's, file by file; begins as {0}. */
typedef struct pst_ckpt_walk {
    size_t file, part;
    bool inside; /* of the file: `part` is the next one */
} pst_ckpt_walk;

struct pst_ckpt_job {
    pst_ckpt_options options; /* all that it points to is the job's, but for what `io` has of engines */
    pst_ckpt_tensor *tensors; /* names and shapes are the job's */
    size_t count;
    pst_ckpt_ranks ranks;
    pst_ckpt_pair *pairs;
    char *text;       /* all strings, and the pickle */
    uint64_t *shapes; /* of all tensors */
    pst_ckpt_layout layout;
    pst_ckpt_agree *agree;
    /* With several ranks: how they tell their sums. */
    size_t sums_rounds, sums_room; /* sums per round */
    pst_image_sums *sums;          /* sums_room of them */
    pst_ckpt_walk *walks;          /* of each rank, and one for what this rank tells */
    bool ran;                      /* the images have been used */
    pst_ckpt_report report;
};

/* The next one; false at the end. */
bool pst_ckpt_walk_next(const pst_ckpt_layout *layout, uint32_t share, pst_ckpt_walk *walk, size_t *out_file,
                        size_t *out_part);

#endif
