/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `convert` writes: the tensors of the model's program in its order, each once, cut into files. What no stage needs is
 * left out.
 */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "jobs/convert_internal.h"
#include "store/digest.h"

enum { MAX_SHARDS = 99999 };

/* What the walk over the stages knows of a tensor beside itself. */
typedef struct tensor_role {
    const pst_nn_step *step; /* NULL: a vector, or scales that go along as they are */
    const pst_tensor *scales;
    bool may_quantize;
    bool is_dropped; /* scales of what is not copied */
} tensor_role;

static bool is_plain(pst_dtype type)
{
    return type == PST_F32 || type == PST_F16 || type == PST_BF16;
}

/* ---- items ---- */

static void make_copy(convert_item *item, pst_tensor *out, const pst_tensor *source)
{
    *item = (convert_item){
        .source = source, .kind = CONVERT_COPY, .units = source->bytes, .unit_in_bytes = 1, .unit_out_bytes = 1};
    *out = *source;
}

static void make_cast(const pst_converting *c, convert_item *item, pst_tensor *out, const pst_tensor *source)
{
    make_copy(item, out, source);
    pst_dtype to = c->options.dtype;
    if (to == 0 || !is_plain(source->dtype) || source->dtype == to)
        return;
    item->kind = CONVERT_CAST;
    item->from_type = source->dtype;
    item->to_type = to;
    item->unit_in_bytes = pst_dtype_bits(source->dtype) / 8;
    item->unit_out_bytes = pst_dtype_bits(to) / 8;
    item->units = source->bytes / item->unit_in_bytes;
    out->dtype = to;
}

/* A matrix whose rows are made one by one. */
static void make_rows(convert_item *item, pst_tensor *out, const tensor_role *role, convert_kind kind, pst_dtype type,
                      uint64_t row_bytes)
{
    uint64_t rows = out->shape[0];
    item->kind = kind;
    item->from = role->step->format;
    item->from_type = item->source->dtype;
    item->scales = role->scales;
    item->columns = role->step->columns;
    item->to_type = type;
    item->units = rows;
    item->unit_in_bytes = item->source->bytes / rows;
    item->unit_out_bytes = row_bytes;
    out->dtype = type;
    out->rank = 2;
    out->shape[1] = type == PST_U8 ? row_bytes : item->columns;
}

static int make_item(pst_converting *c, const pst_tensor *source, const tensor_role *role, pst_error *err)
{
    convert_item *item = &c->items[c->item_count];
    pst_tensor *out = &c->tensors[c->item_count++];
    const pst_weight_format *from = role->step != NULL ? role->step->format : NULL;
    bool is_packed = from != NULL && (from->layout == PST_WEIGHT_GPTQ || from->layout == PST_WEIGHT_AWQ);
    bool wants_change = c->options.bits != 0 || c->options.dtype != 0;
    make_cast(c, item, out, source);
    if (from == NULL)
        return 0;
    if (is_packed && wants_change)
        return pst_fail(err, PST_E_UNSUPPORTED, pst_store_file_path(c->model->store, source->file),
                        "tensor %s is packed along its inputs (GPTQ, AWQ): it can only be copied as it is, without "
                        "other bits or types",
                        source->name);
    bool is_quantized = from->layout != PST_WEIGHT_PLAIN && !is_packed;
    uint64_t row_bytes = c->options.bits ? pst_weight_row_bytes(&c->to, role->step->columns) : 0;
    pst_dtype plain_type = is_quantized ? c->options.dtype : out->dtype;
    uint64_t plain_bytes = role->step->columns * pst_dtype_bits(plain_type ? plain_type : PST_BF16) / 8;
    if (c->options.bits != 0 && role->may_quantize && row_bytes < plain_bytes) {
        make_rows(item, out, role, CONVERT_QUANTIZE, PST_U8, row_bytes);
        c->quantized_count++;
    } else if (is_quantized && wants_change) {
        pst_dtype to = c->options.dtype ? c->options.dtype : PST_BF16;
        make_rows(item, out, role, CONVERT_EXPAND, to, role->step->columns * pst_dtype_bits(to) / 8);
    }
    return 0;
}

/* ---- the walk ---- */

typedef struct walk {
    pst_converting *c;
    const pst_stage *stage;
    const pst_nn_stage *nn;
    bool is_embedding, is_positions;
    pst_error *err;
} walk;

/* Whether the tensor is met for the first time; a tied head is met twice. */
static bool is_new(pst_converting *c, bool *seen, const pst_tensor *tensor)
{
    size_t index = (size_t)(tensor - pst_store_tensor_at(c->model->store, 0));
    bool result = !seen[index];
    seen[index] = true;
    return result;
}

static bool may_quantize(const walk *w, const pst_nn_step *step)
{
    const pst_convert_options *o = &w->c->options;
    bool is_tied = w->c->model->transformer.tied_head;
    bool is_head = step->op != NULL && step->op->out == PST_NN_LOGITS;
    if (w->is_positions || (step->op != NULL && step->op->out == PST_NN_R)) /* small, and choosing wants its digits */
        return false;
    if (w->is_embedding || (is_head && is_tied))
        return !o->keep_embedding && !(is_tied && o->keep_head);
    return !(is_head && o->keep_head);
}

/* What each tensor of the stage is. */
static void set_roles(const walk *w, tensor_role *roles)
{
    bool wants_change = w->c->options.bits != 0 || w->c->options.dtype != 0;
    for (uint32_t s = 0; s < w->nn->step_count; s++) {
        const pst_nn_step *step = &w->nn->steps[s];
        if (step->weight < 0 || step->format == NULL)
            continue;
        tensor_role *role = &roles[step->weight];
        role->step = step;
        role->may_quantize = may_quantize(w, step);
        if (step->format->layout == PST_WEIGHT_FP8_BLOCKS && step->aux[0] >= 0 && wants_change) {
            role->scales = w->stage->tensors[step->aux[0]].tensor;
            roles[step->aux[0]].is_dropped = true;
        }
    }
}

static int walk_stage(const walk *w, bool *seen)
{
    const pst_stage *stage = w->stage;
    tensor_role *roles = pst_heap_calloc(stage->tensor_count, sizeof *roles);
    if (roles == NULL)
        return pst_fail_memory(w->err, "a table of tensors", stage->tensor_count * sizeof *roles);
    set_roles(w, roles);
    int status = 0;
    for (uint32_t i = 0; i < stage->tensor_count && status == 0; i++) {
        const pst_tensor *tensor = stage->tensors[i].tensor;
        if (!is_new(w->c, seen, tensor))
            continue;
        w->c->source_bytes += tensor->bytes;
        if (!roles[i].is_dropped)
            status = make_item(w->c, tensor, &roles[i], w->err);
    }
    pst_heap_free(roles);
    return status;
}

static int walk_program(pst_converting *c, bool *seen, pst_error *err)
{
    const pst_program *program = c->model->program;
    for (uint32_t s = 0; s < program->stage_count; s++) {
        walk w = {.c = c,
                  .stage = &program->stages[s],
                  .nn = &program->nn_stages[s],
                  .is_embedding = s == 0,
                  .is_positions = s > 0 && program->stages[s].gathered,
                  .err = err};
        PST_TRY(walk_stage(&w, seen));
    }
    return 0;
}

static int make_items(pst_converting *c, pst_error *err)
{
    size_t most = pst_store_tensor_count(c->model->store);
    bool *seen = pst_heap_calloc(most, sizeof *seen);
    c->items = pst_heap_calloc(most, sizeof *c->items);
    c->tensors = pst_heap_calloc(most, sizeof *c->tensors);
    int status = seen && c->items && c->tensors ? walk_program(c, seen, err)
                                                : pst_fail_memory(err, "a table of tensors", most * sizeof *c->items);
    for (size_t i = 0; i < most && status == 0; i++)
        c->left_out += !seen[i];
    pst_heap_free(seen);
    return status;
}

/* ---- files ---- */

void pst_convert_metadata(const convert_shard *shard, pst_metadata out[CONVERT_METADATA_COUNT])
{
    out[CONVERT_METADATA_FORMAT] = (pst_metadata){"format", "pt"}; /* transformers wants this one */
    out[CONVERT_METADATA_GENERATOR] = (pst_metadata){"generator", "penstock convert"};
    out[CONVERT_METADATA_DIGESTS] = (pst_metadata){PST_DIGESTS_KEY, shard->digests};
}

static int make_digests(convert_shard *shard, pst_error *err)
{
    size_t bytes = strlen(PST_DIGESTS_KIND) + shard->count * (1 + PST_DIGEST_DIGITS) + 1;
    char *text = pst_heap_alloc(bytes);
    if (text == NULL)
        return pst_fail_memory(err, "digests", bytes);
    memset(text, '0', bytes);
    memcpy(text, PST_DIGESTS_KIND, strlen(PST_DIGESTS_KIND));
    for (size_t i = 0; i < shard->count; i++)
        text[strlen(PST_DIGESTS_KIND) + i * (1 + PST_DIGEST_DIGITS)] = ' ';
    text[bytes - 1] = '\0';
    shard->digests = text;
    return 0;
}

static int measure_shard(pst_converting *c, convert_shard *shard, size_t index, pst_error *err)
{
    pst_metadata metadata[CONVERT_METADATA_COUNT];
    char *header;
    size_t header_bytes;
    pst_safetensors_shard_name(index, c->shard_count, shard->name);
    PST_TRY(make_digests(shard, err));
    pst_convert_metadata(shard, metadata);
    PST_TRY(pst_safetensors_header(c->tensors + shard->first, shard->count, metadata, CONVERT_METADATA_COUNT, &header,
                                   &header_bytes, err));
    pst_heap_free(header);
    shard->file_bytes = header_bytes;
    for (size_t t = 0; t < shard->count; t++)
        shard->file_bytes += c->tensors[shard->first + t].bytes;
    c->file_bytes += shard->file_bytes;
    return 0;
}

/* None holds more than shard_bytes, except for a single larger tensor. */
static int cut_shards(pst_converting *c, pst_error *err)
{
    c->shards = pst_heap_calloc(c->item_count, sizeof *c->shards);
    if (c->shards == NULL)
        return pst_fail_memory(err, "a table of files", c->item_count * sizeof *c->shards);
    uint64_t bytes = 0;
    for (size_t i = 0; i < c->item_count; i++) {
        pst_tensor *tensor = &c->tensors[i];
        tensor->bytes = c->items[i].units * c->items[i].unit_out_bytes;
        if (i == 0 || bytes + tensor->bytes > c->options.shard_bytes) {
            c->shards[c->shard_count++].first = i;
            bytes = 0;
        }
        bytes += tensor->bytes;
        c->data_bytes += tensor->bytes;
        tensor->file = (uint32_t)(c->shard_count - 1);
        c->shards[c->shard_count - 1].count++;
    }
    if (c->shard_count > MAX_SHARDS)
        return pst_fail(err, PST_E_USAGE, NULL, "files so small that there would be %zu", c->shard_count);
    for (size_t i = 0; i < c->shard_count; i++)
        PST_TRY(measure_shard(c, &c->shards[i], i, err));
    return 0;
}

int pst_convert_plan(pst_converting *c, pst_error *err)
{
    const pst_convert_options *o = &c->options;
    c->all_expanded = o->bits != 0 || o->dtype != 0;
    if (o->bits != 0)
        c->to = (pst_weight_format){
            .layout = PST_WEIGHT_GROUPED, .bits = o->bits, .group = o->group_size, .symmetric = o->symmetric};
    PST_TRY(make_items(c, err));
    return cut_shards(c, err);
}

void pst_convert_plan_free(pst_converting *c)
{
    for (size_t i = 0; i < c->shard_count; i++)
        pst_heap_free(c->shards[i].digests);
    pst_heap_free(c->shards);
    pst_heap_free(c->tensors);
    pst_heap_free(c->items);
}
