/* SPDX-License-Identifier: Apache-2.0 */
/* The engines that exist: built in, and registered by the program; and which of them "auto" takes. */
#ifndef PST_IO_ENGINE_LIST_H
#define PST_IO_ENGINE_LIST_H

#include "penstock/io_engine.h"

extern const pst_io_engine pst_io_engine_uring;
extern const pst_io_engine pst_io_engine_libaio;
extern const pst_io_engine pst_io_engine_threads;
extern const pst_io_engine pst_io_engine_null;

/* Whether an engine's table has an entry, that is, reaches as far and does not leave it NULL. No entry after `reap`
 * may be looked at in another way: an older engine's table ends before it. */
#define PST_IO_ENGINE_HAS(engine, entry)                                                                               \
    ((engine)->struct_size >= offsetof(pst_io_engine, entry) + sizeof((engine)->entry) && (engine)->entry != NULL)

/* PST_E_USAGE when a table cannot be used: another version, or entries missing that its flags promise. For one that
 * passed, the flags say which entries there are. */
int pst_io_engine_check(const pst_io_engine *engine, pst_error *err);

/* choose.c: the nth choice of "auto", best first, for files at `path` (a file or a folder that may not be there yet;
 * NULL: unknown); NULL after the last. Touches the file system, leaves nothing behind. */
const pst_io_engine *pst_io_engine_choice(unsigned n, const char *path);
/* By name; NULL when there is none. */
const pst_io_engine *pst_io_engine_find(const char *name);

#endif
