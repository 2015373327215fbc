/* SPDX-License-Identifier: Apache-2.0 */
/* A save that is carried out at once. */
#include "ckpt/governor.h"
#include "ckpt/job.h"
#include "os/clock.h"

static uint64_t pace(void *user, uint64_t bytes)
{
    return pst_governor_ask(user, bytes, pst_clock_ns(), 0);
}

int pst_ckpt_save(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count,
                  pst_ckpt_report *report, pst_error *err)
{
    pst_ckpt_job *job;
    int status = pst_ckpt_job_create(options, tensors, count, &job, err);
    if (status < 0)
        return status;
    uint64_t rate = pst_ckpt_job_options(job)->bytes_per_second;
    pst_governor governor;
    pst_governor_begin(&governor, rate != 0 ? rate : PST_CKPT_UNLIMITED, pst_clock_ns(), 0);
    const pst_ckpt_hooks hooks = {.pace = pace, .user = &governor};
    status = pst_ckpt_job_run(job, &hooks, err);
    if (status >= 0 && report != NULL) {
        pst_ckpt_job_get_report(job, report);
        report->blocked_seconds = report->seconds;
    }
    pst_ckpt_job_destroy(job);
    return status;
}
