/* SPDX-License-Identifier: Apache-2.0 */
/* A made-up model with units on disk, whose stages check what they get: on the host, or on a device. */
#ifndef UNIT_WORLD_H
#define UNIT_WORLD_H

#include "random_stages.h"
#include "tier/ring.h"

enum { MAX_LAYERS = 12, MAX_UNITS = 64, UNIT_TENSORS = 2, MAX_STAGES = 2 + 2 * MAX_LAYERS };

typedef enum guessing { NO_GUESS, RIGHT, RANDOM_GUESS, ALL, NO_IDEA, GUESSINGS } guessing;

/* Bytes of the file that were handed to the device's compute stream. */
typedef struct landed_piece {
    uint64_t file_offset, bytes, at;
} landed_piece;

/* A made-up model: an embedding, per layer a stage that every pass needs and one of units, a head that it may skip. */
typedef struct world {
    char folder[64], path[96];
    uint32_t layers, units;
    pst_store *store;
    pst_stage stages[MAX_STAGES];
    uint32_t stage_count;
    pst_stage_tensor *tensors; /* of all stages, in file order */
    uint32_t tensor_count;
    uint32_t unit_first[MAX_UNITS + 1];

    random_source *source;
    guessing guessing;
    bool wanted[MAX_STAGES][MAX_UNITS]; /* in this pass */
    bool chosen[MAX_STAGES];
    uint32_t stage, tensor; /* where the pass is */
    uint64_t row;
    uint32_t computed_parts, fail_after; /* parts until the stage function fails; 0: never */
    atomic_bool cancel, cancel_then;

    /* With a device its weights land in host memory, by work on its compute stream, and are held against the file when that
     * has been waited for. */
    pst_device *device;
    unsigned char *landing;
    uint64_t landing_bytes, landed_bytes;
    landed_piece *landed;
    size_t landed_count;
} world;

world *world_make(random_source *source, uint32_t layers, uint32_t units, uint32_t unit_bytes);
void world_free(world *w);
/* Guesses as w->guessing says. */
uint32_t world_guess(void *context, const pst_stage *stage, bool *wanted);
void world_begin_pass(world *w);
/* Goes on from where the pass is to the next tensor that is wanted. */
void world_skip_unwanted(world *w);
/* Random units are wanted in the next pass. */
void world_wish(world *w, random_source *source);
pst_io *world_open_io(const char *engine);
unsigned char world_byte(uint64_t file_offset);

/* The stages compute on the device from now on, until world_leave_device; landing for `passes` passes between two checks. */
void world_use_device(world *w, pst_device *device, uint32_t passes);
void world_leave_device(world *w);
/* Waits for the device and checks what has landed since. Its status, and nothing is checked, if that failed. */
int world_check_landed(world *w);

#endif
