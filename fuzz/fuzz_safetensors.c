/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a safetensors file: no crash, no leak, and what is accepted keeps the format's promises:
 * tensors lie one behind the other from the end of the header to the end of the file, each as large as its
 * shape says.
 */
#include <stdlib.h>
#include <string.h>

#include "base/heap.h"
#include "store/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(int condition)
{
    if (!condition)
        abort();
}

static void check(const pst_safetensors *header, size_t header_bytes, uint64_t file_bytes)
{
    demand(header->data_begin == 8 + header_bytes);
    uint64_t end = header->data_begin;
    for (size_t i = 0; i < header->count; i++) {
        const pst_tensor *tensor = &header->tensors[i];
        uint64_t bytes = 0;
        demand(tensor->rank <= PST_MAX_RANK && tensor->offset == end);
        demand(pst_tensor_shape_bytes(tensor->dtype, tensor->shape, tensor->rank, &bytes) == 0);
        demand(bytes == tensor->bytes && strlen(tensor->name) < header_bytes);
        end += bytes;
    }
    demand(end == file_bytes && header->data_bytes == end - header->data_begin);
    for (size_t i = 0; i < header->metadata_count; i++)
        demand(strlen(header->metadata[i].key) + strlen(header->metadata[i].value) < header_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int64_t live = pst_heap_live_count();
    uint64_t header_bytes = 0;
    pst_safetensors header;
    pst_error err;
    if (pst_safetensors_header_bytes(data, size, "fuzz", &header_bytes, &err) == 0 &&
        pst_safetensors_parse((const char *)data + 8, header_bytes, size, "fuzz", &header, &err) == 0) {
        check(&header, header_bytes, size);
        pst_safetensors_free(&header);
    }
    /* The same text as a header alone, before as much data as its last tensor asks for: reaches past the
     * length checks. */
    for (uint64_t extra = 0; extra < 64 && size > 0; extra += 1 + extra) {
        if (pst_safetensors_parse((const char *)data, size, 8 + size + extra, "fuzz", &header, &err) == 0) {
            check(&header, size, 8 + size + extra);
            pst_safetensors_free(&header);
        }
    }
    demand(pst_heap_live_count() == live);
    return 0;
}
