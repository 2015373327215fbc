/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the nodes that a walk left to the tree that is handed out: those that the root leads to, in the order in which it does
 * (parents before children, each once), with tensors, storages and names numbered on the way. A stack of its own goes down,
 * so depth costs memory of the pickle's order and no more; a container that leads to itself is refused.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/heap.h"
#include "store/torch_walk.h"

/* A container that is being gone through. */
typedef struct frame {
    uint32_t node, link, index; /* link: of the child number `index`, which comes next */
    uint32_t key;               /* of a dict: the child before it */
    size_t path_bytes, keys;    /* how many lead to it */
} frame;

typedef struct tree {
    pst_walk *walk;
    uint32_t *numbers; /* of the walk's nodes in the result */
    uint32_t *order;   /* and the other way round */
    size_t count;
    frame *frames;
    size_t depth, frame_capacity;
    char *path; /* the keys that lead to the node at hand */
    size_t path_bytes, path_capacity, keys;
    char *names;
    size_t name_bytes, name_capacity;
    uint64_t budget;
    size_t *name_at; /* of each tensor, in names */
    size_t name_at_capacity;
    pst_torch_tensor *tensors;
    size_t tensor_count, tensor_capacity;
    pst_torch_storage *storages; /* room for all of the walk's */
    size_t storage_count;
    uint32_t *key_slots; /* hash table of one dict's keys: node + 1, or 0 */
    size_t key_slot_capacity;
    size_t children, text_bytes;
} tree;

static bool is_container(const pst_walk_node *node)
{
    return node->kind >= PST_CKPT_LIST && node->kind != PST_CKPT_TENSOR && node->kind <= PST_CKPT_NAMED;
}

static bool has_text(const pst_walk_node *node)
{
    return node->kind == PST_CKPT_TEXT || node->kind == PST_CKPT_BYTES || node->kind == PST_CKPT_BYTEARRAY ||
           (node->kind == PST_CKPT_INT && node->flags & PST_WALK_WIDE);
}

static bool leads_on(const pst_walk_node *node)
{
    return (is_container(node) && node->list.count > 0) || node->attributes != PST_WALK_NO_NODE;
}

/* ---- names ---- */

/* Names of tensors can be far longer than the pickle where it repeats keys, and keys can be made to collide: both are paid for
 * from a budget that what torch.save writes never needs. */
static int pay(tree *t, uint64_t amount)
{
    if (amount > t->budget)
        return pst_fail(t->walk->err, PST_E_UNSUPPORTED, t->walk->path,
                        "its pickle repeats its content too often, or the names of its tensors are too long");
    t->budget -= amount;
    return 0;
}

static int append_text(tree *t, char **text, size_t *used, size_t *capacity, const void *more, size_t bytes)
{
    PST_TRY(pay(t, bytes));
    if (*capacity - *used < bytes) {
        size_t wanted = *capacity + *capacity / 2 + bytes + 64;
        char *grown = pst_heap_realloc(*text, wanted);
        if (grown == NULL)
            return pst_fail_memory(t->walk->err, "names of tensors", wanted);
        *text = grown;
        *capacity = wanted;
    }
    if (bytes > 0)
        memcpy(*text + *used, more, bytes);
    *used += bytes;
    return 0;
}

static int append_path(tree *t, const void *more, size_t bytes)
{
    return append_text(t, &t->path, &t->path_bytes, &t->path_capacity, more, bytes);
}

/* Names are C strings of UTF-8: U+0000 and lone surrogates become '?'. */
static void clean(char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '\0') {
            text[i] = '?';
        } else if ((unsigned char)text[i] == 0xed && (unsigned char)text[i + 1] >= 0xa0) {
            memset(text + i, '?', 3);
            i += 2;
        }
    }
}

static int append_segment(tree *t, const frame *f, uint32_t index)
{
    const pst_walk_node *parent = &t->walk->nodes[f->node];
    char number[32];
    if (t->keys++ > 0)
        PST_TRY(append_path(t, ".", 1));
    bool is_value = parent->kind == PST_CKPT_DICT && index % 2 == 1;
    const pst_walk_node *key = is_value ? &t->walk->nodes[f->key] : NULL;
    if (key != NULL && key->kind == PST_CKPT_TEXT) {
        size_t begin = t->path_bytes;
        PST_TRY(append_path(t, key->text.at, key->text.bytes));
        if (key->text.bytes > 0) /* else there may be no path yet */
            clean(t->path + begin, key->text.bytes);
        return 0;
    }
    if (key != NULL && key->kind == PST_CKPT_NONE)
        snprintf(number, sizeof number, "None");
    else if (key != NULL && key->kind == PST_CKPT_BOOL)
        snprintf(number, sizeof number, "%s", key->integer ? "True" : "False");
    else if (key != NULL && key->kind == PST_CKPT_INT && !(key->flags & PST_WALK_WIDE))
        snprintf(number, sizeof number, "%" PRId64, key->integer);
    else
        snprintf(number, sizeof number, "%" PRIu32, parent->kind == PST_CKPT_DICT ? index / 2 : index);
    return append_path(t, number, strlen(number));
}

/* ---- a dict's keys ---- */

/* Whether Python would take this number for a whole one of 64 bits. */
static bool whole(const pst_walk_node *node, int64_t *out)
{
    if (node->kind == PST_CKPT_BOOL || (node->kind == PST_CKPT_INT && !(node->flags & PST_WALK_WIDE))) {
        *out = node->integer;
        return true;
    }
    if (node->kind != PST_CKPT_FLOAT ||
        !(node->number[0] >= -9223372036854775808.0 && node->number[0] < 9223372036854775808.0) ||
        (double)(int64_t)node->number[0] != node->number[0])
        return false;
    *out = (int64_t)node->number[0];
    return true;
}

/* What of a text goes into its hash and is compared without being paid for. */
enum { KEY_ENDS = 32 };

static uint64_t key_hash(const pst_walk_node *node)
{
    int64_t number;
    if (whole(node, &number))
        return pst_hash(PST_HASH_START, &number, sizeof number);
    if (has_text(node)) {
        size_t bytes = node->text.bytes, end = bytes < KEY_ENDS ? bytes : KEY_ENDS;
        uint64_t hash = pst_hash(PST_HASH_START, &bytes, sizeof bytes);
        hash = pst_hash(hash, node->text.at, end);
        return pst_hash(hash, node->text.at + bytes - end, end);
    }
    if (node->kind == PST_CKPT_FLOAT)
        return pst_hash(PST_HASH_START, &node->number[0], sizeof node->number[0]);
    return pst_hash(PST_HASH_START, &node, sizeof node);
}

/* 1: Python takes them for the same key; 0: it does not; negative: their comparison is not paid for. */
static int same_key(tree *t, const pst_walk_node *a, const pst_walk_node *b)
{
    int64_t x, y;
    if (a == b)
        return 1;
    if (whole(a, &x))
        return whole(b, &y) && x == y;
    if (a->kind != b->kind)
        return 0;
    if (!has_text(a))
        return a->kind == PST_CKPT_FLOAT && !whole(b, &y) && a->number[0] == b->number[0];
    size_t bytes = a->text.bytes, end = bytes < KEY_ENDS ? bytes : KEY_ENDS;
    if (!has_text(b) || b->text.bytes != bytes || memcmp(a->text.at, b->text.at, end) != 0 ||
        memcmp(a->text.at + bytes - end, b->text.at + bytes - end, end) != 0)
        return 0;
    PST_TRY(pay(t, bytes));
    return memcmp(a->text.at, b->text.at, bytes) == 0;
}

/* A key twice: readers differ in which value counts. Tuples and the like are compared by identity alone. */
static int check_keys(tree *t, const pst_walk_node *dict)
{
    const pst_walk *walk = t->walk;
    size_t slots = 16;
    while (slots < dict->list.count) /* at most half of them are used */
        slots *= 2;
    if (slots > t->key_slot_capacity) {
        uint32_t *grown = pst_heap_reallocarray(t->key_slots, slots, sizeof *grown);
        if (grown == NULL)
            return pst_fail_memory(walk->err, "the keys of a dict", slots * sizeof *grown);
        t->key_slots = grown;
        t->key_slot_capacity = slots;
    }
    memset(t->key_slots, 0, slots * sizeof *t->key_slots);
    uint32_t link = dict->list.first;
    for (uint32_t i = 0; i < dict->list.count; i += 2) {
        uint32_t key = walk->links[link].node;
        const pst_walk_node *node = &walk->nodes[key];
        uint64_t hash = key_hash(node);
        size_t at = (size_t)(hash ^ hash >> 32) & (slots - 1);
        for (; t->key_slots[at] != 0; at = (at + 1) & (slots - 1)) {
            PST_TRY(pay(t, 1));
            int same = same_key(t, &walk->nodes[t->key_slots[at] - 1], node);
            PST_TRY(same);
            if (!same)
                continue;
            char quoted[PST_QUOTE_BYTES] = "";
            if (node->kind == PST_CKPT_TEXT)
                pst_walk_quote(node->text, quoted);
            return pst_fail(walk->err, PST_E_FORMAT, walk->path, "its pickle has the key \"%s\" twice in one dict",
                            quoted);
        }
        t->key_slots[at] = key + 1;
        link = walk->links[walk->links[link].next].next;
    }
    return 0;
}

/* ---- going through ---- */

static int add_tensor(tree *t, const pst_walk_node *node)
{
    pst_walk *walk = t->walk;
    pst_torch_tensor tensor;
    PST_TRY(pst_walk_read_tensor(walk, node, &tensor));
    pst_walk_storage *storage = &walk->storages[tensor.storage];
    if (storage->number == PST_WALK_NO_NODE) {
        storage->number = (uint32_t)t->storage_count;
        t->storages[t->storage_count++] =
            (pst_torch_storage){.record = (size_t)storage->record, .dtype = storage->dtype, .bytes = storage->bytes};
    }
    tensor.storage = storage->number;
    PST_TRY(pst_walk_grow(walk, &t->tensors, t->tensor_count, &t->tensor_capacity, sizeof tensor));
    PST_TRY(pst_walk_grow(walk, &t->name_at, t->tensor_count, &t->name_at_capacity, sizeof *t->name_at));
    t->name_at[t->tensor_count] = t->name_bytes;
    t->tensors[t->tensor_count++] = tensor;
    PST_TRY(append_text(t, &t->names, &t->name_bytes, &t->name_capacity, t->path, t->path_bytes));
    return append_text(t, &t->names, &t->name_bytes, &t->name_capacity, "", 1);
}

static int refuse_bare(const tree *t, const pst_walk_node *node)
{
    const pst_walk *walk = t->walk;
    if (node->kind == PST_WALK_STORAGE)
        return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path,
                        "its pickle has a storage that is not in a tensor, which is refused");
    return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path,
                    "its pickle has \"%s\" itself as a value, which is refused",
                    pst_walk_global_at(node->global)->name);
}

static int visit(tree *t, uint32_t number)
{
    pst_walk *walk = t->walk;
    pst_walk_node *node = &walk->nodes[number];
    if (node->flags & PST_WALK_OPEN)
        return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path,
                        "its pickle has a container that holds itself, which is refused");
    if (t->numbers[number] != PST_WALK_NO_NODE)
        return 0;
    if (node->kind == PST_WALK_STORAGE || node->kind == PST_WALK_GLOBAL ||
        (node->kind == PST_CKPT_NAMED && pst_walk_global_at(node->global)->use == PST_USE_STORAGE))
        return refuse_bare(t, node);
    t->numbers[number] = (uint32_t)t->count;
    t->order[t->count++] = number;
    if (has_text(node))
        t->text_bytes += node->text.bytes + 1;
    if (is_container(node))
        t->children += node->list.count;
    if (node->kind == PST_CKPT_TENSOR)
        PST_TRY(add_tensor(t, node));
    if (node->kind == PST_CKPT_DICT && node->list.count > 2)
        PST_TRY(check_keys(t, node));
    if (!leads_on(node))
        return 0;
    PST_TRY(pst_walk_grow(walk, &t->frames, t->depth, &t->frame_capacity, sizeof *t->frames));
    t->frames[t->depth++] = (frame){.node = number,
                                    .link = is_container(node) ? node->list.first : PST_WALK_NO_NODE,
                                    .path_bytes = t->path_bytes,
                                    .keys = t->keys};
    node->flags |= PST_WALK_OPEN;
    return 0;
}

/* The next child of the innermost container, or its attributes, or back out of it. */
static int step(tree *t)
{
    pst_walk *walk = t->walk;
    frame *f = &t->frames[t->depth - 1];
    pst_walk_node *node = &walk->nodes[f->node];
    uint32_t count = is_container(node) ? node->list.count : 0;
    t->path_bytes = f->path_bytes;
    t->keys = f->keys;
    if (f->index < count) {
        uint32_t index = f->index++, child = walk->links[f->link].node;
        f->link = walk->links[f->link].next;
        const pst_walk_node *to = &walk->nodes[child];
        bool named = t->numbers[child] == PST_WALK_NO_NODE && (leads_on(to) || to->kind == PST_CKPT_TENSOR);
        if (named)
            PST_TRY(append_segment(t, f, index));
        f->key = child;
        return visit(t, child);
    }
    if (f->index == count && node->attributes != PST_WALK_NO_NODE) {
        f->index++;
        return visit(t, node->attributes);
    }
    node->flags &= (uint8_t)~PST_WALK_OPEN;
    t->depth--;
    return 0;
}

static int go_through(tree *t, uint32_t root)
{
    pst_walk *walk = t->walk;
    t->numbers = pst_heap_reallocarray(NULL, walk->node_count, sizeof *t->numbers);
    t->order = pst_heap_reallocarray(NULL, walk->node_count, sizeof *t->order);
    t->storages = pst_heap_reallocarray(NULL, walk->storage_count, sizeof *t->storages);
    if (t->numbers == NULL || t->order == NULL || t->storages == NULL)
        return pst_fail_memory(walk->err, "the values of a pickle", walk->node_count * sizeof *t->numbers);
    memset(t->numbers, 0xff, walk->node_count * sizeof *t->numbers);
    t->budget = 16 * (uint64_t)walk->bytes + 65536;
    PST_TRY(visit(t, root));
    while (t->depth > 0)
        PST_TRY(step(t));
    return 0;
}

/* ---- the result ---- */

static const char *fixed_text(const pst_walk_node *node)
{
    bool variant = node->flags & PST_WALK_VARIANT;
    switch (node->kind) {
    case PST_CKPT_NAMED: return pst_walk_global_at(node->global)->name;
    case PST_CKPT_TUPLE: return variant ? "torch.Size" : NULL;
    case PST_CKPT_SET: return variant ? "frozenset" : NULL;
    case PST_CKPT_DICT: return variant ? "OrderedDict" : node->flags & PST_WALK_COUNTER ? "Counter" : NULL;
    case PST_CKPT_TENSOR: return variant ? "Parameter" : NULL;
    default: return NULL;
    }
}

typedef struct filler {
    const tree *tree;
    char *texts;
    uint32_t *children;
    int64_t tensors;
} filler;

static void fill_value(filler *f, const pst_walk_node *node, pst_ckpt_value *value)
{
    const pst_walk *walk = f->tree->walk;
    value->kind = (pst_ckpt_kind)node->kind;
    value->text = fixed_text(node);
    value->text_bytes = value->text != NULL ? strlen(value->text) : 0;
    if (has_text(node)) {
        memcpy(f->texts, node->text.at, node->text.bytes);
        f->texts[node->text.bytes] = '\0';
        value->text = f->texts;
        value->text_bytes = node->text.bytes;
        f->texts += node->text.bytes + 1;
    } else if (is_container(node)) {
        uint32_t link = node->list.first;
        value->children = f->children;
        value->child_count = node->list.count;
        for (uint32_t i = 0; i < node->list.count; i++, link = walk->links[link].next)
            *f->children++ = f->tree->numbers[walk->links[link].node];
    } else if (node->kind == PST_CKPT_TENSOR) {
        value->integer = f->tensors++; /* they were numbered in this order */
        value->requires_grad = node->flags & PST_WALK_REQUIRES_GRAD;
        value->conjugate = node->flags & PST_WALK_CONJUGATE;
        value->negative = node->flags & PST_WALK_NEGATIVE;
    } else if (node->kind == PST_CKPT_FLOAT || node->kind == PST_CKPT_COMPLEX) {
        value->number = node->number[0];
        value->imaginary = node->kind == PST_CKPT_COMPLEX ? node->number[1] : 0;
    } else {
        value->integer = node->integer; /* of None: 0 */
    }
    if (node->attributes != PST_WALK_NO_NODE)
        value->attributes = f->tree->numbers[node->attributes];
}

static int hand_out(tree *t, pst_torch_file *out)
{
    const pst_walk *walk = t->walk;
    pst_torch_owned *owned = pst_heap_calloc(1, sizeof *owned);
    pst_ckpt_value *values = pst_heap_calloc(t->count, sizeof *values);
    char *texts = pst_heap_alloc(t->text_bytes);
    uint32_t *children = pst_heap_reallocarray(NULL, t->children, sizeof *children);
    if (owned == NULL || values == NULL || texts == NULL || children == NULL) {
        pst_heap_free(owned);
        pst_heap_free(values);
        pst_heap_free(texts);
        pst_heap_free(children);
        return pst_fail_memory(walk->err, "the values of a pickle", t->count * sizeof *values);
    }
    filler f = {.tree = t, .texts = texts, .children = children};
    for (size_t i = 0; i < t->count; i++)
        fill_value(&f, &walk->nodes[t->order[i]], &values[i]);
    for (size_t i = 0; i < t->tensor_count; i++)
        t->tensors[i].name = t->names + t->name_at[i];
    *owned = (pst_torch_owned){.texts = texts, .names = t->names, .children = children};
    *out = (pst_torch_file){.storages = t->storages,
                            .storage_count = t->storage_count,
                            .tensors = t->tensors,
                            .tensor_count = t->tensor_count,
                            .values = values,
                            .value_count = t->count,
                            .owned = owned};
    t->storages = NULL;
    t->tensors = NULL;
    t->names = NULL;
    return 0;
}

int pst_walk_make_tree(pst_walk *walk, uint32_t root, pst_torch_file *out)
{
    tree t = {.walk = walk};
    int status = go_through(&t, root);
    if (status >= 0)
        status = hand_out(&t, out);
    pst_heap_free(t.numbers);
    pst_heap_free(t.order);
    pst_heap_free(t.frames);
    pst_heap_free(t.path);
    pst_heap_free(t.names);
    pst_heap_free(t.name_at);
    pst_heap_free(t.tensors);
    pst_heap_free(t.storages);
    pst_heap_free(t.key_slots);
    return status;
}
