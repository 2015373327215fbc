/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The emulator's runtime: memory, devices, what tests order. Every allocation is a mapping of its own that ends at a page which
 * cannot be touched, full of what is not a number at first; the few bytes left over at its ends are looked at when it is given
 * back. streams.cpp carries out work.
 *
 * A lock covers all of it; kernels run under it.
 */
#include "runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

namespace emulated
{
std::mutex lock;
std::map<uintptr_t, allocation> memory;
size_t shared_limit = 227 << 10;
int sticky, untold;
int reach::depth;
} // namespace emulated

using namespace emulated;

namespace
{
uint64_t random_state = 0x9e3779b97f4a7c15u;
bool protecting;
uint64_t device_bytes = 1ull << 30;
int devices = 1, current_device;
uint64_t calls[PST_EMULATED_CALLS], fail_at[PST_EMULATED_CALLS];
uint64_t most_device_bytes;
std::string blas_file; /* "": none */
int last_error;
char message[512];
const unsigned char edge_byte = 0xa5;
} // namespace

/* ---- Errors and chance ---- */

int pst_emulated_say(int error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return error;
}

uint64_t pst_emulated_random(void) /* xorshift64* */
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1du;
}

uint64_t pst_emulated_random_below(uint64_t n)
{
    return pst_emulated_random() % n;
}

void pst_emulated_poison(void *at, size_t bytes)
{
    if (bytes > 0)
        memset(at, 0xff, bytes);
}

int emulated::failed(int error)
{
    if (error != EMULATED_OK)
        last_error = error;
    return error;
}

bool emulated::injected(pst_emulated_call call)
{
    calls[call]++;
    if (fail_at[call] == 0 || --fail_at[call] > 0)
        return false;
    pst_emulated_say(EMULATED_INJECTED, "an injected failure");
    return true;
}

int emulated::ready(void)
{
    if (devices < 0)
        return EMULATED_NO_DRIVER;
    return devices == 0 ? (int)EMULATED_NO_DEVICE : sticky;
}

/* ---- Memory ---- */

static void protect_all(int protection)
{
    for (auto &entry : memory)
        if (entry.second.kind == KIND_DEVICE)
            mprotect(entry.second.mapping, entry.second.mapping_bytes, protection);
}

reach::reach()
{
    if (protecting && depth++ == 0)
        protect_all(PROT_READ | PROT_WRITE);
}

reach::~reach()
{
    if (protecting && --depth == 0)
        protect_all(PROT_NONE);
}

static uint64_t used_bytes(int device)
{
    uint64_t sum = 0;
    for (auto &entry : memory)
        if (entry.second.kind == KIND_DEVICE && entry.second.device == device)
            sum += entry.second.bytes;
    return sum;
}

const allocation *emulated::find(const void *address, size_t bytes, bool *partly)
{
    const uintptr_t at = (uintptr_t)address;
    *partly = false;
    auto next = memory.upper_bound(at);
    if (next != memory.begin()) {
        auto here = std::prev(next);
        if (at < here->first + here->second.bytes) {
            *partly = at + bytes > here->first + here->second.bytes;
            return *partly ? NULL : &here->second;
        }
    }
    *partly = next != memory.end() && at + bytes > next->first;
    return NULL;
}

static int map_memory(memory_kind kind, size_t bytes, void **out)
{
    if (bytes == 0)
        return pst_emulated_say(EMULATED_INVALID, "an allocation of nothing");
    if (kind == KIND_DEVICE && (bytes > device_bytes || used_bytes(current_device) > device_bytes - bytes))
        return pst_emulated_say(EMULATED_MEMORY, "out of memory");
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), usable = (bytes + 255 + page) / page * page;
    if (usable < bytes)
        return pst_emulated_say(EMULATED_MEMORY, "out of memory");
    char *mapping = (char *)mmap(NULL, usable + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED)
        return pst_emulated_say(EMULATED_MEMORY, "out of memory");
    mapping += page;
    if (mprotect(mapping, usable, PROT_READ | PROT_WRITE) != 0) {
        munmap(mapping - page, usable + 2 * page);
        return pst_emulated_say(EMULATED_MEMORY, "out of memory");
    }
    char *at = mapping + usable - (bytes + 255) / 256 * 256; /* as near to the end as the alignment allows */
    memset(mapping, edge_byte, (size_t)(at - mapping));
    pst_emulated_poison(at, bytes);
    memset(at + bytes, edge_byte, (size_t)(mapping + usable - at) - bytes);
    memory[(uintptr_t)at] = {kind, bytes, mapping, usable, current_device};
    if (kind == KIND_DEVICE) {
        const uint64_t used = used_bytes(current_device);
        most_device_bytes = used > most_device_bytes ? used : most_device_bytes;
        if (protecting && reach::depth == 0)
            mprotect(mapping, usable, PROT_NONE);
    }
    *out = at;
    return EMULATED_OK;
}

static bool edges_are_whole(const char *at, const allocation &a)
{
    for (const char *p = a.mapping; p < at; p++)
        if ((unsigned char)*p != edge_byte)
            return false;
    for (const char *p = at + a.bytes; p < a.mapping + a.mapping_bytes; p++)
        if ((unsigned char)*p != edge_byte)
            return false;
    return true;
}

static void unmap_memory(const allocation &a)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap(a.mapping - page, a.mapping_bytes + 2 * page);
}

/* ---- Devices and memory as calls ---- */

bool pst_vendor_failed(pst_vendor_error error)
{
    return error != EMULATED_OK;
}

bool pst_vendor_out_of_memory(pst_vendor_error error)
{
    return error == EMULATED_MEMORY;
}

bool pst_vendor_absent(pst_vendor_error error)
{
    return error == EMULATED_NO_DEVICE || error == EMULATED_NO_DRIVER;
}

bool pst_vendor_no_driver(pst_vendor_error error)
{
    return error == EMULATED_NO_DRIVER;
}

void pst_vendor_versions(int *driver, int *runtime)
{
    *driver = devices < 0 ? 0 : 1000;
    *runtime = 1000;
}

const char *pst_vendor_error_text(pst_vendor_error error)
{
    switch (error) {
    case EMULATED_OK: return "no error";
    case EMULATED_MEMORY: return "out of memory";
    case EMULATED_NO_DEVICE: return "no device was ordered";
    case EMULATED_NO_DRIVER: return "no driver was ordered";
    default: return message;
    }
}

pst_vendor_error pst_vendor_last_error(void)
{
    const guard held(lock);
    const int error = sticky != EMULATED_OK ? sticky : last_error;
    last_error = EMULATED_OK;
    return error;
}

pst_vendor_error pst_vendor_device_count(int *count)
{
    const guard held(lock);
    if (devices <= 0)
        return failed(ready());
    *count = devices;
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_get_device(int *number)
{
    const guard held(lock);
    *number = current_device;
    return failed(ready());
}

pst_vendor_error pst_vendor_set_device(int number)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    if (number < 0 || number >= devices)
        return failed(pst_emulated_say(EMULATED_INVALID, "no device %d", number));
    current_device = number;
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_get_properties(pst_vendor_properties *out, int number)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    if (number < 0 || number >= devices)
        return failed(pst_emulated_say(EMULATED_INVALID, "no device %d", number));
    *out = {};
    snprintf(out->model, sizeof out->model, "emulated on the host");
    out->compute_major = 9;
    out->processors = 4;
    out->shared_bytes = shared_limit;
    out->cache_bytes = 4 << 20;
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_memory_info(size_t *free_bytes, size_t *total_bytes)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    const uint64_t used = used_bytes(current_device);
    *free_bytes = used < device_bytes ? device_bytes - used : 0;
    *total_bytes = device_bytes;
    return EMULATED_OK;
}

static int allocate(memory_kind kind, void **out, size_t bytes)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    if (int error = outside_captures())
        return failed(error);
    if (injected(PST_EMULATED_ALLOCATE))
        return failed(EMULATED_MEMORY);
    return failed(map_memory(kind, bytes, out));
}

/* Waits for all that runs, as the vendor does. */
static int release(memory_kind kind, void *at)
{
    const guard held(lock);
    if (at == NULL)
        return EMULATED_OK;
    if (int error = outside_captures())
        return failed(error);
    advance_all();
    auto found = memory.find((uintptr_t)at);
    if (found == memory.end() || found->second.kind != kind)
        return failed(pst_emulated_say(EMULATED_INVALID, "%p was not allocated so", at));
    const allocation a = found->second;
    bool whole = true;
    if (kind != KIND_REGISTERED) {
        const reach all;
        whole = edges_are_whole((const char *)at, a);
    }
    memory.erase(found);
    if (kind != KIND_REGISTERED)
        unmap_memory(a);
    if (whole)
        return failed(sticky);
    sticky = pst_emulated_say(EMULATED_KERNEL, "somebody wrote beyond the ends of %p, %zu bytes", at, a.bytes);
    return failed(sticky);
}

pst_vendor_error pst_vendor_allocate(void **out, size_t bytes)
{
    return allocate(KIND_DEVICE, out, bytes);
}

pst_vendor_error pst_vendor_free(void *at)
{
    return release(KIND_DEVICE, at);
}

pst_vendor_error pst_vendor_allocate_host(void **out, size_t bytes)
{
    return allocate(KIND_HOST, out, bytes);
}

pst_vendor_error pst_vendor_free_host(void *at)
{
    return release(KIND_HOST, at);
}

/* Memory is pinned by pages, and no page twice: whose neighbour on a page is registered cannot be. */
static bool shares_a_page(const void *at, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)at / page,
                    end = ((uintptr_t)at + bytes + page - 1) / page;
    for (auto &entry : memory)
        if (entry.second.kind == KIND_REGISTERED && entry.first / page < end &&
            (entry.first + entry.second.bytes + page - 1) / page > begin)
            return true;
    return false;
}

pst_vendor_error pst_vendor_register_host(void *at, size_t bytes)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    if (int error = outside_captures())
        return failed(error);
    if (injected(PST_EMULATED_REGISTER))
        return failed(EMULATED_INJECTED);
    bool partly;
    if (at == NULL || bytes == 0 || find(at, bytes, &partly) != NULL || partly || shares_a_page(at, bytes))
        return failed(pst_emulated_say(EMULATED_INVALID, "memory that is registered already, or none"));
    memory[(uintptr_t)at] = {KIND_REGISTERED, bytes, NULL, 0, current_device};
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_unregister_host(void *at)
{
    return release(KIND_REGISTERED, at);
}

/* ---- Control ---- */

void pst_emulated_seed(uint64_t seed)
{
    const guard held(lock);
    random_state = seed * 0x9e3779b97f4a7c15u ^ 0xd1b54a32d192ed03u;
    if (random_state == 0)
        random_state = 1;
}

void pst_emulated_protect(bool on)
{
    const guard held(lock);
    protecting = on;
    protect_all(on ? PROT_NONE : PROT_READ | PROT_WRITE);
}

void pst_emulated_memory(uint64_t bytes)
{
    const guard held(lock);
    device_bytes = bytes;
}

void pst_emulated_shared_limit(size_t bytes)
{
    const guard held(lock);
    shared_limit = bytes < (227 << 10) ? bytes : 227 << 10;
}

void pst_emulated_devices(int count)
{
    const guard held(lock);
    devices = count;
    current_device = 0;
}

void pst_emulated_blas(const char *file)
{
    const guard held(lock);
    blas_file = file != NULL ? file : "";
}

const char *pst_vendor_blas_file(unsigned number)
{
    const guard held(lock);
    return number == 0 && !blas_file.empty() ? blas_file.c_str() : NULL;
}

void pst_emulated_fail(pst_emulated_call call, uint64_t nth)
{
    const guard held(lock);
    fail_at[call] = nth;
}

uint64_t pst_emulated_calls(pst_emulated_call call)
{
    const guard held(lock);
    return calls[call];
}

void pst_emulated_reset(void)
{
    const guard held(lock);
    forget_work();
    /* A broken device lets nothing go: what the host registered may be gone by now. */
    for (auto at = memory.begin(); at != memory.end();)
        at = at->second.kind == KIND_REGISTERED ? memory.erase(at) : std::next(at);
    sticky = untold = last_error = EMULATED_OK;
    memset(fail_at, 0, sizeof fail_at);
    message[0] = '\0';
    most_device_bytes = used_bytes(0);
}

void pst_emulated_count(pst_emulated_counts *out)
{
    const guard held(lock);
    pst_emulated_counts counts = {};
    for (auto &entry : memory) {
        const allocation &a = entry.second;
        counts.device_memory += a.kind == KIND_DEVICE;
        counts.host_memory += a.kind == KIND_HOST;
        counts.registered += a.kind == KIND_REGISTERED;
        counts.device_bytes += a.kind == KIND_DEVICE ? a.bytes : 0;
        counts.host_bytes += a.kind == KIND_HOST ? a.bytes : 0;
    }
    count_streams(&counts);
    counts.most_device_bytes = most_device_bytes;
    *out = counts;
}

const char *pst_emulated_message(void)
{
    return message;
}
