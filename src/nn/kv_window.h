/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What kv_window.c (which blocks are where, and when they move) sees of the ways that blocks go: kv_file.c between a file and
 * slots in the host's memory, kv_link.c between the host's memory and slots in an accelerator's. The window's parts are
 * numbered; transfers of a part are listed, begun together and waited for together.
 */
#ifndef PST_NN_KV_WINDOW_H
#define PST_NN_KV_WINDOW_H

#include "nn/kv_internal.h"

/* One is computed with, one is being filled for the group after it, and one is being written from. */
enum { PST_KV_PARTS = 3 };

/* ---- the file ---- */

typedef struct pst_kv_file pst_kv_file;
typedef enum pst_kv_way { PST_KV_READ, PST_KV_WRITE, PST_KV_WAYS } pst_kv_way;

/* What it takes of tables; part_blocks: blocks of a part, at most. */
uint64_t pst_kv_file_bytes(uint32_t part_blocks);
/* Makes a file of so many bytes in the config's folder. *out is the caller's to destroy, also half-built after a failure. */
int pst_kv_file_create(const pst_kv_config *config, uint64_t bytes, uint32_t part_blocks, pst_kv_file **out,
                       pst_error *err);
void pst_kv_file_destroy(pst_kv_file *file); /* waits for what is in flight; NULL is fine */
/* Adds a transfer to the part's list, which is empty after a start. */
void pst_kv_file_add(pst_kv_file *file, uint32_t part, pst_kv_way way, uint64_t offset, void *memory, uint64_t bytes);
int pst_kv_file_start(pst_kv_file *file, uint32_t part, pst_kv_way way, pst_error *err);
/* 1: not done in time. Of a part without transfers under way: 0. */
int pst_kv_file_wait(pst_kv_file *file, uint32_t part, pst_kv_way way, uint64_t timeout_ns, pst_error *err);
void pst_kv_file_get_traffic(const pst_kv_file *file, pst_kv_traffic *out); /* adds to it */

/* ---- the link ---- */

typedef struct pst_kv_link pst_kv_link;

int pst_kv_link_create(pst_device *device, pst_kv_link **out, pst_error *err);
void pst_kv_link_destroy(pst_kv_link *link); /* waits for its copies; NULL is fine */
/* What is begun from now on comes after all that was written back. */
int pst_kv_link_begin_pass(pst_kv_link *link, pst_error *err);
/* A part is filled (READ), once its slots are written back; or written back (WRITE), once what was computed with it so far is
 * done: copies between begin and end. `memory` is the host's, `slot` the device's. */
int pst_kv_link_begin(pst_kv_link *link, uint32_t part, pst_kv_way way, pst_error *err);
int pst_kv_link_add(pst_kv_link *link, pst_kv_way way, void *memory, void *slot, uint64_t bytes, pst_error *err);
int pst_kv_link_end(pst_kv_link *link, uint32_t part, pst_kv_way way, pst_error *err);
/* Has the compute stream wait until the part is filled. */
int pst_kv_link_await(pst_kv_link *link, uint32_t part, pst_error *err);
/* 0: the part was written back; 1: not yet. */
int pst_kv_link_returned(pst_kv_link *link, uint32_t part, bool wait, pst_error *err);
/* How fast `memory` is copied to a part's slots, which nobody uses: bytes per second. */
int pst_kv_link_measure(pst_kv_link *link, void *memory, void *slots, uint64_t bytes, double *out, pst_error *err);
void pst_kv_link_get_traffic(const pst_kv_link *link, pst_kv_traffic *out); /* adds to it */

#endif
