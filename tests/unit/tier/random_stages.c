/* SPDX-License-Identifier: Apache-2.0 */
#include "random_stages.h"
#include "support/random.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t source_next(random_source *source)
{
    return pst_random_next(&source->state);
}

uint64_t source_below(random_source *source, uint64_t bound)
{
    return source_next(source) % bound;
}

random_source source_start(const char *test)
{
    return (random_source){random_seed(test, 0)};
}

/* Runs of the stage's tensors. */
static void make_units(random_source *source, pst_stage *stage, uint32_t *first)
{
    uint32_t count = 0;
    for (uint32_t t = 0; t < stage->tensor_count; t++)
        if (t == 0 || source_below(source, 2))
            first[count++] = t;
    first[count] = stage->tensor_count;
    stage->unit_count = count;
    stage->unit_first_tensor = first;
}

void random_model_make(random_source *source, uint64_t max_bytes, random_model *out)
{
    memset(out, 0, sizeof *out);
    out->stage_count = 2 + source_below(source, RANDOM_STAGES - 2);
    for (int i = 0; i < RANDOM_FILES; i++)
        out->file_bytes[i] = 8 + source_below(source, 5000);
    for (size_t s = 0; s < out->stage_count; s++) {
        pst_stage *stage = &out->stages[s];
        stage->name = "stage";
        stage->tensors = out->stage_tensors[s];
        stage->gathered = s == 0;
        stage->tensor_count = s == 0 ? 1 : 1 + (uint32_t)source_below(source, RANDOM_TENSORS);
        for (uint32_t t = 0; t < stage->tensor_count; t++) {
            pst_tensor *tensor = &out->tensors[s][t];
            snprintf(out->names[s][t], sizeof out->names[s][t], "s%zu.t%u", s, t);
            uint64_t rows = source_below(source, 3) == 0 ? 1 : 1 + source_below(source, 300);
            uint64_t row_bytes = 2 * (1 + source_below(source, max_bytes / rows / 2 + 1));
            *tensor = (pst_tensor){.name = out->names[s][t], .dtype = PST_BF16, .rank = 2, .bytes = rows * row_bytes};
            tensor->shape[0] = rows;
            tensor->shape[1] = row_bytes / 2;
            tensor->file = (uint32_t)source_below(source, RANDOM_FILES);
            tensor->offset = out->file_bytes[tensor->file];
            out->file_bytes[tensor->file] += tensor->bytes + (source_below(source, 2) ? 0 : source_below(source, 9000));
            stage->tensors[t] = (pst_stage_tensor){tensor, rows, row_bytes};
        }
        if (s > 0 && source_below(source, 2))
            make_units(source, stage, out->unit_first[s]);
    }
}
