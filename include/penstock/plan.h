/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a model would need and how fast it could be, before anything is run, or where it cannot be run at all: the memory of
 * each tier, where the weights would lie, what a pass reads and computes, and which of these sets the pace.
 *
 * The model needs no weights: config.json tells which tensors it has. The prediction stands on the same plan that a session
 * makes and counts the same passes; its times are those of the larger of reading and computing, pass by pass.
 */
#ifndef PENSTOCK_PLAN_H
#define PENSTOCK_PLAN_H

#include <stdbool.h>

#include "penstock/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Zero means the default of every field, unless it says otherwise. Rates are per second. */
typedef struct pst_predict_options {
    size_t struct_size;
    const char *model;  /* a folder with config.json (weights may be missing), "org/name", or a shape of pst_synth */
    const char *cache;  /* where org/name is looked up; NULL: folders and shapes only */
    uint32_t batch;     /* sequences in flight at once; 0: the best that fits, see pst_prediction.batch */
    uint32_t max_batch; /* with batch 0: no more than so many (requests that there are); default 65536 */
    uint32_t prompt_tokens, new_tokens; /* of each; required */

    uint64_t host_memory_bytes; /* of the process; 0: what a session would take on this machine */
    bool resident_set;          /* as in pst_session_options, as the next two */
    double resident_share;
    uint64_t resident_bytes;
    bool keep_all_weights; /* as in pst_session_options, as the next two */
    bool expert_cache_set;
    uint64_t expert_cache_bytes;
    uint64_t device_memory_bytes; /* of an accelerator; 0: the host's processor computes */

    double disk_bytes_per_second;        /* required unless all weights stay in memory */
    double link_bytes_per_second;        /* between host and device; required with device memory */
    double operations_per_second;        /* of whoever computes, with many rows; required */
    double decode_operations_per_second; /* with decode_rows rows; default: the same */
    uint32_t decode_rows;                /* default: batch */

    pst_compute_type compute_type; /* as of a session */
    uint32_t kv_bits;              /* 32, 16, 8, 4; 0: as a session chooses */
    uint32_t quant_bits;           /* 8 or 4: as if the weights had been converted; 0 or 16: as they are */
    uint32_t quant_group_size;     /* default 64 */
    uint64_t process_bytes;        /* what the process takes beside its plan; default: a usual value */
    bool kv_offload;               /* as in pst_session_options */
    const char *kv_folder; /* as there; whatever is said, the file would be on the drive with the weights. NULL: none */
} pst_predict_options;

/* One tier's memory. Bytes. */
typedef struct pst_predicted_tier {
    uint64_t budget; /* 0: no bound */
    uint64_t weights, kv, activations, ring, tables, process;
    uint64_t total;
} pst_predicted_tier;

/* One kind of pass. */
typedef struct pst_predicted_pass {
    double rows;
    double bytes; /* read from the drive, with keys and values that are read and written there */
    double disk_seconds, link_seconds, compute_seconds;
    double seconds;         /* the largest of the three */
    const char *limited_by; /* "disk", "link", "compute" */
} pst_predicted_pass;

typedef enum pst_advice_kind {
    PST_ADVICE_HOST_MEMORY, /* twice as much */
    PST_ADVICE_DEVICE_MEMORY,
    PST_ADVICE_DRIVE, /* a second one */
    PST_ADVICE_LINK,
    PST_ADVICE_COMPUTE, /* twice the rate */
    PST_ADVICE_BATCH,   /* twice, four times ... as many sequences at once */
    PST_ADVICE_QUANT_8,
    PST_ADVICE_QUANT_4,
    PST_ADVICE_KV_8,
    PST_ADVICE_KV_MEMORY /* keys and values in memory, not in a file */
} pst_advice_kind;

/* One thing changed, and what that would give. */
typedef struct pst_advice {
    pst_advice_kind kind;
    uint64_t amount; /* bytes of memory, sequences, or bits, whatever the kind counts; 0: none */
    double tokens_per_second;
    double gain; /* that over the prediction's own */
} pst_advice;
enum { PST_MAX_ADVICE = 12 };

typedef struct pst_prediction {
    char model[256];
    const char *family; /* static */
    uint64_t parameters;
    uint64_t active_parameters; /* that a row is multiplied with */
    uint64_t weight_bytes;      /* of the whole checkpoint */
    uint64_t kv_token_bytes;    /* of one position of one sequence */
    uint32_t layers, experts, experts_per_token;

    uint32_t batch; /* sequences in flight at once */
    uint32_t prompt_tokens, new_tokens;
    uint32_t kv_bits, quant_bits;

    pst_predicted_tier device, host; /* device: zeros where there is none */
    uint64_t disk_bytes;             /* weights that lie on the drive alone */
    uint64_t streamed_bytes;         /* the most that a pass reads */
    uint32_t rows_per_pass, slots;
    uint64_t slot_bytes, parts;
    double expert_share; /* of experts that a decoding pass needs; 0: no experts */

    pst_predicted_pass prefill, decode; /* the heaviest pass with prompts; one with a row of each sequence */
    uint64_t prefill_passes, passes;

    /* All sequences begin at once and none joins (bench infer): as pst_run_stats has them. */
    double prefill_seconds, decode_seconds, total_seconds;
    double prefill_tokens_per_second, decode_tokens_per_second, tokens_per_second;
    /* Sequences join as others end (a long job): tokens made per second in the long run. */
    double steady_tokens_per_second;
    const char *limited_by; /* what took most of the time of the run: "disk", "link" or "compute" */

    pst_advice advice[PST_MAX_ADVICE]; /* best first; only what gains 2 % or more */
    uint32_t advice_count;
    uint64_t link_bytes; /* weights that the device has not got: the most that a pass copies to it */
    bool kv_offloaded; /* keys and values are not the device's, and cross the link in slots that device.kv is made of */
    uint64_t kv_disk_bytes; /* of the file with keys and values, which host.kv are then slots and last blocks of */
} pst_prediction;

/* PST_E_BUDGET names the smallest budget that works. Any thread. */
PST_API int pst_predict(const pst_predict_options *options, pst_prediction *out, pst_error *err);
/* "a second drive", "8-bit weights"; static storage. */
PST_API const char *pst_advice_text(pst_advice_kind kind);

#ifdef __cplusplus
}
#endif
#endif
