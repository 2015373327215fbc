/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device's memory, streams, events and copies. Every entry makes the device the thread's current one first: a process may
 * have several. A failure of the vendor's becomes an error code and a line that names the call.
 */
#include "blas.h"

#include <errno.h>
#include <new>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const uint64_t MOST_BYTES = UINT64_C(1) << 56; /* of an allocation */

int pst_cuda_fail(cuda_device *device, int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(device->error, sizeof device->error, format, arguments);
    va_end(arguments);
    return code;
}

int pst_cuda_code(pst_vendor_error error)
{
    if (!pst_vendor_failed(error))
        return 0;
    if (pst_vendor_out_of_memory(error))
        return -ENOMEM;
    return pst_vendor_absent(error) ? (int)PST_E_UNSUPPORTED : -EIO;
}

int pst_cuda_check(cuda_device *device, const char *what, pst_vendor_error error)
{
    if (!pst_vendor_failed(error))
        return 0;
    (void)pst_vendor_last_error(); /* reported here: not again by a later look */
    return pst_cuda_fail(device, pst_cuda_code(error), "%s:%d: %s: %s", PST_VENDOR_NAME, device->number, what,
                         pst_vendor_error_text(error));
}

int pst_cuda_enter(cuda_device *device)
{
    int current = -1;
    if (pst_vendor_failed(pst_vendor_get_device(&current)) || current != device->number)
        return pst_cuda_check(device, "making it the current device", pst_vendor_set_device(device->number));
    return 0;
}

int pst_cuda_enter_outside(cuda_device *device)
{
    if (device->recording)
        return pst_cuda_fail(
            device, PST_E_USAGE,
            "%s:%d: a call that cannot be recorded: operators, copies and fills of its compute stream can",
            PST_VENDOR_NAME, device->number);
    return pst_cuda_enter(device);
}

static const char *last_error(pst_device *device)
{
    return pst_cuda_of(device)->error;
}

/* ---- Memory ---- */

static int allocate(pst_device *base, pst_device_memory kind, uint64_t bytes, void **out)
{
    cuda_device *device = pst_cuda_of(base);
    if (int status = pst_cuda_enter_outside(device))
        return status;
    void *memory = NULL;
    const bool host = kind == PST_MEMORY_HOST;
    /* What no address space has is not asked for: a vendor that rounds such a size up might make it 0. */
    if (bytes == 0 || bytes > MOST_BYTES)
        return pst_cuda_fail(device, bytes == 0 ? -EINVAL : -ENOMEM, "%s:%d: an allocation of %llu bytes",
                             PST_VENDOR_NAME, device->number, (unsigned long long)bytes);
    const pst_vendor_error error =
        host ? pst_vendor_allocate_host(&memory, bytes) : pst_vendor_allocate(&memory, bytes);
    char what[80];
    snprintf(what, sizeof what, "allocating %llu bytes of %s memory", (unsigned long long)bytes,
             host ? "pinned host" : "device");
    if (int status = pst_cuda_check(device, what, error))
        return status;
    *out = memory;
    return 0;
}

static void release(pst_device *base, pst_device_memory kind, void *memory, uint64_t bytes)
{
    (void)bytes;
    cuda_device *device = pst_cuda_of(base);
    if (memory == NULL)
        return;
    (void)pst_cuda_enter(device); /* a device that has failed for good still takes back what it can, here and below */
    const bool host = kind == PST_MEMORY_HOST;
    (void)pst_cuda_check(device, "releasing memory", host ? pst_vendor_free_host(memory) : pst_vendor_free(memory));
}

static int register_host(pst_device *base, void *memory, uint64_t bytes)
{
    cuda_device *device = pst_cuda_of(base);
    if (int status = pst_cuda_enter_outside(device))
        return status;
    return pst_cuda_check(device, "registering host memory", pst_vendor_register_host(memory, bytes));
}

static void unregister_host(pst_device *base, void *memory)
{
    cuda_device *device = pst_cuda_of(base);
    (void)pst_cuda_enter(device);
    (void)pst_cuda_check(device, "unregistering host memory", pst_vendor_unregister_host(memory));
}

static int memory_info(pst_device *base, uint64_t *free_bytes, uint64_t *total_bytes)
{
    cuda_device *device = pst_cuda_of(base);
    size_t unused = 0, total = 0;
    if (int status = pst_cuda_enter_outside(device))
        return status;
    if (int status = pst_cuda_check(device, "asking for free memory", pst_vendor_memory_info(&unused, &total)))
        return status;
    *free_bytes = unused;
    *total_bytes = total;
    return 0;
}

int pst_cuda_may_wait(cuda_device *device, const char *what)
{
    if (!device->recording)
        return 0;
    return pst_cuda_fail(device, PST_E_UNSUPPORTED, "%s:%d: %s, which cannot be recorded", PST_VENDOR_NAME,
                         device->number, what);
}

/* Replaces *memory by a larger piece. */
static int grow(cuda_device *device, size_t bytes, void **memory, size_t *memory_bytes)
{
    if (int status = pst_cuda_may_wait(device, "more scratch memory than there is"))
        return status;
    /* What runs may still use the old piece; giving it back first keeps the peak low. */
    if (int status = pst_cuda_check(device, "waiting", pst_vendor_stream_synchronize(device->stream)))
        return status;
    void *old = *memory;
    *memory = NULL;
    *memory_bytes = 0;
    device->scratch_moves++;
    if (old != NULL)
        if (int status = pst_cuda_check(device, "releasing scratch memory", pst_vendor_free(old)))
            return status;
    void *larger = NULL;
    const size_t rounded = (bytes + 0xffff) & ~(size_t)0xffff;
    if (int status = pst_cuda_check(device, "allocating scratch memory", pst_vendor_allocate(&larger, rounded)))
        return status;
    *memory = larger;
    *memory_bytes = rounded;
    return 0;
}

int pst_cuda_scratch(cuda_device *device, size_t bytes, void **out)
{
    if (bytes > device->scratch_bytes)
        if (int status = grow(device, bytes, &device->scratch, &device->scratch_bytes))
            return status;
    device->recorded_scratch = true;
    *out = device->scratch;
    return 0;
}

int pst_cuda_carry(cuda_device *device, size_t bytes, bool holds)
{
    if (bytes > device->carry_bytes && holds)
        return pst_cuda_fail(device, PST_E_USAGE, "rows of a matrix without those before them");
    if (bytes > device->carry_bytes)
        if (int status = grow(device, bytes, &device->carry, &device->carry_bytes))
            return status;
    device->recorded_scratch = true;
    return 0;
}

/* ---- Streams and events: the vendor's handles behind the interface's names ---- */

static pst_vendor_stream stream_of(cuda_device *device, pst_device_stream *stream)
{
    return stream == NULL ? device->stream : (pst_vendor_stream)(void *)stream;
}

static pst_vendor_event event_of(pst_device_event *event)
{
    return (pst_vendor_event)(void *)event;
}

static int stream_create(pst_device *base, pst_device_stream **out)
{
    cuda_device *device = pst_cuda_of(base);
    pst_vendor_stream stream = NULL;
    if (int status = pst_cuda_enter_outside(device))
        return status;
    if (int status = pst_cuda_check(device, "making a stream", pst_vendor_stream_create(&stream)))
        return status;
    *out = (pst_device_stream *)(void *)stream;
    return 0;
}

static void stream_destroy(pst_device *base, pst_device_stream *stream)
{
    cuda_device *device = pst_cuda_of(base);
    if (stream == NULL)
        return;
    (void)pst_cuda_enter(device);
    (void)pst_cuda_check(device, "waiting for a stream", pst_vendor_stream_synchronize(stream_of(device, stream)));
    (void)pst_cuda_check(device, "destroying a stream", pst_vendor_stream_destroy(stream_of(device, stream)));
}

static int event_create(pst_device *base, pst_device_event **out)
{
    cuda_device *device = pst_cuda_of(base);
    pst_vendor_event event = NULL;
    if (int status = pst_cuda_enter_outside(device))
        return status;
    if (int status = pst_cuda_check(device, "making an event", pst_vendor_event_create(&event)))
        return status;
    *out = (pst_device_event *)(void *)event;
    return 0;
}

static void event_destroy(pst_device *base, pst_device_event *event)
{
    cuda_device *device = pst_cuda_of(base);
    if (event == NULL)
        return;
    (void)pst_cuda_enter(device);
    (void)pst_cuda_check(device, "destroying an event", pst_vendor_event_destroy(event_of(event)));
}

static int event_record(pst_device *base, pst_device_event *event, pst_device_stream *stream)
{
    cuda_device *device = pst_cuda_of(base);
    if (int status = pst_cuda_enter_outside(device))
        return status;
    return pst_cuda_check(device, "recording an event",
                          pst_vendor_event_record(event_of(event), stream_of(device, stream)));
}

static int stream_wait(pst_device *base, pst_device_stream *stream, pst_device_event *event)
{
    cuda_device *device = pst_cuda_of(base);
    if (int status = pst_cuda_enter_outside(device))
        return status;
    return pst_cuda_check(device, "making a stream wait for an event",
                          pst_vendor_stream_wait(stream_of(device, stream), event_of(event)));
}

static int event_wait(pst_device *base, pst_device_event *event)
{
    cuda_device *device = pst_cuda_of(base);
    if (int status = pst_cuda_enter_outside(device))
        return status;
    return pst_cuda_check(device, "waiting for an event", pst_vendor_event_synchronize(event_of(event)));
}

static int event_query(pst_device *base, pst_device_event *event)
{
    cuda_device *device = pst_cuda_of(base);
    bool done = false;
    if (int status = pst_cuda_enter_outside(device))
        return status;
    if (int status = pst_cuda_check(device, "asking for an event", pst_vendor_event_query(event_of(event), &done)))
        return status;
    return done ? 0 : 1;
}

/* What kernels found, once the compute stream has come so far. */
static int check_flags(cuda_device *device)
{
    volatile uint32_t *flags = device->flags;
    if (*flags == 0)
        return 0;
    *flags = 0;
    return pst_cuda_fail(device, PST_E_FORMAT, "%s:%d: an index of the weights names a group that is not there",
                         PST_VENDOR_NAME, device->number);
}

static int synchronize(pst_device *base, pst_device_stream *stream)
{
    cuda_device *device = pst_cuda_of(base);
    if (int status = pst_cuda_enter_outside(device))
        return status;
    const pst_vendor_stream which = stream_of(device, stream);
    if (int status = pst_cuda_check(device, "waiting for what runs", pst_vendor_stream_synchronize(which)))
        return status;
    return which == device->stream ? check_flags(device) : 0;
}

/* 0, or why a copy or fill has no place in the recording under way. */
static int check_recorded(cuda_device *device, pst_vendor_stream stream, const void *to, const void *from)
{
    if (!device->recording || (stream == device->stream && pst_vendor_knows(to) && pst_vendor_knows(from)))
        return 0;
    return pst_cuda_enter_outside(device);
}

static int copy(pst_device *base, pst_device_stream *stream, void *to, const void *from, uint64_t bytes)
{
    cuda_device *device = pst_cuda_of(base);
    if (bytes == 0)
        return 0;
    if (int status = pst_cuda_enter(device))
        return status;
    const pst_vendor_stream which = stream_of(device, stream);
    if (int status = check_recorded(device, which, to, from))
        return status;
    if (int status = pst_cuda_check(device, "a copy", pst_vendor_copy(to, from, bytes, which)))
        return status;
    /* The vendor waits where it has to copy by way of pinned memory; a device that reaches all of the host's memory does
     * not, and then the caller would have to leave it alone. */
    if (device->recording || (pst_vendor_knows(to) && pst_vendor_knows(from)))
        return 0;
    return pst_cuda_check(device, "a copy", pst_vendor_stream_synchronize(which));
}

static int fill(pst_device *base, pst_device_stream *stream, void *to, int byte, uint64_t bytes)
{
    cuda_device *device = pst_cuda_of(base);
    if (bytes == 0)
        return 0;
    if (int status = pst_cuda_enter(device))
        return status;
    const pst_vendor_stream which = stream_of(device, stream);
    if (int status = check_recorded(device, which, to, to))
        return status;
    if (!pst_vendor_knows(to)) { /* as a copy to such memory: it waits */
        if (int status = pst_cuda_check(device, "waiting", pst_vendor_stream_synchronize(which)))
            return status;
        memset(to, byte, bytes);
        return 0;
    }
    return pst_cuda_check(device, "a fill", pst_vendor_fill(to, byte, bytes, which));
}

/* ---- Opening and destroying ---- */

static void destroy(pst_device *base)
{
    cuda_device *device = pst_cuda_of(base);
    if (device == NULL)
        return;
    (void)pst_cuda_enter(device); /* a device that has failed refuses; what it still takes back is given back */
    pst_cuda_record_stop(device);
    /* Each of these may be absent: a device that was half opened. */
    if (device->stream != NULL)
        (void)pst_vendor_stream_synchronize(device->stream);
    pst_cuda_blas_close(device);
    (void)pst_vendor_free(device->scratch);
    (void)pst_vendor_free_host(device->flags);
    (void)pst_vendor_free(device->carry);
    if (device->stream != NULL)
        (void)pst_vendor_stream_destroy(device->stream);
    (void)pst_vendor_last_error();
    delete device;
}

static int open_parts(cuda_device *device)
{
    if (int status = pst_cuda_check(device, "making it the current device", pst_vendor_set_device(device->number)))
        return status;
    if (int status = pst_cuda_check(device, "asking for its properties",
                                    pst_vendor_get_properties(&device->properties, device->number)))
        return status;
    if (device->properties.compute_major < 8)
        return pst_cuda_fail(device, PST_E_UNSUPPORTED, "%s:%d: %s has compute capability %d.%d; 8.0 is the least",
                             PST_VENDOR_NAME, device->number, device->properties.model,
                             device->properties.compute_major, device->properties.compute_minor);
    if (int status = pst_cuda_check(device, "making a stream", pst_vendor_stream_create(&device->stream)))
        return status;
    void *memory = NULL;
    if (int status = pst_cuda_check(device, "allocating the flags", pst_vendor_allocate_host(&memory, 256)))
        return status;
    device->flags = (uint32_t *)memory;
    *device->flags = 0;
    return 0;
}

int pst_cuda_open_device(const pst_device_ops *ops, uint32_t number, pst_device **out, pst_error *err)
{
    if (int status = pst_cuda_check_number(number, err))
        return status;
    cuda_device *device = new (std::nothrow) cuda_device();
    if (device == NULL)
        return pst_cuda_error(err, -ENOMEM, "out of memory for a device");
    device->base.ops = ops;
    device->number = (int)number;
    if (int status = open_parts(device)) {
        status = pst_cuda_error(err, status, "%s", device->error);
        destroy(&device->base);
        return status;
    }
    *out = &device->base;
    return 0;
}

void pst_cuda_runtime_entries(pst_device_ops *ops)
{
    ops->last_error = last_error;
    ops->destroy = destroy;
    ops->allocate = allocate;
    ops->release = release;
    ops->register_host = register_host;
    ops->unregister_host = unregister_host;
    ops->memory_info = memory_info;
    ops->stream_create = stream_create;
    ops->stream_destroy = stream_destroy;
    ops->event_create = event_create;
    ops->event_destroy = event_destroy;
    ops->event_record = event_record;
    ops->stream_wait = stream_wait;
    ops->event_wait = event_wait;
    ops->event_query = event_query;
    ops->synchronize = synchronize;
    ops->copy = copy;
    ops->fill = fill;
}
