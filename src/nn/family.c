/* SPDX-License-Identifier: Apache-2.0 */
/* The families that exist. */
#include "nn/family.h"

#include <string.h>

static const pst_family *const families[] = {&pst_family_llama, &pst_family_mistral, &pst_family_qwen2,
                                             &pst_family_qwen3, &pst_family_mixtral, &pst_family_qwen3_moe};

const pst_family *pst_family_find(const char *name)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        if (strcmp(families[i]->name, name) == 0)
            return families[i];
    return NULL;
}

const char *pst_family_names(void)
{
    return "llama, mistral, qwen2, qwen3, mixtral, qwen3_moe";
}
