/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices of this machine: its processor, and accelerators. These are found through plugins: libpenstock-cuda.so beside
 * libpenstock.so or in the folder penstock/ beside it.
 *
 * A device's name, as options take it: "host"; "cuda" (its first device) or "cuda:N"; "auto": the first accelerator that
 * works, else the host; another plugin's name in the place of "cuda"; a plugin's file, a name with a slash, with or without
 * ":N".
 */
#ifndef PENSTOCK_DEVICE_H
#define PENSTOCK_DEVICE_H

#include <stdbool.h>

#include "penstock/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pst_device_info {
    size_t struct_size; /* sizeof(pst_device_info): set by the caller */
    char name[64];      /* as options take it: "cuda:0" */
    char model[128];    /* "NVIDIA H200" */
    uint64_t total_bytes, free_bytes;
    uint32_t compute_major, compute_minor; /* what its programs are made for; 0.0: of no meaning */
    uint32_t processors;                   /* multiprocessors */
    double memory_bytes_per_second;        /* what clock and width of its memory give; 0: not known */
    double link_bytes_per_second;          /* what generation and width of its link give, one way; 0: not known */
    char link[64];                         /* "PCIe 5.0 x16"; "": not known */
    bool has_direct_storage;               /* drives can write into its memory without the host's */
    char direct_storage[160];              /* why not, or what does it */
    char kernels[32];                      /* the host: its kernel set ("avx512"); else "" */
    char matrix_library[160];              /* the vendor's for products of prompts, or why none; "": not a question */
} pst_device_info;

/* Describes device `number` (from 0) of those that are there, in order of plugins; PST_E_UNSUPPORTED when there is no such
 * device: err then says why the last plugin has no more (no plugin, no driver, no device). plugin: a plugin's name or file, or
 * NULL: those that are found. One thread at a time. */
PST_API int pst_device_describe(const char *plugin, uint32_t number, pst_device_info *out, pst_error *err);

/* Describes the device that an option would take by this name. Of the host: its processor's model, its threads as
 * `processors`, its memory and its kernel set. One thread at a time. */
PST_API int pst_device_find(const char *name, pst_device_info *out, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
