/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine's parts: growing arrays, nodes, stack and marks, texts; and the beginning and end of a walk. The operations
 * are in torch_walk_ops.c.
 */
#include "store/torch_walk.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"

int pst_walk_malformed(const pst_walk *walk, const char *what)
{
    return pst_fail(walk->err, PST_E_FORMAT, walk->path, "its pickle is malformed at byte %zu: %s", walk->operation_at,
                    what);
}

int pst_walk_refuse(const pst_walk *walk, const char *name)
{
    return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path, "its pickle wants \"%s\", which is refused", name);
}

int pst_walk_grow(const pst_walk *walk, void *array_pointer, size_t count, size_t *capacity, size_t element_bytes)
{
    if (count < *capacity)
        return 0;
    void *array;
    memcpy(&array, array_pointer, sizeof array);
    size_t wanted = *capacity + *capacity / 2 + 16;
    array = pst_heap_reallocarray(array, wanted, element_bytes);
    if (array == NULL)
        return pst_fail_memory(walk->err, "what a pickle holds", wanted * element_bytes);
    memcpy(array_pointer, &array, sizeof array);
    *capacity = wanted;
    return 0;
}

int pst_walk_add_node(pst_walk *walk, const pst_walk_node *node, uint32_t *out)
{
    if (walk->node_count == PST_WALK_MAX_NODES)
        return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path, "its pickle holds more than %d values",
                        PST_WALK_MAX_NODES);
    PST_TRY(pst_walk_grow(walk, &walk->nodes, walk->node_count, &walk->node_capacity, sizeof *walk->nodes));
    *out = (uint32_t)walk->node_count;
    walk->nodes[walk->node_count++] = *node;
    return 0;
}

int pst_walk_push(pst_walk *walk, uint32_t node)
{
    PST_TRY(pst_walk_grow(walk, &walk->stack, walk->depth, &walk->stack_capacity, sizeof *walk->stack));
    walk->stack[walk->depth++] = node;
    return 0;
}

int pst_walk_push_node(pst_walk *walk, const pst_walk_node *node)
{
    uint32_t number;
    PST_TRY(pst_walk_add_node(walk, node, &number));
    return pst_walk_push(walk, number);
}

int pst_walk_pop(pst_walk *walk, uint32_t *out)
{
    size_t floor = walk->mark_count > 0 ? walk->marks[walk->mark_count - 1] : 0;
    if (walk->depth == floor)
        return pst_walk_malformed(walk, "it takes a value that is not there");
    *out = walk->stack[--walk->depth];
    return 0;
}

pst_walk_node pst_walk_container(int kind, unsigned flags)
{
    pst_walk_node node = {
        .kind = (uint8_t)kind, .flags = (uint8_t)flags, .attributes = PST_WALK_NO_NODE, .number = {0, 0}};
    node.list.first = node.list.last = PST_WALK_NO_NODE;
    node.list.count = 0;
    return node;
}

int pst_walk_append(pst_walk *walk, uint32_t container, uint32_t node)
{
    if (walk->link_count >= PST_WALK_NO_NODE)
        return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path, "its pickle holds too many values");
    PST_TRY(pst_walk_grow(walk, &walk->links, walk->link_count, &walk->link_capacity, sizeof *walk->links));
    pst_walk_node *into = &walk->nodes[container];
    uint32_t number = (uint32_t)walk->link_count++;
    walk->links[number] = (pst_walk_link){node, PST_WALK_NO_NODE};
    if (into->list.count == 0)
        into->list.first = number;
    else
        walk->links[into->list.last].next = number;
    into->list.last = number;
    into->list.count++;
    return 0;
}

int pst_walk_spend(pst_walk *walk, uint64_t amount)
{
    if (amount > walk->budget)
        return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path, "its pickle repeats its content too often");
    walk->budget -= amount;
    return 0;
}

unsigned char *pst_walk_memory(pst_walk *walk, size_t bytes)
{
    pst_walk_block *block = walk->blocks;
    if (block == NULL || block->room - block->used < bytes) {
        size_t room = block != NULL && block->room < 65536 ? block->room * 2 : 1024;
        room = room < bytes ? bytes : room;
        block = pst_heap_alloc(sizeof *block + room);
        if (block == NULL) {
            pst_fail_memory(walk->err, "texts of a pickle", room);
            return NULL;
        }
        *block = (pst_walk_block){.next = walk->blocks, .room = room};
        walk->blocks = block;
    }
    unsigned char *memory = block->bytes + block->used;
    block->used += bytes;
    return memory;
}

/* How many bytes the character at `text` has; 0: it is none. */
static size_t character_bytes(const unsigned char *text, size_t bytes)
{
    unsigned char first = text[0];
    if (first < 0x80)
        return 1;
    size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || length > bytes)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    /* Longer than needed, or past U+10FFFF. U+D800 to U+DFFF are let through. */
    bool excess =
        (first == 0xe0 && text[1] < 0xa0) || (first == 0xf0 && text[1] < 0x90) || (first == 0xf4 && text[1] > 0x8f);
    return excess ? 0 : length;
}

bool pst_walk_is_utf8(const unsigned char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        size_t length = character_bytes(text + at, bytes - at);
        if (length == 0)
            return false;
        at += length;
    }
    return true;
}

const char *pst_walk_quote(pst_walk_text text, char out[PST_QUOTE_BYTES])
{
    char copy[PST_QUOTE_BYTES + 1];
    size_t bytes = text.bytes < PST_QUOTE_BYTES ? text.bytes : PST_QUOTE_BYTES;
    for (size_t i = 0; i < bytes; i++)
        copy[i] = text.at[i] == 0 || text.at[i] >= 0x80 ? '?' : (char)text.at[i];
    copy[bytes] = '\0';
    return pst_quote(copy, out);
}

static void destroy(pst_walk *walk)
{
    for (pst_walk_block *block = walk->blocks, *next; block != NULL; block = next) {
        next = block->next;
        pst_heap_free(block);
    }
    pst_heap_free(walk->nodes);
    pst_heap_free(walk->links);
    pst_heap_free(walk->stack);
    pst_heap_free(walk->marks);
    pst_heap_free(walk->memo);
    pst_heap_free(walk->small_integers);
    pst_heap_free(walk->storages);
    pst_heap_free(walk->storage_slots);
}

int pst_torch_walk(const void *pickle, size_t bytes, const char *path, pst_torch_find find, void *user,
                   pst_torch_file *out, pst_error *err)
{
    pst_walk walk = {.pickle = pickle, .bytes = bytes, .path = path, .find = find, .user = user, .err = err};
    if (bytes > PST_WALK_MAX_PICKLE)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "its pickle has %zu bytes, more than the %d that are sensible",
                        bytes, PST_WALK_MAX_PICKLE);
    walk.budget = 2 * (uint64_t)bytes + 64;
    for (int i = 0; i < 3; i++)
        walk.singletons[i] = PST_WALK_NO_NODE;
    uint32_t root;
    int status = pst_walk_run(&walk, &root);
    if (status >= 0)
        status = pst_walk_make_tree(&walk, root, out);
    destroy(&walk);
    return status < 0 ? status : 0;
}
