/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the crash table (sys_crash.h): what is durable of the watched folder, and what has been changed since.
 *
 * A node is an inode. A file's node knows its durable content, in chunks, and for each sector whether it was written
 * since the last sync; the newer content is read from the live file when it is needed: at a sync, or when the power
 * fails. For that, a file with unsynced sectors is held open (`pin`), and so is one whose last name was removed, lest its
 * inode number be given to another.
 *
 * A folder's node knows its durable names, its names now, and the changes in between.
 *
 * One thread at a time: sys_crash.c holds its lock.
 */
#ifndef PST_OS_SYS_CRASH_MODEL_H
#define PST_OS_SYS_CRASH_MODEL_H

#include <stdbool.h>

#include "os/sys_crash.h"

enum {
    CRASH_SECTOR_BYTES = 512,
    CRASH_CHUNK_SECTORS = 128,
    CRASH_CHUNK_BYTES = CRASH_SECTOR_BYTES * CRASH_CHUNK_SECTORS
};

typedef struct crash_chunk {
    uint64_t index;   /* covers [index * CRASH_CHUNK_BYTES, ...) of the file */
    uint8_t *durable; /* owned; NULL: zeros. Zeros behind the durable length, always */
    uint8_t *latest;  /* owned; since the power failed: what the file held then, in the dirty sectors; NULL: none */
    uint64_t dirty[CRASH_CHUNK_SECTORS / 64]; /* bit per sector: changed since the last sync */
} crash_chunk;

typedef struct crash_node crash_node;

typedef struct crash_name {
    char *name; /* owned */
    crash_node *node;
} crash_name;

typedef struct crash_names {
    crash_name *list;
    size_t count, capacity;
} crash_names;

/* A change of a folder that no sync of it covers. */
typedef struct crash_change {
    char *removed, *added; /* names, owned; one may be NULL */
    crash_node *node;      /* what `added` stands for; for a removal, what `removed` stood for */
    crash_node *other;     /* when it was moved between folders: the other one */
    crash_node *exchanged; /* when two names were exchanged: what `removed` stands for since */
} crash_change;

typedef enum crash_kind { CRASH_FILE, CRASH_FOLDER, CRASH_LINK } crash_kind;

struct crash_node {
    crash_kind kind;
    uint64_t device, inode;
    uint64_t number;     /* counted from the first; chance depends on it */
    crash_node *next;    /* in the list of all */
    crash_node *chained; /* in its bucket of the index */
    unsigned mode;
    unsigned names;     /* that it has now */
    bool several_names; /* it had more than one when the watch began */
    bool reached;       /* used by walks over all nodes */
    int pin;            /* a descriptor, or -1 */
    bool pin_readable;
    char *text; /* owned: a link's target; during recovery, the path at which a file was put */

    crash_chunk *chunks; /* of a file, by rising index */
    size_t chunk_count, chunk_capacity;
    uint64_t durable_bytes, latest_bytes;
    uint64_t least_bytes, most_bytes; /* since the last sync */

    crash_names durable, latest, recovered; /* of a folder */
    crash_change *changes;
    size_t change_count, change_capacity;
};

/* ---- nodes ---- */

/* NULL when out of memory. */
crash_node *crash_node_add(crash_kind kind, const struct stat *info);
crash_node *crash_node_find(const struct stat *info); /* NULL: not known */
/* Keeps the inode: by path, for its number only. Nothing happens where it is held already. */
int crash_node_pin_path(crash_node *node, const char *path);
/* The same so that it can be read, through a descriptor that somebody has. */
int crash_node_pin_fd(crash_node *node, int fd);
crash_node *crash_node_first(void); /* of the list of all, in no order */
void crash_set_root(crash_node *root);
crash_node *crash_root(void);
/* Frees nodes that nothing leads to any more. */
void crash_collect(void);
void crash_forget_nodes(void);

/* ---- names ---- */

crash_node *crash_names_find(const crash_names *names, const char *name); /* NULL: none */
int crash_names_put(crash_names *names, const char *name, crash_node *node);
void crash_names_remove(crash_names *names, const char *name);
void crash_names_remove_node(crash_names *names, const crash_node *node);
void crash_names_clear(crash_names *names);
int crash_names_copy(crash_names *out, const crash_names *from);

/* What happened in the live folder. */
int crash_folder_add(crash_node *folder, const char *name, crash_node *node);
int crash_folder_remove(crash_node *folder, const char *name);
int crash_folder_exchange(crash_node *folder, const char *a, const char *b);
int crash_folder_move(crash_node *from, const char *old_name, crash_node *to, const char *new_name, crash_node *node);
/* Its names now are its durable ones. */
int crash_folder_sync(crash_node *folder);

/* ---- content ---- */

/* [offset, offset + bytes) may have changed in the live file. only_known: it now holds zeros, so that where nothing is
 * known nothing has changed. */
int crash_file_mark(crash_node *file, uint64_t offset, uint64_t bytes, bool only_known);
void crash_file_set_length(crash_node *file, uint64_t bytes);
/* Puts bytes that are durable from the start in. */
int crash_file_load(crash_node *file, int fd, uint64_t bytes);
/* The content and the length now are the durable ones. */
int crash_file_sync(crash_node *file);
/* Reads what is unsynced into memory: the live file does not count from now on. */
int crash_file_freeze(crash_node *file);
static inline bool crash_sector_is_dirty(const crash_chunk *chunk, unsigned sector)
{
    return (chunk->dirty[sector / 64] >> sector % 64 & 1) != 0;
}

/* ---- sys_crash_recover.c ---- */

/* Makes nodes of all that lies in a folder; *out is the folder's. */
int crash_scan(const char *path, crash_node **out, pst_error *err);
/* Empties the folder and builds it up as it may be after the failure. */
int crash_rebuild(const char *path, crash_node *root, pst_crash_loss loss, uint64_t seed, pst_error *err);

#endif
