/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the emulator. One lock of the runtime covers everything: at any time one thread of the process carries out one
 * block of one kernel.
 */
#ifndef PST_EMULATED_EMULATOR_H
#define PST_EMULATED_EMULATOR_H

#include "vendor.h"

enum pst_emulated_error {
    EMULATED_OK,
    EMULATED_MEMORY,   /* out of memory */
    EMULATED_INVALID,  /* a call that cannot be right */
    EMULATED_KERNEL,   /* a kernel did what it must not; lasts */
    EMULATED_INJECTED, /* as a test ordered */
    EMULATED_NO_DEVICE,
    EMULATED_NO_DRIVER,
    EMULATED_CAPTURE /* a call that a capture cannot hold, or into one that such a call has spoilt */
};

enum { PST_EMULATED_WARP = 32, PST_EMULATED_MAX_THREADS = 1024 };

struct pst_emulated_grid {
    const char *name;
    const void *kernel; /* the function */
    dim3 grid, block;
    size_t shared_bytes;
    std::function<void()> thread;
};

/* Fills memory with what is not a number in any format. */
void pst_emulated_poison(void *memory, size_t bytes);
uint64_t pst_emulated_random(void);
/* 0 <= result < n. */
uint64_t pst_emulated_random_below(uint64_t n);

/* The line that pst_emulated_message gives. Returns error. */
int pst_emulated_say(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Carries out a kernel. 0, or EMULATED_KERNEL with its line. */
int pst_emulated_run_grid(const pst_emulated_grid &grid);
/* Ends the kernel that runs, from one of its threads. */
[[noreturn]] void pst_emulated_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Whether all of this is in the block's shared memory. */
bool pst_emulated_is_shared(const void *memory, size_t bytes);

/* warp.cpp: what comes of 32 offers of one kind. */
void pst_emulated_complete(pst_emulated_offer *offers[PST_EMULATED_WARP], uint64_t results[PST_EMULATED_WARP]);

#endif
