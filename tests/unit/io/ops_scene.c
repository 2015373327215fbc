/* SPDX-License-Identifier: Apache-2.0 */
#include "unit/io/ops_scene.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "os/sys_fault.h"

int scene_set_up(void **out)
{
    scene *s = calloc(1, sizeof *s);
    pst_error err = {0};
    gate_allow_all(false);
    gate.started_count = gate.most_held = gate.most_submitted = 0;
    s->folder = test_folder_create(false);
    s->model = malloc(FILE_BYTES);
    s->memory = aligned_alloc(4096, FILE_BYTES);
    test_fill(s->model, FILE_BYTES, 7, 0);
    memset(s->memory, 0, FILE_BYTES);
    const char *path = test_path(s->folder, "file");
    test_write_file(path, s->model, FILE_BYTES);
    pst_fault_reset();
    pst_sys_replace(&pst_sys_fault);
    s->io = test_open("gate", BLOCK, DEPTH, 1, false);
    assert_ok(pst_io_file_open(s->io, path, PST_IO_OPEN_WRITE, &s->file, &err), &err);
    *out = s;
    return 0;
}

int scene_tear_down(void **in)
{
    scene *s = *in;
    pst_error err = {0};
    gate_allow_all(true); /* a test may have failed in between */
    assert_ok(pst_io_file_close(s->file, &err), &err);
    pst_io_close(s->io);
    pst_sys_replace(NULL);
    free(s->memory);
    free(s->model);
    test_folder_remove(s->folder);
    free(s);
    return 0;
}

pst_io_op op_of(scene *s, pst_io_kind kind, uint64_t block, uint64_t blocks)
{
    return (pst_io_op){.file = s->file,
                       .offset = block * BLOCK,
                       .buffer = kind <= PST_IO_WRITE ? s->memory + block * BLOCK : NULL,
                       .bytes = blocks * BLOCK,
                       .kind = kind};
}

pst_io_batch *make_batch(scene *s, uint32_t max_ops)
{
    pst_io_batch *batch;
    pst_error err = {0};
    assert_ok(pst_io_batch_create(s->io, max_ops, &batch, &err), &err);
    return batch;
}

void pause_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}
