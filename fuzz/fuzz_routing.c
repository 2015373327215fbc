/* SPDX-License-Identifier: Apache-2.0 */
/* A routing trace from hostile bytes. What is accepted must give distinct experts that there are, in rising order. */
#include <stdlib.h>

#include "nn/routing_trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool sparse[] = {false, true, true};
    const pst_transformer t = {.layers = 3, .experts = 12, .experts_per_token = 2, .sparse = sparse};
    pst_routing_trace *trace;
    if (pst_routing_trace_parse((const char *)data, size, "trace.jsonl", &t, &trace, NULL) < 0)
        return 0;
    for (uint32_t i = 0; i < 64; i++) {
        uint32_t chosen[2];
        pst_routing_trace_choose(trace, i % 2, i / 8, i, chosen);
        if (chosen[0] >= chosen[1] || chosen[1] >= t.experts)
            abort();
    }
    pst_routing_trace_destroy(trace);
    return 0;
}
