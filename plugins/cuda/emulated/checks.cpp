/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a GPU does not forgive and a processor does, found by the compiler's own checks: an access that is not aligned to its
 * type, an index beyond an array, a shift by more bits than there are (where processors disagree). The compiler calls these
 * functions by name; here they end the kernel with a line. A build with the compiler's own library of them uses that one.
 */
#include "emulator.h"

struct source_place {
    const char *file;
    uint32_t line, column;
};

struct type_name {
    uint16_t kind, info;
    char name[1];
};

struct mismatch {
    source_place place;
    const type_name *type;
    unsigned char alignment_log2, kind;
};

#define HANDLER extern "C" __attribute__((noreturn)) void

static const char *base_name(const char *file)
{
    const char *slash = strrchr(file, '/');
    return slash == NULL ? file : slash + 1;
}

HANDLER __ubsan_handle_type_mismatch_v1_abort(void *what, void *address)
{
    const mismatch *data = (const mismatch *)what;
    pst_emulated_fault("%s:%u: %s at %p, which is not aligned to %u bytes", base_name(data->place.file),
                       data->place.line, data->type->name, address, 1u << data->alignment_log2);
}

HANDLER __ubsan_handle_out_of_bounds_abort(void *what, void *index)
{
    const source_place *place = (const source_place *)what;
    pst_emulated_fault("%s:%u: index %lld is beyond its array", base_name(place->file), place->line,
                       (long long)(intptr_t)index);
}

HANDLER __ubsan_handle_shift_out_of_bounds_abort(void *what, void *, void *bits)
{
    const source_place *place = (const source_place *)what;
    pst_emulated_fault("%s:%u: a shift by %lld bits", base_name(place->file), place->line, (long long)(intptr_t)bits);
}
