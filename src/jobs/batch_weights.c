/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which weights these are, without reading them all: some bytes of up to about SAMPLES tensors, chosen by their names, since
 * their order is that of the files. A model trained further differs in nearly all tensors.
 */
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/heap.h"
#include "infer/internal.h"
#include "jobs/batch_internal.h"

enum { SAMPLES = 256, SAMPLE_BYTES = 1024 };

typedef struct sampling {
    const pst_store *store;
    pst_io *io;
    pst_io_file *file; /* NULL: none is open */
    uint32_t number;   /* of that file */
    uint64_t sum;
} sampling;

static int read_sample(sampling *s, const pst_tensor *tensor, void *buffer, uint64_t bytes, pst_error *err)
{
    if (s->file != NULL && s->number != tensor->file) {
        pst_io_file_close(s->file, NULL); /* only read from: nothing can be lost */
        s->file = NULL;
    }
    if (s->file == NULL)
        PST_TRY(pst_store_file_open(s->store, tensor->file, s->io, &s->file, err));
    s->number = tensor->file;
    pst_io_op op = {.file = s->file,
                    .offset = tensor->offset + (tensor->bytes - bytes) / 2,
                    .buffer = buffer,
                    .bytes = bytes,
                    .kind = PST_IO_READ};
    return pst_io_transfer(s->io, &op, err);
}

static int add_samples(sampling *s, pst_error *err)
{
    unsigned char buffer[SAMPLE_BYTES];
    size_t count = pst_store_tensor_count(s->store), every = (count + SAMPLES - 1) / SAMPLES;
    for (size_t i = 0; i < count; i++) {
        const pst_tensor *tensor = pst_store_tensor_at(s->store, i);
        uint64_t hash = pst_hash(PST_HASH_START, tensor->name, strlen(tensor->name));
        uint64_t bytes = tensor->bytes < sizeof buffer ? tensor->bytes : sizeof buffer;
        if ((hash >> 32) % every != 0 || bytes == 0)
            continue;
        PST_TRY(read_sample(s, tensor, buffer, bytes, err));
        s->sum += pst_hash(hash, buffer, bytes); /* in any order */
    }
    return 0;
}

int pst_batch_weights_key(const pst_model *model, uint64_t *key, pst_error *err)
{
    const pst_io_options options = {
        .struct_size = sizeof options, .engine = "threads", .workers = 1, .queue_depth = 1, .buffered = true};
    sampling s = {.store = model->store};
    PST_TRY(pst_io_open(&options, &s.io, err));
    int status = add_samples(&s, err);
    if (s.file != NULL)
        pst_io_file_close(s.file, NULL);
    pst_io_close(s.io);
    PST_TRY(status);
    *key = pst_hash(*key, &s.sum, sizeof s.sum);
    return 0;
}
