/* SPDX-License-Identifier: Apache-2.0 */
/* A scene for tests of operations: a handle with the gate engine, and a file of 64 blocks open for writing. */
#ifndef PST_TEST_OPS_SCENE_H
#define PST_TEST_OPS_SCENE_H

#include "unit/io/gate.h"
#include "unit/io/io_test.h"

enum { BLOCK = 4096, BLOCKS = 64, FILE_BYTES = BLOCKS * BLOCK, DEPTH = 8 };

typedef struct scene {
    char *folder;
    pst_io *io;
    pst_io_file *file;
    uint8_t *model, *memory; /* what the file holds; as much memory for operations */
} scene;

/* cmocka's set-up and tear-down. The system calls are those of sys_fault.h meanwhile. */
int scene_set_up(void **out);
int scene_tear_down(void **in);
#define IN_SCENE(test) cmocka_unit_test_setup_teardown(test, scene_set_up, scene_tear_down)

/* An operation on whole blocks; its memory lies where the blocks lie in the file. */
pst_io_op op_of(scene *s, pst_io_kind kind, uint64_t block, uint64_t blocks);
pst_io_batch *make_batch(scene *s, uint32_t max_ops);
void pause_ms(long ms);

#endif
