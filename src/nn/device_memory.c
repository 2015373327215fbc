/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of a pass; see device_memory.h. */
#include "nn/device_memory.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "device/device.h"
#include "os/memory.h"

int pst_nn_take_memory(pst_device *device, pst_device_memory kind, uint64_t bytes, const char *what, void **out,
                       pst_error *err)
{
    if (!pst_nn_is_apart(device))
        return pst_memory_map(bytes, what, out, err);
    int status = device->ops->allocate(device, kind, bytes ? bytes : 1, out);
    if (status >= 0)
        return 0;
    char taking[160];
    snprintf(taking, sizeof taking, "taking %.1f MB of %s memory for %.100s", (double)bytes / 1e6,
             kind == PST_MEMORY_DEVICE ? "its" : "pinned", what);
    return pst_device_fail(err, device, status, taking);
}

void pst_nn_give_memory(pst_device *device, pst_device_memory kind, void *memory, uint64_t bytes)
{
    if (memory == NULL)
        return;
    if (!pst_nn_is_apart(device))
        pst_memory_unmap(memory, bytes);
    else
        device->ops->release(device, kind, memory, bytes ? bytes : 1);
}

int pst_mirror_create(pst_device *device, uint64_t bytes, const char *what, pst_mirror *out, pst_error *err)
{
    pst_mirror mirror = {.bytes = bytes ? bytes : 1};
    if (!pst_nn_is_apart(device)) {
        mirror.host = mirror.there = pst_heap_calloc(mirror.bytes, 1);
        if (mirror.host == NULL)
            return pst_fail_memory(err, what, mirror.bytes);
        *out = mirror;
        return 0;
    }
    PST_TRY(pst_nn_take_memory(device, PST_MEMORY_HOST, mirror.bytes, what, &mirror.host, err));
    int status = pst_nn_take_memory(device, PST_MEMORY_DEVICE, mirror.bytes, what, &mirror.there, err);
    if (status < 0) {
        pst_mirror_destroy(device, &mirror);
        return status;
    }
    memset(mirror.host, 0, mirror.bytes);
    *out = mirror;
    return 0;
}

void pst_mirror_destroy(pst_device *device, pst_mirror *mirror)
{
    if (pst_nn_is_apart(device)) {
        pst_nn_give_memory(device, PST_MEMORY_HOST, mirror->host, mirror->bytes);
        pst_nn_give_memory(device, PST_MEMORY_DEVICE, mirror->there, mirror->bytes);
    } else {
        pst_heap_free(mirror->host);
    }
    *mirror = (pst_mirror){0};
}

int pst_mirror_publish(pst_device *device, const pst_mirror *mirror, uint64_t offset, uint64_t bytes)
{
    if (bytes == 0 || !pst_nn_is_apart(device))
        return 0;
    return device->ops->copy(device, NULL, (char *)mirror->there + offset, (const char *)mirror->host + offset, bytes);
}

int pst_mirror_fetch(pst_device *device, const pst_mirror *mirror, uint64_t offset, uint64_t bytes)
{
    if (bytes == 0 || !pst_nn_is_apart(device))
        return 0;
    return device->ops->copy(device, NULL, (char *)mirror->host + offset, (const char *)mirror->there + offset, bytes);
}
