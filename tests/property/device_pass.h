/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stored model that is computed on a device, driven by hand: its tensors lie in the test's memory and reach the stages in
 * random parts, cut anywhere, one after the other through the same piece of the device's memory, as from a slot of the ring.
 */
#ifndef TESTS_PROPERTY_DEVICE_PASS_H
#define TESTS_PROPERTY_DEVICE_PASS_H

#include "infer/internal.h"

enum { SCENE_SEQUENCES = 4, SCENE_TOKENS = 150 /* some blocks of the cache */, SCENE_ROWS = 24 };

/* A model of tests/reference/cases and its weights in memory. */
typedef struct scene {
    pst_model *model;
    unsigned char **data; /* by tensor of the store */
    uint32_t ids[SCENE_SEQUENCES][SCENE_TOKENS];
} scene;
void scene_open(scene *s, const char *name);
void scene_close(scene *s);

/* What is computed, with which types, by whom. */
typedef struct scene_run {
    pst_dtype compute_type;
    pst_kv_type kv_type;
    pst_device *device, *host; /* the same one: on the host */
    const char *routing_trace;
    bool record_routing;
    uint64_t seed; /* of rows and passes: the same for runs that are compared */
    uint32_t passes;
    uint32_t room; /* rows that a pass may have, more than it ever gets; 0: SCENE_ROWS */
    bool keep; /* some experts stay in the device's memory for the length of a pass, each whole in a part of its own */
    bool cut;  /* parts are cut at random, else whole stages */
    /* Where keys and values are, of a device: in its memory, in the host's, or in a file in this folder. */
    bool kv_offload;
    const char *kv_folder;
    uint64_t kv_window_bytes;
} scene_run;

/* Results of a run. */
typedef struct scene_result {
    float *logits; /* of all rows that wanted them, one after the other; the caller frees them */
    size_t count;  /* floats */
    uint32_t *routing;
    size_t routing_count;
    /* What pst_forward_measure and pst_kv_measure said beforehand, and the feeder's slot: of a device's own memory, and the host's. */
    uint64_t device_bytes, host_bytes;
} scene_result;

/* Negative: an error, and err says which; no result then. All that was made is gone in any case. */
int scene_compute(const scene *s, const scene_run *run, scene_result *out, pst_error *err);
void scene_free(scene_result *result);

#endif
