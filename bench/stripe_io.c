/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes or reads a whole file of a stripe set, as one bulk batch of 16 MiB operations that are submitted again as they
 * are done. Prints one JSON document. Makes the set if the folders are not one yet.
 *
 *   stripe_io write|read BYTES STRIPE_BYTES ENGINE FOLDER...
 *
 * The stop watch of a write includes the sync and not the reserving of space.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os/clock.h"
#include "penstock/io_stripe.h"

enum { SLOTS = 4, SLOT_BYTES = 16 << 20 };

static void check(int status, const pst_error *err)
{
    if (status >= 0)
        return;
    fprintf(stderr, "stripe_io: %s: %s\n", err->path, err->message);
    exit(1);
}

/* Keeps SLOTS batches of one operation each under way until all of the file has passed. */
static void stream(pst_io *io, pst_io_file *file, pst_io_kind kind, uint64_t bytes, char *memory)
{
    pst_error err = {0};
    pst_io_batch *batches[SLOTS];
    pst_io_op ops[SLOTS];
    for (uint64_t i = 0; i < SLOTS; i++)
        check(pst_io_batch_create(io, 1, &batches[i], &err), &err);
    uint64_t total = (bytes + SLOT_BYTES - 1) / SLOT_BYTES;
    for (uint64_t n = 0; n < total + SLOTS; n++) {
        uint64_t slot = n % SLOTS, at = n * SLOT_BYTES;
        check(pst_io_wait(batches[slot], UINT64_MAX, &err), &err);
        if (n >= total)
            continue;
        ops[slot] = (pst_io_op){.file = file,
                                .offset = at,
                                .buffer = memory + slot * SLOT_BYTES,
                                .bytes = bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES,
                                .kind = kind};
        check(pst_io_submit(batches[slot], &ops[slot], 1, &err), &err);
    }
    for (uint64_t i = 0; i < SLOTS; i++)
        pst_io_batch_destroy(batches[i]);
}

int main(int argc, char **argv)
{
    if (argc < 6 || (strcmp(argv[1], "write") != 0 && strcmp(argv[1], "read") != 0)) {
        fprintf(stderr, "usage: stripe_io write|read BYTES STRIPE_BYTES ENGINE FOLDER...\n");
        return 2;
    }
    bool write = strcmp(argv[1], "write") == 0;
    uint64_t bytes = strtoull(argv[2], NULL, 0), stripe_bytes = strtoull(argv[3], NULL, 0);
    const char *const *folders = (const char *const *)argv + 5;
    uint32_t count = (uint32_t)(argc - 5);
    pst_error err = {0};
    pst_stripe_set *set;
    pst_io *io;
    pst_io_file *file;
    pst_io_options options = {.struct_size = sizeof options, .engine = argv[4]};
    char *memory = aligned_alloc(4096, (size_t)SLOTS * SLOT_BYTES);
    memset(memory, 7, (size_t)SLOTS * SLOT_BYTES);
    if (!pst_stripe_is_member(folders[0]))
        check(pst_stripe_create(folders, count, stripe_bytes, &err), &err);
    check(pst_stripe_open(folders, count, &set, &err), &err);
    check(pst_io_open(&options, &io, &err), &err);
    unsigned flags = write ? PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE : PST_IO_OPEN_READ;
    check(pst_stripe_file_open(set, io, "data", flags, &file, &err), &err);
    if (write) {
        check(pst_io_file_preallocate(file, bytes, &err), &err);
        check(pst_io_file_sync(file, &err), &err);
    }
    uint64_t start = pst_clock_ns();
    stream(io, file, write ? PST_IO_WRITE : PST_IO_READ, bytes, memory);
    if (write)
        check(pst_io_file_sync(file, &err), &err);
    double seconds = (double)(pst_clock_ns() - start) / 1e9;
    printf("{\"op\": \"%s\", \"members\": %u, \"bytes\": %" PRIu64 ", \"seconds\": %.6f, \"bytes_per_second\": %.0f, "
           "\"stripe_bytes\": %" PRIu64 ", \"engine\": \"%s\", \"direct\": %s}\n",
           argv[1], count, bytes, seconds, (double)bytes / seconds, pst_stripe_bytes(set), pst_io_engine_name(io),
           pst_io_file_is_direct(file) ? "true" : "false");
    check(pst_io_file_close(file, &err), &err);
    pst_io_close(io);
    pst_stripe_close(set);
    free(memory);
    return 0;
}
