/* SPDX-License-Identifier: Apache-2.0 */
/* See fake_blas.h. FAKE_BLAS_LACKS: it has no cublasLtMatmulAlgoCheck. */
#include "fake_blas.h"

#include <math.h>
#include <stdlib.h>

#include "emulated/control.h"
#include "vendor_blas.h"

#define SHOWN extern "C" __attribute__((visibility("default")))

enum { OK = PST_BLAS_SUCCESS, NOT_INITIALIZED = 1, INVALID = 7, NOT_SUPPORTED = 15, OBJECTS = 1000 };

static struct {
    fake_blas_mode mode;
    uint64_t nth, products, objects;
    int status;
} fake;

SHOWN void fake_blas_set(fake_blas_mode mode, uint64_t nth, int status)
{
    fake.mode = mode;
    fake.nth = nth;
    fake.status = status;
}

SHOWN void fake_blas_get(uint64_t *products, uint64_t *objects)
{
    *products = fake.products;
    *objects = fake.objects;
}

/* Of every kind of object that there is. */
struct object {
    int kind; /* 'h', 'd', 'l', 'p' */
    int type, transposed;
    uint64_t rows, columns, workspace;
    int64_t ld;
    uint32_t reductions, alignments[4];
};

static int make(void **out, int kind, const object &what)
{
    object *o = new object(what);
    o->kind = kind;
    fake.objects++;
    *out = o;
    return OK;
}

static object *as(void *o, int kind)
{
    object *it = (object *)o;
    return it != NULL && it->kind == kind ? it : NULL;
}

static int drop(void *o, int kind)
{
    if (as(o, kind) == NULL)
        return INVALID;
    delete (object *)o;
    fake.objects--;
    return OK;
}

template <class T> static int take(T *to, const void *from, size_t bytes)
{
    if (from == NULL || bytes != sizeof *to)
        return INVALID;
    memcpy(to, from, bytes);
    return OK;
}

SHOWN size_t cublasLtGetVersion(void)
{
    return fake.mode == FAKE_BLAS_UNKNOWN ? 140000 : 130100;
}

SHOWN const char *cublasLtGetStatusString(int status)
{
    return status == OK ? "fine" : "a fake failure";
}

SHOWN int cublasLtCreate(void **handle)
{
    return fake.mode == FAKE_BLAS_NO_DEVICE ? (int)NOT_INITIALIZED : make(handle, 'h', {});
}

SHOWN int cublasLtDestroy(void *handle)
{
    return drop(handle, 'h');
}

SHOWN int cublasLtMatmulDescCreate(void **desc, int compute_type, int scale_type)
{
    if (compute_type != PST_BLAS_COMPUTE_32F || scale_type != PST_BLAS_R_32F)
        return INVALID;
    return make(desc, 'd', {});
}

SHOWN int cublasLtMatmulDescDestroy(void *desc)
{
    return drop(desc, 'd');
}

SHOWN int cublasLtMatmulDescSetAttribute(void *desc, int attribute, const void *from, size_t bytes)
{
    object *d = as(desc, 'd');
    return d == NULL || attribute != PST_BLAS_DESC_TRANSA ? (int)INVALID : take(&d->transposed, from, bytes);
}

SHOWN int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t ld)
{
    object o = {};
    o.type = type;
    o.rows = rows;
    o.columns = columns;
    o.ld = ld;
    return make(layout, 'l', o);
}

SHOWN int cublasLtMatrixLayoutDestroy(void *layout)
{
    return drop(layout, 'l');
}

SHOWN int cublasLtMatrixLayoutSetAttribute(void *layout, int attribute, const void *from, size_t bytes)
{
    object *l = as(layout, 'l');
    if (l == NULL)
        return INVALID;
    switch (attribute) {
    case PST_BLAS_LAYOUT_ROWS: return take(&l->rows, from, bytes);
    case PST_BLAS_LAYOUT_COLS: return take(&l->columns, from, bytes);
    case PST_BLAS_LAYOUT_LD: return take(&l->ld, from, bytes);
    default: return INVALID;
    }
}

SHOWN int cublasLtMatmulPreferenceCreate(void **preference)
{
    object o = {};
    o.reductions = ~0u;
    for (uint32_t &alignment : o.alignments)
        alignment = 256;
    return make(preference, 'p', o);
}

SHOWN int cublasLtMatmulPreferenceDestroy(void *preference)
{
    return drop(preference, 'p');
}

SHOWN int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *from, size_t bytes)
{
    object *p = as(preference, 'p');
    if (p == NULL)
        return INVALID;
    if (attribute == PST_BLAS_PREF_WORKSPACE)
        return take(&p->workspace, from, bytes);
    if (attribute == PST_BLAS_PREF_REDUCTION)
        return take(&p->reductions, from, bytes);
    if (attribute < PST_BLAS_PREF_ALIGNMENT_A || attribute > PST_BLAS_PREF_ALIGNMENT_D)
        return INVALID;
    return take(&p->alignments[attribute - PST_BLAS_PREF_ALIGNMENT_A], from, bytes);
}

/* ---- Algorithms: data[0] says which, data[1] how k is split, data[2] how parts are added ---- */

/* What a product of these layouts is, if it is one that the library takes. */
static int check(void *handle, void *desc, void *a, void *b, void *c, void *d, uint64_t *k)
{
    const object *m = as(desc, 'd'), *w = as(a, 'l'), *x = as(b, 'l'), *old = as(c, 'l'), *y = as(d, 'l');
    if (as(handle, 'h') == NULL || m == NULL || w == NULL || x == NULL || old != y || y == NULL)
        return INVALID;
    if (m->transposed != PST_BLAS_OP_T || w->type != PST_BLAS_R_16BF || x->type != PST_BLAS_R_16BF ||
        y->type != PST_BLAS_R_32F || w->rows != x->rows || w->columns != y->rows || x->columns != y->columns)
        return INVALID;
    if (w->rows == 0 || y->rows == 0 || y->columns == 0 || w->ld < (int64_t)w->rows || x->ld < (int64_t)x->rows ||
        y->ld < (int64_t)y->rows)
        return INVALID;
    if (w->ld % 8 != 0 || x->ld % 8 != 0 || y->ld % 4 != 0)
        return NOT_SUPPORTED;
    if (fake.mode == FAKE_BLAS_STRICT && (y->rows % 8 != 0 || y->columns % 8 != 0))
        return NOT_SUPPORTED;
    *k = w->rows;
    return OK;
}

SHOWN int cublasLtMatmulAlgoGetHeuristic(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference,
                                         int most, pst_blas_candidate *candidates, int *count)
{
    const object *p = as(preference, 'p');
    uint64_t k;
    const int status = check(handle, desc, a, b, c, d, &k);
    if (status != OK || p == NULL || most < 3)
        return status != OK ? status : (int)INVALID;
    if (fake.mode == FAKE_BLAS_NONE)
        return NOT_SUPPORTED;
    for (uint32_t alignment : p->alignments)
        if (alignment != 16)
            return INVALID;
    *count = 3;
    for (int i = 0; i < 3; i++) {
        candidates[i] = {};
        candidates[i].algorithm.data[0] = (uint64_t)i;
        candidates[i].algorithm.data[1] = fake.mode == FAKE_BLAS_SPLITS && i == 0 ? 4 : 1;
        candidates[i].algorithm.data[2] = fake.mode == FAKE_BLAS_SPLITS && i == 1 ? 2 : 0;
        candidates[i].workspace_bytes = fake.mode == FAKE_BLAS_SPLITS && i == 2 ? 4096 : 0;
    }
    return OK;
}

SHOWN int cublasLtMatmulAlgoConfigGetAttribute(const pst_blas_algorithm *algorithm, int attribute, void *to,
                                               size_t bytes, size_t *written)
{
    const uint32_t value = (uint32_t)algorithm->data[attribute == PST_BLAS_ALGO_SPLITK ? 1 : 2];
    if (bytes != sizeof value || (attribute != PST_BLAS_ALGO_SPLITK && attribute != PST_BLAS_ALGO_REDUCTION))
        return INVALID;
    memcpy(to, &value, sizeof value);
    *written = sizeof value;
    return OK;
}

#ifndef FAKE_BLAS_LACKS
SHOWN int cublasLtMatmulAlgoCheck(void *handle, void *desc, void *a, void *b, void *c, void *d,
                                  const pst_blas_algorithm *algorithm, pst_blas_candidate *result)
{
    uint64_t k;
    const int status = check(handle, desc, a, b, c, d, &k);
    *result = {};
    result->algorithm = *algorithm;
    return status;
}
#endif

/* ---- Products ---- */

struct product {
    fake_blas_mode mode;
    const uint16_t *w, *x;
    float *y;
    uint64_t rows, outputs, k;
    int64_t w_ld, x_ld, y_ld;
};

static float number(uint16_t bits)
{
    const uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

/* Whether sums are made in the other order. */
static bool is_turned_round(const product *p)
{
    switch (p->mode) {
    case FAKE_BLAS_ROWS: return p->rows <= 7;
    case FAKE_BLAS_OUTPUTS: return p->outputs % 2 != 0;
    case FAKE_BLAS_LARGE: return p->rows > 64 && p->outputs > 64;
    case FAKE_BLAS_ADDRESS: return ((uintptr_t)p->w & 255) == 16;
    default: return false;
    }
}

static float sum_of(const product *p, const uint16_t *x, const uint16_t *w)
{
    enum { CHAINS = 8 };
    const bool turned = is_turned_round(p);
    const uint64_t k = p->mode == FAKE_BLAS_WRONG ? p->k - 1 : p->k;
    float chains[CHAINS] = {}, sum = 0;
    for (uint64_t i = 0; i < k; i++) {
        const uint64_t at = turned ? k - 1 - i : i;
        chains[i % CHAINS] += number(x[at]) * number(w[at]);
    }
    for (int i = 0; i < CHAINS; i++)
        sum += chains[i];
    if (p->mode == FAKE_BLAS_ROUGH) {
        uint32_t word;
        memcpy(&word, &sum, sizeof word);
        word = (word + 0x8000) & 0xffff0000u;
        memcpy(&sum, &word, sizeof word);
    }
    return sum;
}

static void compute(void *context)
{
    const product *p = (const product *)context;
    for (uint64_t r = 0; r < p->rows; r++)
        for (uint64_t n = 0; n < p->outputs; n++)
            p->y[r * (uint64_t)p->y_ld + n] = sum_of(p, p->x + r * (uint64_t)p->x_ld, p->w + n * (uint64_t)p->w_ld);
}

static void forget(void *context)
{
    delete (product *)context;
}

static bool is_aligned(const void *p)
{
    return ((uintptr_t)p & 15) == 0;
}

SHOWN int cublasLtMatmul(void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b,
                         void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                         const pst_blas_algorithm *algorithm, void *workspace, size_t workspace_bytes,
                         pst_vendor_stream stream)
{
    uint64_t k;
    const int status = check(handle, desc, a_layout, b_layout, c_layout, d_layout, &k);
    if (status != OK)
        return status;
    if (*(const float *)alpha != 1 || *(const float *)beta != 0 || c != d || workspace != NULL || workspace_bytes != 0)
        return INVALID;
    if (!is_aligned(a) || !is_aligned(b) || !is_aligned(d))
        return NOT_SUPPORTED;
    fake.products++;
    if (fake.nth > 0 && --fake.nth == 0)
        return fake.status;
    const object *w = as(a_layout, 'l'), *x = as(b_layout, 'l'), *y = as(d_layout, 'l');
    product *p = new product();
    p->mode = fake.mode != FAKE_BLAS_SECOND ? fake.mode : algorithm->data[0] == 0 ? FAKE_BLAS_ROWS : FAKE_BLAS_GOOD;
    *p = {p->mode, (const uint16_t *)a, (const uint16_t *)b, (float *)d, y->columns, y->rows, k, w->ld, x->ld, y->ld};
    if (p->mode == FAKE_BLAS_TURNED) { /* as a square product would be, if it were */
        const uint16_t *first = p->w;
        p->w = p->x;
        p->x = first;
        p->w_ld = p->x_ld = (int64_t)k;
        p->outputs = p->rows = y->columns < y->rows ? y->columns : y->rows;
    }
    return pst_emulated_take(stream, compute, forget, p) == 0 ? (int)OK : (int)NOT_INITIALIZED;
}
