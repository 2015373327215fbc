/* SPDX-License-Identifier: Apache-2.0 */
/* What the thread sanitizer has to be told where it runs; nothing elsewhere. */
#ifndef PST_BASE_SANITIZER_H
#define PST_BASE_SANITIZER_H

#include <stddef.h>

#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define PST_THREAD_SANITIZER 1
#endif
#elif defined(__SANITIZE_THREAD__)
#define PST_THREAD_SANITIZER 1
#endif

#ifdef PST_THREAD_SANITIZER
void AnnotateBenignRaceSized(const char *file, int line, const volatile void *memory, size_t bytes,
                             const char *description); /* of the sanitizer's library */
#endif

/* Threads may write there at the same time: what comes to lie there is of no interest to anybody. */
static inline void pst_sanitizer_expect_races(const void *memory, size_t bytes)
{
#ifdef PST_THREAD_SANITIZER
    AnnotateBenignRaceSized(__FILE__, __LINE__, memory, bytes, "what is transferred is thrown away");
#else
    (void)memory, (void)bytes;
#endif
}

#endif
