/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device plugin that explains every hook. Its device is a piece of the host's memory with its own bookkeeping: memory,
 * streams, events and copies are all there; of the operators a few are, and the others say that they are not. A real one
 * computes all of them (penstock/device_plugin.h says what), and the tests of devices hold each against the host's.
 *
 *     cc -shared -fPIC -I include examples/device_skeleton.c -o libpenstock-skeleton.so
 *     penstock devices ./libpenstock-skeleton.so
 *
 * A plugin is linked against nothing of the library. What it exports is one function, at the end.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "penstock/device_plugin.h"

/* Every device begins with its table, so that a pst_device is one of these. One thread at a time uses it. */
typedef struct skeleton_device {
    pst_device base;
    char last_error[160]; /* of this device; valid until its next call */
} skeleton_device;

enum { ALIGNMENT = 256, TOTAL_BYTES = 1 << 30 };

/* Each failure is an error code and a line. Nothing prints, exits or throws. */
static int fail(pst_device *base, int code, const char *what)
{
    skeleton_device *device = (skeleton_device *)(void *)base;
    snprintf(device->last_error, sizeof device->last_error, "%s", what);
    return code;
}

static const char *last_error(pst_device *base)
{
    return ((skeleton_device *)(void *)base)->last_error;
}

/* ---- Memory ---- */

/* Of either kind: aligned, not cleared. PST_MEMORY_HOST is what a vendor calls pinned: host and device use it. */
static int allocate(pst_device *base, pst_device_memory kind, uint64_t bytes, void **out)
{
    void *memory = NULL;
    (void)kind;
    if (bytes > TOTAL_BYTES || posix_memalign(&memory, ALIGNMENT, (size_t)bytes) != 0)
        return fail(base, -ENOMEM, "skeleton: out of memory");
    *out = memory; /* written when all went well, and only then */
    return 0;
}

/* Comes with the size that was asked for. Work that still uses the memory is finished first, where there is any. */
static void release(pst_device *base, pst_device_memory kind, void *memory, uint64_t bytes)
{
    (void)base, (void)kind, (void)bytes;
    free(memory);
}

/* The caller's memory as good as PST_MEMORY_HOST until it is unregistered: for buffers that exist before the device. */
static int register_host(pst_device *base, void *memory, uint64_t bytes)
{
    (void)base, (void)memory, (void)bytes;
    return 0;
}

static void unregister_host(pst_device *base, void *memory)
{
    (void)base, (void)memory;
}

/* What the planner of a session divides. */
static int memory_info(pst_device *base, uint64_t *free_bytes, uint64_t *total_bytes)
{
    (void)base;
    *free_bytes = *total_bytes = TOTAL_BYTES;
    return 0;
}

/* ---- Streams, events, copies ---- */

/* Everything here is done when its call returns, so that streams and events are nothing but addresses. A device that works
 * beside its caller keeps the order of each stream, and between streams that of events. */
static char a_stream, an_event;

static int stream_create(pst_device *base, pst_device_stream **out)
{
    (void)base;
    *out = (pst_device_stream *)(void *)&a_stream;
    return 0;
}

static void stream_destroy(pst_device *base, pst_device_stream *stream) /* waits for it; NULL is fine */
{
    (void)base, (void)stream;
}

static int event_create(pst_device *base, pst_device_event **out)
{
    (void)base;
    *out = (pst_device_event *)(void *)&an_event;
    return 0;
}

static void event_destroy(pst_device *base, pst_device_event *event)
{
    (void)base, (void)event;
}

static int event_record(pst_device *base, pst_device_event *event, pst_device_stream *stream)
{
    (void)base, (void)event, (void)stream;
    return 0;
}

static int stream_wait(pst_device *base, pst_device_stream *stream, pst_device_event *event)
{
    (void)base, (void)stream, (void)event;
    return 0;
}

/* The caller waits. Here, and in synchronize, failures are told that became known after their call had returned. */
static int event_wait(pst_device *base, pst_device_event *event)
{
    (void)base, (void)event;
    return 0;
}

static int event_query(pst_device *base,
                       pst_device_event *event) /* 0: done, as one that was never recorded; 1: not yet */
{
    (void)base, (void)event;
    return 0;
}

static int synchronize(pst_device *base, pst_device_stream *stream)
{
    (void)base, (void)stream;
    return 0;
}

static int copy(pst_device *base, pst_device_stream *stream, void *to, const void *from, uint64_t bytes)
{
    (void)base, (void)stream;
    memcpy(to, from, (size_t)bytes);
    return 0;
}

static int fill(pst_device *base, pst_device_stream *stream, void *to, int byte, uint64_t bytes)
{
    (void)base, (void)stream;
    memset(to, byte, (size_t)bytes);
    return 0;
}

/* ---- Operators ---- */

/* y[i] = x[rows[i]]. Strides are in elements; no rows is no work and no error. */
static int take_rows(pst_device *base, const pst_matrix *x, const uint32_t *rows, const pst_matrix *y)
{
    const size_t element = x->type == PST_F32 ? 4 : 2;
    (void)base;
    for (size_t i = 0; i < y->rows; i++)
        memcpy((char *)y->data + i * y->stride * element, (const char *)x->data + rows[i] * x->stride * element,
               x->columns * element);
    return 0;
}

/* y[rows[i]] += weights[i] * x[i], each row's sum in this order whatever other rows there are. */
static int add_rows(pst_device *base, const pst_matrix *x, const uint32_t *rows, const float *weights,
                    const pst_matrix *y)
{
    (void)base;
    for (size_t i = 0; i < x->rows; i++) {
        const float *from = (const float *)x->data + i * x->stride;
        float *to = (float *)y->data + rows[i] * y->stride;
        for (size_t c = 0; c < x->columns; c++)
            to[c] += weights[i] * from[c];
    }
    return 0;
}

/* The others: an entry is never NULL. */
static int refuse(pst_device *base, const char *what)
{
    char line[80];
    snprintf(line, sizeof line, "skeleton: %s is not there", what);
    return fail(base, PST_E_UNSUPPORTED, line);
}

static int convert(pst_device *base, const pst_weight *w, const pst_matrix *y)
{
    (void)w, (void)y;
    return refuse(base, "convert");
}

static int rms_norm(pst_device *base, const pst_matrix *x, const pst_weight *w, float eps, const pst_matrix *y)
{
    (void)x, (void)w, (void)eps, (void)y;
    return refuse(base, "rms_norm");
}

static int layer_norm(pst_device *base, const pst_matrix *x, const pst_weight *w, const pst_weight *b, float eps,
                      const pst_matrix *y)
{
    (void)x, (void)w, (void)b, (void)eps, (void)y;
    return refuse(base, "layer_norm");
}

static int matmul(pst_device *base, const pst_matmul *job)
{
    (void)job;
    return refuse(base, "matmul");
}

static int matmul_grouped(pst_device *base, const pst_grouped_matmul *job)
{
    (void)job;
    return refuse(base, "matmul_grouped");
}

static int activate(pst_device *base, pst_activation activation, const pst_matrix *x, const pst_matrix *y)
{
    (void)activation, (void)x, (void)y;
    return refuse(base, "activate");
}

static int gated(pst_device *base, pst_activation activation, const pst_matrix *gate, const pst_matrix *up,
                 const pst_matrix *y)
{
    (void)activation, (void)gate, (void)up, (void)y;
    return refuse(base, "gated");
}

static int rope(pst_device *base, const pst_matrix *x, uint32_t heads, uint32_t head_dim, uint32_t rotary,
                bool interleaved, const float *table, const uint32_t *positions)
{
    (void)x, (void)heads, (void)head_dim, (void)rotary, (void)interleaved, (void)table, (void)positions;
    return refuse(base, "rope");
}

static int copy_blocks(pst_device *base, const pst_block_copy *job)
{
    (void)job;
    return refuse(base, "copy_blocks");
}

static int kv_store(pst_device *base, const pst_kv_store *job)
{
    (void)job;
    return refuse(base, "kv_store");
}

static int attention(pst_device *base, const pst_attention *job)
{
    (void)job;
    return refuse(base, "attention");
}

static int route(pst_device *base, const pst_route_job *job)
{
    (void)job;
    return refuse(base, "route");
}

static int log_sum_exp(pst_device *base, const pst_matrix *x, const double *factors, double *out)
{
    (void)x, (void)factors, (void)out;
    return refuse(base, "log_sum_exp");
}

static int top(pst_device *base, const pst_matrix *x, uint32_t count, float *values, uint32_t *columns)
{
    (void)x, (void)count, (void)values, (void)columns;
    return refuse(base, "top");
}

static int matmul_heads(pst_device *base, const pst_heads_matmul *job)
{
    (void)job;
    return refuse(base, "matmul_heads");
}

/* ---- Recordings ---- */

/* Of use where launching work costs the host more than it costs the device. Who does not record says so here, once; the other three
 * are never called then. */
static int record_begin(pst_device *base)
{
    return refuse(base, "recording");
}

static int record_end(pst_device *base, pst_device_recording **out)
{
    (void)out;
    return refuse(base, "recording");
}

static int replay(pst_device *base, pst_device_recording *recording)
{
    (void)recording;
    return refuse(base, "recording");
}

static void recording_destroy(pst_device *base, pst_device_recording *recording)
{
    (void)base, (void)recording;
}

/* ---- The device ---- */

/* All memory, streams and events were given back before. */
static void destroy(pst_device *base)
{
    free(base);
}

static const pst_device_ops operators = {
    .struct_size = sizeof(pst_device_ops), /* so that a later library knows which entries there are */
    .name = "skeleton",
    .is_host = false, /* true: memory is the host's and operators are done when they return; the host alone */
    .phases_change_bits = false, /* true: prompts have other kernels than generated tokens, with other roundings */
    .last_error = last_error,
    .destroy = destroy,
    .allocate = allocate,
    .release = release,
    .register_host = register_host,
    .unregister_host = unregister_host,
    .memory_info = memory_info,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .stream_wait = stream_wait,
    .event_wait = event_wait,
    .event_query = event_query,
    .synchronize = synchronize,
    .copy = copy,
    .fill = fill,
    .convert = convert,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .matmul = matmul,
    .matmul_grouped = matmul_grouped,
    .activate = activate,
    .gated = gated,
    .rope = rope,
    .copy_blocks = copy_blocks,
    .take_rows = take_rows,
    .add_rows = add_rows,
    .kv_store = kv_store,
    .attention = attention,
    .route = route,
    .log_sum_exp = log_sum_exp,
    .top = top,
    .record_begin = record_begin,
    .record_end = record_end,
    .replay = replay,
    .recording_destroy = recording_destroy,
    .matmul_heads = matmul_heads,
};

/* ---- The plugin ---- */

static int fail_record(pst_error *err, int code, const char *what)
{
    if (err != NULL) { /* the caller may not want to know */
        memset(err, 0, sizeof *err);
        err->code = code;
        err->offset = PST_NO_OFFSET;
        snprintf(err->message, sizeof err->message, "%s", what);
    }
    return code;
}

/* Without a driver, or without a device, PST_E_UNSUPPORTED and a line: it is what `penstock devices` prints. */
static int count_devices(uint32_t *out, pst_error *err)
{
    (void)err;
    *out = 1;
    return 0;
}

/* The caller's struct may be of an older library: shorter than ours. */
static int describe(uint32_t number, pst_device_info *out, pst_error *err)
{
    pst_device_info info;
    if (number != 0)
        return fail_record(err, PST_E_UNSUPPORTED, "the skeleton has one device");
    memset(&info, 0, sizeof info);
    info.struct_size = out->struct_size;
    info.total_bytes = info.free_bytes = TOTAL_BYTES;
    snprintf(info.name, sizeof info.name, "skeleton:0");
    snprintf(info.model, sizeof info.model, "a skeleton");
    snprintf(info.direct_storage, sizeof info.direct_storage, "it has no bones for that");
    memcpy(out, &info, out->struct_size < sizeof info ? out->struct_size : sizeof info);
    return 0;
}

static int open_device(uint32_t number, pst_device **out, pst_error *err)
{
    if (number != 0)
        return fail_record(err, PST_E_UNSUPPORTED, "the skeleton has one device");
    skeleton_device *device = calloc(1, sizeof *device);
    if (device == NULL)
        return fail_record(err, -ENOMEM, "out of memory");
    device->base.ops = &operators;
    *out = &device->base;
    return 0;
}

/* The one symbol. The table is static: it is used as long as the plugin is loaded, which is until the process ends. */
PST_API const pst_device_plugin *pst_device_plugin_table(void);
const pst_device_plugin *pst_device_plugin_table(void)
{
    static const pst_device_plugin plugin = {
        .version = PST_DEVICE_VERSION,
        .struct_size = sizeof(pst_device_plugin),
        .name = "skeleton", /* as in the file's name, libpenstock-skeleton.so */
        .count = count_devices,
        .describe = describe,
        .open = open_device,
    };
    return &plugin;
}
