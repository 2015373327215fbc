/* SPDX-License-Identifier: Apache-2.0 */
/* The families that exist. */
#include "nn/family.h"

#include <string.h>

/* A line each, in the order of messages. */
#define FAMILIES(FAMILY)                                                                                               \
    FAMILY(llama)                                                                                                      \
    FAMILY(mistral)                                                                                                    \
    FAMILY(qwen2)                                                                                                      \
    FAMILY(qwen3)                                                                                                      \
    FAMILY(mixtral)                                                                                                    \
    FAMILY(qwen3_moe)                                                                                                  \
    FAMILY(opt)                                                                                                        \
    FAMILY(bloom)                                                                                                      \
    FAMILY(gpt2)                                                                                                       \
    FAMILY(deepseek_v2)                                                                                                \
    FAMILY(deepseek_v3)

#define ENTRY(family) &pst_family_##family,
#define NAME(family)  ", " #family

static const pst_family *const families[] = {FAMILIES(ENTRY)};

const pst_family *pst_family_find(const char *name)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        if (strcmp(families[i]->name, name) == 0)
            return families[i];
    return NULL;
}

const char *pst_family_names(void)
{
    static const char names[] = FAMILIES(NAME);
    return names + 2; /* past the first comma */
}
