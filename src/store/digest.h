/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Digests of tensors' bytes: XXH3 with 128 bits, written as 32 hexadecimal digits (the canonical, big-endian form). They
 * find what went wrong on the way, not what somebody changed on purpose.
 *
 * A file keeps those of all its tensors in its __metadata__ under PST_DIGESTS_KEY: "xxh3-128", then for each tensor in the
 * order of its data a space and its digits.
 */
#ifndef PST_STORE_DIGEST_H
#define PST_STORE_DIGEST_H

#include "penstock/types.h"

#define PST_DIGESTS_KEY  "penstock.digests"
#define PST_DIGESTS_KIND "xxh3-128"

enum { PST_DIGEST_BYTES = 16, PST_DIGEST_DIGITS = 2 * PST_DIGEST_BYTES };

typedef struct pst_digest pst_digest;

/* Computes one digest after the other. The caller destroys *out. */
int pst_digest_create(pst_digest **out, pst_error *err);
void pst_digest_destroy(pst_digest *digest);
void pst_digest_begin(pst_digest *digest);
void pst_digest_add(pst_digest *digest, const void *data, size_t bytes);
/* PST_DIGEST_DIGITS characters, not terminated. */
void pst_digest_end(const pst_digest *digest, char *digits);
/* The same as bytes, and from bytes to digits. */
void pst_digest_value(const pst_digest *digest, unsigned char value[PST_DIGEST_BYTES]);
void pst_digest_spell(const unsigned char value[PST_DIGEST_BYTES], char *digits);

#endif
