/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.json and generation_config.json from hostile bytes: the first half up to a NUL byte is the one, the rest the other.
 * What is accepted must be within the bounds that the rest of the program relies on.
 */
#include <stdlib.h>
#include <string.h>

#include "nn/family.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = memchr(data, 0, size);
    size_t config_bytes = end ? (size_t)(end - data) : size;
    const char *generation = end ? (const char *)end + 1 : NULL;
    size_t generation_bytes = end ? size - config_bytes - 1 : 0;
    pst_transformer t;
    pst_error err;
    if (pst_transformer_parse((const char *)data, config_bytes, "config.json", generation, generation_bytes,
                              "generation_config.json", &t, &err) < 0)
        return 0;
    if (t.heads == 0 || t.kv_heads == 0 || t.heads % t.kv_heads || t.rope.rotary % 2 || t.layers == 0 || t.vocab == 0 ||
        t.hidden == 0)
        abort();
    if (t.experts > 0 && (t.experts_per_token == 0 || t.experts_per_token > t.experts || t.routing.groups == 0 ||
                          t.experts % t.routing.groups || t.routing.top_groups == 0 || t.expert_intermediate == 0 ||
                          t.routing.top_groups * (t.experts / t.routing.groups) < t.experts_per_token))
        abort();
    if (t.latent.kv_lora_rank > 0 && (t.latent.nope_dim + t.latent.rope_dim != t.head_dim || t.latent.value_dim == 0 ||
                                      t.rope.rotary > t.latent.rope_dim))
        abort();
    float table[2 * 4096], frequencies[2048];
    if (t.rope.rotary > 0 && t.rope.rotary <= 4096)
        pst_rope_table(&t.rope, 2, frequencies, table);
    pst_transformer_destroy(&t);
    return 0;
}
