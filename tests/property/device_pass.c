/* SPDX-License-Identifier: Apache-2.0 */
/* See device_pass.h. */
#include "property/device_pass.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "nn/device_memory.h"
#include "os/file.h"
#include "support/random.h"

#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases/"

enum { PIECE_ALIGNMENT = 256, MAX_PIECES = 16, SLOT_BYTES = 4 << 20, MAX_UNITS = 64, MAX_KEPT = 4 * MAX_UNITS };

static uint64_t below(uint64_t *state, uint64_t bound)
{
    return pst_random_next(state) % bound;
}

static size_t number_of(const scene *s, const pst_tensor *tensor)
{
    const pst_store *store = s->model->store;
    for (size_t i = 0; i < pst_store_tensor_count(store); i++)
        if (pst_store_tensor_at(store, i) == tensor)
            return i;
    fail();
    return 0;
}

void scene_open(scene *s, const char *name)
{
    char folder[512];
    pst_error err;
    snprintf(folder, sizeof folder, CASES "%s", name);
    *s = (scene){0};
    if (pst_model_open(folder, NULL, &s->model, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    const size_t count = pst_store_tensor_count(s->model->store);
    s->data = calloc(count, sizeof *s->data);
    for (size_t i = 0; i < count; i++) {
        const pst_tensor *tensor = pst_store_tensor_at(s->model->store, i);
        s->data[i] = malloc(tensor->bytes + 1);
        assert_int_equal(pst_file_read_at(pst_store_file_path(s->model->store, tensor->file), tensor->offset,
                                          s->data[i], tensor->bytes, NULL),
                         0);
    }
    for (int q = 0; q < SCENE_SEQUENCES; q++)
        for (int i = 0; i < SCENE_TOKENS; i++)
            s->ids[q][i] = (uint32_t)random_below(s->model->transformer.vocab);
}

void scene_close(scene *s)
{
    for (size_t i = 0; i < pst_store_tensor_count(s->model->store); i++)
        free(s->data[i]);
    free(s->data);
    pst_model_close(s->model);
}

/* One run under way. */
typedef struct work {
    const scene *scene;
    const scene_run *run;
    pst_program *program;
    pst_routing_trace *trace;
    pst_io *io; /* of keys and values in a file */
    pst_kv *kv;
    pst_forward *forward;
    unsigned char *slot; /* the device's */
    struct {
        void *memory;
        uint64_t bytes;
    } kept[MAX_KEPT]; /* for the length of a pass */
    size_t kept_count;
    uint64_t rows_state, cut_state;
    uint32_t done[SCENE_SEQUENCES];
    scene_result result;
    pst_error *err;
} work;

static bool is_apart(const work *w)
{
    return w->run->device != w->run->host;
}

/* A part goes to its stage, in the slot, or in memory that stays. What that held before is overwritten: nothing may lean on it. */
static int compute_part(work *w, const pst_stage *stage, const pst_piece *pieces, size_t count, bool stays)
{
    pst_device *device = w->run->device;
    unsigned char *memory = w->slot;
    uint64_t bytes = SLOT_BYTES;
    if (stays) {
        const pst_piece *last = &pieces[count - 1];
        bytes = last->offset + last->rows * stage->tensors[last->tensor].row_bytes;
        assert_true(w->kept_count < MAX_KEPT);
        PST_TRY(pst_nn_take_memory(device, PST_MEMORY_DEVICE, bytes, "an expert", (void **)&memory, w->err));
        w->kept[w->kept_count].memory = memory;
        w->kept[w->kept_count++].bytes = bytes;
    }
    int status = device->ops->fill(device, NULL, memory, 0xee, bytes);
    for (size_t i = 0; i < count && status >= 0; i++) {
        const pst_stage_tensor *tensor = &stage->tensors[pieces[i].tensor];
        const unsigned char *data = w->scene->data[number_of(w->scene, tensor->tensor)];
        status = device->ops->copy(device, NULL, memory + pieces[i].offset,
                                   data + pieces[i].first_row * tensor->row_bytes, pieces[i].rows * tensor->row_bytes);
    }
    if (status < 0)
        return pst_fail(w->err, status, NULL, "the feeder's copy failed");
    const pst_part_view part = {pieces, count, memory, stays};
    return stage->compute(stage->context, stage, &part, w->err);
}

/* Tensors [first, end) of a stage in parts. */
static int feed(work *w, const pst_stage *stage, uint32_t first, uint32_t end)
{
    pst_piece pieces[MAX_PIECES] = {0};
    size_t count = 0;
    uint64_t used = 0;
    if (first == end)
        return compute_part(w, stage, pieces, 0, false);
    for (uint32_t t = first; t < end; t++) {
        const pst_stage_tensor *tensor = &stage->tensors[t];
        for (uint64_t row = 0; row < tensor->rows;) {
            uint64_t rows = tensor->rows - row;
            if (w->run->cut && below(&w->cut_state, 3) == 0)
                rows = 1 + below(&w->cut_state, rows);
            assert_true(rows * tensor->row_bytes <= SLOT_BYTES);
            const bool is_full = used + rows * tensor->row_bytes > SLOT_BYTES || count == MAX_PIECES;
            /* A part has one run of a tensor's rows at most. */
            if (count > 0 && (is_full || row > 0 || (w->run->cut && below(&w->cut_state, 3) == 0))) {
                PST_TRY(compute_part(w, stage, pieces, count, false));
                count = 0;
                used = 0;
            }
            pieces[count++] = (pst_piece){.tensor = t, .first_row = row, .rows = rows, .offset = used};
            used = pst_round_up(used + rows * tensor->row_bytes, PIECE_ALIGNMENT);
            row += rows;
        }
    }
    return compute_part(w, stage, pieces, count, false);
}

/* The same tensors, whole, in one part that stays. */
static int feed_kept(work *w, const pst_stage *stage, uint32_t first, uint32_t end)
{
    pst_piece pieces[MAX_PIECES] = {0};
    uint64_t used = 0;
    assert_true(end - first <= MAX_PIECES);
    for (uint32_t t = first; t < end; t++) {
        pieces[t - first] = (pst_piece){.tensor = t, .rows = stage->tensors[t].rows, .offset = used};
        used = pst_round_up(used + stage->tensors[t].rows * stage->tensors[t].row_bytes, PIECE_ALIGNMENT);
    }
    return compute_part(w, stage, pieces, end - first, true);
}

static void drop_kept(work *w)
{
    while (w->kept_count > 0) {
        w->kept_count--;
        pst_nn_give_memory(w->run->device, PST_MEMORY_DEVICE, w->kept[w->kept_count].memory,
                           w->kept[w->kept_count].bytes);
    }
}

static int run_stages(work *w)
{
    for (uint32_t i = w->program->gathered_stages; i < w->program->stage_count; i++) {
        const pst_stage *stage = &w->program->stages[i];
        bool wanted[MAX_UNITS];
        assert_true(stage->unit_count <= MAX_UNITS);
        if (stage->choose == NULL) {
            PST_TRY(feed(w, stage, 0, stage->tensor_count));
            continue;
        }
        if (stage->chosen_early) {
            if (stage->choose(stage->context, stage, wanted) > 0)
                PST_TRY(feed(w, stage, 0, stage->tensor_count));
            continue;
        }
        stage->choose(stage->context, stage, wanted);
        for (uint32_t u = 0; u < stage->unit_count; u++) {
            const bool stays = w->run->keep && below(&w->cut_state, 3) > 0;
            if (wanted[u])
                PST_TRY(
                    (stays ? feed_kept : feed)(w, stage, stage->unit_first_tensor[u], stage->unit_first_tensor[u + 1]));
        }
    }
    return 0;
}

/* Positions of a sequence: no more than the model has. */
static uint32_t scene_tokens(const work *w)
{
    return (uint32_t)pst_min(SCENE_TOKENS, w->scene->model->transformer.context);
}

/* Random rows: some sequences go on by some positions each, those that are through with their prompts first. */
static uint32_t choose_rows(work *w, pst_row *rows)
{
    enum { PROMPT = 60 };
    uint32_t count = 0, before[SCENE_SEQUENCES];
    memcpy(before, w->done, sizeof before);
    for (uint32_t i = 0; i < 2 * SCENE_SEQUENCES; i++) {
        const uint32_t q = i % SCENE_SEQUENCES;
        const bool in_prompt = before[q] < PROMPT;
        if (in_prompt != (i >= SCENE_SEQUENCES))
            continue;
        uint32_t most = SCENE_ROWS - count, end = scene_tokens(w);
        uint32_t left = (in_prompt && end > PROMPT ? PROMPT : end) - w->done[q];
        most = most < left ? most : left;
        uint32_t take = most > 0 ? (uint32_t)below(&w->rows_state, most + 1) : 0;
        for (uint32_t n = 0; n < take; n++, w->done[q]++)
            rows[count++] = (pst_row){.sequence = q,
                                      .position = w->done[q],
                                      .id = w->scene->ids[q][w->done[q]],
                                      .prompt = PROMPT,
                                      .serial = q,
                                      .wants_logits = below(&w->rows_state, 3) == 0};
    }
    return count;
}

static int gather(work *w, const pst_row *rows, uint32_t count)
{
    const pst_program *program = w->program;
    for (uint32_t g = 0; g < program->gathered_stages; g++) {
        const pst_stage_tensor *tensor = &program->stages[g].tensors[0];
        const unsigned char *data = w->scene->data[number_of(w->scene, tensor->tensor)];
        for (uint32_t i = 0; i < count; i++) {
            uint32_t row = g == 0 ? rows[i].id : rows[i].position + w->scene->model->transformer.position_offset;
            int status = (g == 0 ? pst_forward_embed : pst_forward_embed_position)(w->forward, i,
                                                                                   data + row * tensor->row_bytes);
            if (status < 0)
                return pst_fail(w->err, status, NULL, "the embedding failed");
        }
    }
    return pst_forward_gathered(w->forward, w->err);
}

static void append(void *array, size_t *count, const void *more, size_t more_count)
{
    uint32_t **numbers = array;
    *numbers = realloc(*numbers, (*count + more_count + 1) * sizeof **numbers);
    assert_non_null(*numbers);
    if (more_count > 0)
        memcpy(*numbers + *count, more, more_count * sizeof **numbers);
    *count += more_count;
}

static int run_pass(work *w)
{
    pst_row rows[SCENE_ROWS];
    const uint32_t count = choose_rows(w, rows);
    const pst_transformer *t = &w->scene->model->transformer;
    if (count == 0)
        return 0;
    PST_TRY(pst_forward_begin(w->forward, rows, count, w->err));
    PST_TRY(gather(w, rows, count));
    PST_TRY(run_stages(w));
    PST_TRY(pst_forward_end(w->forward, w->err));
    drop_kept(w);
    pst_matrix logits;
    PST_TRY(pst_forward_fetch_logits(w->forward, NULL, (uint32_t)pst_forward_logits(w->forward).rows, &logits, w->err));
    for (size_t i = 0; i < logits.rows; i++)
        append(&w->result.logits, &w->result.count, (const float *)logits.data + i * logits.stride, t->vocab);
    uint32_t layers = 0;
    for (uint32_t i = 0; t->experts > 0 && i < t->layers; i++)
        layers += t->sparse[i];
    for (uint32_t i = 0; w->run->record_routing && i < count; i++)
        append(&w->result.routing, &w->result.routing_count, pst_forward_routing(w->forward, i),
               (size_t)layers * t->experts_per_token);
    return 0;
}

static void count_memory(work *w, const pst_forward_config *config, const pst_kv_config *kv)
{
    pst_forward_memory memory;
    pst_kv_memory cache;
    pst_forward_measure(config, &memory);
    pst_kv_measure(kv, &cache);
    const uint64_t room = config->max_rows;
    w->result.device_bytes = room * (memory.device_row_bytes + memory.device_logit_row_bytes) +
                             memory.device_fixed_bytes + cache.device_kv_bytes + cache.device_table_bytes + SLOT_BYTES;
    w->result.host_bytes = room * (memory.row_bytes + memory.logit_row_bytes + memory.fetched_row_bytes) +
                           memory.fixed_bytes + cache.kv_bytes + cache.table_bytes;
    if (!is_apart(w))
        assert_int_equal(memory.device_row_bytes + memory.device_logit_row_bytes + memory.device_fixed_bytes +
                             cache.device_kv_bytes + cache.device_table_bytes,
                         0);
}

static int make(work *w)
{
    const scene_run *run = w->run;
    const pst_transformer *t = &w->scene->model->transformer;
    pst_forward_config config = {.transformer = t,
                                 .device = run->device,
                                 .host = run->host,
                                 .apart = is_apart(w),
                                 .max_rows = run->room ? run->room : SCENE_ROWS,
                                 .max_logit_rows = run->room ? run->room : SCENE_ROWS,
                                 .fetched_rows = run->room ? run->room : SCENE_ROWS,
                                 .max_sequences = SCENE_SEQUENCES,
                                 .max_tokens = SCENE_TOKENS,
                                 .compute_type = run->compute_type,
                                 .kv_type = run->kv_type,
                                 .record_routing = run->record_routing};
    if (run->kv_folder != NULL) {
        const pst_io_options io = {.struct_size = sizeof io, .engine = "threads", .workers = 1};
        PST_TRY(pst_io_open(&io, &w->io, w->err));
    }
    const pst_kv_config kv = {.layout = pst_kv_layout_of(t, run->kv_type),
                              .layers = t->layers,
                              .max_sequences = SCENE_SEQUENCES,
                              .max_tokens = SCENE_TOKENS,
                              .window = t->window,
                              .windowed = t->windowed,
                              .folder = run->kv_folder,
                              .io = w->io,
                              .offload = run->kv_offload,
                              .window_bytes = run->kv_window_bytes,
                              .device = run->device,
                              .apart = is_apart(w)};
    PST_TRY(pst_program_create(t, w->scene->model->store, &w->program, w->err));
    if (run->routing_trace != NULL)
        PST_TRY(pst_routing_trace_open(run->routing_trace, t, &w->trace, w->err));
    config.program = w->program;
    config.routing_trace = w->trace;
    count_memory(w, &config, &kv);
    PST_TRY(pst_kv_create(&kv, &w->kv, w->err));
    config.kv = w->kv;
    PST_TRY(pst_forward_create(&config, &w->forward, w->err));
    return pst_nn_take_memory(run->device, PST_MEMORY_DEVICE, SLOT_BYTES, "a slot", (void **)&w->slot, w->err);
}

int scene_compute(const scene *s, const scene_run *run, scene_result *out, pst_error *err)
{
    work w = {.scene = s, .run = run, .err = err, .rows_state = run->seed, .cut_state = run->seed + run->cut};
    int status = make(&w);
    for (uint32_t i = 0; i < run->passes && status >= 0; i++)
        status = run_pass(&w);
    if (w.slot != NULL)
        run->device->ops->synchronize(run->device, NULL);
    drop_kept(&w);
    pst_nn_give_memory(run->device, PST_MEMORY_DEVICE, w.slot, SLOT_BYTES);
    pst_forward_destroy(w.forward);
    pst_kv_destroy(w.kv);
    pst_io_close(w.io);
    pst_routing_trace_destroy(w.trace);
    pst_program_destroy(w.program);
    if (status >= 0)
        *out = w.result;
    else
        scene_free(&w.result);
    return status < 0 ? status : 0;
}

void scene_free(scene_result *result)
{
    free(result->logits);
    free(result->routing);
    *result = (scene_result){0};
}
