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

static int take_tables(ckpt_set *set, uint64_t count, pst_error *err)
{
    set->tensors = pst_heap_calloc(count, sizeof *set->tensors);
    set->names = pst_heap_calloc(count, sizeof *set->names);
    set->shapes = pst_heap_calloc(count, sizeof *set->shapes);
    if (set->tensors == NULL || set->names == NULL || set->shapes == NULL)
        return pst_fail_memory(err, "a table of tensors", count * sizeof *set->tensors);
    return 0;
}

/* Names, types and shapes of another checkpoint's tensors, with contents of our own. */
static int make_like(const ckpt_values *values, ckpt_set *set, pst_error *err)
{
    const pst_ckpt_open_options options = {.struct_size = sizeof options, .path = values->from};
    pst_ckpt_tensor_info info;
    PST_TRY(pst_ckpt_open(&options, &set->like, err));
    size_t count = pst_ckpt_tensor_count(set->like);
    for (size_t i = 0; i < count; i++) {
        pst_ckpt_tensor_at(set->like, i, &info);
        set->bytes += info.bytes;
    }
    if (set->bytes == 0)
        return pst_fail(err, PST_E_USAGE, values->from, "its tensors have no bytes");
    PST_TRY(take_tables(set, count, err));
    PST_TRY(take_memory(set, values->seed, err));
    uint64_t offset = 0;
    for (set->count = 0; set->count < count; set->count++) {
        pst_ckpt_tensor_at(set->like, set->count, &info);
        set->tensors[set->count] = (pst_ckpt_tensor){.name = info.name,
                                                     .dtype = info.dtype,
                                                     .rank = info.rank,
                                                     .shape = info.shape,
                                                     .data = (char *)set->memory + offset};
        offset += info.bytes;
    }
    return 0;
}

int ckpt_set_make(const ckpt_values *values, uint64_t bytes, ckpt_set *out, pst_error *err)
{
    uint64_t count = values->tensors;
    *out = (ckpt_set){.memory = NULL};
    if (values->from != NULL)
        return make_like(values, out, err);
    bytes = pst_max(bytes / ITEM_BYTES * ITEM_BYTES, ITEM_BYTES);
    if (count == 0)
        count = pst_max(bytes / USUAL_TENSOR_BYTES, 1);
    count = pst_min(count, bytes / ITEM_BYTES);
    out->bytes = bytes;
    PST_TRY(take_tables(out, count, err));
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
    pst_ckpt_close(set->like);
    *set = (ckpt_set){.memory = NULL};
}

int ckpt_set_describe(const ckpt_set *set, const char *path, pst_error *err)
{
    json_t *table = json_array();
    for (size_t i = 0; table != NULL && i < set->count; i++) {
        const pst_ckpt_tensor *t = &set->tensors[i];
        json_t *shape = json_array();
        for (uint32_t d = 0; shape != NULL && d < t->rank; d++)
            json_array_append_new(shape, json_integer((json_int_t)t->shape[d]));
        json_array_append_new(table, json_pack("[s, s, o]", t->name, pst_dtype_name(t->dtype), shape));
    }
    int failed =
        table == NULL || json_array_size(table) != set->count || json_dump_file(table, path, JSON_COMPACT) != 0;
    json_decref(table);
    return failed ? pst_fail(err, -EIO, path, "cannot be written") : 0;
}
