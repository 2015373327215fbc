/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads a file from beginning to end as streaming does: slots of `--slot-size`, `--slots` of them, each one
 * bulk operation, submitted again as soon as it is done. Prints one JSON document with the rate of every
 * repetition.
 *
 *   bench_io FILE [--engine auto] [--block-size 1048576] [--queue-depth 64] [--workers 0] [--slot-size
 * 67108864]
 *                 [--slots 3] [--bytes 0] [--repeat 1] [--register 1] [--buffered 0] [--spin 0]
 *
 * --bytes: read no more of the file. --spin: threads that compute meanwhile, to take the processors away.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os/clock.h"
#include "os/memory.h"
#include "penstock/io.h"

typedef struct settings {
    const char *path, *engine;
    uint64_t block_size, queue_depth, workers, slot_size, slots, bytes, repeat, registered, buffered, spin;
} settings;

static atomic_bool stop_spinning;

static void *spin_main(void *unused)
{
    volatile double x = 1;
    (void)unused;
    while (!atomic_load_explicit(&stop_spinning, memory_order_relaxed)) {
        for (int i = 0; i < 1000; i++)
            x = x * 1.0000001;
    }
    return NULL;
}

static _Noreturn void die(const pst_error *err)
{
    fprintf(stderr, "bench_io: %s: %s\n", err->path, err->message);
    exit(1);
}

static int parse(int argc, char **argv, settings *s)
{
    struct {
        const char *name;
        uint64_t *value;
    } numbers[] = {{"--block-size", &s->block_size}, {"--queue-depth", &s->queue_depth},
                   {"--workers", &s->workers},       {"--slot-size", &s->slot_size},
                   {"--slots", &s->slots},           {"--bytes", &s->bytes},
                   {"--repeat", &s->repeat},         {"--register", &s->registered},
                   {"--buffered", &s->buffered},     {"--spin", &s->spin}};
    for (int i = 1; i < argc; i++) {
        bool known = false;
        if (argv[i][0] != '-') {
            s->path = argv[i];
            continue;
        }
        if (i + 1 == argc)
            return -1;
        if (strcmp(argv[i], "--engine") == 0) {
            s->engine = argv[++i];
            continue;
        }
        for (size_t n = 0; n < sizeof numbers / sizeof numbers[0] && !known; n++) {
            known = strcmp(argv[i], numbers[n].name) == 0;
            if (known)
                *numbers[n].value = strtoull(argv[i + 1], NULL, 0);
        }
        if (!known)
            return -1;
        i++;
    }
    return s->path != NULL && s->slots > 0 && s->slot_size > 0 ? 0 : -1;
}

/* One pass over the file; nanoseconds. */
static uint64_t pass(const settings *s, pst_io_file *file, pst_io_batch **batches, pst_io_op *ops, char *memory,
                     uint64_t bytes)
{
    pst_error err;
    uint64_t start = pst_clock_ns(), at = 0, turns = (bytes + s->slot_size - 1) / s->slot_size;
    for (uint64_t turn = 0; turn < turns + s->slots; turn++) {
        uint64_t slot = turn % s->slots;
        if (turn >= s->slots && turn - s->slots < turns && pst_io_wait(batches[slot], UINT64_MAX, &err) < 0)
            die(&err);
        if (turn >= turns)
            continue;
        uint64_t length = bytes - at < s->slot_size ? bytes - at : s->slot_size;
        ops[slot] = (pst_io_op){.file = file, .offset = at, .buffer = memory + slot * s->slot_size, .bytes = length};
        if (pst_io_submit(batches[slot], &ops[slot], 1, &err) < 0)
            die(&err);
        at += length;
    }
    return pst_clock_ns() - start;
}

static void measure(const settings *s, pst_io *io)
{
    pst_error err;
    pst_io_file *file;
    void *memory;
    uint64_t memory_bytes = s->slots * s->slot_size;
    if (pst_io_file_open(io, s->path, PST_IO_OPEN_READ, &file, &err) < 0 ||
        pst_memory_map(memory_bytes, "slots", &memory, &err) < 0 ||
        (s->registered != 0 && pst_io_register(io, memory, memory_bytes, &err) < 0))
        die(&err);
    memset(memory, 1, memory_bytes); /* page faults are not what is measured */
    pst_io_batch **batches = calloc(s->slots, sizeof *batches);
    pst_io_op *ops = calloc(s->slots, sizeof *ops);
    if (batches == NULL || ops == NULL)
        exit(1);
    for (uint64_t i = 0; i < s->slots; i++) {
        if (pst_io_batch_create(io, 1, &batches[i], &err) < 0)
            die(&err);
    }
    uint64_t bytes = pst_io_file_bytes(file);
    if (s->bytes != 0 && s->bytes < bytes)
        bytes = s->bytes;
    printf("{\"engine\": \"%s\", \"direct\": %s, \"block_size\": %" PRIu64 ", \"queue_depth\": %" PRIu64
           ", \"slot_size\": %" PRIu64 ", \"slots\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"bytes_per_second\": [",
           pst_io_engine_name(io), pst_io_file_is_direct(file) ? "true" : "false", s->block_size, s->queue_depth,
           s->slot_size, s->slots, bytes);
    for (uint64_t i = 0; i < s->repeat; i++) {
        uint64_t ns = pass(s, file, batches, ops, memory, bytes);
        printf("%s%.0f", i > 0 ? ", " : "", (double)bytes * 1e9 / (double)ns);
        fflush(stdout);
    }
    pst_io_stats stats;
    pst_io_get_stats(io, &stats);
    printf("], \"pieces\": %" PRIu64 ", \"bounced_bytes\": %" PRIu64 ", \"busy_seconds\": %.3f}\n", stats.pieces,
           stats.bounced_bytes, (double)stats.busy_ns * 1e-9);
    for (uint64_t i = 0; i < s->slots; i++)
        pst_io_batch_destroy(batches[i]);
    free(batches);
    free(ops);
    if (s->registered != 0)
        pst_io_unregister(io, memory);
    pst_memory_unmap(memory, memory_bytes);
    pst_io_file_close(file, NULL);
}

int main(int argc, char **argv)
{
    settings s = {.engine = "auto",
                  .block_size = 1 << 20,
                  .queue_depth = 64,
                  .slot_size = 64 << 20,
                  .slots = 3,
                  .repeat = 1,
                  .registered = 1};
    if (parse(argc, argv, &s) < 0) {
        fprintf(stderr, "usage: bench_io FILE [--engine E] [--block-size N] [--queue-depth N] [--workers N] "
                        "[--slot-size N] [--slots N] [--bytes N] [--repeat N] [--register 0|1] [--buffered 0|1] "
                        "[--spin THREADS]\n");
        return 2;
    }
    pst_io_options options = {.struct_size = sizeof options,
                              .engine = s.engine,
                              .block_size = s.block_size,
                              .queue_depth = (uint32_t)s.queue_depth,
                              .workers = (uint32_t)s.workers,
                              .buffered = s.buffered != 0};
    pst_io *io;
    pst_error err;
    if (pst_io_open(&options, &io, &err) < 0)
        die(&err);
    pthread_t spinners[64];
    uint64_t spinning = 0;
    while (spinning < s.spin && spinning < 64 && pthread_create(&spinners[spinning], NULL, spin_main, NULL) == 0)
        spinning++;
    measure(&s, io);
    atomic_store(&stop_spinning, true);
    for (uint64_t i = 0; i < spinning; i++)
        pthread_join(spinners[i], NULL);
    pst_io_close(io);
    return 0;
}
