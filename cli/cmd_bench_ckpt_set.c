/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors of a measurement: BF16 matrices of pseudo-random bits, as weights look to a drive and a digest. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/heap.h"
#include "base/number.h"
#include "cmd_bench_ckpt.h"

enum { COLUMNS = 1024, ITEM_BYTES = 2, USUAL_TENSOR_BYTES = 32 << 20 };

static void fill(uint64_t *words, uint64_t count, uint64_t seed)
{
    uint64_t state = seed;
    for (uint64_t i = 0; i < count; i++)
        words[i] = pst_random_next(&state);
}

static int take_memory(ckpt_set *set, uint64_t seed, pst_error *err)
{
    set->mapped_bytes = pst_round_up(set->bytes + 1, 4096);
    void *memory = mmap(NULL, set->mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return pst_fail_memory(err, "tensors", set->mapped_bytes);
    set->memory = memory;
    fill(memory, set->mapped_bytes / sizeof(uint64_t), seed);
    return 0;
}

/* The next tensor, of so many bytes, in rows of COLUMNS where that comes out even. */
static void add(ckpt_set *set, uint64_t bytes, uint64_t *offset)
{
    size_t i = set->count++;
    uint64_t items = bytes / ITEM_BYTES;
    bool even = items % COLUMNS == 0;
    snprintf(set->names[i], sizeof set->names[i], "model.layers.%zu.weight", i);
    set->shapes[i][0] = even ? items / COLUMNS : items;
    set->shapes[i][1] = COLUMNS;
    set->tensors[i] = (pst_ckpt_tensor){.name = set->names[i],
                                        .dtype = PST_BF16,
                                        .rank = even ? 2 : 1,
                                        .shape = set->shapes[i],
                                        .data = (char *)set->memory + *offset};
    *offset += bytes;
}

int ckpt_set_make(const ckpt_values *values, uint64_t bytes, ckpt_set *out, pst_error *err)
{
    uint64_t count = values->tensors;
    bytes = pst_max(bytes / ITEM_BYTES * ITEM_BYTES, ITEM_BYTES);
    if (count == 0)
        count = pst_max(bytes / USUAL_TENSOR_BYTES, 1);
    count = pst_min(count, bytes / ITEM_BYTES);
    *out = (ckpt_set){.bytes = bytes};
    out->tensors = pst_heap_calloc(count, sizeof *out->tensors);
    out->names = pst_heap_calloc(count, sizeof *out->names);
    out->shapes = pst_heap_calloc(count, sizeof *out->shapes);
    if (out->tensors == NULL || out->names == NULL || out->shapes == NULL)
        return pst_fail_memory(err, "a table of tensors", count * sizeof *out->tensors);
    PST_TRY(take_memory(out, values->seed, err));
    uint64_t each = bytes / count / ITEM_BYTES * ITEM_BYTES, offset = 0;
    if (each > COLUMNS * ITEM_BYTES) /* whole rows; the last one has the rest */
        each = pst_round_down(each, COLUMNS * ITEM_BYTES);
    while (out->count + 1 < count)
        add(out, each, &offset);
    add(out, bytes - offset, &offset);
    return 0;
}

void ckpt_set_free(ckpt_set *set)
{
    if (set->memory != NULL)
        munmap(set->memory, set->mapped_bytes);
    pst_heap_free(set->tensors);
    pst_heap_free(set->names);
    pst_heap_free(set->shapes);
    *set = (ckpt_set){.memory = NULL};
}

int ckpt_set_describe(const ckpt_set *set, const char *path, pst_error *err)
{
    FILE *to = fopen(path, "we");
    if (to == NULL)
        return pst_fail(err, -errno, path, "cannot create: %s", strerror(errno));
    for (size_t i = 0; i < set->count; i++) {
        fprintf(to, "%s[\"%s\",\"%s\",[", i ? ",\n" : "[", set->names[i], pst_dtype_name(set->tensors[i].dtype));
        for (uint32_t d = 0; d < set->tensors[i].rank; d++)
            fprintf(to, d ? ",%" PRIu64 : "%" PRIu64, set->shapes[i][d]);
        fputs("]]", to);
    }
    fputs("]\n", to);
    bool failed = ferror(to) != 0;
    if (fclose(to) != 0 || failed)
        return pst_fail(err, -EIO, path, "cannot write");
    return 0;
}
