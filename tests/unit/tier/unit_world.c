/* SPDX-License-Identifier: Apache-2.0 */
#include "unit_world.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"

unsigned char world_byte(uint64_t offset)
{
    return (unsigned char)((offset * 2654435761u) >> 13 ^ offset);
}

/* One file of safetensors: BF16 matrices with bytes that tell where they are. */
static void write_file(world *w, const uint32_t *rows, const uint32_t *columns, uint32_t count)
{
    strcpy(w->folder, "/tmp/penstock-units-XXXXXX");
    assert_non_null(mkdtemp(w->folder));
    snprintf(w->path, sizeof w->path, "%s/model.safetensors", w->folder);
    FILE *file = fopen(w->path, "wb");
    assert_non_null(file);
    char *header = malloc(128 * (size_t)count + 16);
    assert_non_null(header);
    size_t length = 0;
    uint64_t offset = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t bytes = 2ull * rows[i] * columns[i];
        length += (size_t)sprintf(
            header + length, "%c\"t%05u\":{\"dtype\":\"BF16\",\"shape\":[%u,%u],\"data_offsets\":[%llu,%llu]}",
            i ? ',' : '{', i, rows[i], columns[i], (unsigned long long)offset, (unsigned long long)(offset + bytes));
        offset += bytes;
    }
    header[length++] = '}';
    uint64_t prefix = length;
    fwrite(&prefix, 8, 1, file);
    fwrite(header, 1, length, file);
    for (uint64_t i = 0; i < offset; i++)
        putc(world_byte(8 + length + i), file);
    assert_int_equal(fclose(file), 0);
    free(header);
}

static uint32_t stage_number(const world *w, const pst_stage *stage)
{
    return (uint32_t)(stage - w->stages);
}

/* Goes on from where the pass is to the next tensor that is wanted. */
void world_skip_unwanted(world *w)
{
    for (; w->stage < w->stage_count; w->stage++, w->tensor = 0) {
        const pst_stage *stage = &w->stages[w->stage];
        if (stage->unit_count == 0 && w->tensor < stage->tensor_count)
            return;
        for (uint32_t u = 0; u < stage->unit_count; u++) {
            if (w->tensor >= stage->unit_first_tensor[u + 1])
                continue;
            if (w->chosen[w->stage] && w->wanted[w->stage][u])
                return;
            if (!w->chosen[w->stage])
                return;
            w->tensor = stage->unit_first_tensor[u + 1];
        }
    }
}

static uint32_t choose(void *context, const pst_stage *stage, bool *wanted)
{
    world *w = context;
    uint32_t s = stage_number(w, stage), count = 0;
    world_skip_unwanted(w);
    if (!stage->chosen_early)
        assert_int_equal(w->stage, s); /* all before it is computed */
    assert_false(w->chosen[s]);
    w->chosen[s] = true;
    for (uint32_t u = 0; u < stage->unit_count; u++)
        count += wanted[u] = w->wanted[s][u];
    return count;
}

uint32_t world_guess(void *context, const pst_stage *stage, bool *wanted)
{
    world *w = context;
    uint32_t s = stage_number(w, stage);
    assert_false(w->chosen[s]);
    if (w->guessing == NO_IDEA)
        return 0;
    uint32_t count = 0;
    for (uint32_t u = 0; u < stage->unit_count; u++)
        count += wanted[u] = w->guessing == RIGHT ? w->wanted[s][u]
                             : w->guessing == ALL ? true
                                                  : source_below(w->source, 3) == 0;
    return count;
}

/* Hands a piece to the device. */
static int land(world *w, uint64_t file_offset, const unsigned char *memory, uint64_t bytes, pst_error *err)
{
    assert_int_equal((uintptr_t)memory % PST_DEVICE_ALIGN, 0);
    assert_true(w->landed_bytes + bytes <= w->landing_bytes);
    unsigned char *to = w->landing + w->landed_bytes;
    w->landed[w->landed_count++] = (landed_piece){file_offset, bytes, w->landed_bytes};
    w->landed_bytes += bytes;
    int status = w->device->ops->copy(w->device, NULL, to, memory, bytes);
    return status < 0 ? pst_fail(err, status, NULL, "landing: %s", w->device->ops->last_error(w->device)) : 0;
}

static int compute(void *context, const pst_stage *stage, const pst_part_view *part, pst_error *err)
{
    world *w = context;
    if (w->fail_after > 0 && ++w->computed_parts >= w->fail_after) {
        if (!w->cancel_then)
            return pst_fail(err, -EIO, NULL, "made up");
        w->cancel = true;
    }
    for (size_t i = 0; i < part->piece_count; i++) {
        const pst_piece *piece = &part->pieces[i];
        world_skip_unwanted(w);
        assert_int_equal(w->stage, stage_number(w, stage));
        assert_int_equal(w->tensor, piece->tensor);
        assert_int_equal(w->row, piece->first_row);
        const pst_stage_tensor *tensor = &stage->tensors[piece->tensor];
        uint64_t at = tensor->tensor->offset + piece->first_row * tensor->row_bytes;
        uint64_t bytes = piece->rows * tensor->row_bytes;
        if (w->device != NULL)
            PST_TRY(land(w, at, part->memory + piece->offset, bytes, err));
        for (uint64_t b = 0; w->device == NULL && b < bytes; b += 1 + b % 7)
            assert_int_equal(part->memory[piece->offset + b], world_byte(at + b));
        w->row += piece->rows;
        if (w->row == tensor->rows) {
            w->row = 0;
            w->tensor++;
        }
    }
    return 0;
}

static void add_stage(world *w, uint32_t *next, uint32_t tensors)
{
    pst_stage *stage = &w->stages[w->stage_count++];
    *stage = (pst_stage){
        .name = "stage", .tensors = w->tensors + *next, .tensor_count = tensors, .compute = compute, .context = w};
    *next += tensors;
}

world *world_make(random_source *source, uint32_t layers, uint32_t units, uint32_t unit_bytes)
{
    world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->source = source;
    w->layers = layers;
    w->units = units;
    uint32_t most = 2 + layers * (1 + UNIT_TENSORS * units);
    uint32_t *rows = malloc(most * sizeof *rows), *columns = malloc(most * sizeof *columns), count = 0;
    w->tensors = calloc(most, sizeof *w->tensors);
    assert_true(rows && columns && w->tensors);
    for (uint32_t i = 0; i < most; i++) {
        bool is_unit = i > 0 && i + 1 < most && (i - 1) % (1 + UNIT_TENSORS * units) != 0;
        rows[i] = is_unit ? 16 : 40 + (uint32_t)source_below(source, 60);
        columns[i] = is_unit ? unit_bytes / 2 / 16 / UNIT_TENSORS : 100 + (uint32_t)source_below(source, 60);
    }
    write_file(w, rows, columns, most);
    pst_error err;
    assert_int_equal(pst_store_open(w->path, &w->store, &err), 0);
    for (uint32_t i = 0; i < most; i++) {
        char name[16];
        snprintf(name, sizeof name, "t%05u", i);
        w->tensors[i] = (pst_stage_tensor){pst_store_find(w->store, name), rows[i], 2ull * columns[i]};
        assert_non_null(w->tensors[i].tensor);
    }
    w->tensor_count = most;
    for (uint32_t u = 0; u <= units; u++)
        w->unit_first[u] = UNIT_TENSORS * u;
    add_stage(w, &count, 1);
    w->stages[0].gathered = true;
    for (uint32_t l = 0; l < layers; l++) {
        add_stage(w, &count, 1);
        add_stage(w, &count, UNIT_TENSORS * units);
        pst_stage *stage = &w->stages[w->stage_count - 1];
        stage->unit_count = units;
        stage->unit_first_tensor = w->unit_first;
        stage->choose = choose;
        stage->guess = world_guess;
    }
    add_stage(w, &count, 1);
    pst_stage *head = &w->stages[w->stage_count - 1];
    static const uint32_t one[] = {0, 1};
    head->unit_count = 1;
    head->unit_first_tensor = one;
    head->choose = choose;
    head->chosen_early = source_below(source, 2);
    free(rows);
    free(columns);
    return w;
}

void world_free(world *w)
{
    pst_store_close(w->store);
    unlink(w->path);
    rmdir(w->folder);
    free(w->tensors);
    free(w);
}

void world_begin_pass(world *w)
{
    memset(w->chosen, 0, sizeof w->chosen);
    w->stage = 1;
    w->tensor = 0;
    w->row = 0;
}

pst_io *world_open_io(const char *engine)
{
    pst_io_options options = {.struct_size = sizeof options, .engine = engine, .block_size = 4096};
    pst_io *io;
    assert_int_equal(pst_io_open(&options, &io, NULL), 0);
    return io;
}

void world_wish(world *w, random_source *source)
{
    uint64_t one_in = 1 + source_below(source, 5);
    for (uint32_t s = 1; s < w->stage_count; s++)
        for (uint32_t u = 0; u < w->stages[s].unit_count; u++)
            w->wanted[s][u] = source_below(source, one_in) == 0;
}

void world_use_device(world *w, pst_device *device, uint32_t passes)
{
    uint64_t bytes = 0, pieces = 0;
    for (uint32_t i = 0; i < w->tensor_count; i++) {
        bytes += w->tensors[i].rows * w->tensors[i].row_bytes;
        pieces += w->tensors[i].rows;
    }
    w->device = device;
    w->landing_bytes = bytes * passes;
    w->landed_bytes = w->landed_count = 0;
    w->landed = calloc(pieces * passes, sizeof *w->landed);
    assert_non_null(w->landed);
    assert_int_equal(device->ops->allocate(device, PST_MEMORY_HOST, w->landing_bytes, (void **)&w->landing), 0);
}

void world_leave_device(world *w)
{
    w->device->ops->synchronize(w->device, NULL);
    w->device->ops->release(w->device, PST_MEMORY_HOST, w->landing, w->landing_bytes);
    free(w->landed);
    w->device = NULL;
    w->landed = NULL;
}

int world_check_landed(world *w)
{
    int status = w->device->ops->synchronize(w->device, NULL);
    for (size_t i = 0; i < w->landed_count && status >= 0; i++) {
        const landed_piece *piece = &w->landed[i];
        for (uint64_t b = 0; b < piece->bytes; b += 1 + b % 5)
            if (w->landing[piece->at + b] != world_byte(piece->file_offset + b))
                fail_msg("piece %zu of %zu, byte %llu", i, w->landed_count, (unsigned long long)b);
    }
    w->landed_bytes = w->landed_count = 0;
    return status;
}
