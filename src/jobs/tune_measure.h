/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The measuring part of tuning: test files on the drives, one per folder, and timed transfers with given settings. The
 * files lose their names as soon as they exist, so that nothing stays behind however the program ends.
 */
#ifndef PST_JOBS_TUNE_MEASURE_H
#define PST_JOBS_TUNE_MEASURE_H

#include "jobs/tune_search.h"

typedef struct pst_tune_rig pst_tune_rig;

typedef struct pst_tune_rig_info {
    uint64_t io_size, file_bytes; /* of all folders together */
    bool direct;                  /* in every folder */
} pst_tune_rig_info;

/* Makes the files with the default settings, and finds out meanwhile how large a transfer must be. The options must stay
 * and be complete (seconds, folders). Their seconds begin now. */
int pst_tune_rig_create(const pst_tune_options *options, pst_tune_rig **out, pst_error *err);
void pst_tune_rig_destroy(pst_tune_rig *rig);
void pst_tune_rig_get_info(const pst_tune_rig *rig, pst_tune_rig_info *out);
/* Engines that work here with their kind, the defaults, and limits that fit the transfer's size. */
void pst_tune_rig_fill_space(const pst_tune_rig *rig, pst_tune_space *space);
/* For pst_tune_bench; rig: the user pointer. */
int pst_tune_rig_measure(void *rig, const pst_tune_setting *setting, bool write, pst_tune_sample *out, pst_error *err);
double pst_tune_rig_seconds(void *rig);

#endif
