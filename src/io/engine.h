/* SPDX-License-Identifier: Apache-2.0 */
/* The engines that exist: built in, and registered by the program. */
#ifndef PST_IO_ENGINE_LIST_H
#define PST_IO_ENGINE_LIST_H

#include "penstock/io_engine.h"

extern const pst_io_engine pst_io_engine_uring;
extern const pst_io_engine pst_io_engine_threads;

/* The nth choice of "auto", best first; NULL after the last. */
const pst_io_engine *pst_io_engine_choice(unsigned n);
/* By name; NULL when there is none. */
const pst_io_engine *pst_io_engine_find(const char *name);

#endif
