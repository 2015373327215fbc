/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of a step. Ranks share the work by a hash of the name, each over the folder as it sees it; then all tell what
 * they have, and each compares that with what it sees. So a file that one rank sees and another does not (a network file
 * system that lags behind) is an error and never left out of the manifest.
 *
 * A file that a save of this library has written tells its own digest, and only its head is read to see whether that is
 * right. Any other file is read whole.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/heap.h"
#include "base/number.h"
#include "ckpt/steps.h"
#include "os/file.h"
#include "os/tree.h"
#include "store/file_digest.h"
#include "store/image.h"

enum { RING_BYTES = 16 << 20, SMALL_BYTES = 1 << 20, MAX_FILES = 1 << 20 };

/* ---- the list ---- */

void pst_steps_files_free(pst_steps_files *files)
{
    for (size_t i = 0; i < files->count; i++)
        pst_heap_free(files->list[i].name);
    pst_heap_free(files->list);
    *files = (pst_steps_files){0};
}

/* Takes the name over, also when it fails. */
static int add_file(pst_steps_files *files, pst_steps_file file, pst_error *err)
{
    if (file.name == NULL)
        return pst_fail_memory(err, "a list of files", sizeof file);
    if (files->count == files->capacity) {
        size_t capacity = files->capacity * 2 + 16;
        pst_steps_file *more =
            capacity <= MAX_FILES ? pst_heap_reallocarray(files->list, capacity, sizeof *more) : NULL;
        if (more == NULL) {
            pst_heap_free(file.name);
            return pst_fail_memory(err, "a list of files", capacity * sizeof *more);
        }
        files->list = more;
        files->capacity = capacity;
    }
    files->list[files->count++] = file;
    return 0;
}

static int compare_files(const void *a, const void *b)
{
    return strcmp(((const pst_steps_file *)a)->name, ((const pst_steps_file *)b)->name);
}

static void sort_files(pst_steps_files *files)
{
    if (files->count > 1)
        qsort(files->list, files->count, sizeof *files->list, compare_files);
}

/* ---- one file ---- */

typedef struct collecting {
    const char *folder;
    uint32_t rank, ranks;
    pst_io *io;              /* made for the first file that needs it, and so is the reader */
    pst_span_reader *reader; /* of large files */
    pst_digest *digest;
    pst_steps_files *out;
} collecting;

static int need_io(collecting *c, pst_error *err)
{
    const pst_io_options io = {.struct_size = sizeof io, .path = c->folder};
    return c->io != NULL ? 0 : pst_io_open(&io, &c->io, err);
}

static int need_reader(collecting *c, pst_error *err)
{
    PST_TRY(need_io(c, err));
    return c->reader != NULL ? 0 : pst_span_reader_create(c->io, RING_BYTES, &c->reader, err);
}

/* A whole file through the reader. */
typedef struct whole_file {
    pst_io_file *file;
    uint64_t at, bytes, most;
    pst_digest *digest;
} whole_file;

static int next_piece(void *user, pst_span *out, pst_error *err)
{
    whole_file *w = user;
    (void)err;
    if (w->at == w->bytes)
        return 0;
    *out = (pst_span){.file = w->file, .offset = w->at, .bytes = pst_span_cut(w->at, w->bytes - w->at, w->most)};
    w->at += out->bytes;
    return 1;
}

static int take_piece(void *user, const pst_span *span, void *data, pst_error *err)
{
    whole_file *w = user;
    (void)err;
    pst_digest_add(w->digest, data, span->bytes);
    return 0;
}

static int digest_large(collecting *c, const char *path, pst_steps_file *out, pst_error *err)
{
    pst_io_file *file;
    PST_TRY(need_reader(c, err));
    PST_TRY(pst_io_file_open(c->io, path, PST_IO_OPEN_READ, &file, err));
    out->bytes = pst_io_file_bytes(file);
    whole_file w = {.file = file, .bytes = out->bytes, .most = pst_span_reader_most(c->reader), .digest = c->digest};
    const pst_span_user user = {.next = next_piece, .take = take_piece, .user = &w};
    pst_digest_begin(c->digest);
    int status = pst_span_reader_run(c->reader, &user, err);
    pst_io_file_close(file, NULL); /* only read from: nothing can be lost */
    PST_TRY(status);
    pst_digest_end(c->digest, out->digest);
    return 0;
}

static int digest_small(collecting *c, const char *path, pst_steps_file *out, pst_error *err)
{
    char *text = NULL;
    size_t bytes = 0;
    PST_TRY(pst_file_read_all(path, UINT64_MAX, &text, &bytes, err));
    out->bytes = bytes;
    pst_digest_begin(c->digest);
    pst_digest_add(c->digest, text, bytes);
    pst_digest_end(c->digest, out->digest);
    pst_heap_free(text);
    return 0;
}

static const char *metadata_of(const pst_safetensors *header, const char *key)
{
    for (size_t i = 0; i < header->metadata_count; i++)
        if (strcmp(header->metadata[i].key, key) == 0)
            return header->metadata[i].value;
    return NULL;
}

/* Whether a reader's refusal means that the file is something else. */
static bool is_something_else(int status)
{
    return status == PST_E_FORMAT || status == PST_E_UNSUPPORTED;
}

/* Opens a file whose own digest is `stated`. */
static int open_own(collecting *c, const char *path, const char *stated, pst_steps_file *out, pst_io_file **file,
                    pst_error *err)
{
    PST_TRY(need_io(c, err));
    PST_TRY(pst_io_file_open(c->io, path, PST_IO_OPEN_READ, file, err));
    out->bytes = pst_io_file_bytes(*file);
    out->covers_header = true;
    memcpy(out->digest, stated, PST_DIGEST_DIGITS);
    return 0;
}

/* 1: it is a safetensors file with a digest of its own, which was computed again at `found`. */
static int try_safetensors(collecting *c, const char *path, pst_steps_file *out, char *found, pst_error *err)
{
    pst_safetensors header;
    pst_error why = {0};
    int status = pst_safetensors_read(path, &header, &why);
    if (status < 0) {
        if (err != NULL)
            *err = why;
        return is_something_else(status) ? 0 : status;
    }
    const char *own = metadata_of(&header, PST_FILE_DIGEST_KEY);
    if (own != NULL && strlen(own) == PST_DIGEST_DIGITS) {
        pst_io_file *file = NULL;
        status = open_own(c, path, own, out, &file, err);
        if (status >= 0) {
            status = pst_file_own_digest_safetensors(c->io, file, header.data_begin, found, err);
            pst_io_file_close(file, NULL); /* only read from */
        }
        status = status < 0 ? status : 1;
    }
    pst_safetensors_free(&header);
    return status;
}

static int digest_torch(collecting *c, const char *path, const pst_torch_file *torch, pst_steps_file *out, char *found,
                        pst_error *err)
{
    pst_file_digests digests = {0};
    int status = pst_file_digests_of_torch(torch, path, &digests, err);
    if (status == 0 && digests.own != NULL) {
        pst_io_file *file = NULL;
        status = open_own(c, path, digests.own, out, &file, err);
        if (status >= 0)
            status = need_reader(c, err);
        if (status >= 0)
            status = pst_file_own_digest_torch(c->reader, file, torch, &digests, found, err);
        if (file != NULL)
            pst_io_file_close(file, NULL); /* only read from */
        status = status < 0 ? status : 1;
    }
    pst_file_digests_free(&digests);
    return status;
}

/* The same for a file of torch.save. */
static int try_torch(collecting *c, const char *path, pst_steps_file *out, char *found, pst_error *err)
{
    pst_torch_file torch;
    pst_error why = {0};
    int status = pst_torch_file_is(path, &why);
    if (status > 0)
        status = pst_torch_file_read_records(path, &torch, &why);
    else if (status == 0)
        return 0;
    if (status < 0) {
        if (err != NULL)
            *err = why;
        return is_something_else(status) ? 0 : status;
    }
    status = torch.digests != NULL ? digest_torch(c, path, &torch, out, found, err) : 0;
    pst_torch_file_free(&torch);
    return status;
}

static int digest_file(collecting *c, const char *path, pst_steps_file *out, pst_error *err)
{
    char found[PST_DIGEST_DIGITS];
    int status = try_safetensors(c, path, out, found, err);
    if (status == 0)
        status = try_torch(c, path, out, found, err);
    PST_TRY(status);
    if (status == 0)
        return out->bytes <= SMALL_BYTES ? digest_small(c, path, out, err) : digest_large(c, path, out, err);
    if (memcmp(found, out->digest, sizeof found) != 0)
        return pst_fail(err, PST_E_FORMAT, path,
                        "its own digest does not fit: damaged, or changed by a tool that kept it");
    return 0;
}

/* ---- all of them ---- */

static int collect_file(collecting *c, const char *name, uint64_t bytes, pst_error *err)
{
    if (strcmp(name, PST_STEPS_LOCK) == 0 || strcmp(name, PST_MANIFEST_NAME) == 0)
        return 0;
    pst_steps_file file = {.bytes = bytes};
    file.mine = pst_hash(PST_HASH_START, name, strlen(name)) % c->ranks == c->rank;
    if (file.mine) {
        char *path;
        PST_TRY(pst_steps_join(c->folder, name, &path, err));
        int status = pst_file_sync(path, err);
        if (status >= 0)
            status = digest_file(c, path, &file, err);
        pst_heap_free(path);
        PST_TRY(status);
    }
    file.name = pst_heap_strdup(name);
    return add_file(c->out, file, err);
}

static int collect(void *context, const char *name, pst_tree_kind kind, uint64_t bytes, pst_error *err)
{
    collecting *c = context;
    if (kind == PST_TREE_FILE)
        return collect_file(c, name, bytes, err);
    char *path;
    PST_TRY(pst_steps_join(c->folder, name, &path, err));
    int status = 0;
    if (kind == PST_TREE_OTHER)
        status = pst_fail(err, PST_E_UNSUPPORTED, path, "is neither a file nor a folder: a step cannot hold it");
    else if (c->rank == 0)
        status = pst_folder_sync(path, err);
    pst_heap_free(path);
    return status;
}

int pst_steps_collect(const char *folder, uint32_t rank, uint32_t ranks, pst_steps_files *out, pst_error *err)
{
    pst_steps_files files = {0};
    collecting c = {.folder = folder, .rank = rank, .ranks = ranks, .out = &files};
    int status;
    PST_TRY_GOTO(done, pst_digest_create(&c.digest, err));
    PST_TRY_GOTO(done, pst_tree_walk(folder, collect, &c, err));
done:
    pst_digest_destroy(c.digest);
    pst_span_reader_destroy(c.reader);
    pst_io_close(c.io);
    if (status < 0) {
        pst_steps_files_free(&files);
        return status;
    }
    sort_files(&files);
    *out = files;
    return 0;
}

/* ---- between ranks ---- */

/* One file as it is told; its name follows. Ranks are machines of one kind. */
typedef struct record {
    uint64_t bytes;
    uint32_t name_bytes;
    uint32_t covers_header;
    char digest[PST_DIGEST_DIGITS];
} record;

typedef struct text {
    char *memory;
    size_t bytes;
} text;

/* What this rank tells. */
static int write_records(const pst_steps_files *files, text *out, pst_error *err)
{
    size_t bytes = 0;
    for (size_t i = 0; i < files->count; i++)
        bytes += files->list[i].mine ? sizeof(record) + strlen(files->list[i].name) : 0;
    char *memory = pst_heap_alloc(bytes);
    if (memory == NULL)
        return pst_fail_memory(err, "a list of files", bytes);
    *out = (text){.memory = memory};
    for (size_t i = 0; i < files->count; i++) {
        const pst_steps_file *file = &files->list[i];
        if (!file->mine)
            continue;
        record r = {
            .bytes = file->bytes, .name_bytes = (uint32_t)strlen(file->name), .covers_header = file->covers_header};
        memcpy(r.digest, file->digest, sizeof r.digest);
        memcpy(memory + out->bytes, &r, sizeof r);
        memcpy(memory + out->bytes + sizeof r, file->name, r.name_bytes);
        out->bytes += sizeof r + r.name_bytes;
    }
    return 0;
}

static int read_records(const text *from, pst_steps_files *out, pst_error *err)
{
    for (size_t at = 0; at < from->bytes;) {
        record r;
        bool fits = from->bytes - at >= sizeof r;
        if (fits) {
            memcpy(&r, from->memory + at, sizeof r);
            at += sizeof r;
            fits = r.name_bytes <= from->bytes - at;
        }
        if (!fits)
            return pst_fail(err, PST_E_FORMAT, NULL, "a rank's list of files is cut off");
        pst_steps_file file = {.bytes = r.bytes, .covers_header = r.covers_header != 0, .mine = true};
        memcpy(file.digest, r.digest, sizeof r.digest);
        file.name = pst_heap_strndup(from->memory + at, r.name_bytes);
        at += r.name_bytes;
        PST_TRY(add_file(out, file, err));
    }
    return 0;
}

/* Makes `rounds` calls to tell all lists in pieces; those of rank r come to lists[r], which has room. */
static int tell_lists(pst_ckpt_agree *agree, const text *mine, text *lists, size_t rounds, pst_error *err)
{
    char piece[PST_STEPS_TELL_BYTES];
    for (size_t round = 0; round < rounds; round++) {
        size_t at = round * sizeof piece;
        memset(piece, 0, sizeof piece);
        if (at < mine->bytes)
            memcpy(piece, mine->memory + at, pst_min(sizeof piece, mine->bytes - at));
        PST_TRY(pst_ckpt_agree_tell(agree, 0, piece, sizeof piece, err));
        for (uint32_t r = 0; r < pst_ckpt_agree_count(agree); r++)
            if (at < lists[r].bytes)
                memcpy(lists[r].memory + at, pst_ckpt_agree_told(agree, r), pst_min(sizeof piece, lists[r].bytes - at));
    }
    return 0;
}

/* The lengths of all lists, and memory for them. */
static int make_lists(pst_ckpt_agree *agree, text *lists, size_t *rounds, pst_error *err)
{
    for (uint32_t r = 0; r < pst_ckpt_agree_count(agree); r++) {
        uint64_t bytes;
        memcpy(&bytes, pst_ckpt_agree_told(agree, r), sizeof bytes);
        lists[r].bytes = bytes;
        *rounds = pst_max(*rounds, (bytes + PST_STEPS_TELL_BYTES - 1) / PST_STEPS_TELL_BYTES);
    }
    for (uint32_t r = 0; r < pst_ckpt_agree_count(agree); r++) {
        lists[r].memory = pst_heap_alloc(lists[r].bytes);
        if (lists[r].memory == NULL)
            return pst_fail_memory(err, "the lists of all ranks", lists[r].bytes);
    }
    return 0;
}

/* Whether what this rank sees is what all have told. */
static int compare_views(const pst_steps_files *seen, const pst_steps_files *all, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    for (size_t i = 0; i + 1 < all->count; i++)
        if (strcmp(all->list[i].name, all->list[i + 1].name) == 0)
            return pst_fail(err, PST_E_FORMAT, NULL, "two ranks tell of file \"%s\"",
                            pst_quote(all->list[i].name, quoted));
    for (size_t i = 0; i < seen->count; i++) {
        const pst_steps_file *found =
            all->count > 0 ? bsearch(&seen->list[i], all->list, all->count, sizeof *all->list, compare_files) : NULL;
        if (found == NULL || found->bytes != seen->list[i].bytes)
            return pst_fail(err, -EAGAIN, NULL,
                            "file \"%s\" came or changed while its step was committed, or not all ranks see it",
                            pst_quote(seen->list[i].name, quoted));
    }
    return 0;
}

/* After all have told how long their lists are. Fails on all ranks or on none. */
static int gather(pst_ckpt_agree *agree, const pst_steps_files *seen, const text *mine, text *lists,
                  pst_steps_files *all, pst_error *err)
{
    size_t rounds = 0;
    uint32_t count = pst_ckpt_agree_count(agree);
    int status = make_lists(agree, lists, &rounds, err);
    PST_TRY(pst_ckpt_agree_tell(agree, status, NULL, 0, err)); /* nobody waits for one that has no memory */
    PST_TRY(tell_lists(agree, mine, lists, rounds, err));
    for (uint32_t r = 0; r < count && status >= 0; r++)
        status = read_records(&lists[r], all, err);
    sort_files(all);
    if (status >= 0)
        status = compare_views(seen, all, err);
    return pst_ckpt_agree_tell(agree, status, NULL, 0, err);
}

int pst_steps_exchange(pst_ckpt_agree *agree, int status, const pst_steps_files *seen, pst_steps_files *all,
                       pst_error *err)
{
    text mine = {0}, *lists = NULL;
    pst_steps_files found = {0};
    uint32_t count = pst_ckpt_agree_count(agree);
    if (status >= 0)
        status = write_records(seen, &mine, err);
    if (status >= 0) {
        lists = pst_heap_calloc(count, sizeof *lists);
        status = lists != NULL ? 0 : pst_fail_memory(err, "the lists of all ranks", count * sizeof *lists);
    }
    const uint64_t bytes = mine.bytes;
    status = pst_ckpt_agree_tell(agree, status, &bytes, sizeof bytes, err);
    if (status >= 0)
        status = gather(agree, seen, &mine, lists, &found, err);
    for (uint32_t r = 0; lists != NULL && r < count; r++)
        pst_heap_free(lists[r].memory);
    pst_heap_free(lists);
    pst_heap_free(mine.memory);
    if (status < 0) {
        pst_steps_files_free(&found);
        return status;
    }
    *all = found;
    return 0;
}
