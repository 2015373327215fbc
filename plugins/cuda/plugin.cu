/* SPDX-License-Identifier: Apache-2.0 */
/* The plugin's table: every operator is entered with its device current and left with the vendor's word on its launches. */
#include "cuda_device.h"

/* Calls an operator: what a launch could not do is known when it returns, what a kernel does wrong when somebody waits. */
template <class Operator, class... Arguments>
static int call(const char *name, Operator operation, pst_device *base, Arguments... arguments)
{
    cuda_device *device = pst_cuda_of(base);
    if (int status = pst_cuda_enter(device))
        return status;
    (void)pst_vendor_last_error(); /* of calls whose failure was reported */
    if (int status = operation(device, arguments...))
        return status;
    return pst_cuda_check(device, name, pst_vendor_last_error());
}

static int convert(pst_device *device, const pst_weight *w, const pst_matrix *y)
{
    return call("convert", pst_cuda_convert, device, w, y);
}

static int rms_norm(pst_device *device, const pst_matrix *x, const pst_weight *w, float eps, const pst_matrix *y)
{
    return call("rms_norm", pst_cuda_rms_norm, device, x, w, eps, y);
}

static int layer_norm(pst_device *device, const pst_matrix *x, const pst_weight *w, const pst_weight *b, float eps,
                      const pst_matrix *y)
{
    return call("layer_norm", pst_cuda_layer_norm, device, x, w, b, eps, y);
}

static int matmul(pst_device *device, const pst_matmul *job)
{
    return call("matmul", pst_cuda_matmul, device, job);
}

static int matmul_grouped(pst_device *device, const pst_grouped_matmul *job)
{
    return call("matmul_grouped", pst_cuda_matmul_grouped, device, job);
}

static int matmul_heads(pst_device *device, const pst_heads_matmul *job)
{
    return call("matmul_heads", pst_cuda_matmul_heads, device, job);
}

static int activate(pst_device *device, pst_activation activation, const pst_matrix *x, const pst_matrix *y)
{
    return call("activate", pst_cuda_activate, device, activation, x, y);
}

static int gated(pst_device *device, pst_activation activation, const pst_matrix *gate, const pst_matrix *up,
                 const pst_matrix *y)
{
    return call("gated", pst_cuda_gated, device, activation, gate, up, y);
}

static int rope(pst_device *device, const pst_matrix *x, uint32_t heads, uint32_t head_dim, uint32_t rotary,
                bool interleaved, const float *table, const uint32_t *positions)
{
    return call("rope", pst_cuda_rope, device, x, heads, head_dim, rotary, interleaved, table, positions);
}

static int copy_blocks(pst_device *device, const pst_block_copy *job)
{
    return call("copy_blocks", pst_cuda_copy_blocks, device, job);
}

static int take_rows(pst_device *device, const pst_matrix *x, const uint32_t *rows, const pst_matrix *y)
{
    return call("take_rows", pst_cuda_take_rows, device, x, rows, y);
}

static int add_rows(pst_device *device, const pst_matrix *x, const uint32_t *rows, const float *weights,
                    const pst_matrix *y)
{
    return call("add_rows", pst_cuda_add_rows, device, x, rows, weights, y);
}

static int kv_store(pst_device *device, const pst_kv_store *job)
{
    return call("kv_store", pst_cuda_kv_store, device, job);
}

static int attention(pst_device *device, const pst_attention *job)
{
    return call("attention", pst_cuda_attention, device, job);
}

static int route(pst_device *device, const pst_route_job *job)
{
    return call("route", pst_cuda_route, device, job);
}

static int log_sum_exp(pst_device *device, const pst_matrix *x, const double *factors, double *out)
{
    return call("log_sum_exp", pst_cuda_log_sum_exp, device, x, factors, out);
}

static int top(pst_device *device, const pst_matrix *x, uint32_t count, float *values, uint32_t *columns)
{
    return call("top", pst_cuda_top, device, x, count, values, columns);
}

static pst_device_ops make_ops(void)
{
    pst_device_ops ops = {};
    ops.struct_size = sizeof ops;
    ops.name = PST_VENDOR_NAME;
    ops.phases_change_bits = true; /* attention.cu, blas.h */
    pst_cuda_runtime_entries(&ops);
    pst_cuda_record_entries(&ops);
    ops.convert = convert;
    ops.rms_norm = rms_norm;
    ops.layer_norm = layer_norm;
    ops.matmul = matmul;
    ops.matmul_grouped = matmul_grouped;
    ops.activate = activate;
    ops.gated = gated;
    ops.rope = rope;
    ops.copy_blocks = copy_blocks;
    ops.take_rows = take_rows;
    ops.add_rows = add_rows;
    ops.kv_store = kv_store;
    ops.attention = attention;
    ops.route = route;
    ops.log_sum_exp = log_sum_exp;
    ops.top = top;
    ops.matmul_heads = matmul_heads;
    return ops;
}

static int open_device(uint32_t number, pst_device **out, pst_error *err)
{
    static const pst_device_ops ops = make_ops();
    return pst_cuda_open_device(&ops, number, out, err);
}

extern "C" __attribute__((visibility("default"))) const pst_device_plugin *pst_device_plugin_table(void)
{
    static const pst_device_plugin table = {PST_DEVICE_VERSION, sizeof(pst_device_plugin), PST_VENDOR_NAME,
                                            pst_cuda_count,     pst_cuda_describe,         open_device};
    return &table;
}
