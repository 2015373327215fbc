/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels are held against: every operator in plain loops of float64, and what the tests need around it:
 * random numbers from a printed seed, arrays of any element type at any byte address, outputs poisoned and between
 * sentinels.
 */
#ifndef PST_TESTS_UNIT_CPU_REFERENCE_H
#define PST_TESTS_UNIT_CPU_REFERENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/cpu.h"

/* Half the distance between neighbouring floats around 1: the relative error of one rounding. */
#define F32_ROUNDING  0x1p-24
/* bf16 keeps 8 bits: half a unit of its last place is up to 2^-8 of the value. */
#define BF16_ROUNDING 0x1p-8

/* --- Random numbers ------------------------------------------------------------------------------------- */

/* Seeds from PST_TEST_SEED or the clock and prints the seed. Returns it. */
uint64_t ref_seed(const char *test);
uint64_t ref_random(void);
size_t ref_between(size_t low, size_t high); /* inclusive */
double ref_normal(void);                     /* about N(0, 1) */

/* --- Arrays --------------------------------------------------------------------------------------------- */

/* An array of `count` elements, so many bytes from a 64 byte boundary. Inputs end where their allocation ends, so
 * that an address sanitizer sees a read past them; outputs lie between sentinels and begin as NaN. */
typedef struct ref_array {
    void *data;
    pst_dtype type;
    size_t count;
    unsigned char *memory; /* owned */
    bool guarded;
} ref_array;

ref_array ref_input(pst_dtype type, size_t count, size_t misalignment); /* zeros */
ref_array ref_randoms(pst_dtype type, size_t count, size_t misalignment, double scale);
ref_array ref_output(pst_dtype type, size_t count);
ref_array ref_copy(const ref_array *a, size_t misalignment); /* the same as an input elsewhere */
/* Fails the test when a sentinel was written over. */
void ref_check_guards(const ref_array *a, const char *what);
void ref_free(ref_array *a);

double ref_get(const ref_array *a, size_t index);
void ref_set(ref_array *a, size_t index, double value); /* rounded to nearest even */
size_t ref_bytes(pst_dtype type);
/* The bits of a value in a 16-bit type, to nearest even; `largest`: what a finite value beyond the range becomes. */
uint16_t ref_to_bf16(double value);
uint16_t ref_to_f16_saturated(double value);
double ref_from_bf16(uint16_t bits);
double ref_from_f16(uint16_t bits);

/* --- Operators ------------------------------------------------------------------------------------------ */

/* sum over k of x[x_first + k] * w[w_first + k]; *size: the sum of the products' magnitudes. */
double ref_dot(const ref_array *x, size_t x_first, const ref_array *w, size_t w_first, size_t k, double *size);
double ref_activation(pst_cpu_activation activation, double x);

/* A product y = x w' of any storage, computed once: what its checks need. */
typedef struct ref_product {
    const char *text;
    size_t rows, columns, y_stride;
    const ref_array *y, *old; /* old: what lay in y before; NULL: it does not count */
    /* Computes a rectangle of y again, which begins at `y`, from x and w at other addresses. */
    void (*run)(const void *product, float *y, size_t row, size_t rows, size_t column, size_t columns);
    /* Fails the test when y[row][column] is wrong. */
    void (*check_element)(const void *product, size_t row, size_t column);
    const void *product;
} ref_product;
/* That of a test's case, which has these members and is given to the test's run_part and check_element. */
#define REF_PRODUCT(p, old_counts)                                                                                     \
    ((ref_product){.text = (p)->text,                                                                                  \
                   .rows = (p)->rows,                                                                                  \
                   .columns = (p)->columns,                                                                            \
                   .y_stride = (p)->y_stride,                                                                          \
                   .y = &(p)->y,                                                                                       \
                   .old = (old_counts) ? &(p)->old : NULL,                                                             \
                   .run = run_part,                                                                                    \
                   .check_element = check_element,                                                                     \
                   .product = (p)})
/* What lies in y before a call: the old values where they count, else NaN. */
void ref_prepare(const ref_product *p, float *y);
/* Guards, the gaps between the rows of y, which are not the product's, and elements of it. */
void ref_check_product(const ref_product *p);
/* Computes y again from rectangles of random sizes and wants the same bits. */
void ref_check_cuts(const ref_product *p);
/* Fails when y[row][column] is further from `expected` than `limit`. */
void ref_check_value(const ref_product *p, size_t row, size_t column, double expected, double limit);
/* Fails when y[row][column] is further from float64's sum of k products, whose magnitudes add to `size`, with bias and old
 * value (bias->data and old may be NULL), than the kernels' order of summing allows. */
void ref_check_sum(const ref_product *p, size_t row, size_t column, size_t k, double sum, double size,
                   const ref_array *bias);

/* One query of attention with one head's keys and values as they are stored, a row per position. */
typedef struct ref_query {
    const ref_array *q;
    size_t first_element; /* the query's */
    const ref_array *k, *v;
    size_t key_dim, value_dim, v_stride; /* v_stride: elements from value to value */
    size_t first, end;                   /* keys */
    double scale, slope;                 /* slope of alibi */
    double element_roundings;            /* of an element of k and v, of their largest: they were made from codes */
} ref_query;
/* out[value_dim], and *error: how far the f32 result may be off. */
void ref_attend(const ref_query *query, double *out, double *error);

#endif
