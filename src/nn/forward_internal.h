/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of a pass share: forward.c (running stages), forward_memory.c (making), forward_ops.c and
 * forward_attention.c (operators). An operator is a function of the table in forward.c; families with operators of their
 * own keep them in files of their own and add a line there.
 */
#ifndef PST_NN_FORWARD_INTERNAL_H
#define PST_NN_FORWARD_INTERNAL_H

#include "nn/device_memory.h"
#include "nn/forward.h"
#include "nn/route.h"

/* A layer's router as look_ahead.c keeps it. */
enum { PST_LOOK_NORM, PST_LOOK_GATE, PST_LOOK_CORRECTION, PST_LOOK_PARTS };
typedef struct pst_look_layer {
    const pst_stage *stage; /* the router's; NULL: it is not looked ahead to */
    struct {
        const pst_nn_step *step;
        unsigned char *data; /* the step's tensor, as in the file */
    } parts[PST_LOOK_PARTS];
    uint64_t missing_bytes; /* of these tensors, not yet seen */
    float right;            /* share of what was foreseen that was chosen, lately */
} pst_look_layer;

typedef struct pst_look_ahead {
    pst_look_layer *layers; /* by layer with experts; NULL: no looking ahead */
    uint32_t layer_count;
    unsigned char *memory; /* of what is kept */
    uint64_t bytes;
    uint32_t *chosen; /* of one row */
    float *weights, *scratch;
    bool *foreseen;                          /* by expert, of the layer foreseen_layer */
    uint32_t foreseen_layer, foreseen_count; /* count 0: nothing to judge */
} pst_look_ahead;

/* What a routing trace goes by. */
typedef struct pst_traced_row {
    uint64_t serial;
    uint32_t position;
} pst_traced_row;

/* Latent attention: the matrix that makes keys and values, and what a block of rows is computed in. */
typedef struct pst_latent_memory {
    unsigned char *memory; /* all of it; NULL: the model has none */
    uint64_t bytes;
    unsigned char *kept; /* room for a kv_b_proj that comes in pieces */
    pst_weight heads;    /* the layer's, there or where it came */
    float *q, *a;        /* block_rows rows: [heads][key_dim], [heads][kv_lora_rank] */
    uint32_t block_rows;
} pst_latent_memory;

/* Which rows each expert computes: where the host reads it and where operators do. */
typedef struct pst_routed {
    pst_route here, there; /* the same arrays unless the device is apart; `there` without scratch */
    uint32_t layer;        /* routed last */

    /* Of an accelerator: experts_apart.c. */
    pst_mirror mirror;          /* what both lie in, and the following five */
    bool has_places, is_placed; /* there is room for places; the pass has so few rows that it uses them */
    uint32_t *places;           /* [per_token][row]: where in `order` the row's experts, rising, have it */
    uint32_t *rows;             /* 0, 1, 2, ... */
    const uint32_t *places_there, *rows_there;
    float *place_weights; /* there: what these experts count */
    pst_matrix logits;    /* with a routing trace: the router's, in pinned memory */
    uint64_t logits_bytes;
    pst_device_event *counted; /* `here` has what it chose */
    uint32_t *next;            /* by expert: scratch */
    bool is_pending;           /* it has not been waited for */
    int failed;                /* status of waiting where there was no way to tell of it */
    bool is_taken;             /* the rows of all experts are in EH */
    bool is_put_off;           /* the expert under way is computed with others */
    uint32_t first_row;        /* of the expert under way, in `order` */
    uint32_t wanted, last;     /* experts with rows; the last one of them */
    uint32_t steps, put_off;   /* of an expert at most; how many experts are put off */
    pst_weight *weights;       /* [step][expert]: of experts that are put off, else absent */
} pst_routed;

struct pst_forward {
    const pst_transformer *t;
    pst_device *device; /* what a pass computes with is in its memory, out of the host's reach if `apart` */
    pst_device *host;   /* the same one unless `apart` */
    bool apart;
    pst_program *program;
    uint32_t max_rows, max_logit_rows, fetched_rows, max_sequences, max_tokens;
    pst_kv_layout kv_layout;
    pst_kv *kv;

    pst_matrix buffers[PST_NN_BUFFERS]; /* rows are set per pass; data NULL: no step of the program uses it */
    unsigned char *activations;         /* what they lie in */
    uint64_t activation_bytes;
    /* Where rows of the gathered stages are put, in the host's memory: the buffers themselves, or what is copied there. */
    pst_matrix gathered[2];
    unsigned char *staging; /* NULL: the buffers themselves */
    uint64_t staging_bytes;
    /* Of an accelerator's logits, fetched_rows in pinned memory; NULL: none. */
    void *fetched;
    uint64_t fetched_bytes;
    /* Cosines and sines: a row per position, or, where they depend on a sequence's length, a row per row of the pass. */
    const float *rope_table; /* NULL: nothing is rotated */
    void *rope_memory;       /* of a row per position */
    uint64_t rope_bytes;
    pst_mirror rope_rows_table; /* else */
    float *rope_frequencies;    /* scratch: rotary/2 */
    pst_mirror alibi;           /* slopes by head; zeroed: none */
    /* The small tensors of the product or norm under way, as in the file: they come before the matrix and may be in an
     * earlier part, whose slot is gone by the time that they are needed: then they are kept here. */
    unsigned char *small;
    uint64_t small_bytes;
    unsigned char *bias, *aux[PST_NN_AUX];
    const unsigned char *bias_now, *aux_now[PST_NN_AUX]; /* kept ones, or those in the part under way */
    float *position_row; /* a learned position on its way to x: hidden; NULL: there are none */

    /* The rows of this pass. */
    uint32_t row_count, logit_rows;
    uint32_t generated_rows, generated_segments; /* the first ones; the others are of prompts */
    uint32_t expert_rows;                        /* those that the expert under way computes: of the buffers EH to EY */
    pst_latent_memory latent;
    pst_look_ahead look;
    pst_routed routed; /* of the layer under way; zeroed: the model has no experts */
    uint32_t sparse_layers;
    const pst_routing_trace *routing_trace;
    pst_traced_row *traced; /* by row; NULL: no trace */
    uint32_t *routing;      /* [row][layer with experts][expert]; NULL: not recorded */
    uint32_t *rope_rows;    /* by row: its row of rope_table */
    uint32_t *logit_row;    /* by logits row: its row */
    pst_segment *segments;
    pst_mirror rope_row_table, logit_row_table, segment_table; /* which these are the host's halves of */
    uint32_t *segment_sequence;
    uint32_t segment_count;
    bool rounds_positions;      /* config.repeats */
    uint32_t rounded_positions; /* of this pass, what calls say in place of the largest; 0: that */

    /* Where the running stage is. */
    const pst_stage *stage; /* NULL: none of this pass has begun */
    uint32_t next_step;
    size_t next_piece;
};

/* What an operator needs at hand. */
typedef struct pst_forward_run {
    pst_forward *f;
    const pst_nn_stage *nn;
    const pst_stage *stage;
    const pst_part_view *part;
    pst_error *err;
} pst_forward_run;

/* Runs a step as far as its weights have arrived. 1: it is complete; 0: the rest of its weights comes with a later part. */
typedef int pst_forward_op(const pst_forward_run *run, const pst_nn_step *step);

pst_forward_op pst_forward_norm, pst_forward_layer_norm, pst_forward_matmul, pst_forward_split_qkv, pst_forward_rope,
    pst_forward_attention, pst_forward_activate, pst_forward_copy, pst_forward_gated, pst_forward_select,
    pst_forward_route, pst_forward_expert_take, pst_forward_expert_add, pst_forward_latent_norm,
    pst_forward_latent_keep, pst_forward_latent_attention;

/* A buffer's matrix over the rows of this pass. */
pst_matrix pst_forward_matrix(const pst_forward *forward, pst_nn_buffer buffer);
/* The part's next piece if it belongs to the tensor, else NULL: then the rest comes with a later part. An operator that
 * used it up adds one to forward->next_piece. */
const pst_piece *pst_forward_next_piece(const pst_forward_run *run, int32_t tensor);
/* Takes the small tensors of a step that are the part's next pieces: for later parts a copy, unless this one has all that
 * they belong to. */
int pst_forward_keep_bias(const pst_forward_run *run, const pst_nn_step *step);
int pst_forward_keep_aux(const pst_forward_run *run, const pst_nn_step *step);
/* A piece of a step's matrix as a weight, with what pst_forward_keep_aux has of its format; `columns` of the matrix as it is
 * stored. */
pst_weight pst_forward_weight(const pst_forward_run *run, const pst_nn_step *step, const pst_piece *piece,
                              size_t columns);
/* Of rows [first, first + count) of the pass those that are of prompts: they come last. */
size_t pst_forward_prompt_rows(const pst_forward *forward, size_t first, size_t count);
/* Segments [first, first + count) of the pass as attention takes them. */
pst_segments pst_forward_segments(const pst_forward *forward, uint32_t first, uint32_t count);
/* Decides on what this pass's calls say of positions, once its rows are known. */
void pst_forward_round_positions(pst_forward *forward);
/* Makes the pass's error of a device's status; 1 for a good one: the step is complete. */
int pst_forward_checked(const pst_forward_run *run, int status);

/* Looking ahead: copies what the part has of a router; guesses the experts of a layer, by its number among those with experts,
 * into `wanted` (all false), and says how many. */
int pst_look_ahead_create(pst_forward *forward, const pst_forward_config *config, pst_error *err);
void pst_look_ahead_destroy(pst_forward *forward);
void pst_look_ahead_remember(const pst_forward_run *run);
uint32_t pst_look_ahead_guess(pst_forward *forward, uint32_t sparse, bool *wanted);
/* Compares what was foreseen of the layer with what it chose. */
void pst_look_ahead_judge(pst_forward *forward, uint32_t sparse, const bool *chosen);
/* The same for latent attention. */
uint64_t pst_latent_bytes(const pst_forward_config *config);
int pst_latent_create(pst_forward *forward, const pst_forward_config *config, pst_error *err);
void pst_latent_destroy(pst_forward *forward);
/* What layers with experts need in memory, per row beside the buffers; making it (nothing for a model without experts). */
uint64_t pst_experts_row_bytes(const pst_forward_config *config);
int pst_experts_create(pst_forward *forward, const pst_forward_config *config, pst_error *err);
void pst_experts_destroy(pst_forward *forward);
/* Notes what was chosen in the layer, for pst_forward_routing. */
void pst_experts_record(pst_forward *forward);

/* The same of an accelerator. Where experts are many, their rows have a place each in the buffers EH to EY in passes of up to
 * PST_PLACED_ROWS rows, so that experts which stay in the device's memory can be computed together. With more rows each expert
 * has enough of them, and they would take memory from what is streamed. */
enum { PST_PLACED_ROWS = 2048 };
bool pst_experts_have_places(const pst_transformer *transformer);
int pst_experts_apart_create(pst_forward *forward, const pst_forward_config *config, pst_error *err);
void pst_experts_apart_destroy(pst_forward *forward);
/* Host memory beside row and fixed bytes of a route, and the device's. */
void pst_experts_apart_measure(const pst_forward_config *config, pst_forward_memory *out);
/* Statuses: brings the router's logits to the host; has what the device chose brought there, or brings what the host chose to
 * the device; sees to it that routed.here says how many rows each expert has. */
int pst_experts_fetch_logits(pst_forward *forward, pst_matrix *logits);
int pst_experts_fetch_choice(pst_forward *forward);
int pst_experts_publish(pst_forward *forward);
int pst_experts_await(pst_forward *forward);
/* Steps of an expert: TAKE, ADD, and of a product or elementwise step whether it is put off. */
int pst_experts_begin_one(const pst_forward_run *run, const pst_nn_step *step);
int pst_experts_end_one(const pst_forward_run *run, const pst_nn_step *step);
int pst_experts_put_off(const pst_forward_run *run, const pst_nn_step *step);

#endif
