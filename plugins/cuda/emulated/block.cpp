/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels, block after block in any order. Every thread of a block is a fiber; it runs until it has to wait for others (at a barrier, in a
 * warp) or leaves, and then hands on to the next one of the queue. Whoever comes last sets all that waited free, in an order
 * drawn anew each time: a kernel that lacks a barrier meets an order that shows it. A queue that is empty before all have
 * left means that some wait for what never comes.
 *
 * Shared memory: dynamic memory is a piece that ends at a page which cannot be touched; static arrays are the thread-local
 * variables of this library (it must have no others), so that they are found through the program header of its thread-local
 * storage. Both hold what is not a number when a block starts.
 */
#include "emulator.h"
#include "fiber.h"

#include <algorithm>
#include <link.h>
#include <map>
#include <numeric>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

pst_emulated_place pst_emulated_here;

enum thread_state { THREAD_READY, THREAD_BARRIER, THREAD_WARP, THREAD_LEFT };

struct async_copy {
    void *to;
    const void *from; /* NULL: zeros */
    bool done;
};

struct emulated_thread {
    pst_fiber fiber;
    bool started; /* its fiber waits at the end of an earlier block's thread */
    uint3 index;
    thread_state state;
    int line;
    pst_emulated_offer offer;
    uint64_t result;
    std::vector<async_copy> copies;
    std::vector<size_t> groups; /* of committed copies: where each ends */
};

/* Lanes that wait for the others, and at what. */
struct warp_state {
    uint32_t waiting, left;
    int line;
    pst_emulated_collective what;
};

static struct {
    const pst_emulated_grid *grid;
    emulated_thread threads[PST_EMULATED_MAX_THREADS];
    uint16_t queue[PST_EMULATED_MAX_THREADS]; /* a ring */
    uint32_t head, tail;
    uint32_t count, left, at_barrier;
    int barrier_line;
    warp_state warps[PST_EMULATED_MAX_THREADS / PST_EMULATED_WARP];
    emulated_thread *now;
    bool failed;
    pst_fiber main;
    char *dynamic; /* where this kernel's begins */
    char *static_begin, *static_end;
} block;

/* ---- The queue ---- */

static void push(uint32_t thread)
{
    block.threads[thread].state = THREAD_READY;
    block.queue[block.tail++ % PST_EMULATED_MAX_THREADS] = (uint16_t)thread;
}

/* Threads first.. to the queue in any order. */
static void push_shuffled(uint32_t first, uint32_t count)
{
    uint16_t order[PST_EMULATED_MAX_THREADS];
    uint64_t bits = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (i % 4 == 0)
            bits = pst_emulated_random();
        const uint32_t j = (uint32_t)((bits & 0xffff) * (i + 1) >> 16);
        bits >>= 16;
        order[i] = order[j];
        order[j] = (uint16_t)(first + i);
    }
    for (uint32_t i = 0; i < count; i++)
        push(order[i]);
}

/* The thread that runs gives way; it returns when it is its turn again. */
static void give_way(void)
{
    emulated_thread *self = block.now;
    pst_fiber *to = &block.main;
    block.now = NULL;
    if (block.head != block.tail) {
        block.now = &block.threads[block.queue[block.head++ % PST_EMULATED_MAX_THREADS]];
        pst_emulated_here.thread = block.now->index;
        to = &block.now->fiber;
    }
    if (to != &self->fiber)
        pst_fiber_switch(&self->fiber, to);
}

/* ---- What threads call ---- */

void pst_emulated_fault(const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const pst_emulated_place &here = pst_emulated_here;
    if (block.now == NULL) { /* the host's side of the plugin is checked as well */
        fprintf(stderr, "emulator: %s\n", text);
        abort();
    }
    pst_emulated_say(EMULATED_KERNEL, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): %s", block.grid->name,
                     here.block.x, here.block.y, here.block.z, here.thread.x, here.thread.y, here.thread.z, text);
    block.failed = true;
    emulated_thread *self = block.now;
    block.now = NULL;
    pst_fiber_switch(&self->fiber, &block.main);
    __builtin_unreachable(); /* nobody comes back to a kernel that failed */
}

void pst_emulated_barrier(int line)
{
    if (block.left > 0)
        pst_emulated_fault("waits at the barrier of line %d, which %u threads that have left never reach", line,
                           block.left);
    if (block.at_barrier > 0 && block.barrier_line != line)
        pst_emulated_fault("is at the barrier of line %d while others are at that of line %d", line,
                           block.barrier_line);
    block.barrier_line = line;
    block.now->line = line;
    block.now->state = THREAD_BARRIER;
    if (++block.at_barrier == block.count) {
        block.at_barrier = 0;
        push_shuffled(0, block.count);
    }
    give_way();
}

uint64_t pst_emulated_together(const pst_emulated_offer &offer)
{
    emulated_thread *self = block.now;
    const uint32_t number = (uint32_t)(self - block.threads), warp = number / PST_EMULATED_WARP;
    const uint32_t first = warp * PST_EMULATED_WARP;
    if (offer.mask != 0xffffffffu)
        pst_emulated_fault("line %d: not all lanes are in the mask %x", offer.line, offer.mask);
    if (first + PST_EMULATED_WARP > block.count)
        pst_emulated_fault("line %d: a warp of %u lanes", offer.line, block.count - first);
    warp_state &state = block.warps[warp];
    if (state.left > 0)
        pst_emulated_fault("line %d: waits for a lane that has left", offer.line);
    if (state.waiting > 0 && (state.line != offer.line || state.what != offer.what))
        pst_emulated_fault("is at line %d while another lane of its warp is at line %d", offer.line, state.line);
    state.line = offer.line;
    state.what = offer.what;
    self->offer = offer;
    self->line = offer.line;
    self->state = THREAD_WARP;
    if (++state.waiting == PST_EMULATED_WARP) {
        state.waiting = 0;
        pst_emulated_offer *offers[PST_EMULATED_WARP];
        uint64_t results[PST_EMULATED_WARP];
        for (uint32_t i = 0; i < PST_EMULATED_WARP; i++)
            offers[i] = &block.threads[first + i].offer;
        pst_emulated_complete(offers, results);
        for (uint32_t i = 0; i < PST_EMULATED_WARP; i++)
            block.threads[first + i].result = results[i];
        push_shuffled(first, PST_EMULATED_WARP);
    }
    give_way();
    return self->result;
}

void *pst_emulated_dynamic_shared()
{
    return block.dynamic;
}

bool pst_emulated_is_shared(const void *memory, size_t bytes)
{
    const char *begin = (const char *)memory, *end = begin + bytes;
    return (begin >= block.static_begin && end <= block.static_end) ||
           (begin >= block.dynamic && end <= block.dynamic + block.grid->shared_bytes);
}

static void carry_out(async_copy &copy)
{
    if (copy.done)
        return;
    if (copy.from != NULL)
        memcpy(copy.to, copy.from, 16);
    else
        memset(copy.to, 0, 16);
    copy.done = true;
}

/* A copy is done at any time from here to the wait for it: here as often as there, so that who reads too early finds what was
 * there before, and who begins it while others still read what it replaces, what comes next. */
void pst_copy_async_16(void *shared, const void *global, bool there)
{
    if ((uintptr_t)shared % 16 != 0 || (uintptr_t)global % 16 != 0)
        pst_emulated_fault("an asynchronous copy from %p to %p: not aligned to 16 bytes", global, shared);
    if (!pst_emulated_is_shared(shared, 16))
        pst_emulated_fault("an asynchronous copy to %p, which is not in shared memory", shared);
    async_copy copy = {shared, there ? global : NULL, false};
    if (pst_emulated_random() >> 63 != 0)
        carry_out(copy);
    block.now->copies.push_back(copy);
}

void pst_copy_async_commit()
{
    block.now->groups.push_back(block.now->copies.size());
}

void pst_emulated_copy_wait(int pending)
{
    emulated_thread *self = block.now;
    if (self->groups.size() <= (size_t)pending)
        return;
    const size_t groups = self->groups.size() - (size_t)pending, copies = self->groups[groups - 1];
    for (size_t i = 0; i < copies; i++)
        carry_out(self->copies[i]);
    self->copies.erase(self->copies.begin(), self->copies.begin() + (ptrdiff_t)copies);
    self->groups.erase(self->groups.begin(), self->groups.begin() + (ptrdiff_t)groups);
    for (size_t &end : self->groups)
        end -= copies;
}

/* ---- Blocks ---- */

static void leave(void)
{
    if (block.at_barrier > 0)
        pst_emulated_fault("leaves while %u threads wait at the barrier of line %d", block.at_barrier,
                           block.barrier_line);
    if (block.now->copies.size() > 0)
        pst_emulated_fault("leaves with asynchronous copies that it has not waited for");
    block.now->groups.clear();
    block.now->state = THREAD_LEFT;
    block.warps[(block.now - block.threads) / PST_EMULATED_WARP].left++;
    block.left++;
    give_way();
}

static void thread_entry()
{
    emulated_thread *self = block.now;
    pst_fiber_entered(&self->fiber);
    for (;;) { /* once per block */
        block.grid->thread();
        leave();
    }
}

static int find_tls(struct dl_phdr_info *info, size_t size, void *context)
{
    (void)size;
    (void)context;
    bool ours = false;
    const uintptr_t here = (uintptr_t)&block;
    const ElfW(Phdr) *tls = NULL;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        const uintptr_t begin = info->dlpi_addr + header->p_vaddr;
        ours |= header->p_type == PT_LOAD && here >= begin && here < begin + header->p_memsz;
        if (header->p_type == PT_TLS)
            tls = header;
    }
    if (!ours)
        return 0;
    if (tls != NULL && info->dlpi_tls_data != NULL) {
        block.static_begin = (char *)info->dlpi_tls_data;
        block.static_end = block.static_begin + tls->p_memsz;
    }
    return 1;
}

/* Makes this thread's copy of the library's thread-local storage come into being. */
static void touch_static_shared(void)
{
    __shared__ char any[1];
    __asm__ volatile("" ::"r"(any) : "memory");
}

static bool find_shared(size_t dynamic_bytes)
{
    static char *dynamic_end;
    if (dynamic_end == NULL) {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = 256 << 10;
        char *memory = (char *)mmap(NULL, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return false;
        if (mprotect(memory + page, bytes, PROT_READ | PROT_WRITE) != 0) {
            munmap(memory, bytes + 2 * page);
            return false;
        }
        dynamic_end = memory + page + bytes;
    }
    block.dynamic = dynamic_end - (dynamic_bytes + 15) / 16 * 16;
    touch_static_shared();
    block.static_begin = block.static_end = NULL;
    dl_iterate_phdr(find_tls, NULL);
    return true;
}

/* Why nobody can go on. */
static int deadlock(void)
{
    for (uint32_t i = 0; i < block.count; i++) {
        const emulated_thread *thread = &block.threads[i];
        if (thread->state == THREAD_WARP)
            return pst_emulated_say(EMULATED_KERNEL,
                                    "kernel %s: thread %u waits in its warp at line %d for lanes that never come",
                                    block.grid->name, i, thread->line);
    }
    return pst_emulated_say(EMULATED_KERNEL, "kernel %s: %u of %u threads wait at the barrier of line %d for ever",
                            block.grid->name, block.at_barrier, block.count, block.barrier_line);
}

/* Pieces of static shared memory that a kernel has been seen to write: only these need to be filled anew for its next
 * block, not what other kernels have. */
enum { PIECE_BYTES = 1024 };
typedef std::vector<size_t> pieces_of_kernel;
static std::map<const void *, pieces_of_kernel> written_pieces;

static size_t piece_bytes(size_t piece)
{
    const size_t left = (size_t)(block.static_end - block.static_begin) - piece * PIECE_BYTES;
    return left < PIECE_BYTES ? left : (size_t)PIECE_BYTES;
}

static void look_for_written_pieces(pieces_of_kernel &pieces)
{
    static const std::vector<char> poison(PIECE_BYTES, (char)0xff);
    const size_t count = ((size_t)(block.static_end - block.static_begin) + PIECE_BYTES - 1) / PIECE_BYTES;
    for (size_t piece = 0; piece < count; piece++)
        if (memcmp(block.static_begin + piece * PIECE_BYTES, poison.data(), piece_bytes(piece)) != 0 &&
            std::find(pieces.begin(), pieces.end(), piece) == pieces.end())
            pieces.push_back(piece);
}

static int run_block(const pieces_of_kernel &pieces)
{
    for (size_t piece : pieces)
        pst_emulated_poison(block.static_begin + piece * PIECE_BYTES, piece_bytes(piece));
    pst_emulated_poison(block.dynamic, block.grid->shared_bytes);
    block.head = block.tail = block.left = block.at_barrier = 0;
    memset(block.warps, 0, sizeof block.warps);
    push_shuffled(0, block.count);
    block.now = &block.threads[block.queue[block.head++]];
    pst_emulated_here.thread = block.now->index;
    pst_fiber_switch(&block.main, &block.now->fiber);
    if (block.failed)
        return EMULATED_KERNEL;
    return block.left == block.count ? EMULATED_OK : deadlock();
}

static bool prepare_threads(void)
{
    const dim3 &size = block.grid->block;
    for (uint32_t i = 0; i < block.count; i++) {
        emulated_thread *thread = &block.threads[i];
        if (thread->fiber.stack == NULL && !pst_fiber_create(&thread->fiber))
            return false;
        if (!thread->started)
            pst_fiber_start(&thread->fiber, thread_entry);
        thread->started = true;
        thread->index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    }
    return true;
}

/* Fibers of a kernel that failed are somewhere in it: they begin anew. */
static void abandon_threads(void)
{
    for (emulated_thread &thread : block.threads) {
        thread.started = false;
        thread.copies.clear();
        thread.groups.clear();
    }
}

/* By which all of so many blocks are met in an order drawn anew: forwards, backwards, or by leaps. */
static uint64_t step_over(uint64_t blocks)
{
    const uint64_t kind = pst_emulated_random_below(4);
    if (kind < 2 || blocks < 3)
        return kind == 0 ? 1 : blocks > 1 ? blocks - 1 : 1;
    const uint64_t step = 1 + pst_emulated_random_below(blocks - 1);
    return std::gcd(step, blocks) == 1 ? step : 1;
}

int pst_emulated_run_grid(const pst_emulated_grid &grid)
{
    block.grid = &grid;
    block.count = grid.block.x * grid.block.y * grid.block.z;
    block.failed = false;
    pst_fiber_main(&block.main);
    if (!find_shared(grid.shared_bytes) || !prepare_threads())
        return pst_emulated_say(EMULATED_MEMORY, "no memory for the threads of kernel %s", grid.name);
    pst_emulated_place &here = pst_emulated_here;
    here.block_size = grid.block;
    here.grid_size = grid.grid;
    pst_emulated_poison(block.static_begin, (size_t)(block.static_end - block.static_begin));
    pieces_of_kernel &pieces = written_pieces[grid.kernel];
    int error = EMULATED_OK;
    const uint64_t blocks = (uint64_t)grid.grid.x * grid.grid.y * grid.grid.z, step = step_over(blocks);
    uint64_t block_number = pst_emulated_random_below(blocks);
    for (uint64_t n = 0; n < blocks && error == EMULATED_OK; n++, block_number = (block_number + step) % blocks) {
        const uint64_t row = block_number / grid.grid.x;
        here.block = {(uint32_t)(block_number % grid.grid.x), (uint32_t)(row % grid.grid.y),
                      (uint32_t)(row / grid.grid.y)};
        error = run_block(pieces);
        if (n == 0)
            look_for_written_pieces(pieces);
    }
    look_for_written_pieces(pieces);
    if (error != EMULATED_OK)
        abandon_threads();
    return error;
}

__attribute__((destructor)) static void release_threads(void)
{
    for (emulated_thread &thread : block.threads)
        pst_fiber_destroy(&thread.fiber);
}
