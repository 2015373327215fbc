/* SPDX-License-Identifier: Apache-2.0 */
/* The settings of a handle from the options of a job or a session, which all have the same members for them. */
#ifndef PST_IO_LIKE_H
#define PST_IO_LIKE_H

#include "penstock/io.h"

/* o: such options; where: a path on the drives, or NULL. */
#define PST_IO_OPTIONS_LIKE(o, where)                                                                                  \
    ((pst_io_options){.struct_size = sizeof(pst_io_options),                                                           \
                      .engine = (o)->io_engine,                                                                        \
                      .block_size = (o)->block_size,                                                                   \
                      .queue_depth = (o)->queue_depth,                                                                 \
                      .workers = (o)->io_workers,                                                                      \
                      .single_submit = (o)->io_single_submit,                                                          \
                      .path = (where)})

#endif
