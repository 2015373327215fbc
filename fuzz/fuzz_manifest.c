/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a step's manifest, as they are and with a digest that fits: no crash, no leak, and what is accepted is written
 * again as the same bytes.
 */
#include <stdlib.h>
#include <string.h>

#include "base/heap.h"
#include "store/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(int condition)
{
    if (!condition)
        abort();
}

/* No way out of the step's folder. */
static void demand_inside(const char *name)
{
    size_t bytes = strlen(name);
    demand(bytes > 0 && name[0] != '/' && strncmp(name, "../", 3) != 0 && strstr(name, "/../") == NULL);
    demand(strcmp(name, "..") != 0 && (bytes < 3 || strcmp(name + bytes - 3, "/..") != 0));
}

static void parse(const char *text, size_t bytes)
{
    pst_manifest manifest;
    pst_error err;
    if (pst_manifest_parse(text, bytes, "fuzz", &manifest, &err) < 0)
        return;
    char *again;
    size_t again_bytes;
    for (size_t i = 0; i < manifest.file_count; i++)
        demand_inside(manifest.files[i].name);
    demand(pst_manifest_write(&manifest, &again, &again_bytes, &err) == 0);
    demand(again_bytes == bytes && memcmp(again, text, bytes) == 0);
    pst_heap_free(again);
    pst_manifest_free(&manifest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char tail[] = "\"}\n";
    int64_t live = pst_heap_live_count();
    parse((const char *)data, size);
    size_t kept = sizeof tail - 1 + PST_DIGEST_DIGITS;
    pst_digest *digest;
    if (size >= kept && pst_digest_create(&digest, NULL) == 0) {
        char *copy = malloc(size);
        demand(copy != NULL);
        memcpy(copy, data, size);
        memset(copy + size - kept, '0', PST_DIGEST_DIGITS);
        pst_digest_begin(digest);
        pst_digest_add(digest, copy, size);
        pst_digest_end(digest, copy + size - kept);
        parse(copy, size);
        pst_digest_destroy(digest);
        free(copy);
    }
    demand(pst_heap_live_count() == live);
    return 0;
}
