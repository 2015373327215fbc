/* SPDX-License-Identifier: Apache-2.0 */
/* Where the library's notes go. Without a sink they are dropped: the library itself never prints. */
#ifndef PENSTOCK_LOG_H
#define PENSTOCK_LOG_H

#include "penstock/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum pst_log_level {
    PST_LOG_WARNING, /* something works less well than asked: direct I/O refused, memory not locked */
    PST_LOG_INFO,    /* a choice that was made: the engine, the placement */
    PST_LOG_DEBUG
} pst_log_level;

/* Receives one line without its newline. Called from any thread of the library, one call at a time. */
typedef void (*pst_log_sink)(void *user, pst_log_level level, const char *line);

/* Sets the sink for the whole process, up to and including `level`; NULL drops everything. Any thread. */
PST_API void pst_log_set_sink(pst_log_sink sink, void *user, pst_log_level level);

#ifdef __cplusplus
}
#endif
#endif
