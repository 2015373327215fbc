/* SPDX-License-Identifier: Apache-2.0 */
/* The library's log: lines go to a sink that the program sets (none by default). Any thread. */
#ifndef PST_BASE_LOG_H
#define PST_BASE_LOG_H

#include "penstock/log.h"

void pst_log(pst_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
