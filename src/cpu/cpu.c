/* SPDX-License-Identifier: Apache-2.0 */
/* The choice among the kernel sets. __builtin_cpu_supports asks the processor and (through XGETBV) whether the
 * operating system saves the wide registers. */
#include "cpu/cpu.h"

#include <string.h>

#include "cpu/sets.h"

#if PST_CPU_X86
#include <cpuid.h>

/* Not a name that clang 14 knows in __builtin_cpu_supports. */
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

static bool runs_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool runs_avx512(void)
{
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool runs_avx512bf16(void)
{
    return runs_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

static bool runs_everywhere(void)
{
    return true;
}

static const struct {
    const pst_cpu_kernels *kernels;
    bool (*runs)(void);
} sets[] = {
#if PST_CPU_X86
    {&pst_cpu_kernels_avx512bf16, runs_avx512bf16},
    {&pst_cpu_kernels_avx512, runs_avx512},
    {&pst_cpu_kernels_avx2, runs_avx2},
#endif
    {&pst_cpu_kernels_portable, runs_everywhere},
};

const pst_cpu_kernels *pst_cpu_available(size_t index)
{
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        if (sets[i].runs() && index-- == 0)
            return sets[i].kernels;
    }
    return NULL;
}

const pst_cpu_kernels *pst_cpu_select(const char *name)
{
    const pst_cpu_kernels *set;
    for (size_t i = 0; (set = pst_cpu_available(i)) != NULL; i++) {
        if (name == NULL || strcmp(name, set->name) == 0)
            return set;
    }
    return NULL;
}

/* Queries and sums of one block, rows padded to whole vectors of any set, a maximum and a sum per query; then, of a cache
 * in codes, a block's keys and values as floats. */
size_t pst_cpu_attention_scratch_floats(size_t queries, const pst_kv_layout *layout)
{
    size_t key = (layout->key_dim + 15) & ~(size_t)15, value = (layout->value_dim + 15) & ~(size_t)15;
    size_t wide = layout->type == PST_KV_Q8 || layout->type == PST_KV_Q4 ? key + (layout->shared ? 0 : value) : 0;
    return queries * (key + value + 2) + PST_KV_BLOCK * wide;
}
