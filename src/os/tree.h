/* SPDX-License-Identifier: Apache-2.0 */
/* All that lies below a folder: walked, and removed. Symbolic links are never followed. */
#ifndef PST_OS_TREE_H
#define PST_OS_TREE_H

#include "penstock/types.h"

typedef enum pst_tree_kind { PST_TREE_FILE, PST_TREE_FOLDER, PST_TREE_OTHER } pst_tree_kind;

/* `name` is relative to the folder walked. Below zero ends the walk. */
typedef int pst_tree_each(void *context, const char *name, pst_tree_kind kind, uint64_t bytes, pst_error *err);

enum { PST_TREE_MAX_DEPTH = 64 };

/* Every entry once, in order of names; a folder after all that is in it. What vanishes meanwhile is passed over. */
int pst_tree_walk(const char *folder, pst_tree_each *each, void *context, pst_error *err);
/* The folder too. What is not there is fine. Of a link to a folder only the link goes. */
int pst_tree_remove(const char *folder, pst_error *err);

#endif
