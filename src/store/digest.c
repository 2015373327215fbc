/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Over libxxhash, whose state lies in memory of this project's heap: it wants 64-byte alignment. Distributions build the library
 * for the oldest processors; where it has the variants for wider ones, too (PST_XXH_DISPATCH), these are twice as fast.
 */
#include "store/digest.h"

#define XXH_STATIC_LINKING_ONLY /* for the size of the state */
#include <string.h>
#include <xxhash.h>
#ifdef PST_XXH_DISPATCH
#include <xxh_x86dispatch.h>
#endif

#include "base/error.h"
#include "base/heap.h"

enum { STATE_ALIGN = 64 };

struct pst_digest {
    XXH3_state_t *state; /* inside `room`, aligned */
    unsigned char room[sizeof(XXH3_state_t) + STATE_ALIGN];
};

int pst_digest_create(pst_digest **out, pst_error *err)
{
    /* The state type asks for more alignment than the heap gives, which a plain array of bytes does not. */
    pst_digest *digest = pst_heap_calloc(1, sizeof *digest);
    if (digest == NULL)
        return pst_fail_memory(err, "a digest", sizeof *digest);
    uintptr_t address = ((uintptr_t)digest->room + STATE_ALIGN - 1) / STATE_ALIGN * STATE_ALIGN;
    digest->state = (XXH3_state_t *)address;
    XXH3_INITSTATE(digest->state);
    *out = digest;
    return 0;
}

void pst_digest_destroy(pst_digest *digest)
{
    pst_heap_free(digest);
}

void pst_digest_begin(pst_digest *digest)
{
    XXH3_128bits_reset(digest->state);
}

void pst_digest_add(pst_digest *digest, const void *data, size_t bytes)
{
#ifdef PST_XXH_DISPATCH
    XXH3_128bits_update_dispatch(digest->state, data, bytes);
#else
    XXH3_128bits_update(digest->state, data, bytes);
#endif
}

void pst_digest_value(const pst_digest *digest, unsigned char value[PST_DIGEST_BYTES])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(digest->state));
    memcpy(value, canonical.digest, PST_DIGEST_BYTES);
}

void pst_digest_spell(const unsigned char value[PST_DIGEST_BYTES], char *digits)
{
    static const char letters[] = "0123456789abcdef";
    for (size_t i = 0; i < PST_DIGEST_BYTES; i++) {
        digits[2 * i] = letters[value[i] >> 4];
        digits[2 * i + 1] = letters[value[i] & 15];
    }
}

void pst_digest_end(const pst_digest *digest, char *digits)
{
    unsigned char value[PST_DIGEST_BYTES];
    pst_digest_value(digest, value);
    pst_digest_spell(value, digits);
}
