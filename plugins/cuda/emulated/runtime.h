/* SPDX-License-Identifier: Apache-2.0 */
/* What runtime.cpp (memory, devices, orders of tests) and streams.cpp (streams, events, work, graphs) share. All under the lock. */
#ifndef PST_EMULATED_RUNTIME_H
#define PST_EMULATED_RUNTIME_H

#include "control.h"
#include "emulator.h"

#include <map>
#include <mutex>

namespace emulated
{
enum memory_kind { KIND_DEVICE, KIND_HOST, KIND_REGISTERED };

struct allocation {
    memory_kind kind;
    size_t bytes;
    char *mapping; /* its usable pages; NULL: the caller's memory */
    size_t mapping_bytes;
    int device;
};

typedef std::lock_guard<std::mutex> guard;

extern std::mutex lock;
extern std::map<uintptr_t, allocation> memory;
extern size_t shared_limit;
extern int sticky; /* what a kernel did; every later call fails with it */
extern int untold; /* what a copy did: nothing is carried out until a call that waits, for whatever, has told it */

/* While one lives, the emulator may touch device memory. */
struct reach {
    static int depth;
    reach();
    ~reach();
};

/* Remembers a call's failure; returns it. */
int failed(int error);
/* Counts a call; whether it is the one that shall fail. */
bool injected(pst_emulated_call call);
/* What stands in the way of any call. */
int ready(void);
/* The allocation that holds these bytes, all of them; NULL with *partly if it ends inside, or NULL: ordinary memory. */
const allocation *find(const void *address, size_t bytes, bool *partly);

/* streams.cpp */

/* Does all that is queued anywhere. */
void advance_all(void);
/* A call that no stream may be capturing work for: it might wait. The captures under way are spoilt by it, as with the vendor. */
int outside_captures(void);
/* Drops what is queued and captured. */
void forget_work(void);
void count_streams(pst_emulated_counts *out);
} // namespace emulated

#endif
