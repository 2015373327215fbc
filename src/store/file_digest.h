/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a checkpoint file says of its own bytes, read and computed again (the places of it all are at image.h). The
 * file is a row of ranges (tensors of safetensors, storages of torch) with other bytes around them: each range has a
 * digest, and all the other bytes have one together, the file's own. So every byte is covered once.
 */
#ifndef PST_STORE_FILE_DIGEST_H
#define PST_STORE_FILE_DIGEST_H

#include <stdbool.h>

#include "penstock/io.h"
#include "store/digest.h"
#include "store/span_reader.h"
#include "store/torch_file.h"

#define PST_TORCH_DIGESTS_RECORD ".penstock/digests"

/* Points into the text that it was found in, except for the cuts. Begins as {0}. */
typedef struct pst_file_digests {
    const char *digits; /* pst_file_digests_of; NULL: the file has no digests of its ranges */
    size_t count;       /* of ranges, in order of the file */
    uint64_t *cuts;     /* offsets in the file inside of ranges, rising; owned */
    size_t cut_count;
    const char *own; /* PST_DIGEST_DIGITS characters; NULL: there is none */
} pst_file_digests;

/* Those of one of a store's files, in its __metadata__. A key that looks like a damaged PST_FILE_DIGEST_KEY is
 * refused: else a file could lose its own digest by one byte, and nobody would notice. */
int pst_file_digests_of_store(const pst_store *store, uint32_t file, pst_file_digests *out, pst_error *err);
/* Those of a torch file, in its record, if it has one. */
int pst_file_digests_of_torch(const pst_torch_file *torch, const char *path, pst_file_digests *out, pst_error *err);
void pst_file_digests_free(pst_file_digests *digests); /* what it holds, not itself; leaves it empty */
/* PST_DIGEST_DIGITS characters, not terminated. */
const char *pst_file_digests_of(const pst_file_digests *digests, size_t range);

/* The digest of a range's bytes: where the file is cut inside it, that of its runs' digests. One thread. */
typedef struct pst_range_digest pst_range_digest;
int pst_range_digest_create(pst_range_digest **out, pst_error *err);
void pst_range_digest_destroy(pst_range_digest *digest);
/* Of bytes [offset, offset + bytes) of the file; `file` is needed until the end. */
void pst_range_digest_begin(pst_range_digest *digest, const pst_file_digests *file, uint64_t offset, uint64_t bytes);
void pst_range_digest_add(pst_range_digest *digest, const void *data, uint64_t bytes);
/* PST_DIGEST_DIGITS characters, not terminated. */
void pst_range_digest_end(pst_range_digest *digest, char *digits);

/* The file's own digest, computed again from its bytes: PST_DIGEST_DIGITS characters, not terminated. Only for files
 * that have one (`digests->own`). */
int pst_file_own_digest_safetensors(pst_io *io, pst_io_file *file, uint64_t data_begin, char *digits, pst_error *err);
int pst_file_own_digest_torch(pst_span_reader *reader, pst_io_file *file, const pst_torch_file *torch,
                              const pst_file_digests *digests, char *digits, pst_error *err);
/* Whether a record of a torch file is a storage, by its name. */
bool pst_zip_record_is_storage(const pst_zip_record *record);

#endif
