/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Activations, alone and as gates. The formulas are chosen so that nothing overflows on the way and small results keep
 * their relative precision.
 */
#include "rows.h"

/* x / (1 + e^-u) for an x of u's sign, through e^(-|u|/2). */
static __device__ __forceinline__ float elementwise_logistic(float x, float u)
{
    const float h = expf(-0.5f * fabsf(u));
    return (u < 0.0f ? x * h * h : x) / fmaf(h, h, 1.0f);
}

/* x / 2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): u is twice the argument of tanh. */
static __device__ __forceinline__ float elementwise_gelu_tanh(float x)
{
    return elementwise_logistic(x, x * fmaf(x * x, 0.0713548163f, 1.59576912f));
}

/*
 * x P(x), P the normal distribution: P(-y) = e^(-y^2/2) Q(y) for y >= 0. Q falls smoothly from 1/2; it is a polynomial
 * in t = 1/(1 + 0.3 y), fitted for least largest relative error on 0..14.5; beyond, P(-y) is 0. y^2 is taken in two
 * parts, as its rounding error would become the result's relative error.
 */
static __device__ __forceinline__ float elementwise_gelu(float x)
{
    const float y = fabsf(x) > 14.5f ? 14.5f : fabsf(x);
    const float t = 1.0f / fmaf(y, 0.3f, 1.0f);
    float q = -0.003836679272353649f;
    q = fmaf(q, t, 0.0582764707505703f);
    q = fmaf(q, t, -0.2136346399784088f);
    q = fmaf(q, t, 0.28472211956977844f);
    q = fmaf(q, t, -0.12033288180828094f);
    q = fmaf(q, t, 0.1645117551088333f);
    q = fmaf(q, t, 0.08763132989406586f);
    q = fmaf(q, t, 0.1233142763376236f);
    q = fmaf(q, t, 0.11933387815952301f);
    q = fmaf(q, t, 1.4384351743501611e-05f);
    /* The leading 12 bits of the fraction: their square is exact. e^low: |low| < 0.06. */
    const float high = __uint_as_float(__float_as_uint(y) & 0xfffff000u);
    const float low = (y - high) * (y + high) * -0.5f;
    float e = fmaf(low, 1.0f / 24.0f, 1.0f / 6.0f);
    e = fmaf(e, low, 0.5f);
    e = fmaf(low * low, e, low) + 1.0f;
    const float tail = expf(high * high * -0.5f) * e * q;
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

/* ACTIVATION is a constant of the kernel. */
template <int ACTIVATION> static __device__ __forceinline__ float elementwise_one(float x)
{
    switch (ACTIVATION) {
    case PST_ACT_SILU: return elementwise_logistic(x, x);
    case PST_ACT_GELU: return elementwise_gelu(x);
    case PST_ACT_GELU_TANH: return elementwise_gelu_tanh(x);
    case PST_ACT_RELU: return x < 0.0f ? 0.0f : x; /* what is no number stays */
    default: return x;
    }
}

struct elementwise_args {
    const float *x, *up; /* up: NULL: no factor */
    void *y;
    pst_dtype y_type;
    uint64_t x_stride, up_stride, y_stride, rows, columns;
};

/* Four columns of a thread; rows in steps of the grid. */
template <int ACTIVATION> static __global__ __launch_bounds__(ROWS_THREADS) void elementwise(elementwise_args e)
{
    const uint64_t column = ROWS_X() * 4;
    const uint32_t there = rows_there(column, e.columns);
    if (there == 0)
        return;
    for (uint64_t row = ROWS_Y(); row < e.rows; row += ROWS_DY()) {
        float4 a = rows_load_4(e.x + row * e.x_stride + column, there);
        float4 up = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        if (e.up != NULL)
            up = rows_load_4(e.up + row * e.up_stride + column, there);
        a = make_float4(elementwise_one<ACTIVATION>(a.x), elementwise_one<ACTIVATION>(a.y),
                        elementwise_one<ACTIVATION>(a.z), elementwise_one<ACTIVATION>(a.w));
        if (e.up != NULL)
            a = make_float4(a.x * up.x, a.y * up.y, a.z * up.z, a.w * up.w);
        rows_store_4(e.y_type, e.y, row * e.y_stride + column, there, a);
    }
}

static int elementwise_launch(cuda_device *device, pst_activation activation, const pst_matrix *x, const pst_matrix *up,
                              const pst_matrix *y)
{
    elementwise_args e = {};
    e.x = (const float *)x->data;
    e.up = up != NULL ? (const float *)up->data : NULL;
    e.y = y->data;
    e.y_type = y->type;
    e.x_stride = x->stride;
    e.up_stride = up != NULL ? up->stride : 0;
    e.y_stride = y->stride;
    e.rows = x->rows;
    e.columns = x->columns;
    if (e.rows == 0 || e.columns == 0)
        return 0;
    if (e.x_stride == e.columns && e.y_stride == e.columns && (up == NULL || e.up_stride == e.columns)) {
        e.columns *= e.rows; /* one long row fills blocks best */
        e.rows = 1;
    }
    const rows_cut cut = rows_cut_of((e.columns + 3) / 4, e.rows, 1);
    switch (activation) {
    case PST_ACT_SILU: return ROWS_LAUNCH(device, elementwise<PST_ACT_SILU>, cut, e);
    case PST_ACT_GELU: return ROWS_LAUNCH(device, elementwise<PST_ACT_GELU>, cut, e);
    case PST_ACT_GELU_TANH: return ROWS_LAUNCH(device, elementwise<PST_ACT_GELU_TANH>, cut, e);
    case PST_ACT_RELU: return ROWS_LAUNCH(device, elementwise<PST_ACT_RELU>, cut, e);
    case PST_ACT_IDENTITY: return ROWS_LAUNCH(device, elementwise<PST_ACT_IDENTITY>, cut, e);
    }
    return PST_E_UNSUPPORTED;
}

int pst_cuda_activate(cuda_device *device, pst_activation activation, const pst_matrix *x, const pst_matrix *y)
{
    return elementwise_launch(device, activation, x, NULL, y);
}

int pst_cuda_gated(cuda_device *device, pst_activation activation, const pst_matrix *gate, const pst_matrix *up,
                   const pst_matrix *y)
{
    return elementwise_launch(device, activation, gate, up, y);
}
