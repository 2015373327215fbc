/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A striped file in use: how its offsets and lengths map to its members, and what is done on all of them.
 *
 * Every change of length is made under a lock of the handle and reaches every member before it counts, so the members'
 * parts always fit together, except while a change is under way and after a crash or an error in the middle of one;
 * opening finds that out. The lock is the handle's and not the file's: the same file may be open twice, and what one
 * takes back of an extension that failed must not be what the other has written to meanwhile.
 */
#include "io/striping.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/sys.h"

uint64_t pst_io_striping_part(uint64_t stripe_bytes, uint32_t count, uint32_t index, uint64_t length)
{
    uint64_t units = length / stripe_bytes, rest = length % stripe_bytes;
    uint64_t rows = units / count, last = units % count; /* `last` holds the rest */
    return rows * stripe_bytes + (index < last ? stripe_bytes : index == last ? rest : 0);
}

static uint64_t part_of(const struct pst_io_striping *s, uint32_t index, uint64_t length)
{
    return pst_io_striping_part(s->stripe_bytes, s->count, index, length);
}

pst_io_run pst_io_striping_run(const struct pst_io_striping *s, uint64_t offset, uint64_t bytes)
{
    if (s->count == 1)
        return (pst_io_run){.file = s->members[0], .offset = offset, .bytes = bytes};
    uint64_t unit = offset / s->stripe_bytes, in_unit = offset % s->stripe_bytes, left = s->stripe_bytes - in_unit;
    return (pst_io_run){.file = s->members[unit % s->count],
                        .offset = unit / s->count * s->stripe_bytes + in_unit,
                        .bytes = bytes < left ? bytes : left};
}

static pthread_mutex_t *length_lock(const struct pst_io_striping *s)
{
    return &s->members[0]->io->stripe_lock;
}

/* Takes the first `count` members back to the lengths that they had. */
static void undo(struct pst_io_striping *s, uint32_t count, const uint64_t *before, const bool *grown)
{
    for (uint32_t i = count; i-- > 0;) {
        if (grown[i])
            pst_io_file_truncate(s->members[i], before[i], NULL);
    }
}

/* Gives every member at least its part of `length`. All or none of them grow, as far as that can be had. The lock is
 * held. */
static int grow(struct pst_io_striping *s, uint64_t length, pst_error *err)
{
    uint64_t before[PST_IO_MAX_STRIPES];
    bool grown[PST_IO_MAX_STRIPES] = {false};
    for (uint32_t i = 0; i < s->count; i++) {
        uint64_t part = part_of(s, i, length);
        int status = pst_io_file_get_bytes(s->members[i], &before[i], err);
        /* Never shorter: another process may have made it longer meanwhile. */
        if (status >= 0 && before[i] < part) {
            status = pst_io_file_truncate(s->members[i], part, err);
            grown[i] = status >= 0;
        }
        if (status < 0) {
            undo(s, i, before, grown);
            return status;
        }
    }
    if (atomic_load(&s->length) < length)
        atomic_store(&s->length, length);
    return 0;
}

bool pst_io_striping_is_direct(const struct pst_io_striping *s)
{
    for (uint32_t i = 0; i < s->count; i++) {
        if (!atomic_load(&s->members[i]->direct))
            return false;
    }
    return true;
}

int pst_io_striping_reach(struct pst_io_striping *s, uint64_t end, pst_error *err)
{
    if (atomic_load_explicit(&s->length, memory_order_acquire) >= end)
        return 0;
    pthread_mutex_lock(length_lock(s));
    int status = atomic_load(&s->length) >= end ? 0 : grow(s, end, err);
    pthread_mutex_unlock(length_lock(s));
    return status;
}

int pst_io_striping_get_bytes(const struct pst_io_striping *s, uint64_t *out, pst_error *err)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        uint64_t bytes = 0;
        PST_TRY(pst_io_file_get_bytes(s->members[i], &bytes, err));
        sum += bytes;
    }
    *out = sum;
    return 0;
}

int pst_io_striping_truncate(struct pst_io_striping *s, uint64_t bytes, pst_error *err)
{
    if (bytes > INT64_MAX)
        return pst_fail_at(err, -EFBIG, s->members[0]->path, bytes, "cannot set the length: %s", pst_strerror(-EFBIG));
    uint64_t now = 0;
    int status = 0;
    pthread_mutex_lock(length_lock(s));
    status = pst_io_striping_get_bytes(s, &now, err);
    if (status >= 0 && now < bytes) {
        status = grow(s, bytes, err);
    } else if (status >= 0) {
        atomic_store(&s->length, bytes);
        for (uint32_t i = 0; i < s->count && status >= 0; i++)
            status = pst_io_file_truncate(s->members[i], part_of(s, i, bytes), err);
    }
    pthread_mutex_unlock(length_lock(s));
    return status;
}

/* The blocks first, beyond the members' ends, and the lengths when there are enough. */
int pst_io_striping_preallocate(struct pst_io_striping *s, uint64_t offset, uint64_t bytes, pst_error *err)
{
    if (bytes == 0)
        return 0;
    if (bytes > INT64_MAX || offset > (uint64_t)INT64_MAX - bytes)
        return pst_fail_at(err, -EFBIG, s->members[0]->path, offset, "cannot reserve space for: %s",
                           pst_strerror(-EFBIG));
    bool reserved = false;
    for (uint32_t i = 0; i < s->count; i++) {
        uint64_t from = part_of(s, i, offset), to = part_of(s, i, offset + bytes);
        if (from == to)
            continue;
        int status = pst_io_file_reserve(s->members[i], FALLOC_FL_KEEP_SIZE, from, to - from, err);
        PST_TRY(status);
        reserved = reserved || status == 0;
    }
    return reserved ? pst_io_striping_reach(s, offset + bytes, err) : 0;
}

/* ---- sync ---- */

typedef struct sync_task {
    pthread_t thread;
    bool started;
    pst_io_file *file;
    int status;
    pst_error error;
} sync_task;

static void *sync_member(void *argument)
{
    sync_task *task = argument;
    task->status = pst_io_file_sync(task->file, &task->error);
    return NULL;
}

/* In parallel: each drive takes its milliseconds to empty its cache. */
int pst_io_striping_sync(struct pst_io_striping *s, pst_error *err)
{
    sync_task *tasks = pst_heap_calloc(s->count, sizeof *tasks);
    if (tasks == NULL)
        return pst_fail_memory(err, s->members[0]->path, s->count * sizeof *tasks);
    for (uint32_t i = 0; i < s->count; i++) {
        tasks[i].file = s->members[i];
        tasks[i].started = i > 0 && pst_io_start_thread(&tasks[i].thread, sync_member, &tasks[i]) == 0;
    }
    int status = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        if (!tasks[i].started)
            sync_member(&tasks[i]);
    }
    for (uint32_t i = 0; i < s->count; i++) {
        if (tasks[i].started)
            pthread_join(tasks[i].thread, NULL);
        if (tasks[i].status < 0 && status >= 0) {
            status = tasks[i].status;
            if (err != NULL)
                *err = tasks[i].error;
        }
    }
    pst_heap_free(tasks);
    return status;
}

/* ---- opening and closing ---- */

int pst_io_striping_create(uint64_t stripe_bytes, uint32_t count, struct pst_io_striping **out)
{
    struct pst_io_striping *s = pst_heap_calloc(1, sizeof *s + count * sizeof s->members[0]);
    if (s == NULL)
        return -ENOMEM;
    s->stripe_bytes = stripe_bytes;
    s->count = count;
    *out = s;
    return 0;
}

int pst_io_striping_close(struct pst_io_striping *s, pst_error *err)
{
    if (s == NULL)
        return 0;
    int status = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        int closed = pst_io_file_close(s->members[i], status < 0 ? NULL : err);
        if (status >= 0)
            status = closed;
    }
    pst_heap_free(s);
    return status;
}

/* The lengths of the whole file with which a part of `bytes` bytes agrees: *low to *high. */
static void agreeing(const struct pst_io_striping *s, uint32_t index, uint64_t bytes, uint64_t *low, uint64_t *high)
{
    uint64_t row = s->stripe_bytes * s->count, rows = bytes / s->stripe_bytes, rest = bytes % s->stripe_bytes;
    uint64_t until = rows * row + index * s->stripe_bytes; /* here its next byte would lie */
    *high = until + rest;
    *low = rest > 0 ? *high : rows == 0 ? 0 : until - row + s->stripe_bytes;
}

/* The length with which most parts agree, the longest of such: a part is rather lost than too much. */
static uint64_t likely_length(const struct pst_io_striping *s)
{
    uint64_t best = 0, low, high;
    uint32_t best_votes = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        uint64_t candidate;
        agreeing(s, i, s->members[i]->bytes, &candidate, &high);
        uint32_t votes = 0;
        for (uint32_t k = 0; k < s->count; k++) {
            agreeing(s, k, s->members[k]->bytes, &low, &high);
            votes += candidate >= low && candidate <= high;
        }
        if (votes > best_votes || (votes == best_votes && candidate > best)) {
            best = candidate;
            best_votes = votes;
        }
    }
    return best;
}

int pst_io_striping_check(struct pst_io_striping *s, uint64_t *out_bytes, pst_error *err)
{
    uint64_t sum = 0;
    bool fits = true;
    for (uint32_t i = 0; i < s->count; i++) {
        const pst_io_file *part = s->members[i];
        if (part->bytes > (uint64_t)INT64_MAX / s->count)
            return pst_fail(err, PST_E_FORMAT, part->path, "is longer than any part of a striped file");
        sum += part->bytes;
    }
    for (uint32_t i = 0; i < s->count && fits; i++)
        fits = s->members[i]->bytes == part_of(s, i, sum);
    if (!fits) {
        uint64_t likely = likely_length(s), low, high;
        for (uint32_t i = 0; i < s->count; i++) {
            agreeing(s, i, s->members[i]->bytes, &low, &high);
            if (likely < low || likely > high)
                return pst_fail(err, PST_E_FORMAT, s->members[i]->path,
                                "has %llu bytes, which does not fit the other parts of the striped file "
                                "(member %u of a file of %llu bytes has %llu)",
                                (unsigned long long)s->members[i]->bytes, i, (unsigned long long)likely,
                                (unsigned long long)part_of(s, i, likely));
        }
        return pst_fail(err, PST_E_FORMAT, s->members[0]->path, "does not fit the other parts of the striped file");
    }
    atomic_store(&s->length, sum);
    *out_bytes = sum;
    return 0;
}
