/* SPDX-License-Identifier: Apache-2.0 */
/* Threads of execution that give way to each other by a call, in nanoseconds. Each has a stack of its own between pages that
 * cannot be touched. The one that the operating system started is `pst_fiber_main`. */
#ifndef PST_EMULATED_FIBER_H
#define PST_EMULATED_FIBER_H

#include <stddef.h>

struct pst_fiber {
    void *state; /* the stack pointer, or a ucontext_t */
    char *stack; /* lowest usable byte */
    size_t stack_bytes;
    void *fake_stack, *thread; /* of the sanitizers */
};

/* Memory for its stack. False if there is none. */
bool pst_fiber_create(pst_fiber *fiber);
void pst_fiber_destroy(pst_fiber *fiber);
/* The next switch to it begins `entry`, which never returns; whatever it did before is forgotten. */
void pst_fiber_start(pst_fiber *fiber, void (*entry)());
/* What stands for the caller, before its first switch; its stack is forgotten by nobody. */
void pst_fiber_main(pst_fiber *fiber);
void pst_fiber_switch(pst_fiber *from, pst_fiber *to);
/* The first thing that an entry calls. */
void pst_fiber_entered(pst_fiber *self);

#endif
