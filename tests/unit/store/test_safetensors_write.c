/* SPDX-License-Identifier: Apache-2.0 */
/* The streaming writer: what it writes is read back alike, what fails leaves nothing behind. */
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/heap.h"
#include "os/sys_fault.h"
#include "penstock/io_engine.h"
#include "store/folder.h"
#include "store/safetensors_write.h"
#include "support/random.h"

static pst_io *open_io(const char *engine)
{
    pst_io_options options = {.struct_size = sizeof options, .engine = engine, .block_size = 1 << 20};
    pst_io *io;
    pst_error err;
    if (pst_io_open(&options, &io, &err) < 0)
        fail_msg("%s", err.message);
    return io;
}

static size_t count_entries(const char *folder)
{
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    size_t count = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

static unsigned char *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    unsigned char *data = malloc(*bytes + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *bytes, file), *bytes);
    fclose(file);
    return data;
}

enum { MOST = 12 };

typedef struct sample {
    pst_tensor tensors[MOST];
    char names[MOST][64];
    size_t count;
    pst_metadata metadata[2];
    size_t metadata_count;
    uint64_t data_bytes;
} sample;

/* Any dtypes, ranks and names that a file may hold; about one in four is empty or a scalar. */
static void make_sample(sample *s, uint64_t largest)
{
    static const char *const stems[] = {"w", "layers.%u.\"q\"", "\xc3\xa9\xf0\x9f\x98\x80", "a\\b/c", "tab\there", ""};
    memset(s, 0, sizeof *s);
    s->count = random_below(MOST + 1);
    for (size_t i = 0; i < s->count; i++) {
        snprintf(s->names[i], sizeof s->names[i], "%s%zu", stems[random_below(6)], i);
        pst_tensor *t = &s->tensors[i];
        t->name = s->names[i];
        t->dtype = (pst_dtype)random_below(PST_C32);
        t->rank = (uint32_t)random_below(PST_MAX_RANK + 1);
        for (uint32_t d = 0; d < t->rank; d++)
            t->shape[d] = random_below(12) == 0 ? 0 : 1 + random_below(3);
        if (t->rank > 0)
            t->shape[0] *= 4; /* whole bytes for the small types */
        else if (pst_dtype_bits(t->dtype) % 8 != 0)
            t->dtype = PST_U8;
        if (t->rank > 0 && random_below(4) == 0)
            t->shape[0] = t->shape[0] * (1 + random_below(largest));
        assert_int_equal(pst_tensor_shape_bytes(t->dtype, t->shape, t->rank, &t->bytes), 0);
        s->data_bytes += t->bytes;
    }
    s->metadata_count = random_below(3);
    s->metadata[0] = (pst_metadata){"format", "pt"};
    s->metadata[1] = (pst_metadata){"with \"quotes\"\n", "\x01\x1f\xe2\x82\xac"};
}

static unsigned char data_at(uint64_t offset)
{
    return (unsigned char)((offset * 2654435761u) >> 11 ^ offset);
}

/* Hands over the data in pieces of any size, by copy or in place. */
static int write_pieces(pst_safetensors_writer *writer, const sample *s, uint64_t *done, pst_error *err)
{
    while (*done < s->data_bytes) {
        uint64_t left = s->data_bytes - *done, most = random_below(2) ? 100 : 5 << 20;
        size_t piece = (size_t)(1 + random_below(left < most ? left : most));
        if (random_below(2)) {
            void *memory;
            size_t room;
            int status = pst_safetensors_writer_space(writer, &memory, &room, err);
            if (status < 0)
                return status;
            assert_true(room > 0);
            piece = piece < room ? piece : room;
            for (size_t i = 0; i < piece; i++)
                ((unsigned char *)memory)[i] = data_at(*done + i);
            status = pst_safetensors_writer_commit(writer, piece, err);
            if (status < 0)
                return status;
        } else {
            unsigned char *copy = malloc(piece);
            assert_non_null(copy);
            for (size_t i = 0; i < piece; i++)
                copy[i] = data_at(*done + i);
            int status = pst_safetensors_writer_append(writer, copy, piece, err);
            free(copy);
            if (status < 0)
                return status;
        }
        *done += piece;
    }
    return 0;
}

static int write_sample(pst_io *io, const char *path, sample *s, pst_error *err)
{
    pst_safetensors_writer *writer;
    int status =
        pst_safetensors_writer_open(io, path, s->tensors, s->count, s->metadata, s->metadata_count, &writer, err);
    if (status < 0)
        return status;
    uint64_t done = 0;
    status = write_pieces(writer, s, &done, err);
    if (status == 0)
        status = pst_safetensors_writer_finish(writer, err);
    pst_safetensors_writer_close(writer);
    return status;
}

static void check_sample(const char *path, const sample *s)
{
    pst_store *store;
    pst_error err = {0};
    if (pst_store_open(path, &store, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    assert_int_equal(pst_store_tensor_count(store), s->count);
    size_t bytes;
    unsigned char *data = read_file(path, &bytes);
    pst_store_file_info info;
    pst_store_get_file(store, 0, &info);
    assert_int_equal(info.header_bytes % PST_SAFETENSORS_ALIGNMENT, 0);
    assert_int_equal(bytes, info.header_bytes + s->data_bytes);
    for (size_t i = 0; i < s->count; i++) {
        const pst_tensor *want = &s->tensors[i], *got = pst_store_find(store, want->name);
        assert_non_null(got);
        assert_int_equal(got->dtype, want->dtype);
        assert_int_equal(got->rank, want->rank);
        assert_memory_equal(got->shape, want->shape, want->rank * sizeof(uint64_t));
        assert_int_equal(got->offset, want->offset);
        assert_int_equal(got->bytes, want->bytes);
    }
    for (uint64_t i = 0; i < s->data_bytes; i++)
        if (data[info.header_bytes + i] != data_at(i))
            fail_msg("byte %llu of the data differs", (unsigned long long)i);
    assert_int_equal(info.metadata, s->metadata_count);
    for (size_t i = 0; i < s->metadata_count; i++)
        assert_string_equal(pst_store_metadata(store, 0, s->metadata[i].key), s->metadata[i].value);
    free(data);
    pst_store_close(store);
}

static void test_round_trips(void **state)
{
    (void)state;
    random_start("safetensors writing");
    static const char *const engines[] = {"auto", "threads"};
    for (int e = 0; e < 2; e++) {
        pst_io *io = open_io(engines[e]);
        for (int round = 0; round < 25; round++) {
            sample s;
            make_sample(&s, 2000);
            pst_error err = {0};
            if (write_sample(io, files_path("file.safetensors"), &s, &err) < 0)
                fail_msg("%s: %s", err.path, err.message);
            check_sample(files_path("file.safetensors"), &s); /* each replaces the one before */
            assert_int_equal(count_entries(files_root), 1);
        }
        pst_io_close(io);
    }
}

/* Larger than all buffers together, and ending at, just before and behind a multiple of them. */
static void test_ring(void **state)
{
    (void)state;
    random_start("safetensors writing");
    pst_io *io = open_io("auto");
    static const int ends[] = {0, -1, 12345};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        sample s = {.count = 1};
        s.data_bytes = (uint64_t)((80 << 20) - 4096 + ends[i]);
        s.tensors[0] = (pst_tensor){.name = "large", .dtype = PST_U8, .rank = 1, .shape = {s.data_bytes}};
        pst_error err = {0};
        if (write_sample(io, files_path("large.safetensors"), &s, &err) < 0)
            fail_msg("%s: %s", err.path, err.message);
        check_sample(files_path("large.safetensors"), &s);
    }
    pst_io_close(io);
}

/* An engine that completes nothing for a second: so it is seen how deep a queue the writer can fill, however fast
 * a drive is. It writes nothing. */
enum { HOLD_MAX = 64, HOLD_MS = 1000 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pst_io_request *held[HOLD_MAX];
    uint32_t count, most;
    bool woken, released;
} hold = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static int hold_open(const pst_io_engine *self, const pst_io_queue_settings *settings, void **queue, pst_error *err)
{
    (void)self;
    (void)err;
    *queue = &hold;
    return settings->depth <= HOLD_MAX ? 0 : -EINVAL;
}

static void hold_close(void *queue)
{
    (void)queue;
}

static void hold_submit(void *queue, pst_io_request *const *requests, uint32_t count)
{
    (void)queue;
    pthread_mutex_lock(&hold.lock);
    for (uint32_t i = 0; i < count; i++)
        hold.held[hold.count++] = requests[i];
    hold.most = hold.count > hold.most ? hold.count : hold.most;
    pthread_cond_broadcast(&hold.changed);
    pthread_mutex_unlock(&hold.lock);
}

static uint32_t hold_reap(void *queue, pst_io_request **done, uint32_t max, bool wait)
{
    (void)queue;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += HOLD_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    uint32_t given = 0;
    pthread_mutex_lock(&hold.lock);
    int status = 0;
    while (wait && !hold.woken && status != ETIMEDOUT)
        status = pthread_cond_timedwait(&hold.changed, &hold.lock, &until);
    if (status == ETIMEDOUT) {
        hold.released = true;
        pthread_cond_broadcast(&hold.changed);
        while (given < max && hold.count > 0) {
            done[given] = hold.held[--hold.count];
            done[given]->result = done[given]->bytes;
            given++;
        }
    }
    hold.woken = false;
    pthread_mutex_unlock(&hold.lock);
    return given;
}

static void hold_wake(void *queue)
{
    (void)queue;
    pthread_mutex_lock(&hold.lock);
    hold.woken = true;
    pthread_cond_broadcast(&hold.changed);
    pthread_mutex_unlock(&hold.lock);
}

/* While the writer's caller fills a buffer, the others keep the default queue of the I/O library full. */
static void test_keeps_queue_full(void **state)
{
    (void)state;
    static const pst_io_engine engine = {.version = PST_IO_ENGINE_VERSION,
                                         .struct_size = sizeof engine,
                                         .name = "hold",
                                         .open_queue = hold_open,
                                         .close_queue = hold_close,
                                         .submit = hold_submit,
                                         .reap = hold_reap,
                                         .wake = hold_wake};
    pst_error err = {0};
    assert_int_equal(pst_io_engine_register(&engine, &err), 0);
    const pst_io_options options = {
        .struct_size = sizeof options, .engine = "hold", .block_size = 1 << 20, .queue_depth = HOLD_MAX};
    pst_io *io;
    assert_int_equal(pst_io_open(&options, &io, &err), 0);
    pst_tensor tensor = {.name = "t", .dtype = PST_U8, .rank = 1, .shape = {100 << 20}};
    pst_safetensors_writer *writer;
    assert_int_equal(pst_safetensors_writer_open(io, files_path("t.safetensors"), &tensor, 1, NULL, 0, &writer, &err),
                     0);
    void *memory;
    size_t room;
    for (int i = 0; i < HOLD_MAX / 8; i++) { /* buffers of 8 MiB */
        assert_int_equal(pst_safetensors_writer_space(writer, &memory, &room, &err), 0);
        assert_int_equal(pst_safetensors_writer_commit(writer, room, &err), 0);
    }
    assert_int_equal(pst_safetensors_writer_space(writer, &memory, &room, &err), 0);
    assert_true(room > 0);
    pthread_mutex_lock(&hold.lock);
    while (hold.count < HOLD_MAX && !hold.released)
        pthread_cond_wait(&hold.changed, &hold.lock);
    bool waited = hold.released;
    pthread_mutex_unlock(&hold.lock);
    assert_false(waited); /* for a free buffer, while all of them were on their way */
    pst_safetensors_writer_close(writer);
    assert_int_equal(hold.most, HOLD_MAX);
    pst_io_close(io);
}

static void test_misuse(void **state)
{
    (void)state;
    pst_io *io = open_io("threads");
    pst_tensor tensor = {.name = "t", .dtype = PST_U8, .rank = 1, .shape = {10}};
    const char *path = files_path("misused.safetensors");
    pst_safetensors_writer *writer;
    pst_error err = {0};
    assert_int_equal(pst_safetensors_writer_open(io, path, &tensor, 1, NULL, 0, &writer, &err), 0);
    assert_int_equal(pst_safetensors_writer_append(writer, "0123456789a", 11, &err), PST_E_USAGE);
    assert_int_equal(pst_safetensors_writer_commit(writer, 1, &err), PST_E_USAGE);
    pst_safetensors_writer_close(writer);
    assert_int_equal(pst_safetensors_writer_open(io, path, &tensor, 1, NULL, 0, &writer, &err), 0);
    assert_int_equal(pst_safetensors_writer_append(writer, "012345678", 9, &err), 0);
    assert_int_equal(pst_safetensors_writer_finish(writer, &err), PST_E_USAGE);
    assert_contains(err.message, "1 bytes of its tensors have not been written");
    pst_safetensors_writer_close(writer);
    pst_safetensors_writer_close(NULL);
    pst_tensor bad[] = {{.name = "t", .dtype = PST_F4, .rank = 1, .shape = {3}},
                        {.name = "t", .dtype = PST_U8, .rank = 2, .shape = {UINT64_C(1) << 40, UINT64_C(1) << 40}},
                        {.name = "t", .dtype = PST_U8, .rank = 9},
                        {.name = "__metadata__", .dtype = PST_U8}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(pst_safetensors_writer_open(io, path, &bad[i], 1, NULL, 0, &writer, &err), PST_E_USAGE);
    assert_int_equal(
        pst_safetensors_writer_open(io, files_path("none/x.safetensors"), &tensor, 1, NULL, 0, &writer, &err), -ENOENT);
    assert_int_equal(count_entries(files_root), 0);
    pst_io_close(io);
}

static void test_index(void **state)
{
    (void)state;
    pst_io *io = open_io("threads");
    static const char *const names[] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
    pst_tensor tensors[] = {{.name = "z", .dtype = PST_U8, .rank = 1, .shape = {3}},
                            {.name = "\"a\"", .dtype = PST_U8, .rank = 1, .shape = {2}, .file = 1},
                            {.name = "m", .dtype = PST_U8, .rank = 1, .shape = {1}, .file = 1}};
    pst_error err = {0};
    for (uint32_t i = 0; i < 2; i++) {
        pst_safetensors_writer *writer;
        assert_int_equal(
            pst_safetensors_writer_open(io, files_path("%s", names[i]), tensors + i, i + 1, NULL, 0, &writer, &err), 0);
        assert_int_equal(pst_safetensors_writer_append(writer, "xyz", 3, &err), 0);
        assert_int_equal(pst_safetensors_writer_finish(writer, &err), 0);
        pst_safetensors_writer_close(writer);
    }
    assert_int_equal(pst_safetensors_write_index(files_path("model.safetensors.index.json"), tensors, 3, names, &err),
                     0);
    pst_store *store;
    assert_int_equal(pst_store_open(files_root, &store, &err), 0);
    assert_int_equal(pst_store_tensor_count(store), 3);
    assert_int_equal(pst_store_find(store, "\"a\"")->file, 1);
    pst_store_close(store);
    size_t bytes;
    unsigned char *text = read_file(files_path("model.safetensors.index.json"), &bytes);
    text[bytes] = '\0';
    assert_non_null(strstr((char *)text, "\"total_size\": 6"));
    assert_true(strstr((char *)text, "\"m\"") < strstr((char *)text, "\"z\""));
    free(text);
    pst_io_close(io);
}

/* ---- failures ---- */

/* Writes 20 MB with the nth call of one kind failing, for every n until none fails. */
static void sweep_faults(pst_fault_kind kind, int error)
{
    for (int64_t skip = 0;; skip++) {
        assert_true(skip < 400);
        pst_io *io = open_io("threads");
        sample s = {.count = 1, .data_bytes = 17 << 20};
        s.tensors[0] = (pst_tensor){.name = "t", .dtype = PST_U8, .rank = 1, .shape = {s.data_bytes}};
        pst_error err = {0};
        int64_t live = pst_heap_live_count();
        pst_fault_reset();
        pst_fault_fail(kind, skip, 1, error);
        int status = write_sample(io, files_path("f.safetensors"), &s, &err);
        bool reached = pst_fault_count(kind) > skip;
        pst_fault_reset();
        assert_int_equal(pst_heap_live_count(), live);
        if (status < 0) {
            assert_int_equal(status, -error);
            assert_int_equal(err.code, -error);
            assert_true(err.message[0] != '\0');
            if (kind != PST_FAULT_MMAP)
                assert_contains(err.path, files_root);
            assert_null(strstr(err.path, ".tmp-")); /* a name of which no user knows */
        } else {
            check_sample(files_path("f.safetensors"), &s);
        }
        /* A failing sync of the folder comes after the rename: then the whole file is there, but reported. */
        if (status < 0 && count_entries(files_root) != 0) {
            assert_true(kind == PST_FAULT_FSYNC || kind == PST_FAULT_OPEN || kind == PST_FAULT_UNLINK);
            check_sample(files_path("f.safetensors"), &s);
            assert_int_equal(count_entries(files_root), 1);
        }
        unlink(files_path("f.safetensors"));
        pst_io_close(io);
        if (!reached)
            return;
    }
}

static void test_faults(void **state)
{
    (void)state;
    random_start("safetensors writing");
    pst_sys_replace(&pst_sys_fault);
    sweep_faults(PST_FAULT_WRITE, ENOSPC);
    sweep_faults(PST_FAULT_WRITE, EIO);
    sweep_faults(PST_FAULT_FALLOCATE, ENOSPC);
    sweep_faults(PST_FAULT_FDATASYNC, EIO);
    sweep_faults(PST_FAULT_FSYNC, EIO);
    sweep_faults(PST_FAULT_FTRUNCATE, EIO);
    sweep_faults(PST_FAULT_RENAME, EACCES);
    sweep_faults(PST_FAULT_OPEN, EACCES);
    sweep_faults(PST_FAULT_MMAP, ENOMEM);
    pst_sys_replace(NULL);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    pst_io *io = open_io("threads");
    int failures = 0;
    for (;; failures++) {
        sample s = {.count = 2, .data_bytes = 20};
        s.tensors[0] = (pst_tensor){.name = "a", .dtype = PST_U8, .rank = 1, .shape = {10}};
        s.tensors[1] = (pst_tensor){.name = "b", .dtype = PST_U8, .rank = 1, .shape = {10}};
        pst_error err = {0};
        int64_t live = pst_heap_live_count();
        pst_heap_fail_after(failures, 0);
        int status = write_sample(io, files_path("a.safetensors"), &s, &err);
        pst_heap_fail_after(-1, 0);
        assert_int_equal(pst_heap_live_count(), live);
        if (status == 0)
            break;
        assert_int_equal(status, -ENOMEM);
    }
    assert_true(failures > 5);
    pst_io_close(io);
}

/* ---- folders ---- */

static void test_folder(void **state)
{
    (void)state;
    pst_folder *folder;
    pst_error err = {0};
    assert_int_equal(pst_folder_begin(files_path("out//"), &folder, &err), 0);
    char *path = pst_folder_file(folder, "x");
    files_write(path, "1", 1);
    pst_heap_free(path);
    assert_int_not_equal(access(files_path("out"), F_OK), 0);
    assert_int_equal(pst_folder_finish(folder, &err), 0);
    pst_folder_close(folder);
    assert_int_equal(access(files_path("out/x"), F_OK), 0);
    assert_int_equal(count_entries(files_root), 1);

    assert_int_equal(pst_folder_begin(files_path("out"), &folder, &err), -EEXIST);
    assert_contains(err.message, "exists already");
    assert_int_equal(pst_folder_begin(files_path("no/out"), &folder, &err), -ENOENT);
    assert_int_equal(pst_folder_begin("", &folder, &err), PST_E_USAGE);

    assert_int_equal(pst_folder_begin(files_path("given up"), &folder, &err), 0);
    path = pst_folder_file(folder, "x");
    files_write(path, "1", 1);
    pst_heap_free(path);
    pst_folder_close(folder);
    pst_folder_close(NULL);
    assert_int_equal(count_entries(files_root), 1);

    /* Somebody takes the name meanwhile: theirs stays. */
    assert_int_equal(pst_folder_begin(files_path("raced"), &folder, &err), 0);
    files_write(files_path("raced"), "theirs", 6);
    assert_int_equal(pst_folder_finish(folder, &err), -EEXIST);
    pst_folder_close(folder);
    assert_int_equal(count_entries(files_root), 2);
}

/* Errors name the folder that was to appear, and its files, by the names that the user gave. */
static void test_folder_error_names(void **state)
{
    (void)state;
    pst_folder *folder;
    pst_error err = {0};
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_MKDIR, 0, 1, ENOSPC);
    assert_int_equal(pst_folder_begin(files_path("out/"), &folder, &err), -ENOSPC);
    assert_string_equal(err.path, files_path("out"));
    assert_int_equal(symlink("circle", files_path("circle")), 0);
    assert_int_equal(pst_folder_begin(files_path("circle/out"), &folder, &err), -ELOOP);
    assert_int_equal(unlink(files_path("circle")), 0);
    assert_int_equal(pst_folder_begin(files_path("out"), &folder, &err), 0);
    char *path = pst_folder_file(folder, "x");
    snprintf(err.path, sizeof err.path, "%s", path);
    assert_int_equal(pst_folder_name_final(folder, -EIO, &err), -EIO);
    assert_string_equal(err.path, files_path("out/x"));
    assert_int_equal(pst_folder_name_final(folder, -EIO, &err), -EIO); /* once more: nothing to do */
    assert_string_equal(err.path, files_path("out/x"));
    assert_int_equal(pst_folder_name_final(folder, -EIO, NULL), -EIO);
    pst_heap_free(path);
    pst_fault_fail(PST_FAULT_FSYNC, 0, 1, EIO); /* of the temporary folder, before the rename */
    assert_int_equal(pst_folder_finish(folder, &err), -EIO);
    assert_string_equal(err.path, files_path("out"));
    assert_int_equal(count_entries(files_root), 1);
    /* After the rename: reported, but the folder is there and stays. */
    pst_fault_fail(PST_FAULT_FSYNC, 1, 1, EIO);
    assert_int_equal(pst_folder_finish(folder, &err), -EIO);
    pst_fault_reset();
    pst_sys_replace(NULL);
    pst_folder_close(folder);
    assert_int_equal(access(files_path("out"), F_OK), 0);
    assert_int_equal(count_entries(files_root), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, files_create, files_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_round_trips),      TEST(test_ring),
        TEST(test_misuse),           TEST(test_index),
        TEST(test_faults),           TEST(test_allocation_failures),
        TEST(test_folder),           TEST(test_folder_error_names),
        TEST(test_keeps_queue_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
