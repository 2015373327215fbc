/* SPDX-License-Identifier: Apache-2.0 */
/* Records of log-probabilities. */
#include <math.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "infer/internal.h"

int pst_logprobs_make(pst_logprobs *out, size_t count, uint32_t top, pst_error *err)
{
    const size_t each = sizeof(double) + top * (sizeof(double) + sizeof(uint32_t));
    double *memory = pst_heap_calloc(count ? count : 1, each);
    if (memory == NULL)
        return pst_fail_memory(err, "log-probabilities", count * each);
    *out = (pst_logprobs){.values = memory, .top = top, .top_values = memory + count};
    out->top_ids = (uint32_t *)(void *)(out->top_values + count * top);
    return 0;
}

void pst_logprobs_free(pst_logprobs *logprobs)
{
    pst_heap_free(logprobs->values);
    *logprobs = (pst_logprobs){0};
}

pst_probe pst_logprobs_probe(const pst_logprobs *logprobs, size_t place, uint32_t row, uint32_t id)
{
    return (pst_probe){.row = row,
                       .id = id,
                       .top = logprobs->top,
                       .value = &logprobs->values[place],
                       .values = &logprobs->top_values[place * logprobs->top],
                       .ids = &logprobs->top_ids[place * logprobs->top]};
}

int pst_logprobs_check(const pst_logprobs *logprobs, size_t first, const char *path, pst_error *err)
{
    for (size_t i = 0; i < logprobs->count; i++)
        if (isnan(logprobs->values[i]))
            return pst_fail(err, PST_E_FORMAT, path, "the logits of token %zu are not finite: broken weights?",
                            first + i);
    return 0;
}
