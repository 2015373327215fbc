/* SPDX-License-Identifier: Apache-2.0 */
/* Line by line through one buffer; every byte passes through the digest once. */
#include "jobs/batch_input.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/heap.h"
#include "os/file.h"
#include "os/sys.h"

enum { BUFFER_BYTES = 1 << 18, COPY_FD = 0 };

struct pst_batch_input {
    int fd;
    char *path; /* for messages */
    uint64_t file_bytes;
    char *buffer; /* BUFFER_BYTES */
    size_t at, filled;
    uint64_t next_offset; /* of the file, of what follows the buffer */
    char *line;
    size_t line_bytes, capacity;
    uint64_t numbers, indices, digest;
};

static int fail_io(pst_error *err, int code, const char *path, const char *verb)
{
    return pst_fail(err, code, path, "cannot %s: %s", verb, pst_strerror(code));
}

/* Standard input into a file that has no name, so that nothing of it is left whatever happens. */
static int copy_standard_input(pst_batch_input *in, const char *output, pst_error *err)
{
    char *path = pst_file_temporary_name(output);
    if (path == NULL)
        return pst_fail_memory(err, output, strlen(output));
    in->fd = pst_sys->open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int status = in->fd < 0 ? fail_io(err, in->fd, path, "create") : 0;
    if (status >= 0)
        pst_sys->unlink(path);
    pst_heap_free(path);
    PST_TRY(status);
    for (;;) {
        ssize_t got = pst_sys->read(COPY_FD, in->buffer, BUFFER_BYTES);
        if (got == -EINTR)
            continue;
        if (got < 0)
            return fail_io(err, (int)got, in->path, "read");
        if (got == 0)
            return 0;
        ssize_t put = pst_sys_write_all(in->fd, in->buffer, (size_t)got, in->file_bytes);
        if (put < 0)
            return fail_io(err, (int)put, output, "keep a copy of standard input beside it");
        in->file_bytes += (uint64_t)got;
    }
}

static int open_file(pst_batch_input *in, pst_error *err)
{
    in->fd = pst_sys->open(in->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0);
    if (in->fd < 0)
        return fail_io(err, in->fd, in->path, "open");
    struct statx about;
    int status = pst_sys->statx(in->fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_SIZE, &about);
    if (status < 0)
        return fail_io(err, status, in->path, "examine");
    if (!S_ISREG(about.stx_mode))
        return pst_fail(err, PST_E_FORMAT, in->path, "is no regular file; - reads standard input");
    in->file_bytes = about.stx_size;
    return 0;
}

int pst_batch_input_open(const char *path, const char *output, pst_batch_input **out, pst_error *err)
{
    bool standard = strcmp(path, "-") == 0;
    pst_batch_input *in = pst_heap_calloc(1, sizeof *in);
    if (in == NULL)
        return pst_fail_memory(err, path, sizeof *in);
    in->fd = -1;
    in->path = pst_heap_strdup(standard ? "standard input" : path);
    in->buffer = pst_heap_alloc(BUFFER_BYTES);
    int status = in->path != NULL && in->buffer != NULL ? 0 : pst_fail_memory(err, path, BUFFER_BYTES);
    if (status >= 0)
        status = standard ? copy_standard_input(in, output, err) : open_file(in, err);
    if (status < 0) {
        pst_batch_input_close(in);
        return status;
    }
    pst_batch_input_rewind(in);
    *out = in;
    return 0;
}

void pst_batch_input_close(pst_batch_input *in)
{
    if (in == NULL)
        return;
    if (in->fd >= 0)
        pst_sys->close(in->fd);
    pst_heap_free(in->path);
    pst_heap_free(in->buffer);
    pst_heap_free(in->line);
    pst_heap_free(in);
}

void pst_batch_input_rewind(pst_batch_input *in)
{
    in->at = in->filled = 0;
    in->next_offset = 0;
    in->numbers = in->indices = 0;
    in->digest = PST_HASH_START;
}

uint64_t pst_batch_input_bytes(const pst_batch_input *in)
{
    return in->file_bytes;
}

uint64_t pst_batch_input_at(const pst_batch_input *in)
{
    return in->next_offset - (in->filled - in->at);
}

uint64_t pst_batch_input_digest(const pst_batch_input *in)
{
    return in->digest;
}

/* 0: there are bytes in the buffer; 1: the file has no more. */
static int fill(pst_batch_input *in, pst_error *err)
{
    if (in->at < in->filled)
        return 0;
    ssize_t got = pst_sys_read_all(in->fd, in->buffer, BUFFER_BYTES, in->next_offset);
    if (got < 0)
        return pst_fail_at(err, (int)got, in->path, in->next_offset, "cannot read: %s", pst_strerror((int)got));
    in->at = 0;
    in->filled = (size_t)got;
    in->next_offset += (uint64_t)got;
    in->digest = pst_hash(in->digest, in->buffer, in->filled);
    return got == 0;
}

static int keep(pst_batch_input *in, const char *text, size_t bytes, pst_error *err)
{
    if (in->line_bytes + bytes + 1 > in->capacity) {
        size_t wanted = (in->line_bytes + bytes + 1) * 2;
        char *grown = pst_heap_realloc(in->line, wanted);
        if (grown == NULL)
            return pst_fail_memory(err, in->path, wanted);
        in->line = grown;
        in->capacity = wanted;
    }
    memcpy(in->line + in->line_bytes, text, bytes);
    in->line_bytes += bytes;
    in->line[in->line_bytes] = '\0';
    return 0;
}

/* One line, blank or not, into in->line. 1: there; 0: the end. */
static int take_line(pst_batch_input *in, pst_batch_raw *out, pst_error *err)
{
    bool any = false;
    in->line_bytes = 0;
    *out = (pst_batch_raw){.hash = PST_HASH_START};
    for (;;) {
        int status = fill(in, err);
        PST_TRY(status);
        if (status == 1)
            break;
        const char *from = in->buffer + in->at;
        const char *end = memchr(from, '\n', in->filled - in->at);
        size_t bytes = end != NULL ? (size_t)(end - from) : in->filled - in->at;
        in->at += bytes + (end != NULL);
        any = true;
        out->hash = pst_hash(out->hash, from, bytes);
        size_t room = PST_BATCH_LINE_BYTES - in->line_bytes;
        out->too_long |= bytes > room;
        PST_TRY(keep(in, from, bytes < room ? bytes : room, err));
        if (end != NULL)
            break;
    }
    return any;
}

int pst_batch_input_next(pst_batch_input *in, pst_batch_raw *out, pst_error *err)
{
    pst_batch_raw raw;
    for (;;) {
        int status = take_line(in, &raw, err);
        if (status <= 0)
            return status;
        raw.number = ++in->numbers;
        raw.text = in->line;
        raw.bytes = in->line_bytes;
        if (raw.number == 1 && raw.bytes >= 3 && memcmp(raw.text, "\xEF\xBB\xBF", 3) == 0) { /* a byte order mark */
            raw.text += 3;
            raw.bytes -= 3;
        }
        size_t blank = 0;
        while (blank < raw.bytes && strchr(" \t\r", raw.text[blank]) != NULL && raw.text[blank] != '\0')
            blank++;
        if (blank < raw.bytes || raw.too_long)
            break;
    }
    raw.index = in->indices++;
    *out = raw;
    return 1;
}
