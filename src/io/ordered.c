/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ordered operations: sync, truncate, preallocate. They block, so they are carried out by a few service threads of
 * the handle and not by the workers. The first such thread starts with the first batch that has such an operation,
 * another when there are more such batches in flight than threads. Threads are started at submission, by the
 * submitter: when there is none and none can be started, the operations fail with that error.
 */
#include "base/error.h"
#include "io/internal.h"

bool pst_io_is_ordered(pst_io_kind kind)
{
    return kind == PST_IO_SYNC || kind == PST_IO_TRUNCATE || kind == PST_IO_PREALLOCATE;
}

static int carry_out(const pst_io_op *op, pst_error *err)
{
    switch (op->kind) {
    case PST_IO_SYNC: return pst_io_file_sync(op->file, err);
    case PST_IO_TRUNCATE: return pst_io_file_truncate(op->file, op->offset, err);
    case PST_IO_PREALLOCATE: return pst_io_file_preallocate_range(op->file, op->offset, op->bytes, err);
    default: return 0;
    }
}

static void *serve(void *argument)
{
    pst_io *io = argument;
    pst_error err;
    pthread_mutex_lock(&io->lock);
    for (;;) {
        pst_io_batch *batch = io->service_first;
        if (batch == NULL) {
            if (io->stop)
                break;
            pthread_cond_wait(&io->service_work, &io->lock);
            continue;
        }
        io->service_first = batch->next;
        const pst_io_op *op = &batch->ops[batch->op]; /* the cursor stays there while the batch is served */
        pthread_mutex_unlock(&io->lock);
        int status = carry_out(op, &err);
        pthread_mutex_lock(&io->lock);
        pst_io_batch_served(batch, status < 0 ? status : 0, &err);
        pst_io_batch_settle(batch);
    }
    pthread_mutex_unlock(&io->lock);
    return NULL;
}

void pst_io_service_add(pst_io *io, pst_io_batch *batch)
{
    batch->next = NULL;
    if (io->service_first == NULL)
        io->service_first = batch;
    else
        io->service_last->next = batch;
    io->service_last = batch;
    pthread_cond_signal(&io->service_work);
}

int pst_io_service_prepare(pst_io *io)
{
    pthread_mutex_lock(&io->service_lock);
    pthread_mutex_lock(&io->lock);
    uint32_t count = io->service_count, wanted = io->ordered_batches + 1;
    bool stop = io->stop;
    pthread_mutex_unlock(&io->lock);
    int status = 0;
    if (!stop && count < wanted && count < PST_IO_MAX_SERVICE) {
        status = pst_io_start_thread(&io->service_threads[count], serve, io);
        pthread_mutex_lock(&io->lock);
        io->service_count += status >= 0;
        pthread_mutex_unlock(&io->lock);
    }
    pthread_mutex_unlock(&io->service_lock);
    return count > 0 ? 0 : status;
}

void pst_io_service_stop(pst_io *io)
{
    pthread_mutex_lock(&io->service_lock);
    pthread_mutex_lock(&io->lock);
    pthread_cond_broadcast(&io->service_work);
    pthread_mutex_unlock(&io->lock);
    for (uint32_t i = 0; i < io->service_count; i++)
        pthread_join(io->service_threads[i], NULL);
    io->service_count = 0;
    pthread_mutex_unlock(&io->service_lock);
}
