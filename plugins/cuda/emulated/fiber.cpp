/* SPDX-License-Identifier: Apache-2.0 */
/* A switch saves the registers that a function must keep on the stack, and goes on with another stack. ucontext, which also
 * asks the kernel for the signal mask, does it where there are no lines for a processor here. */
#include "fiber.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define FIBER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FIBER_TSAN 1
#endif
#endif

#ifdef FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef FIBER_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#if defined(FIBER_ASAN) || defined(FIBER_TSAN)
static const size_t stack_bytes = 512 << 10;
#else
static const size_t stack_bytes = 128 << 10;
#endif

static size_t page_bytes(void)
{
    static const size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
    return bytes;
}

#if defined(__x86_64__)
extern "C" void pst_emulated_switch_stacks(void **from, void *to);
__asm__(".text\n"
        ".p2align 4\n"
        ".hidden pst_emulated_switch_stacks\n"
        ".globl pst_emulated_switch_stacks\n"
        ".type pst_emulated_switch_stacks, @function\n"
        "pst_emulated_switch_stacks:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size pst_emulated_switch_stacks, . - pst_emulated_switch_stacks\n");

static void prepare(pst_fiber *fiber, void (*entry)())
{
    /* From the top: a return address of nowhere, which the entry finds as after a call; the entry; six registers. */
    void **top = (void **)(void *)(fiber->stack + fiber->stack_bytes);
    *--top = NULL;
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    fiber->state = top;
}

static void change(pst_fiber *from, pst_fiber *to)
{
    pst_emulated_switch_stacks(&from->state, to->state);
}

static void forget(pst_fiber *fiber)
{
    fiber->state = NULL;
}
#else
#include <ucontext.h>

static ucontext_t *context_of(pst_fiber *fiber)
{
    if (fiber->state == NULL)
        fiber->state = new ucontext_t();
    return (ucontext_t *)fiber->state;
}

static void prepare(pst_fiber *fiber, void (*entry)())
{
    ucontext_t *context = context_of(fiber);
    getcontext(context);
    context->uc_stack.ss_sp = fiber->stack;
    context->uc_stack.ss_size = fiber->stack_bytes;
    context->uc_link = NULL;
    makecontext(context, entry, 0);
}

static void change(pst_fiber *from, pst_fiber *to)
{
    swapcontext(context_of(from), context_of(to));
}

static void forget(pst_fiber *fiber)
{
    delete (ucontext_t *)fiber->state;
    fiber->state = NULL;
}
#endif

bool pst_fiber_create(pst_fiber *fiber)
{
    *fiber = {};
    const size_t guard = page_bytes();
    char *memory =
        (char *)mmap(NULL, stack_bytes + 2 * guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return false;
    if (mprotect(memory + guard, stack_bytes, PROT_READ | PROT_WRITE) != 0) {
        munmap(memory, stack_bytes + 2 * guard);
        return false;
    }
    fiber->stack = memory + guard;
    fiber->stack_bytes = stack_bytes;
#ifdef FIBER_TSAN
    fiber->thread = __tsan_create_fiber(0);
#endif
    return true;
}

void pst_fiber_destroy(pst_fiber *fiber)
{
    if (fiber->stack != NULL) {
#ifdef FIBER_TSAN
        __tsan_destroy_fiber(fiber->thread);
#endif
        munmap(fiber->stack - page_bytes(), fiber->stack_bytes + 2 * page_bytes());
    }
    forget(fiber);
    *fiber = {};
}

void pst_fiber_start(pst_fiber *fiber, void (*entry)())
{
#ifdef FIBER_ASAN
    ASAN_UNPOISON_MEMORY_REGION(fiber->stack, fiber->stack_bytes);
    fiber->fake_stack = NULL;
#endif
    prepare(fiber, entry);
}

void pst_fiber_main(pst_fiber *fiber)
{
#ifdef FIBER_ASAN
    pthread_attr_t attributes;
    void *stack = NULL;
    size_t bytes = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &stack, &bytes);
        pthread_attr_destroy(&attributes);
    }
    fiber->stack = (char *)stack;
    fiber->stack_bytes = bytes;
#endif
#ifdef FIBER_TSAN
    fiber->thread = __tsan_get_current_fiber();
#endif
    (void)fiber;
}

void pst_fiber_switch(pst_fiber *from, pst_fiber *to)
{
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#ifdef FIBER_TSAN
    __tsan_switch_to_fiber(to->thread, 0);
#endif
    change(from, to);
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}

void pst_fiber_entered(pst_fiber *self)
{
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(self->fake_stack, NULL, NULL);
#endif
    (void)self;
}
