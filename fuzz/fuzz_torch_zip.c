/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a whole file of torch.save: no crash, no leak, and what is accepted has its records one behind the other
 * inside of the file, and storages that are records.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "store/zip_read.h"
#include "torch_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct memory {
    const uint8_t *data;
    size_t size;
} memory;

static int fetch(void *user, uint64_t offset, void *out, size_t bytes, pst_error *err)
{
    const memory *from = user;
    (void)err;
    torch_demand(offset <= from->size && bytes <= from->size - offset);
    memcpy(out, from->data + offset, bytes);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int64_t live = pst_heap_live_count();
    memory from = {data, size};
    pst_zip_source source = {.path = "fuzz", .file_bytes = size, .fetch = fetch, .user = &from};
    pst_torch_file file;
    pst_error err;
    if (pst_torch_source_read(&source, &file, &err) == 0) {
        uint64_t end = 0;
        for (size_t i = 0; i < file.record_count; i++) {
            const pst_zip_record *record = &file.records[i];
            torch_demand(record->header_offset >= end && record->offset > record->header_offset);
            end = record->offset + record->bytes;
            torch_demand(record->offset <= size && end <= size && strlen(record->name) < size);
        }
        for (size_t i = 0; i < file.storage_count; i++)
            torch_demand(file.storages[i].record < file.record_count &&
                         file.storages[i].bytes == file.records[file.storages[i].record].bytes);
        torch_check_tree(&file);
        pst_torch_file_free(&file);
    }
    torch_demand(pst_heap_live_count() == live);
    return 0;
}
