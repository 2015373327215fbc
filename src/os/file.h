/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small whole files (configs, tokenizers, headers), folders, and durable publishing: data sync, rename,
 * directory sync. Tensor data does not pass here but through the I/O engine.
 */
#ifndef PST_OS_FILE_H
#define PST_OS_FILE_H

#include <stdbool.h>

#include "penstock/types.h"

/* Reads a regular file of at most max_bytes (larger: PST_E_FORMAT). *out is NUL-terminated besides *out_bytes
 * and freed with pst_heap_free. */
int pst_file_read_all(const char *path, uint64_t max_bytes, char **out, size_t *out_bytes, pst_error *err);
/* Reads exactly `bytes` at `offset`; PST_E_SHORT at the end of the file. */
int pst_file_read_at(const char *path, uint64_t offset, void *buffer, size_t bytes, pst_error *err);
int pst_file_size(const char *path, uint64_t *out, pst_error *err); /* of a regular file; else PST_E_FORMAT */
/* For many small reads of one regular file: a descriptor, which pst_file_close closes, and the file's size. */
int pst_file_open(const char *path, uint64_t *out_bytes, pst_error *err);
/* Exactly `bytes` at `offset`, as pst_file_read_at. `path` is for messages. */
int pst_file_fetch(int fd, const char *path, uint64_t offset, void *buffer, size_t bytes, pst_error *err);
/* A hint that these bytes will be fetched: many such reads then go on at once. */
void pst_file_will_fetch(int fd, uint64_t offset, uint64_t bytes);
void pst_file_close(int fd);
/* When its content last changed, nanoseconds since 1970; links are followed. */
int pst_file_changed_ns(const char *path, int64_t *out, pst_error *err);
/* The path of what is there from the root on, without links; pst_heap_free. */
int pst_file_absolute(const char *path, char **out, pst_error *err);
/* `path`, which need not exist, as it is seen from "/", so that it means the same after a chdir. Nothing is resolved.
 * *out: pst_heap_free. */
int pst_file_from_root(const char *path, char **out, pst_error *err);
/* The path that opening `path` for writing would lead to: symbolic links at its end are followed, also one that leads to
 * nothing (yet). Those before its last name stay in it. pst_heap_free. */
int pst_file_follow(const char *path, char **out, pst_error *err);
/* The folder that `path` lies in ("." for a plain name, "/" for "/name"); pst_heap_free. NULL when out of memory. */
char *pst_file_parent(const char *path);
/* 1: something is there (symbolic links are followed); 0: nothing (ENOENT, ENOTDIR); negative: that cannot be
 * told (no permission, a loop of links, an I/O error). */
int pst_file_find(const char *path, pst_error *err);
/* The same where "cannot be told" may count as nothing. */
bool pst_file_exists(const char *path);
bool pst_file_is_folder(const char *path);
bool pst_file_is_link(const char *path); /* a symbolic one, wherever it leads */
/* Free bytes for an unprivileged writer on the file system that holds path. */
int pst_file_free_space(const char *path, uint64_t *out, pst_error *err);

/* Names of a folder's entries that end in `suffix` (NULL: all), sorted by byte order; freed with
 * pst_file_list_free. */
int pst_file_list(const char *folder, const char *suffix, char ***out, size_t *out_count, pst_error *err);
void pst_file_list_free(char **names, size_t count);

int pst_folder_create(const char *path, pst_error *err); /* parents too; an existing folder is fine */
/* The same, and the name of each new folder is durable in the one above it. */
int pst_folder_create_durable(const char *path, pst_error *err);
int pst_file_remove(const char *path, pst_error *err);   /* a missing file is fine */
int pst_folder_remove(const char *path, pst_error *err); /* an empty folder; a missing one is fine */

/* A file that appears whole or not at all: written to a temporary name of unpredictable suffix in the same
 * folder (O_EXCL), data-synced, renamed to `path`, the folder synced. Errors name `path`, never the temporary.
 *
 * The sync of the folder is the last step, after the rename, in this function and the two publish functions
 * below. When it fails, that is the error, and yet `path` is the new version, whole: only whether the name
 * survives a crash of the machine is unknown. Before the rename, a failure leaves `path` as it was. */
int pst_file_publish(const char *path, const void *data, size_t bytes, pst_error *err);
/* The same for a file of file_bytes bytes, of which the rest reads as zeros and takes no room. */
int pst_file_publish_sparse(const char *path, const void *data, size_t bytes, uint64_t file_bytes, pst_error *err);
/* The last steps alone: sync the data of `temporary`, rename it to `path`, sync the folder of `path`. The
 * temporary file stays the caller's to remove until it was renamed. */
int pst_file_publish_rename(const char *temporary, const char *path, pst_error *err);
/* Syncs the data of a file. */
int pst_file_sync(const char *path, pst_error *err);
/* Its other steps: the rename, over whatever file is at `path`, and the sync of the folder that `path` lies in. */
int pst_file_rename(const char *temporary, const char *path, pst_error *err);
int pst_folder_sync_parent(const char *path, pst_error *err);
/* Syncs the directory entries of a folder. */
int pst_folder_sync(const char *path, pst_error *err);
/* Renames what is at `from` to a path that must not exist yet (-EEXIST); nothing is synced. */
int pst_folder_move(const char *from, const char *to, pst_error *err);
/* Syncs a whole folder, renames it onto a path that must not exist yet and syncs the parent. */
int pst_folder_publish(const char *temporary, const char *path, pst_error *err);
/* "<path>.tmp-<12 random characters>"; pst_heap_free. NULL when out of memory. */
char *pst_file_temporary_name(const char *path);

#endif
