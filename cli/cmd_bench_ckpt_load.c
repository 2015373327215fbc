/* SPDX-License-Identifier: Apache-2.0 */
/* Loading as the measurement does it: into memory that is there already. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/heap.h"
#include "base/number.h"
#include "cmd_bench_ckpt.h"

enum { PAGE = 4096 };

static int open_checkpoint(const ckpt_job *job, const char *path, pst_ckpt **out, pst_error *err)
{
    pst_ckpt_open_options options = {.struct_size = sizeof options,
                                     .path = path,
                                     .verify = job->values->verify,
                                     .ring_bytes = job->values->ring,
                                     .io = job->io.io};
    options.io.struct_size = sizeof options.io;
    return pst_ckpt_open(&options, out, err);
}

int ckpt_find_format(const char *path, pst_ckpt_format *out, pst_error *err)
{
    const pst_ckpt_open_options options = {.struct_size = sizeof options, .path = path};
    pst_ckpt *ckpt;
    PST_TRY(pst_ckpt_open(&options, &ckpt, err));
    *out = pst_ckpt_get_format(ckpt);
    pst_ckpt_close(ckpt);
    return 0;
}

/* Where each tensor goes: pages of its own where it is large, so that neighbours do not shift it. */
static uint64_t place(const pst_ckpt *ckpt, ckpt_target *target)
{
    uint64_t offset = 0;
    for (size_t i = 0; i < target->count; i++) {
        pst_ckpt_tensor_info info;
        pst_ckpt_tensor_at(ckpt, i, &info);
        offset = pst_round_up(offset, info.bytes >= PAGE ? PAGE : 64);
        target->ops[i] = (pst_ckpt_read_op){.tensor = i};
        if (target->memory != NULL)
            target->ops[i].out = (char *)target->memory + offset;
        else
            target->bytes += info.bytes;
        offset += info.bytes;
    }
    return offset;
}

static void find_file(const pst_ckpt *ckpt, ckpt_target *target)
{
    pst_ckpt_tensor_info first, info;
    for (size_t i = 0; i < target->count; i++) {
        pst_ckpt_tensor_at(ckpt, i, &info);
        if (i == 0)
            first = info;
        if (strcmp(first.file, info.file) != 0)
            return;
    }
    if (target->count > 0)
        snprintf(target->file, sizeof target->file, "%s", first.file);
}

static int make(const pst_ckpt *ckpt, const char *path, bool small_pages, ckpt_target *out, pst_error *err)
{
    out->count = pst_ckpt_tensor_count(ckpt);
    out->ops = pst_heap_calloc(out->count, sizeof *out->ops);
    if (out->ops == NULL)
        return pst_fail_memory(err, "a table of tensors", out->count * sizeof *out->ops);
    find_file(ckpt, out);
    out->mapped_bytes = pst_round_up(place(ckpt, out) + 1, PAGE);
    if (out->bytes == 0)
        return pst_fail(err, PST_E_USAGE, path, "its tensors have no bytes");
    void *memory = mmap(NULL, out->mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return pst_fail_memory(err, "tensors", out->mapped_bytes);
    if (!small_pages)
        madvise(memory, out->mapped_bytes, MADV_HUGEPAGE); /* as pst_ckpt_read advises for fresh memory */
    memset(memory, 1, out->mapped_bytes);
    out->memory = memory;
    place(ckpt, out);
    return 0;
}

int ckpt_target_make(const ckpt_job *job, const char *path, ckpt_target *out, pst_error *err)
{
    pst_ckpt *ckpt;
    *out = (ckpt_target){.memory = NULL};
    PST_TRY(open_checkpoint(job, path, &ckpt, err));
    int status = make(ckpt, path, job->values->small_pages, out, err);
    pst_ckpt_close(ckpt);
    return status;
}

void ckpt_target_free(ckpt_target *target)
{
    if (target->memory != NULL)
        munmap(target->memory, target->mapped_bytes);
    pst_heap_free(target->ops);
    *target = (ckpt_target){.memory = NULL};
}

int ckpt_load_once(const ckpt_job *job, const char *path, const ckpt_target *target, pst_error *err)
{
    pst_ckpt *ckpt;
    PST_TRY(open_checkpoint(job, path, &ckpt, err));
    int status = pst_ckpt_tensor_count(ckpt) == target->count
                     ? pst_ckpt_read(ckpt, target->ops, target->count, err)
                     : pst_fail(err, PST_E_USAGE, path, "it changed meanwhile");
    pst_ckpt_close(ckpt);
    return status;
}
