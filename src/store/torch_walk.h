/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk over a pickle of torch.save, between its files: the machine's parts (torch_walk.c), its operations
 * (torch_walk_ops.c), what globals mean and what "calling" them yields (torch_walk_globals.c), tensors (torch_walk_tensor.c), and the tree that is
 * handed out (torch_walk_tree.c). Only pst_torch_walk (torch_file.h) is for others.
 *
 * Nothing is called: a REDUCE of a known global makes a node that says what would come of it. Every operation makes at most
 * one node and uses what it takes from the stack, so nodes and links are bounded by the pickle's length; where content would
 * be copied (a set from a list, bytes from a text) the copies are paid for from a budget that is of the pickle's length.
 * Nothing recurses.
 */
#ifndef PST_STORE_TORCH_WALK_H
#define PST_STORE_TORCH_WALK_H

#include "store/safetensors.h"
#include "store/torch_file.h"

#define PST_WALK_NO_NODE UINT32_MAX
enum {
    PST_WALK_MAX_NODES = 1 << 26, /* 67 million values; small numbers, None and the like count once */
    PST_WALK_MAX_PICKLE = 1 << 30 /* so offsets and counts within it fit 32 bits */
};

/* The kinds of pst_ckpt_kind, and what is never part of the result. */
enum { PST_WALK_GLOBAL = PST_CKPT_NAMED + 1, PST_WALK_STORAGE };

enum {
    PST_WALK_WIDE = 1,           /* INT: its bytes are a text */
    PST_WALK_HASHABLE = 2,       /* may be a key or an element of a set */
    PST_WALK_VARIANT = 4,        /* DICT: OrderedDict; TUPLE: torch.Size; SET: frozenset; TENSOR: Parameter */
    PST_WALK_COUNTER = 8,        /* DICT */
    PST_WALK_REQUIRES_GRAD = 16, /* TENSOR */
    PST_WALK_CONJUGATE = 32,     /* TENSOR */
    PST_WALK_NEGATIVE = 64,      /* TENSOR */
    PST_WALK_OPEN = 128          /* the tree is inside of it */
};

typedef struct pst_walk_text {
    const unsigned char *at; /* in the pickle or in the walk's own blocks */
    size_t bytes;
} pst_walk_text;

typedef struct pst_walk_node {
    uint8_t kind, flags;
    uint16_t
        global; /* of GLOBAL and NAMED: its index; of a TENSOR: the function that rebuilds it; of a STORAGE: its type */
    uint32_t attributes;
    union {
        int64_t integer;                 /* BOOL, INT */
        double number[2];                /* FLOAT, COMPLEX */
        pst_walk_text text;              /* TEXT, BYTES, BYTEARRAY, INT with PST_WALK_WIDE */
        struct {                         /* LIST, TUPLE, SET, DICT, NAMED */
            uint32_t first, last, count; /* links */
        } list;
        uint32_t arguments; /* TENSOR: the tuple of its function's; STORAGE: its number */
    };
} pst_walk_node;

typedef struct pst_walk_link {
    uint32_t node, next;
} pst_walk_link;

/* What a global is for. */
typedef enum pst_walk_use {
    PST_USE_VALUE, /* stands for itself */
    PST_USE_LAYOUT_VALUE,
    PST_USE_DTYPE,
    PST_USE_STORAGE,
    PST_USE_TENSOR_TYPE,
    PST_USE_ORDERED_DICT,
    PST_USE_COUNTER,
    PST_USE_SET,
    PST_USE_FROZENSET,
    PST_USE_BYTES,
    PST_USE_BYTEARRAY,
    PST_USE_COMPLEX,
    PST_USE_ENCODE,
    PST_USE_SIZE,
    PST_USE_DEVICE,
    PST_USE_LAYOUT,
    PST_USE_TENSOR_V2,
    PST_USE_TENSOR_V3,
    PST_USE_PARAMETER,
    PST_USE_PARAMETER_STATE,
    PST_USE_FROM_TYPE
} pst_walk_use;

typedef struct pst_walk_global {
    const char *name; /* "module.name" */
    pst_walk_use use;
    int dtype; /* of a dtype or storage: pst_dtype, or -1 where tensors of it are refused */
} pst_walk_global;

typedef struct pst_walk_storage {
    int64_t record;
    uint64_t bytes;
    pst_dtype dtype;
    uint32_t number; /* in the result */
} pst_walk_storage;

typedef struct pst_walk_block {
    struct pst_walk_block *next;
    size_t used, room;
    unsigned char bytes[];
} pst_walk_block;

typedef struct pst_walk {
    const unsigned char *pickle;
    size_t bytes, at, operation_at;
    const char *path;
    pst_torch_find find;
    void *user;
    pst_error *err;

    pst_walk_node *nodes;
    size_t node_count, node_capacity;
    pst_walk_link *links;
    size_t link_count, link_capacity;
    uint32_t *stack;
    size_t depth, stack_capacity;
    size_t *marks; /* depths */
    size_t mark_count, mark_capacity;
    uint32_t *memo;
    size_t memo_capacity, memo_count; /* count: how many have been put, for MEMOIZE */
    uint32_t *small_integers;         /* nodes of 0, 1, 2 ..., made when they are met */
    size_t small_integer_count;
    uint32_t singletons[3]; /* None, False, True */
    pst_walk_storage *storages;
    size_t storage_count, storage_capacity;
    uint32_t *storage_slots; /* hash table by record: number + 1, or 0 */
    size_t storage_slot_count;
    pst_walk_block *blocks;
    uint64_t budget; /* what may still be copied: bytes and links */
} pst_walk;

/* ---- torch_walk.c ---- */

/* PST_E_FORMAT: "its pickle is malformed at byte 12: <what>". */
int pst_walk_malformed(const pst_walk *walk, const char *what);
/* PST_E_UNSUPPORTED: 'its pickle wants "<name>", which is refused'. */
int pst_walk_refuse(const pst_walk *walk, const char *name);
/* Makes room for one more element in a growing array. */
int pst_walk_grow(const pst_walk *walk, void *array_pointer, size_t count, size_t *capacity, size_t element_bytes);
int pst_walk_add_node(pst_walk *walk, const pst_walk_node *node, uint32_t *out);
int pst_walk_push(pst_walk *walk, uint32_t node);
int pst_walk_push_node(pst_walk *walk, const pst_walk_node *node);
int pst_walk_pop(pst_walk *walk, uint32_t *out);
/* An empty LIST, TUPLE, SET, DICT or NAMED. */
pst_walk_node pst_walk_container(int kind, unsigned flags);
int pst_walk_append(pst_walk *walk, uint32_t container, uint32_t node);
/* Pays for a copy. */
int pst_walk_spend(pst_walk *walk, uint64_t amount);
/* Memory that lives as long as the walk. NULL: out of memory. */
unsigned char *pst_walk_memory(pst_walk *walk, size_t bytes);
/* Whether these are UTF-8, lone surrogates included. */
bool pst_walk_is_utf8(const unsigned char *text, size_t bytes);
/* A text for a message. */
const char *pst_walk_quote(pst_walk_text text, char out[PST_QUOTE_BYTES]);

/* ---- torch_walk_ops.c ---- */

/* From the first operation to the last; what is left on the stack then is the root. */
int pst_walk_run(pst_walk *walk, uint32_t *out_root);

/* ---- torch_walk_globals.c ---- */

const pst_walk_global *pst_walk_global_at(size_t index);
/* GLOBAL and STACK_GLOBAL. */
int pst_walk_push_global(pst_walk *walk, pst_walk_text module, pst_walk_text name);
/* REDUCE, BUILD and BINPERSID, with the stack as it is. */
int pst_walk_reduce(pst_walk *walk);
int pst_walk_build(pst_walk *walk);

/* ---- torch_walk_tensor.c ---- */

int pst_walk_persistent(pst_walk *walk);
/* A tuple's elements: at least `least`, at most `most` of them; else the pickle is malformed. *out_count may be NULL. */
int pst_walk_arguments(const pst_walk *walk, uint32_t tuple, size_t least, size_t most, uint32_t *out,
                       size_t *out_count);
/* Checks and makes a TENSOR node of `use` (V2 or V3) and this tuple. */
int pst_walk_make_tensor(pst_walk *walk, uint16_t global, uint32_t tuple, pst_walk_node *out);
/* What a TENSOR node says: all but its name. The storage is the walk's number. */
int pst_walk_read_tensor(const pst_walk *walk, const pst_walk_node *node, pst_torch_tensor *out);

/* ---- torch_walk_tree.c ---- */

/* The result of a walk that ended with this node. */
int pst_walk_make_tree(pst_walk *walk, uint32_t root, pst_torch_file *out);

/* What pst_torch_file.owned points to. */
typedef struct pst_torch_owned {
    char *texts, *names, *records;
    uint32_t *children;
} pst_torch_owned;

#endif
