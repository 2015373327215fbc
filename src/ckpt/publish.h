/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a save's files grow, and how they appear. Rank 0 chooses an unpredictable name beside the one that they are to have
 * (for shards a folder), makes and reserves the files, at the end renames and syncs, and removes what was not published.
 *
 * A symbolic link at the end of the path is followed, as opening it for writing does: the file that it leads to is replaced,
 * and the link stays.
 */
#ifndef PST_CKPT_PUBLISH_H
#define PST_CKPT_PUBLISH_H

#include "ckpt/layout.h"

enum { PST_CKPT_SUFFIX_BYTES = 32 };

typedef struct pst_ckpt_place {
    char *path, *temporary; /* of the file or the folder */
    bool folder;
    bool owner; /* rank 0: removes what was not published */
    bool made;  /* there is something under `temporary` */
    bool renamed;
    const pst_ckpt_layout *layout;
} pst_ckpt_place;

/* Finds the path. Rank 0 (`owner`) checks what is there and that there is room, and makes the folder where there is one.
 * *out is to be ended, also after a failure. */
int pst_ckpt_place_begin(const char *path, const pst_ckpt_layout *layout, bool owner, pst_ckpt_place *out,
                         pst_error *err);
/* What the other ranks need to know of the temporary name, and how they take it in. */
void pst_ckpt_place_tell(const pst_ckpt_place *place, char suffix[PST_CKPT_SUFFIX_BYTES]);
int pst_ckpt_place_join(pst_ckpt_place *place, const char suffix[PST_CKPT_SUFFIX_BYTES], pst_error *err);
/* Opens file number `file`; `create`: makes it, and reserves its space. */
int pst_ckpt_place_open(pst_ckpt_place *place, pst_io *io, size_t file, bool create, pst_io_file **out, pst_error *err);
/* All files are durable: the index of shards, the rename, the sync of the folder. */
int pst_ckpt_place_publish(pst_ckpt_place *place, const pst_ckpt_tensor *tensors, pst_error *err);
/* Where err names a temporary path, it gets the one that was to be. Returns status. */
int pst_ckpt_place_name_final(const pst_ckpt_place *place, int status, pst_error *err);
void pst_ckpt_place_end(pst_ckpt_place *place); /* what it holds */

#endif
