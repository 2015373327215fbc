/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One save, from the caller's tensors to a published file, on the thread that runs it. pst_ckpt_save is a job that is run at
 * once; pst_ckpt_begin hands one to a thread of its own (background.h).
 *
 *   layout   tensors -> files -> images (store/image.h); every rank computes the same one
 *   stream   this rank's share of each image through the ring: gather bytes, sums, write       (stream.h)
 *   agree    all ranks' sums, so that each can finish its literals
 *   publish  sync; agree that all are durable; rank 0 renames and syncs the folder; agree on what came of it
 */
#ifndef PST_CKPT_JOB_H
#define PST_CKPT_JOB_H

#include <stdatomic.h>

#include "penstock/ckpt.h"

typedef struct pst_ckpt_job pst_ckpt_job;

/* What happens around a save that runs in the background. Any may be NULL. */
typedef struct pst_ckpt_hooks {
    /* Before `bytes` more are submitted for writing: nanoseconds that this shall wait (the ring is filled meanwhile). */
    uint64_t (*pace)(void *user, uint64_t bytes);
    /* All tensors have been read. */
    void (*copied)(void *user);
    const atomic_bool *cancelled; /* looked at now and then */
    void *user;
} pst_ckpt_hooks;

/* Checks the options and copies all that must outlive the call, except the tensors' data; plans the files. Nothing is
 * written yet. The caller destroys *out. */
int pst_ckpt_job_create(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count,
                        pst_ckpt_job **out, pst_error *err);
/* Carries it out; again after a failure. hooks may be NULL. */
int pst_ckpt_job_run(pst_ckpt_job *job, const pst_ckpt_hooks *hooks, pst_error *err);
/* Of the last run: all but blocked_seconds. */
void pst_ckpt_job_get_report(const pst_ckpt_job *job, pst_ckpt_report *out);
const pst_ckpt_options *pst_ckpt_job_options(const pst_ckpt_job *job);
void pst_ckpt_job_destroy(pst_ckpt_job *job);

#endif
