/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes, names and contents of the crash table. */
#include "os/sys_crash_model.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/heap.h"

enum { BUCKETS = 1024 };

static crash_node *index_of[BUCKETS], *all, *root_node;
static uint64_t node_count;

/* ---- nodes ---- */

crash_node *crash_node_add(crash_kind kind, const struct stat *info)
{
    crash_node *node = pst_heap_calloc(1, sizeof *node);
    if (node == NULL)
        return NULL;
    node->kind = kind;
    node->device = info->st_dev;
    node->inode = info->st_ino;
    node->mode = info->st_mode & 07777;
    node->number = node_count++;
    node->pin = -1;
    node->next = all;
    all = node;
    crash_node **bucket = &index_of[node->inode % BUCKETS];
    node->chained = *bucket;
    *bucket = node;
    return node;
}

crash_node *crash_node_find(const struct stat *info)
{
    crash_node *node = index_of[info->st_ino % BUCKETS];
    while (node != NULL && (node->inode != info->st_ino || node->device != info->st_dev))
        node = node->chained;
    return node;
}

crash_node *crash_node_first(void)
{
    return all;
}

void crash_set_root(crash_node *root)
{
    root_node = root;
}

crash_node *crash_root(void)
{
    return root_node;
}

static void unpin(crash_node *node)
{
    if (node->pin >= 0)
        close(node->pin);
    node->pin = -1;
    node->pin_readable = false;
}

int crash_node_pin_path(crash_node *node, const char *path)
{
    if (node->pin >= 0)
        return 0;
    node->pin = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    return node->pin < 0 ? -errno : 0;
}

int crash_node_pin_fd(crash_node *node, int fd)
{
    if (node->pin_readable)
        return 0;
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int pin = open(link, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (pin < 0)
        return -errno;
    /* Reading ahead would bring pages into the cache into which a direct write is on its way. */
    posix_fadvise(pin, 0, 0, POSIX_FADV_RANDOM);
    unpin(node);
    node->pin = pin;
    node->pin_readable = true;
    return 0;
}

static void free_changes(crash_node *folder)
{
    for (size_t i = 0; i < folder->change_count; i++) {
        pst_heap_free(folder->changes[i].removed);
        pst_heap_free(folder->changes[i].added);
    }
    folder->change_count = 0;
}

static void free_node(crash_node *node)
{
    unpin(node);
    for (size_t i = 0; i < node->chunk_count; i++) {
        pst_heap_free(node->chunks[i].durable);
        pst_heap_free(node->chunks[i].latest);
    }
    pst_heap_free(node->chunks);
    crash_names_clear(&node->durable);
    crash_names_clear(&node->latest);
    crash_names_clear(&node->recovered);
    free_changes(node);
    pst_heap_free(node->changes);
    pst_heap_free(node->text);
    pst_heap_free(node);
}

static void reach(crash_node *node);

static void reach_names(const crash_names *names)
{
    for (size_t i = 0; i < names->count; i++)
        reach(names->list[i].node);
}

static void reach(crash_node *node)
{
    if (node == NULL || node->reached)
        return;
    node->reached = true;
    reach_names(&node->durable);
    reach_names(&node->latest);
    for (size_t i = 0; i < node->change_count; i++) {
        reach(node->changes[i].node);
        reach(node->changes[i].other);
        reach(node->changes[i].exchanged);
    }
}

static void unchain(crash_node *node)
{
    crash_node **at = &index_of[node->inode % BUCKETS];
    while (*at != node)
        at = &(*at)->chained;
    *at = node->chained;
}

void crash_collect(void)
{
    for (crash_node *node = all; node != NULL; node = node->next)
        node->reached = false;
    reach(root_node);
    for (crash_node **at = &all; *at != NULL;) {
        crash_node *node = *at;
        if (node->reached) {
            at = &node->next;
            continue;
        }
        *at = node->next;
        unchain(node);
        free_node(node);
    }
}

void crash_forget_nodes(void)
{
    root_node = NULL;
    crash_collect();
    node_count = 0;
}

/* ---- names ---- */

static size_t find_name(const crash_names *names, const char *name)
{
    size_t at = 0;
    while (at < names->count && strcmp(names->list[at].name, name) != 0)
        at++;
    return at;
}

crash_node *crash_names_find(const crash_names *names, const char *name)
{
    size_t at = find_name(names, name);
    return at < names->count ? names->list[at].node : NULL;
}

int crash_names_put(crash_names *names, const char *name, crash_node *node)
{
    size_t at = find_name(names, name);
    if (at < names->count) {
        names->list[at].node = node;
        return 0;
    }
    if (names->count == names->capacity) {
        size_t capacity = names->capacity * 2 + 8;
        crash_name *more = pst_heap_reallocarray(names->list, capacity, sizeof *more);
        if (more == NULL)
            return -ENOMEM;
        names->list = more;
        names->capacity = capacity;
    }
    char *copy = pst_heap_strdup(name);
    if (copy == NULL)
        return -ENOMEM;
    names->list[names->count++] = (crash_name){.name = copy, .node = node};
    return 0;
}

static void remove_at(crash_names *names, size_t at)
{
    pst_heap_free(names->list[at].name);
    names->count--;
    memmove(&names->list[at], &names->list[at + 1], (names->count - at) * sizeof names->list[0]);
}

void crash_names_remove(crash_names *names, const char *name)
{
    size_t at = find_name(names, name);
    if (at < names->count)
        remove_at(names, at);
}

void crash_names_remove_node(crash_names *names, const crash_node *node)
{
    for (size_t at = names->count; at-- > 0;) {
        if (names->list[at].node == node)
            remove_at(names, at);
    }
}

void crash_names_clear(crash_names *names)
{
    for (size_t i = 0; i < names->count; i++)
        pst_heap_free(names->list[i].name);
    pst_heap_free(names->list);
    *names = (crash_names){0};
}

int crash_names_copy(crash_names *out, const crash_names *from)
{
    crash_names_clear(out);
    for (size_t i = 0; i < from->count; i++)
        PST_TRY(crash_names_put(out, from->list[i].name, from->list[i].node));
    return 0;
}

/* ---- what happens in folders ---- */

/* Remembers a change; names are copied. */
static int log_change(crash_node *folder, const char *removed, const char *added, crash_node *node, crash_node *other)
{
    if (folder->change_count == folder->change_capacity) {
        size_t capacity = folder->change_capacity * 2 + 8;
        crash_change *more = pst_heap_reallocarray(folder->changes, capacity, sizeof *more);
        if (more == NULL)
            return -ENOMEM;
        folder->changes = more;
        folder->change_capacity = capacity;
    }
    crash_change change = {.node = node, .other = other};
    change.removed = removed != NULL ? pst_heap_strdup(removed) : NULL;
    change.added = added != NULL ? pst_heap_strdup(added) : NULL;
    if ((removed != NULL && change.removed == NULL) || (added != NULL && change.added == NULL)) {
        pst_heap_free(change.removed);
        pst_heap_free(change.added);
        return -ENOMEM;
    }
    folder->changes[folder->change_count++] = change;
    return 0;
}

static int put_latest(crash_node *folder, const char *name, crash_node *node)
{
    crash_node *replaced = crash_names_find(&folder->latest, name);
    PST_TRY(crash_names_put(&folder->latest, name, node));
    node->names++;
    if (replaced != NULL)
        replaced->names--;
    return 0;
}

static void remove_latest(crash_node *folder, const char *name)
{
    crash_node *node = crash_names_find(&folder->latest, name);
    if (node != NULL)
        node->names--;
    crash_names_remove(&folder->latest, name);
}

int crash_folder_add(crash_node *folder, const char *name, crash_node *node)
{
    PST_TRY(put_latest(folder, name, node));
    return log_change(folder, NULL, name, node, NULL);
}

int crash_folder_remove(crash_node *folder, const char *name)
{
    crash_node *node = crash_names_find(&folder->latest, name);
    remove_latest(folder, name);
    return log_change(folder, name, NULL, node, NULL);
}

/* One change: what `a` stood for is `b` now (as in a rename), and the other way round. */
int crash_folder_exchange(crash_node *folder, const char *a, const char *b)
{
    crash_node *x = crash_names_find(&folder->latest, a), *y = crash_names_find(&folder->latest, b);
    PST_TRY(crash_names_put(&folder->latest, a, y));
    PST_TRY(crash_names_put(&folder->latest, b, x));
    PST_TRY(log_change(folder, a, b, x, NULL));
    folder->changes[folder->change_count - 1].exchanged = y;
    return 0;
}

int crash_folder_move(crash_node *from, const char *old_name, crash_node *to, const char *new_name, crash_node *node)
{
    PST_TRY(put_latest(to, new_name, node));
    remove_latest(from, old_name);
    if (from == to)
        return log_change(from, old_name, new_name, node, NULL);
    PST_TRY(log_change(to, NULL, new_name, node, from));
    return log_change(from, old_name, NULL, node, to);
}

/* What was moved out of a folder that is being synced must not be lost: its new name becomes durable with that. */
static int sync_moved(const crash_change *gone)
{
    const crash_node *to = gone->other;
    for (size_t i = 0; i < to->change_count; i++) {
        const crash_change *c = &to->changes[i];
        if (c->added != NULL && c->node == gone->node)
            PST_TRY(crash_names_put(&gone->other->durable, c->added, c->node));
    }
    return 0;
}

int crash_folder_sync(crash_node *folder)
{
    for (size_t i = 0; i < folder->change_count; i++) {
        const crash_change *c = &folder->changes[i];
        if (c->other == NULL)
            continue;
        if (c->added == NULL)
            PST_TRY(sync_moved(c));
        else if (c->node->kind == CRASH_FOLDER) /* cannot have two names */
            crash_names_remove_node(&c->other->durable, c->node);
    }
    PST_TRY(crash_names_copy(&folder->durable, &folder->latest));
    free_changes(folder);
    crash_collect();
    return 0;
}

/* ---- content ---- */

/* The place of chunk `number`, or where it would be. */
static size_t find_chunk(const crash_node *file, uint64_t number)
{
    size_t low = 0, high = file->chunk_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (file->chunks[middle].index < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* NULL when out of memory. Good until the next chunk is added. */
static crash_chunk *need_chunk(crash_node *file, uint64_t number)
{
    size_t at = find_chunk(file, number);
    if (at < file->chunk_count && file->chunks[at].index == number)
        return &file->chunks[at];
    if (file->chunk_count == file->chunk_capacity) {
        size_t capacity = file->chunk_capacity * 2 + 4;
        crash_chunk *more = pst_heap_reallocarray(file->chunks, capacity, sizeof *more);
        if (more == NULL)
            return NULL;
        file->chunks = more;
        file->chunk_capacity = capacity;
    }
    memmove(&file->chunks[at + 1], &file->chunks[at], (file->chunk_count - at) * sizeof file->chunks[0]);
    file->chunk_count++;
    file->chunks[at] = (crash_chunk){.index = number};
    return &file->chunks[at];
}

/* Marks the sectors of the chunk that [offset, end) of the file touches. */
static void mark_chunk(crash_chunk *chunk, uint64_t offset, uint64_t end)
{
    uint64_t base = chunk->index * CRASH_CHUNK_BYTES;
    uint64_t from = offset > base ? offset - base : 0, to = end - base;
    if (to > CRASH_CHUNK_BYTES)
        to = CRASH_CHUNK_BYTES;
    for (uint64_t s = from / CRASH_SECTOR_BYTES; s * CRASH_SECTOR_BYTES < to; s++)
        chunk->dirty[s / 64] |= (uint64_t)1 << s % 64;
}

int crash_file_mark(crash_node *file, uint64_t offset, uint64_t bytes, bool only_known)
{
    uint64_t end = bytes > UINT64_MAX - offset ? UINT64_MAX : offset + bytes;
    if (offset >= end)
        return 0;
    if (only_known) {
        for (size_t i = find_chunk(file, offset / CRASH_CHUNK_BYTES); i < file->chunk_count; i++) {
            if (file->chunks[i].index * CRASH_CHUNK_BYTES >= end)
                break;
            mark_chunk(&file->chunks[i], offset, end);
        }
        return 0;
    }
    for (uint64_t number = offset / CRASH_CHUNK_BYTES; number * CRASH_CHUNK_BYTES < end; number++) {
        crash_chunk *chunk = need_chunk(file, number);
        if (chunk == NULL)
            return -ENOMEM;
        mark_chunk(chunk, offset, end);
    }
    return 0;
}

void crash_file_set_length(crash_node *file, uint64_t bytes)
{
    file->latest_bytes = bytes;
    if (bytes < file->least_bytes)
        file->least_bytes = bytes;
    if (bytes > file->most_bytes)
        file->most_bytes = bytes;
}

/* Reads [offset, offset + bytes) of the live file; zeros behind its end. */
static int read_live(int fd, uint8_t *out, size_t bytes, uint64_t offset)
{
    ssize_t got = pst_sys_real.pread(fd, out, bytes, offset);
    size_t done = 0;
    while (got != 0) {
        if (got < 0 && got != -EINTR)
            return (int)got;
        done += got > 0 ? (size_t)got : 0;
        if (done == bytes)
            return 0;
        got = pst_sys_real.pread(fd, out + done, bytes - done, offset + done);
    }
    memset(out + done, 0, bytes - done);
    return 0;
}

/* Reads the dirty sectors of a chunk from the live file into *memory, which is made if it is not there. */
static int read_dirty(const crash_node *file, const crash_chunk *chunk, uint8_t **memory)
{
    if (*memory == NULL)
        *memory = pst_heap_calloc(1, CRASH_CHUNK_BYTES);
    if (*memory == NULL)
        return -ENOMEM;
    for (unsigned from = 0, to; from < CRASH_CHUNK_SECTORS; from = to) {
        to = from + 1;
        if (!crash_sector_is_dirty(chunk, from))
            continue;
        while (to < CRASH_CHUNK_SECTORS && crash_sector_is_dirty(chunk, to))
            to++;
        size_t at = (size_t)from * CRASH_SECTOR_BYTES;
        PST_TRY(read_live(file->pin, *memory + at, (size_t)(to - from) * CRASH_SECTOR_BYTES,
                          chunk->index * CRASH_CHUNK_BYTES + at));
    }
    return 0;
}

static bool chunk_is_dirty(const crash_chunk *chunk)
{
    return (chunk->dirty[0] | chunk->dirty[1]) != 0;
}

/* Behind the durable length the durable content is zeros: that is what shows if the length alone survives. */
static void trim(crash_node *file)
{
    size_t keep = 0;
    for (size_t i = 0; i < file->chunk_count; i++) {
        crash_chunk *chunk = &file->chunks[i];
        uint64_t base = chunk->index * CRASH_CHUNK_BYTES;
        if (base >= file->durable_bytes) {
            pst_heap_free(chunk->durable);
            continue;
        }
        uint64_t inside = file->durable_bytes - base;
        if (inside < CRASH_CHUNK_BYTES && chunk->durable != NULL)
            memset(chunk->durable + inside, 0, CRASH_CHUNK_BYTES - inside);
        file->chunks[keep++] = *chunk;
    }
    file->chunk_count = keep;
}

int crash_file_sync(crash_node *file)
{
    for (size_t i = 0; i < file->chunk_count; i++) {
        crash_chunk *chunk = &file->chunks[i];
        if (!chunk_is_dirty(chunk))
            continue;
        PST_TRY(read_dirty(file, chunk, &chunk->durable));
        memset(chunk->dirty, 0, sizeof chunk->dirty);
    }
    file->durable_bytes = file->least_bytes = file->most_bytes = file->latest_bytes;
    trim(file);
    if (file->names > 0)
        unpin(file);
    return 0;
}

int crash_file_freeze(crash_node *file)
{
    for (size_t i = 0; i < file->chunk_count; i++) {
        crash_chunk *chunk = &file->chunks[i];
        if (chunk_is_dirty(chunk))
            PST_TRY(read_dirty(file, chunk, &chunk->latest));
    }
    unpin(file);
    return 0;
}

static bool all_zero(const uint8_t *bytes, size_t count)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0;
}

int crash_file_load(crash_node *file, int fd, uint64_t bytes)
{
    uint8_t *memory = NULL;
    int status = 0;
    for (uint64_t number = 0; number * CRASH_CHUNK_BYTES < bytes && status >= 0; number++) {
        if (memory == NULL)
            memory = pst_heap_alloc(CRASH_CHUNK_BYTES);
        if (memory == NULL)
            return -ENOMEM;
        status = read_live(fd, memory, CRASH_CHUNK_BYTES, number * CRASH_CHUNK_BYTES);
        if (status < 0 || all_zero(memory, CRASH_CHUNK_BYTES))
            continue;
        crash_chunk *chunk = need_chunk(file, number);
        if (chunk == NULL) {
            status = -ENOMEM;
            continue;
        }
        chunk->durable = memory;
        memory = NULL;
    }
    pst_heap_free(memory);
    file->durable_bytes = file->latest_bytes = file->least_bytes = file->most_bytes = bytes;
    return status;
}
