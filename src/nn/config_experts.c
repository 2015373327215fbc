/* SPDX-License-Identifier: Apache-2.0 */
/* What families with experts read from config.json in common. */
#include "base/error.h"
#include "base/heap.h"
#include "nn/family.h"

int pst_config_experts(const pst_config_reader *in, const char *const *keys, uint64_t experts, uint64_t per_token,
                       pst_transformer *t)
{
    const char *key = keys[0];
    for (const char *const *other = keys; *other != NULL; other++)
        if (json_object_get(in->root, *other) != NULL)
            key = *other;
    PST_TRY(pst_config_u32(in, key, experts, 1, PST_MAX_EXPERTS, &t->experts));
    PST_TRY(pst_config_u32(in, "num_experts_per_tok", per_token, 1, PST_MAX_EXPERTS, &t->experts_per_token));
    if (t->experts_per_token > t->experts)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "%u experts per token of %u experts", t->experts_per_token,
                        t->experts);
    t->routing = (pst_routing){.groups = 1, .top_groups = 1, .group_scores = 1, .scale = 1};
    t->sparse = pst_heap_calloc(t->layers, sizeof *t->sparse);
    return t->sparse ? 0 : pst_fail_memory(in->err, "the layers", t->layers);
}

int pst_config_groups(const pst_config_reader *in, pst_transformer *t)
{
    pst_routing *r = &t->routing;
    if (r->groups > t->experts || t->experts % r->groups != 0)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "%u experts cannot be in %u groups of one size", t->experts,
                        r->groups);
    if (r->top_groups > r->groups)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "the best %u groups of %u", r->top_groups, r->groups);
    if ((uint64_t)r->top_groups * (t->experts / r->groups) < t->experts_per_token)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "%u groups of %u experts have no %u experts for a token",
                        r->top_groups, t->experts / r->groups, t->experts_per_token);
    return 0;
}
