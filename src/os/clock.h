/* SPDX-License-Identifier: Apache-2.0 */
/* Time that only goes forward, nanoseconds. Any thread. */
#ifndef PST_OS_CLOCK_H
#define PST_OS_CLOCK_H

#include <stdint.h>

uint64_t pst_clock_ns(void);
/* Processor time of the calling thread. */
uint64_t pst_clock_thread_ns(void);

#endif
