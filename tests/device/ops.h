/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What holds the operators of a device against the host's. A case is a set of operands and one call of an operator; the
 * driver makes random ones, runs each on the host device and on the device under test, and checks what is common to all:
 * sentinels around every operand, in the device's memory, too; outputs poisoned first; inputs and gaps between rows
 * unchanged; the same bits when memory moves, when rows come alone, and when the call is recorded and replayed. What a result must be
 * is the case's own to say (ops_rows.c, ops_matmul.c, ...).
 *
 * The device: PST_TEST_DEVICE, a plugin's file (a name with a slash) or "cuda", either with or without ":N", or "host";
 * unset: the emulated plugin of the build tree. PST_TEST_SEED replays, PST_TEST_CASES says how many cases of each operator.
 */
#ifndef PST_TESTS_DEVICE_OPS_H
#define PST_TESTS_DEVICE_OPS_H

#include "device/device.h"
#include "emulated/control.h"
#include "unit/cpu/stored.h"

/* ---- The devices ---- */

typedef enum ops_side { OPS_DEVICE, OPS_HOST } ops_side;

/* Opened once for a test program (cmocka's group set up and tear down). NULL device: there is none, tests skip. */
int ops_set_up(void **state);
int ops_tear_down(void **state);
pst_device *ops_device(ops_side side);
/* "emulated", "cuda", ... */
const char *ops_name(void);
/* The same for sessions: the plugin's file with ":N", or "host". */
const char *ops_file(void);
/* A device of the plugin under test that the caller destroys; PST_E_UNSUPPORTED where there is none. */
int ops_open(pst_device **out, pst_error *err);
/* The plugin's table; NULL for the host. */
const pst_device_plugin *ops_plugin(void);
/* The emulator's controls (emulated/control.h), when its plugin is under test; else NULL. */
typedef struct ops_controls {
    void (*seed)(uint64_t seed);
    void (*protect)(bool on);
    void (*fail_nth)(pst_emulated_call call, uint64_t nth);
    uint64_t (*calls)(pst_emulated_call call);
    void (*reset)(void);
    void (*count)(pst_emulated_counts *out);
    void (*blas)(const char *file);
} ops_controls;
const ops_controls *ops_emulator(void);
/* Products that the library beside the emulated device has computed so far (fake_blas.h). */
uint64_t ops_library_products(void);
/* Seeds the test's random numbers; false when there is no device to test, which the set up has said. */
bool ops_begin(const char *test);
/* PST_TEST_CASES, else `usual`. */
size_t ops_cases(size_t usual);

/* ---- Operands ---- */

/* Memory on both devices with sentinels around, made and freed by the case it belongs to. */
typedef struct ops_buffer ops_buffer;

/* A copy of the bytes. align: of its address on the device under test (a power of two); the address is not better aligned than
 * that, as often as not. NULL bytes: poison (0xff: NaN as an element). */
ops_buffer *ops_input(const void *bytes, size_t count, size_t align);
ops_buffer *ops_output(const void *bytes, size_t count, size_t align);
/* A whole array, aligned to its elements or better. The array stays the caller's. */
ops_buffer *ops_array(const ref_array *array, size_t align);
/* At `offset` of the buffer lies the address of `to` + addend on each side. */
void ops_points(ops_buffer *buffer, size_t offset, const ops_buffer *to, size_t addend);
/* Where the bytes are on a side; NULL for a NULL buffer. Only after ops_place. */
void *ops_at(const ops_buffer *buffer, ops_side side);
/* Puts all operands of the case into both devices' memory: called by the driver after the case is made. */
void ops_place(void);
/* Waits, brings back what the device has, checks sentinels and inputs. `text` says which case. */
void ops_collect(const char *text);
/* Bytes of the result on a side, as ops_collect found them; and what was there before. */
const unsigned char *ops_result(const ops_buffer *buffer, ops_side side);
const unsigned char *ops_before(const ops_buffer *buffer);
/* Changes an input of the device, from the next ops_place on; the host's stays. */
void ops_change(ops_buffer *buffer, size_t offset, const void *bytes, size_t count);
/* Element `index` of a result of F32, F16 or BF16; of F64 likewise. */
double ops_get(const ops_buffer *buffer, ops_side side, pst_dtype type, size_t index);
/* Frees the operands of the case. */
void ops_free(void);

/* ---- Matrices ---- */

/* An operand that is a matrix. */
typedef struct ops_matrix {
    ops_buffer *buffer;
    pst_dtype type;
    size_t rows, columns, stride;
} ops_matrix;

/* Random numbers of size about `scale`; the gaps between rows are NaN. Stride: often such that rows begin at 64 bytes. */
ops_matrix ops_random(pst_dtype type, size_t rows, size_t columns, double scale);
ops_matrix ops_poisoned(pst_dtype type, size_t rows, size_t columns);
/* That of given numbers: an array of rows * columns. */
ops_matrix ops_given(const ref_array *values, size_t rows, size_t columns);
/* The operator writes into it, too. */
void ops_writes(ops_matrix *m);
/* Rows [first, first + rows) as an operand. */
pst_matrix ops_rows(const ops_matrix *m, ops_side side, size_t first, size_t rows);
double ops_was(const ops_matrix *m, size_t row, size_t column); /* the element before the call */
/* 1 x columns or more of a plain type, aligned as weights are on an accelerator; a NULL array is an absent weight. */
typedef struct ops_weight {
    ops_buffer *data;
    pst_dtype type;
    size_t rows, columns;
} ops_weight;
ops_weight ops_plain(const ref_array *values, size_t rows, size_t columns);
pst_weight ops_weight_at(const ops_weight *w, ops_side side);

/* Both sides' y[row][column] must be within `limit` of `expected` (of NaN: be NaN); for BF16 its rounding is added. */
void ops_near(const ops_matrix *y, size_t row, size_t column, double expected, double limit, const char *text);
/* The device's bytes of the whole buffer are the host's. */
void ops_same_as_host(const ops_buffer *buffer, const char *text);
/* Outside of the matrix's elements nothing was written, on either side. */
void ops_check_gaps(const ops_matrix *y, const char *text);

/* ---- The driver ---- */

typedef struct ops_test {
    const char *name;
    size_t cases; /* usual number of them */
    size_t case_bytes;
    /* Makes the operands; writes what the case is to `text`. Returns the rows of the call. */
    size_t (*make)(void *c, size_t number, char *text, size_t text_bytes);
    /* One call for some of the rows (rows_alone false: always for all of them). */
    int (*run)(void *c, pst_device *device, ops_side side, size_t first, size_t rows);
    void (*check)(void *c, const char *text);
    /* More that a device must do with this case; NULL: nothing. Operands are as they were made. */
    void (*more)(void *c, const char *text);
    void (*clear)(void *c); /* what `make` holds beside operands; NULL: nothing */
    bool rows_alone;        /* a row's result may be computed by a call for some of the rows */
} ops_test;

void ops_drive(const ops_test *test);
/* Keeps the device's results, which later ones are held to; outputs that are kept already stay. */
void ops_keep(void);
const unsigned char *ops_kept(const ops_buffer *buffer);
void ops_same_as_first(const char *what, const char *text);
/* Runs the case's call again, for all its rows or in runs of some of them, and wants the bits of the first run. */
void ops_repeat(const ops_test *test, void *c, size_t rows, bool in_parts, const char *what, const char *text);

extern const ops_test ops_rows_tests[], ops_move_tests[], ops_matmul_tests[], ops_sequence_tests[], ops_route_tests[];
void ops_test_bad_index(void **state);

#endif
