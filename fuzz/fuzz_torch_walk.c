/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as the pickle of a file of torch.save: no crash, no leak, and what is accepted is a tree without cycles whose
 * tensors lie inside of their storages. Storages "0" to "9" have 96 bytes each.
 */
#include <stdlib.h>
#include <string.h>

#include "base/heap.h"
#include "torch_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int64_t find(void *user, const char *key, uint64_t *out_bytes)
{
    (void)user;
    *out_bytes = 96;
    return key[0] >= '0' && key[0] <= '9' && key[1] == '\0' ? key[0] - '0' : -1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int64_t live = pst_heap_live_count();
    pst_torch_file file;
    pst_error err;
    if (pst_torch_walk(data, size, "fuzz", find, NULL, &file, &err) == 0) {
        torch_check_tree(&file);
        pst_torch_file_free(&file);
    } else {
        torch_demand(memchr(err.message, '\n', strlen(err.message)) == NULL);
    }
    torch_demand(pst_heap_live_count() == live);
    return 0;
}
