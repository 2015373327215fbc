/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Storages and tensors. A storage is ("storage", its type, its key, where it was, its number of elements); it must have the
 * size of its record, and be of one type wherever it is mentioned. A tensor is (storage, offset, sizes, strides,
 * requires_grad, hooks[, dtype][, bits]); what its elements reach must lie inside the storage.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "store/torch_walk.h"

enum { MAX_KEY = 255 };

int pst_walk_arguments(const pst_walk *walk, uint32_t tuple, size_t least, size_t most, uint32_t *out,
                       size_t *out_count)
{
    const pst_walk_node *node = &walk->nodes[tuple];
    if (node->kind != PST_CKPT_TUPLE || node->list.count < least || node->list.count > most)
        return pst_walk_malformed(walk, "a tuple of another length was expected");
    uint32_t link = node->list.first;
    for (uint32_t i = 0; i < node->list.count; i++, link = walk->links[link].next)
        out[i] = walk->links[link].node;
    if (out_count != NULL)
        *out_count = node->list.count;
    return 0;
}

/* ---- storages ---- */

static bool text_is(const pst_walk_node *node, const char *what)
{
    return node->kind == PST_CKPT_TEXT && node->text.bytes == strlen(what) &&
           memcmp(node->text.at, what, node->text.bytes) == 0;
}

static uint32_t *slot_of(const pst_walk *walk, int64_t record)
{
    size_t at = (size_t)((uint64_t)record * UINT64_C(0x9e3779b97f4a7c15) >> 32) & (walk->storage_slot_count - 1);
    while (walk->storage_slots[at] != 0 && walk->storages[walk->storage_slots[at] - 1].record != record)
        at = (at + 1) & (walk->storage_slot_count - 1);
    return &walk->storage_slots[at];
}

/* Keeps the table of storages at most half full. */
static int make_slots(pst_walk *walk)
{
    if (walk->storage_count * 2 < walk->storage_slot_count)
        return 0;
    size_t count = walk->storage_slot_count ? walk->storage_slot_count * 2 : 16;
    uint32_t *slots = pst_heap_calloc(count, sizeof *slots);
    if (slots == NULL)
        return pst_fail_memory(walk->err, "a table of storages", count * sizeof *slots);
    pst_heap_free(walk->storage_slots);
    walk->storage_slots = slots;
    walk->storage_slot_count = count;
    for (size_t i = 0; i < walk->storage_count; i++)
        *slot_of(walk, walk->storages[i].record) = (uint32_t)i + 1;
    return 0;
}

/* The number of the storage of this record, which is a new one on its first mention. */
static int find_storage(pst_walk *walk, const char *key, pst_dtype dtype, uint64_t elements, uint32_t *out)
{
    pst_walk_storage storage = {.dtype = dtype, .number = PST_WALK_NO_NODE};
    storage.record = walk->find(walk->user, key, &storage.bytes);
    char quoted[PST_QUOTE_BYTES];
    pst_quote(key, quoted);
    if (storage.record < 0)
        return pst_fail(walk->err, PST_E_FORMAT, walk->path, "it has no record of the storage \"%s\"", quoted);
    /* Bytes beyond the last whole element can be there: of a storage that was made for another type. */
    if (elements != storage.bytes / (pst_dtype_bits(dtype) / 8))
        return pst_fail(walk->err, PST_E_FORMAT, walk->path,
                        "the storage \"%s\" has %" PRIu64 " elements of %s by the pickle, but its record %" PRIu64
                        " bytes",
                        quoted, elements, pst_dtype_name(dtype), storage.bytes);
    PST_TRY(make_slots(walk));
    uint32_t *slot = slot_of(walk, storage.record);
    if (*slot == 0) {
        PST_TRY(pst_walk_grow(walk, &walk->storages, walk->storage_count, &walk->storage_capacity, sizeof storage));
        walk->storages[walk->storage_count++] = storage;
        *slot = (uint32_t)walk->storage_count;
    } else if (walk->storages[*slot - 1].dtype != dtype && storage.bytes > 0) { /* torch lets empty ones pass */
        return pst_fail(walk->err, PST_E_FORMAT, walk->path, "the storage \"%s\" is of the two types %s and %s", quoted,
                        pst_dtype_name(walk->storages[*slot - 1].dtype), pst_dtype_name(dtype));
    }
    *out = *slot - 1;
    return 0;
}

int pst_walk_persistent(pst_walk *walk)
{
    uint32_t tuple, given[5], number = 0;
    PST_TRY(pst_walk_pop(walk, &tuple));
    PST_TRY(pst_walk_arguments(walk, tuple, 5, 5, given, NULL));
    const pst_walk_node *type = &walk->nodes[given[1]], *key = &walk->nodes[given[2]];
    const pst_walk_node *place = &walk->nodes[given[3]], *elements = &walk->nodes[given[4]];
    if (!text_is(&walk->nodes[given[0]], "storage"))
        return pst_walk_malformed(walk, "a reference to what is no storage");
    if (type->kind != PST_WALK_GLOBAL || pst_walk_global_at(type->global)->use != PST_USE_STORAGE)
        return pst_walk_malformed(walk, "a storage of no type");
    if (key->kind != PST_CKPT_TEXT || key->text.bytes == 0 || key->text.bytes > MAX_KEY ||
        memchr(key->text.at, 0, key->text.bytes) != NULL)
        return pst_walk_malformed(walk, "a storage whose key is no short text");
    if (place->kind != PST_CKPT_TEXT) /* "cpu", "cuda:0": it is loaded to the host */
        return pst_walk_malformed(walk, "a storage whose place is no text");
    if (elements->kind != PST_CKPT_INT || elements->flags & PST_WALK_WIDE || elements->integer < 0)
        return pst_walk_malformed(walk, "a storage with an impossible number of elements");
    char name[MAX_KEY + 1];
    memcpy(name, key->text.at, key->text.bytes);
    name[key->text.bytes] = '\0';
    PST_TRY(find_storage(walk, name, (pst_dtype)pst_walk_global_at(type->global)->dtype, (uint64_t)elements->integer,
                         &number));
    pst_walk_node node = {
        .kind = PST_WALK_STORAGE, .global = type->global, .attributes = PST_WALK_NO_NODE, .arguments = number};
    return pst_walk_push_node(walk, &node);
}

/* ---- tensors ---- */

/* A tuple of at most PST_MAX_RANK whole numbers that are not negative. */
static int read_numbers(const pst_walk *walk, uint32_t tuple, uint64_t *out, uint32_t *out_count)
{
    uint32_t given[PST_MAX_RANK];
    size_t count;
    if (walk->nodes[tuple].kind == PST_CKPT_TUPLE && walk->nodes[tuple].list.count > PST_MAX_RANK)
        return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path,
                        "its pickle has a tensor of %u dimensions, more than %d", walk->nodes[tuple].list.count,
                        PST_MAX_RANK);
    PST_TRY(pst_walk_arguments(walk, tuple, 0, PST_MAX_RANK, given, &count));
    for (size_t i = 0; i < count; i++) {
        const pst_walk_node *node = &walk->nodes[given[i]];
        if (node->kind != PST_CKPT_INT || node->flags & PST_WALK_WIDE || node->integer < 0)
            return pst_walk_malformed(walk, "a tensor with an impossible size or stride");
        out[i] = (uint64_t)node->integer;
    }
    *out_count = (uint32_t)count;
    return 0;
}

/* The dtype: the storage's, or the one that is named where the storage is of bytes. */
static int read_dtype(const pst_walk *walk, const uint32_t *given, bool is_v3, pst_dtype *out)
{
    if (!is_v3) {
        *out = (pst_dtype)pst_walk_global_at(walk->nodes[given[0]].global)->dtype;
        return 0;
    }
    const pst_walk_node *node = &walk->nodes[given[6]];
    if (node->kind != PST_CKPT_NAMED || pst_walk_global_at(node->global)->use != PST_USE_DTYPE)
        return pst_walk_malformed(walk, "a tensor whose type is none");
    int dtype = pst_walk_global_at(node->global)->dtype;
    if (dtype < 0)
        return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path, "its pickle has a tensor of \"%s\", which is refused",
                        pst_walk_global_at(node->global)->name);
    *out = (pst_dtype)dtype;
    return 0;
}

/* {"conj": True, "neg": True}, either alone, or nothing. */
static int read_bits(const pst_walk *walk, uint32_t bits, uint8_t *flags)
{
    const pst_walk_node *node = &walk->nodes[bits];
    if (node->kind == PST_CKPT_NONE)
        return 0;
    if (node->kind != PST_CKPT_DICT)
        return pst_walk_malformed(walk, "a tensor whose bits are no dict");
    uint32_t link = node->list.first;
    for (uint32_t i = 0; i < node->list.count; i += 2) {
        const pst_walk_node *key = &walk->nodes[walk->links[link].node];
        link = walk->links[link].next;
        const pst_walk_node *value = &walk->nodes[walk->links[link].node];
        link = walk->links[link].next;
        unsigned flag = text_is(key, "conj") ? PST_WALK_CONJUGATE : text_is(key, "neg") ? PST_WALK_NEGATIVE : 0;
        if (flag == 0 || value->kind != PST_CKPT_BOOL)
            return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path,
                            "its pickle has a tensor with bits other than \"conj\" and \"neg\", which is refused");
        if (value->integer)
            *flags |= (uint8_t)flag;
    }
    return 0;
}

/* float4_e2m1fn_x2 has two elements in each byte, and counts bytes. Here it counts elements, as safetensors does: the last
 * dimension is twice as long. */
static int double_last(const pst_walk *walk, pst_torch_tensor *tensor, uint64_t *offset)
{
    uint32_t last = tensor->rank - 1;
    bool fits = tensor->rank > 0 && (tensor->strides[last] == 1 || tensor->shape[last] <= 1);
    for (uint32_t i = 0; fits && i < last; i++)
        fits = !__builtin_mul_overflow(tensor->strides[i], 2, &tensor->strides[i]);
    if (!fits || __builtin_mul_overflow(tensor->shape[last], 2, &tensor->shape[last]) ||
        __builtin_mul_overflow(*offset, 2, offset))
        return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path,
                        "its pickle has a tensor of float4_e2m1fn_x2 whose last dimension is not contiguous, "
                        "which is refused");
    tensor->strides[last] = 1;
    return 0;
}

/* Whether all elements lie inside of the storage. Without elements the offset can be anywhere: torch.empty(3, 0)[2:]. */
static bool is_inside(const pst_torch_tensor *tensor, uint64_t offset, uint64_t storage_bytes)
{
    uint64_t end = offset, reach, bits;
    bool empty = false;
    for (uint32_t i = 0; i < tensor->rank; i++)
        empty = empty || tensor->shape[i] == 0;
    for (uint32_t i = 0; !empty && i < tensor->rank; i++)
        if (__builtin_mul_overflow(tensor->shape[i] - 1, (uint64_t)tensor->strides[i], &reach) ||
            __builtin_add_overflow(end, reach, &end))
            return false;
    if (__builtin_add_overflow(end, 1, &end) ||
        __builtin_mul_overflow(end, (uint64_t)pst_dtype_bits(tensor->dtype), &bits))
        return false;
    return empty || bits / 8 + (bits % 8 != 0) <= storage_bytes;
}

/* Whether the strides are those that torch gives to a new tensor of this shape. Others can mean the same elements, where a
 * dimension has one or the tensor none, but torch keeps them. */
static bool is_contiguous(const pst_torch_tensor *tensor)
{
    uint64_t wanted = 1;
    for (uint32_t i = tensor->rank; i > 0; i--) {
        if ((uint64_t)tensor->strides[i - 1] != wanted)
            return false;
        wanted *= tensor->shape[i - 1] > 0 ? tensor->shape[i - 1] : 1; /* may wrap in a tensor without elements */
    }
    return true;
}

int pst_walk_read_tensor(const pst_walk *walk, const pst_walk_node *node, pst_torch_tensor *out)
{
    bool is_v3 = pst_walk_global_at(node->global)->use == PST_USE_TENSOR_V3;
    uint32_t given[8], strides;
    size_t least = is_v3 ? 7 : 6;
    uint64_t numbers[PST_MAX_RANK], offset;
    pst_torch_tensor tensor = {0};
    PST_TRY(pst_walk_arguments(walk, node->arguments, least, least + 1, given, NULL));
    const pst_walk_node *storage = &walk->nodes[given[0]], *begin = &walk->nodes[given[1]];
    if (storage->kind != PST_WALK_STORAGE || begin->kind != PST_CKPT_INT || begin->flags & PST_WALK_WIDE ||
        begin->integer < 0 || walk->nodes[given[4]].kind != PST_CKPT_BOOL)
        return pst_walk_malformed(walk, "a tensor without a storage or an offset");
    tensor.storage = storage->arguments;
    offset = (uint64_t)begin->integer;
    PST_TRY(read_numbers(walk, given[2], tensor.shape, &tensor.rank));
    PST_TRY(read_numbers(walk, given[3], numbers, &strides));
    if (strides != tensor.rank)
        return pst_walk_malformed(walk, "a tensor with more or fewer strides than dimensions");
    for (uint32_t i = 0; i < strides; i++)
        tensor.strides[i] = (int64_t)numbers[i];
    PST_TRY(read_dtype(walk, given, is_v3, &tensor.dtype));
    if (tensor.dtype == PST_F4)
        PST_TRY(double_last(walk, &tensor, &offset));
    if (pst_tensor_shape_bytes(tensor.dtype, tensor.shape, tensor.rank, &tensor.bytes) < 0)
        return pst_walk_malformed(walk, "a tensor whose size is no number below 2^64");
    if (!is_inside(&tensor, offset, walk->storages[tensor.storage].bytes))
        return pst_walk_malformed(walk, "a tensor that reaches outside of its storage");
    tensor.begin = offset * pst_dtype_bits(tensor.dtype) / 8; /* no overflow: is_inside has tried */
    tensor.contiguous = is_contiguous(&tensor);
    *out = tensor;
    return 0;
}

int pst_walk_make_tensor(pst_walk *walk, uint16_t global, uint32_t tuple, pst_walk_node *out)
{
    pst_walk_node node = {.kind = PST_CKPT_TENSOR,
                          .flags = PST_WALK_HASHABLE,
                          .global = global,
                          .attributes = PST_WALK_NO_NODE,
                          .arguments = tuple};
    pst_torch_tensor tensor;
    PST_TRY(pst_walk_read_tensor(walk, &node, &tensor));
    uint32_t given[8];
    size_t count, least = pst_walk_global_at(global)->use == PST_USE_TENSOR_V3 ? 7 : 6;
    PST_TRY(pst_walk_arguments(walk, tuple, least, least + 1, given, &count));
    if (walk->nodes[given[4]].integer)
        node.flags |= PST_WALK_REQUIRES_GRAD;
    if (count > least)
        PST_TRY(read_bits(walk, given[least], &node.flags));
    *out = node;
    return 0;
}
