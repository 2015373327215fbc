/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stream of `convert`: the items' bytes are cut into blocks of whole units. BLOCKS of them are read ahead; the oldest is
 * made into one of two output buffers by all threads, while one task of the same loop takes the other one, which was made
 * just before, to its digest and to the writer. So reading, arithmetic, digests and writing overlap, and memory depends on the
 * block's size alone, which is chosen by the budget.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "jobs/convert_internal.h"
#include "os/memory.h"
#include "store/digest.h"

enum {
    BLOCKS = 8, /* being read, or next to be made */
    OUTPUTS = 2,
    ALIGN = 4096,
    LARGEST_BLOCK = 8 << 20,
    SMALLEST_BLOCK = 256 << 10,
    TASK_BYTES = 128 << 10 /* of input, of one task */
};

static const uint64_t RESERVE_BYTES = 12ull << 20; /* threads, engines, the allocator, beside what is counted */

/* A run of units of one item. */
typedef struct place {
    size_t item;
    uint64_t first, count;
} place;

typedef struct input {
    place at;
    unsigned char *memory;
    const unsigned char *data; /* its first byte, in memory */
    pst_io_batch *batch;
    pst_io_op op;
} input;

typedef struct output {
    place at;
    unsigned char *memory;
    bool filled;
} output;

typedef struct stream {
    pst_converting *c;
    uint64_t block_bytes;               /* how much of either side a block may have, unless one unit is larger */
    uint64_t input_bytes, output_bytes; /* of each buffer */
    uint64_t scratch_floats, scales_bytes;
    pst_io_file **files; /* by the store's number; NULL: not open yet */
    unsigned char *memory;
    uint64_t memory_bytes;
    input inputs[BLOCKS];
    output outputs[OUTPUTS];
    float *scratch;
    unsigned char *scales; /* of the item that is being made */

    place next; /* to be read */
    pst_safetensors_writer *writer;
    size_t shard;
    pst_digest *digest;
    pst_error *err;
} stream;

/* ---- sizes ---- */

/* Units of a block of this item. */
static uint64_t block_units(const convert_item *item, uint64_t block_bytes)
{
    uint64_t units = block_bytes / pst_max(item->unit_in_bytes, item->unit_out_bytes);
    return units ? units : 1;
}

/* The buffers that blocks of this size need. */
static void size_buffers(stream *s, uint64_t block_bytes)
{
    s->block_bytes = block_bytes;
    s->input_bytes = s->output_bytes = s->scratch_floats = s->scales_bytes = 0;
    for (size_t i = 0; i < s->c->item_count; i++) {
        const convert_item *item = &s->c->items[i];
        uint64_t units = block_units(item, block_bytes);
        if (units > item->units)
            units = item->units;
        s->input_bytes = pst_max(s->input_bytes, units * item->unit_in_bytes);
        s->output_bytes = pst_max(s->output_bytes, units * item->unit_out_bytes);
        s->scratch_floats = pst_max(s->scratch_floats, pst_convert_scratch_floats(item));
        if (item->scales != NULL)
            s->scales_bytes = pst_max(s->scales_bytes, item->scales->bytes);
    }
    s->input_bytes = pst_round_up(s->input_bytes, ALIGN) + 2 * ALIGN; /* a file's offset keeps its place in a page */
    s->output_bytes = pst_round_up(s->output_bytes, ALIGN);
    s->scratch_floats = pst_round_up(s->scratch_floats, 16);
    s->scales_bytes = pst_round_up(s->scales_bytes + ALIGN, ALIGN);
    s->memory_bytes = BLOCKS * s->input_bytes + OUTPUTS * s->output_bytes + s->scales_bytes +
                      pst_pool_threads(s->c->pool) * s->scratch_floats * sizeof(float);
}

static uint64_t writer_buffer(uint64_t block_bytes)
{
    return block_bytes < PST_SAFETENSORS_BUFFER_BYTES ? block_bytes : PST_SAFETENSORS_BUFFER_BYTES;
}

/* The largest blocks that fit the budget; the small files, which pass through memory whole, come before the buffers. */
int pst_convert_choose_blocks(pst_converting *c, uint64_t largest_file_bytes, pst_error *err)
{
    stream s = {.c = c};
    uint64_t budget = c->options.host_memory_bytes, base = pst_memory_resident_bytes() + RESERVE_BYTES, wanted = 0;
    if (budget == 0) {
        pst_memory_info memory;
        PST_TRY(pst_memory_get_info(&memory, err));
        budget = pst_memory_resident_bytes() + memory.available_bytes / 4 * 3;
    }
    for (uint64_t block = LARGEST_BLOCK; block >= SMALLEST_BLOCK; block /= 2) {
        size_buffers(&s, block);
        uint64_t buffers = s.memory_bytes + PST_SAFETENSORS_BUFFERS * writer_buffer(block);
        wanted = base + pst_max(buffers, largest_file_bytes);
        c->block_bytes = block;
        if (wanted <= budget)
            return 0;
    }
    return pst_fail(err, PST_E_BUDGET, NULL, "converting needs %.1f MB of memory at least, and the budget is %.1f MB",
                    (double)wanted / 1e6, (double)budget / 1e6);
}

static int make_memory(stream *s, pst_error *err)
{
    void *memory;
    PST_TRY(pst_memory_map(s->memory_bytes, "conversion buffers", &memory, err));
    unsigned char *at = s->memory = memory;
    PST_TRY(pst_io_register(s->c->io, at, BLOCKS * s->input_bytes, err));
    for (int i = 0; i < BLOCKS; i++, at += s->input_bytes) {
        s->inputs[i].memory = at;
        PST_TRY(pst_io_batch_create(s->c->io, 1, &s->inputs[i].batch, err));
    }
    for (int i = 0; i < OUTPUTS; i++, at += s->output_bytes)
        s->outputs[i].memory = at;
    s->scales = at;
    s->scratch = (float *)(at + s->scales_bytes);
    s->files = pst_heap_calloc(pst_store_file_count(s->c->model->store), sizeof *s->files);
    if (s->files == NULL)
        return pst_fail_memory(err, "a table of files", sizeof *s->files);
    return pst_digest_create(&s->digest, err);
}

/* ---- reading ---- */

static int source_file(stream *s, const pst_tensor *tensor, pst_io_file **out, pst_error *err)
{
    pst_io_file **file = &s->files[tensor->file];
    if (*file == NULL)
        PST_TRY(pst_store_file_open(s->c->model->store, tensor->file, s->c->io, file, err));
    *out = *file;
    return 0;
}

/* The read of `bytes` at `offset` of a tensor, in whole blocks around them, to `memory`; *data: where they come to lie. */
static int prepare_read(stream *s, const pst_tensor *tensor, uint64_t offset, uint64_t bytes, unsigned char *memory,
                        pst_io_op *op, const unsigned char **data, pst_error *err)
{
    uint64_t begin = tensor->offset + offset, start = begin / ALIGN * ALIGN;
    *op = (pst_io_op){.offset = start,
                      .buffer = memory,
                      .bytes = pst_round_up(begin + bytes, ALIGN) - start,
                      .kind = PST_IO_READ,
                      .may_be_short = true};
    *data = memory + (begin - start);
    return source_file(s, tensor, &op->file, err);
}

static int check_read(const pst_io_op *op, const unsigned char *data, uint64_t bytes, pst_error *err)
{
    uint64_t needed = (uint64_t)(data - (const unsigned char *)op->buffer) + bytes;
    if (op->result >= (int64_t)needed)
        return 0;
    return pst_fail_at(err, PST_E_SHORT, pst_io_file_path(op->file), op->offset + (uint64_t)op->result,
                       "the file ends early, within its tensors");
}

/* Sends the next block on its way into a free input; at the end of the items nothing. */
static int read_ahead(stream *s, input *in, pst_error *err)
{
    const pst_converting *c = s->c;
    in->at.count = 0;
    while (s->next.item < c->item_count && s->next.first == c->items[s->next.item].units)
        s->next = (place){.item = s->next.item + 1};
    if (s->next.item == c->item_count)
        return 0;
    const convert_item *item = &c->items[s->next.item];
    uint64_t units = block_units(item, s->block_bytes), left = item->units - s->next.first;
    in->at = (place){s->next.item, s->next.first, units < left ? units : left};
    s->next.first += in->at.count;
    PST_TRY(prepare_read(s, item->source, in->at.first * item->unit_in_bytes, in->at.count * item->unit_in_bytes,
                         in->memory, &in->op, &in->data, err));
    return pst_io_submit(in->batch, &in->op, 1, err);
}

static int wait_input(const stream *s, input *in, pst_error *err)
{
    PST_TRY(pst_io_wait(in->batch, UINT64_MAX, err));
    return check_read(&in->op, in->data, in->at.count * s->c->items[in->at.item].unit_in_bytes, err);
}

/* The scales of an item whose first block comes. */
static int load_scales(stream *s, const convert_item *item, const unsigned char **out, pst_error *err)
{
    pst_io_op op;
    PST_TRY(prepare_read(s, item->scales, 0, item->scales->bytes, s->scales, &op, out, err));
    PST_TRY(pst_io_transfer(s->c->io, &op, err));
    return check_read(&op, *out, item->scales->bytes, err);
}

/* ---- writing ---- */

static int open_writer(stream *s, pst_error *err)
{
    pst_converting *c = s->c;
    const convert_shard *shard = &c->shards[s->shard];
    pst_metadata metadata[CONVERT_METADATA_COUNT];
    pst_convert_metadata(shard, metadata);
    char *path = pst_convert_path(c, shard->name);
    if (path == NULL)
        return pst_fail_memory(err, "a path", sizeof shard->name);
    pst_safetensors_target target = {.path = path, .buffer_bytes = writer_buffer(s->block_bytes)};
    int status = 0;
    if (c->stripes != NULL)
        status = pst_stripe_file_open(c->stripes->set, c->io, shard->name,
                                      PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_TRUNCATE, &target.file, err);
    if (status >= 0)
        status = pst_safetensors_writer_open_at(c->io, &target, c->tensors + shard->first, shard->count, metadata,
                                                CONVERT_METADATA_COUNT, &s->writer, err);
    pst_heap_free(path);
    return status;
}

static int finish_writer(stream *s, pst_error *err)
{
    int status =
        pst_safetensors_writer_set_metadata(s->writer, CONVERT_METADATA_DIGESTS, s->c->shards[s->shard].digests, err);
    if (status >= 0)
        status = pst_safetensors_writer_finish(s->writer, err);
    pst_safetensors_writer_close(s->writer);
    s->writer = NULL;
    s->shard++;
    return status;
}

/* Takes a made block to its digest and to the writer; opens and finishes files where they begin and end. */
static int append(stream *s, output *out, pst_error *err)
{
    if (!out->filled)
        return 0;
    out->filled = false;
    const convert_item *item = &s->c->items[out->at.item];
    convert_shard *shard = &s->c->shards[s->shard];
    uint64_t bytes = out->at.count * item->unit_out_bytes;
    if (s->writer == NULL)
        PST_TRY(open_writer(s, err));
    if (out->at.first == 0)
        pst_digest_begin(s->digest);
    pst_digest_add(s->digest, out->memory, bytes);
    PST_TRY(pst_safetensors_writer_append(s->writer, out->memory, bytes, err));
    if (out->at.first + out->at.count < item->units)
        return 0;
    size_t index = out->at.item - shard->first;
    pst_digest_end(s->digest, shard->digests + strlen(PST_DIGESTS_KIND) + index * (1 + PST_DIGEST_DIGITS) + 1);
    return index + 1 == shard->count ? finish_writer(s, err) : 0;
}

/* ---- making ---- */

/* One loop of the threads: task 0 appends the block before, the others make this one. */
typedef struct turn {
    stream *s;
    input *in; /* NULL: only append */
    output *out, *before;
    const unsigned char *scales;
    uint64_t task_units;
    atomic_int made; /* 0, or what one of the tasks failed with */
    int appended;
    pst_error append_err;
} turn;

static void run_task(void *context, uint32_t task, uint32_t worker)
{
    turn *t = context;
    if (task == 0) {
        t->appended = append(t->s, t->before, &t->append_err);
        return;
    }
    const place *at = &t->in->at;
    const convert_item *item = &t->s->c->items[at->item];
    uint64_t first = (task - 1) * t->task_units, count = at->count - first;
    if (count > t->task_units)
        count = t->task_units;
    int status = pst_convert_units(
        item, &t->s->c->to, t->scales, at->first + first, count, t->in->data + first * item->unit_in_bytes,
        t->out->memory + first * item->unit_out_bytes, t->s->scratch + worker * t->s->scratch_floats);
    if (status < 0)
        atomic_store_explicit(&t->made, status, memory_order_relaxed);
}

static int check_made(const turn *t, pst_error *err)
{
    int status = t->made;
    if (status >= 0)
        return 0;
    const convert_item *item = &t->s->c->items[t->in->at.item];
    char quoted[PST_QUOTE_BYTES];
    return pst_fail(err, PST_E_FORMAT, pst_store_file_path(t->s->c->model->store, item->source->file),
                    "tensor %s holds %s", pst_quote(item->source->name, quoted),
                    item->kind == CONVERT_QUANTIZE && status != -ERANGE
                        ? "infinities or what is no number, and cannot be quantized"
                        : "numbers too large for 16 bits");
}

/* Makes and appends; then the input is free. */
static int take_turn(stream *s, input *in, output *out, output *before, pst_error *err)
{
    turn t = {.s = s, .in = in, .out = out, .before = before};
    uint64_t tasks = 1, written = 0;
    if (before->filled)
        written = before->at.count * s->c->items[before->at.item].unit_out_bytes;
    if (in != NULL) {
        const convert_item *item = &s->c->items[in->at.item];
        if (item->scales != NULL)
            PST_TRY(load_scales(s, item, &t.scales, err));
        t.task_units = TASK_BYTES / item->unit_in_bytes ? TASK_BYTES / item->unit_in_bytes : 1;
        tasks += (in->at.count + t.task_units - 1) / t.task_units;
    }
    pst_pool_run(s->c->pool, (uint32_t)tasks, run_task, &t);
    if (t.appended < 0) {
        if (err != NULL)
            *err = t.append_err;
        return t.appended;
    }
    PST_TRY(check_made(&t, err));
    if (in != NULL) {
        out->at = in->at;
        out->filled = true;
    }
    return pst_convert_progress(s->c, written, err);
}

static int run(stream *s, pst_error *err)
{
    for (int i = 0; i < BLOCKS; i++)
        PST_TRY(read_ahead(s, &s->inputs[i], err));
    uint64_t number = 0;
    for (input *in = &s->inputs[0]; in->at.count > 0; in = &s->inputs[++number % BLOCKS]) {
        PST_TRY(wait_input(s, in, err));
        PST_TRY(take_turn(s, in, &s->outputs[number % OUTPUTS], &s->outputs[(number + 1) % OUTPUTS], err));
        PST_TRY(read_ahead(s, in, err));
    }
    return take_turn(s, NULL, NULL, &s->outputs[(number + 1) % OUTPUTS], err);
}

static void release(stream *s)
{
    pst_safetensors_writer_close(s->writer);
    for (int i = 0; i < BLOCKS; i++)
        if (s->inputs[i].batch != NULL)
            pst_io_cancel(s->inputs[i].batch);
    for (int i = 0; i < BLOCKS; i++)
        pst_io_batch_destroy(s->inputs[i].batch);
    for (size_t i = 0; s->files != NULL && i < pst_store_file_count(s->c->model->store); i++)
        if (s->files[i] != NULL)
            pst_io_file_close(s->files[i], NULL); /* only read from: nothing can be lost */
    if (s->memory != NULL) {
        pst_io_unregister(s->c->io, s->memory);
        pst_memory_unmap(s->memory, s->memory_bytes);
    }
    pst_heap_free(s->files);
    pst_digest_destroy(s->digest);
}

int pst_convert_stream(pst_converting *c, pst_error *err)
{
    stream s = {.c = c};
    size_buffers(&s, c->block_bytes);
    int status = make_memory(&s, err);
    if (status >= 0)
        status = run(&s, err);
    release(&s);
    return status;
}
