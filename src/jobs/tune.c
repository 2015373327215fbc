/* SPDX-License-Identifier: Apache-2.0 */
/* tune: the search let loose on real drives, and what DeepSpeed is told about the result. */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "jobs/tune_measure.h"
#include "jobs/tune_search.h"
#include "penstock/tune.h"

enum { MOST_FOLDERS = 64 };

static int check_options(const pst_tune_options *given, pst_tune_options *out, pst_error *err)
{
    *out = (pst_tune_options){0};
    if (given == NULL || given->struct_size < offsetof(pst_tune_options, io_size))
        return pst_fail(err, PST_E_USAGE, NULL, "tune needs options with their size");
    memcpy(out, given, given->struct_size < sizeof *out ? given->struct_size : sizeof *out);
    if (out->folders == NULL || out->folder_count == 0 || out->folder_count > MOST_FOLDERS)
        return pst_fail(err, PST_E_USAGE, NULL, "tune needs between 1 and %d folders", MOST_FOLDERS);
    if (out->no_read && out->no_write)
        return pst_fail(err, PST_E_USAGE, NULL, "neither reading nor writing is to be measured");
    if (out->seconds == 0)
        out->seconds = 60;
    if (!(out->seconds > 0 && out->seconds <= 1e6))
        return pst_fail(err, PST_E_USAGE, NULL, "a time limit of %g s", out->seconds);
    if (out->io_size > UINT64_C(1) << 40)
        return pst_fail(err, PST_E_USAGE, NULL, "transfers of %" PRIu64 " bytes", out->io_size);
    if (out->repetitions == 0)
        out->repetitions = 1;
    if (out->repetitions > 100)
        return pst_fail(err, PST_E_USAGE, NULL, "%u repetitions of every point", out->repetitions);
    return 0;
}

int pst_tune(const pst_tune_options *given, pst_tune_report *out, pst_error *err)
{
    pst_tune_options options;
    PST_TRY(check_options(given, &options, err));
    pst_tune_rig *rig = NULL;
    PST_TRY(pst_tune_rig_create(&options, &rig, err));
    pst_tune_rig_info info;
    pst_tune_space space;
    pst_tune_report report = {0};
    pst_tune_rig_get_info(rig, &info);
    pst_tune_rig_fill_space(rig, &space);
    pst_log(PST_LOG_INFO, "tune: transfers of %.1f MB in files of %.1f MB, %u engines", (double)info.io_size / 1e6,
            (double)info.file_bytes / 1e6, space.engine_count);
    pst_tune_bench bench = {.user = rig,
                            .measure = pst_tune_rig_measure,
                            .seconds = pst_tune_rig_seconds,
                            .on_point = options.on_point,
                            .on_point_user = options.user};
    int status = pst_tune_search(&space, &bench, &report, err);
    report.io_size = info.io_size;
    report.file_bytes = info.file_bytes;
    report.direct = info.direct;
    report.seconds = pst_tune_rig_seconds(rig);
    pst_tune_rig_destroy(rig);
    PST_TRY(status);
    *out = report;
    return 0;
}

int pst_tune_deepspeed(const pst_tune_point *point, char *out, size_t out_bytes)
{
    /* One I/O per thread: for a handle that is asynchronous, what is in flight is the queue's depth. */
    bool threads = point->queue_depth == 1 && strcmp(point->engine, "threads") == 0;
    return snprintf(out, out_bytes,
                    "{\n"
                    "  \"aio\": {\n"
                    "    \"block_size\": %" PRIu64 ",\n"
                    "    \"queue_depth\": %u,\n"
                    "    \"intra_op_parallelism\": %u,\n"
                    "    \"single_submit\": %s,\n"
                    "    \"overlap_events\": true,\n"
                    "    \"use_gds\": false\n"
                    "  }\n"
                    "}\n",
                    point->block_size, threads ? point->workers : point->queue_depth, threads ? 1 : point->workers,
                    point->single_submit ? "true" : "false");
}
