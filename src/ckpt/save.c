/* SPDX-License-Identifier: Apache-2.0 */
/* A save that is carried out at once. */
#include "base/number.h"
#include "ckpt/job.h"
#include "os/clock.h"

/* When the next bytes may go, for an even rate. */
typedef struct pacer {
    uint64_t bytes_per_second, next_ns;
} pacer;

static uint64_t pace(void *user, uint64_t bytes)
{
    pacer *p = user;
    uint64_t now = pst_clock_ns(), turn = pst_max(p->next_ns, now);
    p->next_ns = turn + (uint64_t)((double)bytes / (double)p->bytes_per_second * 1e9);
    return turn - now;
}

int pst_ckpt_save(const pst_ckpt_options *options, const pst_ckpt_tensor *tensors, size_t count,
                  pst_ckpt_report *report, pst_error *err)
{
    pst_ckpt_job *job;
    int status = pst_ckpt_job_create(options, tensors, count, &job, err);
    if (status < 0)
        return status;
    pacer p = {.bytes_per_second = pst_ckpt_job_options(job)->bytes_per_second};
    const pst_ckpt_hooks hooks = {.pace = pace, .user = &p};
    bool paced = p.bytes_per_second != 0 && p.bytes_per_second != PST_CKPT_UNLIMITED;
    status = pst_ckpt_job_run(job, paced ? &hooks : NULL, err);
    if (status >= 0 && report != NULL) {
        pst_ckpt_job_get_report(job, report);
        report->blocked_seconds = report->seconds;
    }
    pst_ckpt_job_destroy(job);
    return status;
}
