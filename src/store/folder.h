/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A folder of files that appears whole and durable under its name, or not at all: it is filled under an
 * unpredictable temporary name beside it and renamed at the end.
 */
#ifndef PST_STORE_FOLDER_H
#define PST_STORE_FOLDER_H

#include "penstock/types.h"

typedef struct pst_folder pst_folder;

/* path must not exist (-EEXIST), the folder that it lies in must. */
int pst_folder_begin(const char *path, pst_folder **out, pst_error *err);
/* "<temporary folder>/<name>": where to write a file of it; pst_heap_free. NULL when out of memory. */
char *pst_folder_file(const pst_folder *folder, const char *name);
/* All its files are written and synced: makes it appear. -EEXIST when something took the name meanwhile. When
 * only the sync of the parent fails, after the rename, that is the error, but the folder is there, whole, and
 * pst_folder_close leaves it: its durability is unknown. */
int pst_folder_finish(pst_folder *folder, pst_error *err);
/* For an error of writing a file of it: where err names a path in the temporary folder, that becomes the path
 * in the folder to be. Returns status. */
int pst_folder_name_final(const pst_folder *folder, int status, pst_error *err);
/* Frees it, and removes what was written unless it was finished. */
void pst_folder_close(pst_folder *folder);

#endif
