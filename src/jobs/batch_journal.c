/* SPDX-License-Identifier: Apache-2.0 */
/* The journal's file and its index. All numbers are little-endian, as everywhere. */
#include "jobs/batch_journal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/heap.h"
#include "os/file.h"
#include "os/sys.h"

enum { HEADER_BYTES = 4096 };
static const char header_mark[8] = "PSTBATCH";
static const uint32_t record_mark = 0x52545350; /* "PSTR" */
static const uint64_t MAX_ANSWER_BYTES = UINT64_C(1) << 32, MAX_LINE = UINT64_C(1) << 40;

typedef struct header_block {
    char mark[8];
    uint64_t bytes, check;
    char text[HEADER_BYTES - 24];
} header_block;
_Static_assert(sizeof(header_block) == HEADER_BYTES, "no padding");

typedef struct record_head {
    uint32_t mark, failed;
    uint64_t line, bytes;
    uint64_t check; /* of the three before it and the answer */
} record_head;
_Static_assert(sizeof(record_head) == 32, "no padding");

struct pst_journal {
    int fd, index_fd;
    char *path;
    header_block *header;
    bool has_header;
    uint64_t end; /* where the next record goes */
    uint64_t count, failed;
    bool dirty;
    char *buffer; /* of one record */
    size_t capacity;
};

static int fail_io(const pst_journal *j, int code, const char *verb, pst_error *err)
{
    return pst_fail(err, code, j->path, "cannot %s: %s", verb, pst_strerror(code));
}

static uint64_t record_check(const record_head *head, const char *text)
{
    uint64_t check = pst_hash(PST_HASH_START, head, offsetof(record_head, check));
    return pst_hash(check, text, head->bytes);
}

static int reserve(pst_journal *j, uint64_t bytes, pst_error *err)
{
    if (bytes <= j->capacity)
        return 0;
    char *grown = pst_heap_realloc(j->buffer, bytes);
    if (grown == NULL)
        return pst_fail_memory(err, "an answer", bytes);
    j->buffer = grown;
    j->capacity = bytes;
    return 0;
}

/* ---- the index ---- */

static int open_index(pst_journal *j, pst_error *err)
{
    char *path = pst_file_temporary_name(j->path);
    if (path == NULL)
        return pst_fail_memory(err, j->path, strlen(j->path));
    j->index_fd = pst_sys->open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int status = j->index_fd < 0 ? pst_fail(err, j->index_fd, path, "cannot create: %s", pst_strerror(j->index_fd)) : 0;
    if (status >= 0)
        pst_sys->unlink(path);
    pst_heap_free(path);
    return status;
}

/* The offset of a line's record; 0: none. */
static int find_offset(pst_journal *j, uint64_t line, uint64_t *out, pst_error *err)
{
    uint64_t offset = 0;
    ssize_t got = pst_sys_read_all(j->index_fd, &offset, sizeof offset, line * sizeof offset);
    if (got < 0)
        return fail_io(j, (int)got, "read the index of", err);
    *out = (size_t)got == sizeof offset ? offset : 0;
    return 0;
}

static int note_record(pst_journal *j, const record_head *head, uint64_t offset, pst_error *err)
{
    uint64_t known = 0;
    PST_TRY(find_offset(j, head->line, &known, err));
    if (known != 0)
        return 0;
    ssize_t put = pst_sys_write_all(j->index_fd, &offset, sizeof offset, head->line * sizeof offset);
    if (put < 0)
        return fail_io(j, (int)put, "write the index of", err);
    j->count++;
    j->failed += head->failed != 0;
    return 0;
}

/* ---- opening ---- */

static int lock(pst_journal *j, pst_error *err)
{
    int status = pst_sys->flock(j->fd, LOCK_EX | LOCK_NB);
    if (status == -EWOULDBLOCK)
        return pst_fail(err, -EBUSY, j->path, "another process is working on this output");
    return status < 0 ? fail_io(j, status, "lock", err) : 0;
}

/* Whether the descriptor still stands for the name: another process may have finished and removed it meanwhile. */
static int is_current(const pst_journal *j, pst_error *err)
{
    struct statx mine, named;
    const unsigned wanted = STATX_INO | STATX_TYPE;
    int status = pst_sys->statx(j->fd, "", AT_EMPTY_PATH, wanted, &mine);
    if (status < 0)
        return fail_io(j, status, "examine", err);
    if (!S_ISREG(mine.stx_mode))
        return pst_fail(err, PST_E_FORMAT, j->path, "is no regular file");
    status = pst_sys->statx(AT_FDCWD, j->path, 0, wanted, &named);
    if (status == -ENOENT)
        return 0;
    if (status < 0)
        return fail_io(j, status, "examine", err);
    return mine.stx_ino == named.stx_ino && mine.stx_dev_major == named.stx_dev_major &&
           mine.stx_dev_minor == named.stx_dev_minor;
}

static int open_and_lock(pst_journal *j, pst_error *err)
{
    for (;;) {
        j->fd = pst_sys->open(j->path, O_RDWR | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0666);
        if (j->fd < 0)
            return fail_io(j, j->fd, "create", err);
        PST_TRY(lock(j, err));
        int current = is_current(j, err);
        if (current != 0)
            return current < 0 ? current : 0;
        pst_sys->close(j->fd);
        j->fd = -1;
    }
}

static int file_bytes(const pst_journal *j, uint64_t *out, pst_error *err)
{
    struct statx about;
    int status = pst_sys->statx(j->fd, "", AT_EMPTY_PATH, STATX_SIZE, &about);
    if (status < 0)
        return fail_io(j, status, "examine", err);
    *out = about.stx_size;
    return 0;
}

static int cut(pst_journal *j, uint64_t bytes, pst_error *err)
{
    int status = pst_sys->ftruncate(j->fd, bytes);
    if (status >= 0)
        status =
            pst_sys->fdatasync(j->fd); /* so that nothing behind the cut can come back under what is written next */
    return status < 0 ? fail_io(j, status, "cut the end off", err) : 0;
}

/* Whether the file may be a journal, whole or as a crash left it: each byte of the mark is there or was never written. */
static bool is_ours(const header_block *h, size_t bytes)
{
    for (size_t i = 0; i < sizeof h->mark && i < bytes; i++)
        if (h->mark[i] != header_mark[i] && h->mark[i] != '\0')
            return false;
    return true;
}

/* Reads the header. A file that is not longer than one, and holds none, was being begun. */
static int read_header(pst_journal *j, uint64_t bytes, bool restart, pst_error *err)
{
    header_block *h = j->header;
    ssize_t got = pst_sys_read_all(j->fd, h, sizeof *h, 0);
    if (got < 0)
        return fail_io(j, (int)got, "read", err);
    if (!is_ours(h, (size_t)got))
        return pst_fail(err, PST_E_FORMAT, j->path,
                        "is in the place of the journal and is none; remove it or choose another output");
    if (restart)
        return bytes > 0 ? cut(j, 0, err) : 0;
    if ((size_t)got == sizeof *h && memcmp(h->mark, header_mark, sizeof h->mark) == 0 && h->bytes < sizeof h->text &&
        h->text[h->bytes] == '\0' && pst_hash(PST_HASH_START, h->text, h->bytes) == h->check) {
        j->has_header = true;
        j->end = sizeof *h;
        return 0;
    }
    if (bytes > sizeof *h)
        return pst_fail(err, PST_E_FORMAT, j->path, "the journal's header is damaged; --restart begins anew");
    return bytes > 0 ? cut(j, 0, err) : 0;
}

/* 1: a whole record at j->end; 0: none. */
static int check_record(pst_journal *j, uint64_t bytes, record_head *head, pst_error *err)
{
    if (bytes - j->end < sizeof *head)
        return 0;
    ssize_t got = pst_sys_read_all(j->fd, head, sizeof *head, j->end);
    if (got < 0)
        return fail_io(j, (int)got, "read", err);
    if ((size_t)got < sizeof *head || head->mark != record_mark || head->line > MAX_LINE ||
        head->bytes > MAX_ANSWER_BYTES || head->bytes > bytes - j->end - sizeof *head)
        return 0;
    PST_TRY(reserve(j, head->bytes, err));
    got = pst_sys_read_all(j->fd, j->buffer, head->bytes, j->end + sizeof *head);
    if (got < 0)
        return fail_io(j, (int)got, "read", err);
    return (uint64_t)got == head->bytes && record_check(head, j->buffer) == head->check;
}

static int recover(pst_journal *j, uint64_t bytes, pst_error *err)
{
    record_head head;
    int status;
    while ((status = check_record(j, bytes, &head, err)) == 1) {
        PST_TRY(note_record(j, &head, j->end, err));
        j->end += sizeof head + head.bytes;
    }
    PST_TRY(status);
    return j->end < bytes ? cut(j, j->end, err) : 0;
}

static int open_journal(pst_journal *j, bool restart, pst_error *err)
{
    uint64_t bytes;
    PST_TRY(open_and_lock(j, err));
    PST_TRY(file_bytes(j, &bytes, err));
    PST_TRY(read_header(j, bytes, restart, err));
    PST_TRY(open_index(j, err));
    return j->has_header ? recover(j, bytes, err) : 0;
}

int pst_journal_open(const char *path, bool restart, pst_journal **out, pst_error *err)
{
    pst_journal *j = pst_heap_calloc(1, sizeof *j);
    if (j == NULL)
        return pst_fail_memory(err, path, sizeof *j);
    j->fd = j->index_fd = -1;
    j->path = pst_heap_strdup(path);
    j->header = pst_heap_calloc(1, sizeof *j->header);
    int status = j->path != NULL && j->header != NULL ? open_journal(j, restart, err)
                                                      : pst_fail_memory(err, path, sizeof *j->header);
    if (status < 0) {
        pst_journal_close(j);
        return status;
    }
    *out = j;
    return 0;
}

void pst_journal_close(pst_journal *j)
{
    if (j == NULL)
        return;
    if (j->index_fd >= 0)
        pst_sys->close(j->index_fd);
    if (j->fd >= 0)
        pst_sys->close(j->fd); /* with the lock */
    pst_heap_free(j->path);
    pst_heap_free(j->header);
    pst_heap_free(j->buffer);
    pst_heap_free(j);
}

const char *pst_journal_header(const pst_journal *j)
{
    return j->has_header ? j->header->text : NULL;
}

/* ---- writing ---- */

/* The folder of the file, synced: its name is durable then. */
static int sync_name(const pst_journal *j, pst_error *err)
{
    const char *slash = strrchr(j->path, '/');
    char *folder = slash == NULL      ? pst_heap_strdup(".")
                   : slash == j->path ? pst_heap_strdup("/")
                                      : pst_heap_strndup(j->path, (size_t)(slash - j->path));
    if (folder == NULL)
        return pst_fail_memory(err, j->path, strlen(j->path));
    int status = pst_folder_sync(folder, err);
    pst_heap_free(folder);
    return status;
}

int pst_journal_begin(pst_journal *j, const char *header, pst_error *err)
{
    header_block *h = j->header;
    size_t bytes = strlen(header);
    if (j->has_header || bytes >= sizeof h->text)
        return pst_fail(err, PST_E_USAGE, j->path, "a journal cannot begin with a header of %zu bytes here", bytes);
    memset(h, 0, sizeof *h);
    memcpy(h->mark, header_mark, sizeof h->mark);
    memcpy(h->text, header, bytes);
    h->bytes = bytes;
    h->check = pst_hash(PST_HASH_START, h->text, bytes);
    ssize_t put = pst_sys_write_all(j->fd, h, sizeof *h, 0);
    if (put < 0)
        return fail_io(j, (int)put, "write", err);
    int status = pst_sys->fdatasync(j->fd);
    if (status < 0)
        return fail_io(j, status, "sync", err);
    PST_TRY(sync_name(j, err));
    j->has_header = true;
    j->end = sizeof *h;
    return 0;
}

int pst_journal_append(pst_journal *j, uint64_t line, bool failed, const char *text, size_t bytes, pst_error *err)
{
    if (bytes > MAX_ANSWER_BYTES || line > MAX_LINE)
        return pst_fail(err, PST_E_USAGE, j->path, "an answer of %zu bytes", bytes);
    record_head head = {.mark = record_mark, .failed = failed, .line = line, .bytes = bytes};
    head.check = record_check(&head, text);
    PST_TRY(reserve(j, sizeof head + bytes, err));
    memcpy(j->buffer, &head, sizeof head);
    memcpy(j->buffer + sizeof head, text, bytes);
    ssize_t put = pst_sys_write_all(j->fd, j->buffer, sizeof head + bytes, j->end);
    if (put < 0)
        return fail_io(j, (int)put, "write", err);
    j->dirty = true;
    PST_TRY(note_record(j, &head, j->end, err));
    j->end += sizeof head + bytes;
    return 0;
}

int pst_journal_sync(pst_journal *j, pst_error *err)
{
    if (!j->dirty)
        return 0;
    int status = pst_sys->fdatasync(j->fd);
    if (status < 0)
        return fail_io(j, status, "sync", err);
    j->dirty = false;
    return 0;
}

/* ---- reading ---- */

uint64_t pst_journal_count(const pst_journal *j)
{
    return j->count;
}

uint64_t pst_journal_failed(const pst_journal *j)
{
    return j->failed;
}

int pst_journal_find(pst_journal *j, uint64_t line, pst_error *err)
{
    uint64_t offset = 0;
    PST_TRY(find_offset(j, line, &offset, err));
    return offset != 0;
}

int pst_journal_read(pst_journal *j, uint64_t line, const char **text, size_t *bytes, pst_error *err)
{
    uint64_t offset = 0;
    record_head head;
    PST_TRY(find_offset(j, line, &offset, err));
    ssize_t got = offset != 0 ? pst_sys_read_all(j->fd, &head, sizeof head, offset) : 0;
    if (got < 0)
        return fail_io(j, (int)got, "read", err);
    if ((size_t)got < sizeof head || head.bytes > MAX_ANSWER_BYTES)
        return pst_fail_at(err, PST_E_FORMAT, j->path, offset, "the answer of line %llu is not there",
                           (unsigned long long)line);
    PST_TRY(reserve(j, head.bytes, err));
    got = pst_sys_read_all(j->fd, j->buffer, head.bytes, offset + sizeof head);
    if (got < 0)
        return fail_io(j, (int)got, "read", err);
    if ((uint64_t)got < head.bytes || head.line != line || record_check(&head, j->buffer) != head.check)
        return pst_fail_at(err, PST_E_FORMAT, j->path, offset, "the journal is damaged; --restart begins anew");
    *text = j->buffer;
    *bytes = head.bytes;
    return 0;
}

int pst_journal_remove(pst_journal *j, pst_error *err)
{
    PST_TRY(pst_file_remove(j->path, err));
    return sync_name(j, err);
}
