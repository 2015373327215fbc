/* SPDX-License-Identifier: Apache-2.0 */
/* Random stages over made-up files, and the seed that replays them (PST_TEST_SEED). */
#ifndef RANDOM_STAGES_H
#define RANDOM_STAGES_H

#include "tier/stage.h"

typedef struct random_source {
    uint64_t state;
} random_source;
uint64_t source_next(random_source *source);
uint64_t source_below(random_source *source, uint64_t bound);
/* From PST_TEST_SEED, else the clock; printed. */
random_source source_start(const char *test);

enum { RANDOM_STAGES = 12, RANDOM_TENSORS = 7, RANDOM_FILES = 3 };

typedef struct random_model {
    pst_stage stages[RANDOM_STAGES];
    pst_stage_tensor stage_tensors[RANDOM_STAGES][RANDOM_TENSORS];
    pst_tensor tensors[RANDOM_STAGES][RANDOM_TENSORS];
    uint32_t unit_first[RANDOM_STAGES][RANDOM_TENSORS + 1];
    char names[RANDOM_STAGES][RANDOM_TENSORS][32];
    size_t stage_count;
    uint64_t file_bytes[RANDOM_FILES];
} random_model;

/* Tensors of up to max_bytes each, placed in random order in the files, at odd offsets. Stage 0 is gathered; some of the others
 * have units, without a function that chooses. */
void random_model_make(random_source *source, uint64_t max_bytes, random_model *out);

#endif
