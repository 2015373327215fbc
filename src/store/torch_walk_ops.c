/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operations of pickle protocols 2 to 5 that plain data and torch's tensors consist of. Every argument is bounded by what
 * is left of the pickle. What is not in the table is refused: text forms of protocol 0, extension codes, making objects of
 * classes, buffers that lie elsewhere.
 */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "store/torch_walk.h"

/* The next bytes. */
static int take(pst_walk *walk, uint64_t bytes, const unsigned char **out)
{
    if (bytes > walk->bytes - walk->at)
        return pst_walk_malformed(walk, "it ends inside an operation");
    *out = walk->pickle + walk->at;
    walk->at += (size_t)bytes;
    return 0;
}

/* A little-endian number of so many bytes. */
static int take_number(pst_walk *walk, unsigned bytes, uint64_t *out)
{
    const unsigned char *at = NULL;
    PST_TRY(take(walk, bytes, &at));
    uint64_t value = 0;
    for (unsigned i = bytes; i > 0; i--)
        value = value << 8 | at[i - 1];
    *out = value;
    return 0;
}

/* A length of so many bytes, and what it is the length of. */
static int take_counted(pst_walk *walk, unsigned length_bytes, pst_walk_text *out)
{
    uint64_t bytes;
    PST_TRY(take_number(walk, length_bytes, &bytes));
    PST_TRY(take(walk, bytes, &out->at));
    out->bytes = (size_t)bytes;
    return 0;
}

/* The width of an operation's argument or of its length. */
static unsigned width_of(unsigned char operation)
{
    switch (operation) {
    case 'K':  /* BININT1 */
    case 'U':  /* SHORT_BINSTRING */
    case 'C':  /* SHORT_BINBYTES */
    case 'q':  /* BINPUT */
    case 'h':  /* BINGET */
    case 0x8a: /* LONG1 */
    case 0x8c: /* SHORT_BINUNICODE */ return 1;
    case 'M': /* BININT2 */ return 2;
    case 0x8d: /* BINUNICODE8 */
    case 0x8e: /* BINBYTES8 */
    case 0x96: /* BYTEARRAY8 */
    case 0x95: /* FRAME */ return 8;
    default: return 4; /* J X B T r j LONG4 */
    }
}

/* ---- values ---- */

static int push_singleton(pst_walk *walk, int which, const pst_walk_node *node)
{
    if (walk->singletons[which] == PST_WALK_NO_NODE)
        PST_TRY(pst_walk_add_node(walk, node, &walk->singletons[which]));
    return pst_walk_push(walk, walk->singletons[which]);
}

static int op_constant(pst_walk *walk, unsigned char operation)
{
    pst_walk_node node = {.kind = PST_CKPT_NONE, .flags = PST_WALK_HASHABLE, .attributes = PST_WALK_NO_NODE};
    if (operation == 'N')
        return push_singleton(walk, 0, &node);
    node.kind = PST_CKPT_BOOL;
    node.integer = operation == 0x88; /* NEWTRUE */
    return push_singleton(walk, node.integer ? 2 : 1, &node);
}

/* Lists of small numbers are common and numbers have no identity: equal ones share their node. */
static int push_integer(pst_walk *walk, int64_t value)
{
    pst_walk_node node = {
        .kind = PST_CKPT_INT, .flags = PST_WALK_HASHABLE, .attributes = PST_WALK_NO_NODE, .integer = value};
    if (walk->small_integer_count == 0) {
        size_t count = walk->bytes < 65536 ? 256 : 65536;
        walk->small_integers = pst_heap_alloc(count * sizeof *walk->small_integers);
        if (walk->small_integers == NULL)
            return pst_fail_memory(walk->err, "what a pickle holds", count * sizeof *walk->small_integers);
        memset(walk->small_integers, 0xff, count * sizeof *walk->small_integers);
        walk->small_integer_count = count;
    }
    if (value < 0 || (uint64_t)value >= walk->small_integer_count)
        return pst_walk_push_node(walk, &node);
    uint32_t *known = &walk->small_integers[value];
    if (*known == PST_WALK_NO_NODE)
        PST_TRY(pst_walk_add_node(walk, &node, known));
    return pst_walk_push(walk, *known);
}

static int op_integer(pst_walk *walk, unsigned char operation)
{
    uint64_t value;
    PST_TRY(take_number(walk, width_of(operation), &value));
    return push_integer(walk, operation == 'J' ? (int64_t)(int32_t)(uint32_t)value : (int64_t)value);
}

/* Two's complement of any length. */
static int op_long(pst_walk *walk, unsigned char operation)
{
    pst_walk_text digits;
    PST_TRY(take_counted(walk, width_of(operation), &digits));
    while (digits.bytes > 1) { /* the highest byte repeats the sign of the one below */
        unsigned char top = digits.at[digits.bytes - 1], below = digits.at[digits.bytes - 2];
        if (top != (below & 0x80 ? 0xff : 0))
            break;
        digits.bytes--;
    }
    if (digits.bytes <= 8) {
        uint64_t value = digits.bytes > 0 && digits.at[digits.bytes - 1] & 0x80 ? UINT64_MAX : 0;
        for (size_t i = digits.bytes; i > 0; i--)
            value = value << 8 | digits.at[i - 1];
        return push_integer(walk, (int64_t)value);
    }
    pst_walk_node node = {.kind = PST_CKPT_INT,
                          .flags = PST_WALK_HASHABLE | PST_WALK_WIDE,
                          .attributes = PST_WALK_NO_NODE,
                          .text = digits};
    return pst_walk_push_node(walk, &node);
}

static int op_float(pst_walk *walk, unsigned char operation)
{
    (void)operation;
    const unsigned char *at = NULL;
    PST_TRY(take(walk, 8, &at));
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++) /* big-endian */
        bits = bits << 8 | at[i];
    pst_walk_node node = {.kind = PST_CKPT_FLOAT, .flags = PST_WALK_HASHABLE, .attributes = PST_WALK_NO_NODE};
    memcpy(&node.number[0], &bits, sizeof bits);
    return pst_walk_push_node(walk, &node);
}

static int op_text(pst_walk *walk, unsigned char operation)
{
    pst_walk_node node = {.kind = PST_CKPT_TEXT, .flags = PST_WALK_HASHABLE, .attributes = PST_WALK_NO_NODE};
    PST_TRY(take_counted(walk, width_of(operation), &node.text));
    if (!pst_walk_is_utf8(node.text.at, node.text.bytes))
        return pst_walk_malformed(walk, "a text that is not UTF-8");
    return pst_walk_push_node(walk, &node);
}

static int op_bytes(pst_walk *walk, unsigned char operation)
{
    bool is_array = operation == 0x96; /* BYTEARRAY8 */
    pst_walk_node node = {.kind = is_array ? PST_CKPT_BYTEARRAY : PST_CKPT_BYTES,
                          .flags = is_array ? 0 : PST_WALK_HASHABLE,
                          .attributes = PST_WALK_NO_NODE};
    PST_TRY(take_counted(walk, width_of(operation), &node.text));
    return pst_walk_push_node(walk, &node);
}

/* ---- containers ---- */

static int op_empty(pst_walk *walk, unsigned char operation)
{
    int kind = operation == ']'   ? PST_CKPT_LIST
               : operation == '}' ? PST_CKPT_DICT
               : operation == ')' ? PST_CKPT_TUPLE
                                  : PST_CKPT_SET; /* EMPTY_SET */
    pst_walk_node node = pst_walk_container(kind, operation == ')' ? PST_WALK_HASHABLE : 0);
    return pst_walk_push_node(walk, &node);
}

static int op_mark(pst_walk *walk, unsigned char operation)
{
    (void)operation;
    PST_TRY(pst_walk_grow(walk, &walk->marks, walk->mark_count, &walk->mark_capacity, sizeof *walk->marks));
    walk->marks[walk->mark_count++] = walk->depth;
    return 0;
}

/* The stack from *out_first on is what lies above the last mark, which goes away. */
static int take_mark(pst_walk *walk, size_t *out_first)
{
    if (walk->mark_count == 0)
        return pst_walk_malformed(walk, "it uses a mark that is not there");
    *out_first = walk->marks[--walk->mark_count];
    return 0;
}

/* Replaces the stack from `first` on by one TUPLE or frozen SET of it. */
static int fold(pst_walk *walk, int kind, unsigned flags, size_t first)
{
    pst_walk_node node = pst_walk_container(kind, flags);
    uint32_t number;
    bool hashable = true;
    PST_TRY(pst_walk_add_node(walk, &node, &number));
    for (size_t i = first; i < walk->depth; i++) {
        PST_TRY(pst_walk_append(walk, number, walk->stack[i]));
        hashable = hashable && walk->nodes[walk->stack[i]].flags & PST_WALK_HASHABLE;
    }
    if (kind == PST_CKPT_SET && !hashable)
        return pst_walk_malformed(walk, "a set of what cannot be in one");
    if (hashable)
        walk->nodes[number].flags |= PST_WALK_HASHABLE;
    walk->depth = first;
    return pst_walk_push(walk, number);
}

static int op_tuple(pst_walk *walk, unsigned char operation)
{
    size_t first = 0;
    if (operation == 't') {
        PST_TRY(take_mark(walk, &first));
    } else {
        size_t count = operation - 0x84u, floor = walk->mark_count > 0 ? walk->marks[walk->mark_count - 1] : 0;
        if (walk->depth - floor < count) /* TUPLE1, TUPLE2, TUPLE3 */
            return pst_walk_malformed(walk, "a tuple of values that are not there");
        first = walk->depth - count;
    }
    return fold(walk, PST_CKPT_TUPLE, 0, first);
}

static int op_frozenset(pst_walk *walk, unsigned char operation)
{
    (void)operation;
    size_t first = 0;
    PST_TRY(take_mark(walk, &first));
    return fold(walk, PST_CKPT_SET, PST_WALK_VARIANT, first);
}

/* Adds the stack from `first` on to the container below it. */
static int add_items(pst_walk *walk, unsigned char operation, size_t first)
{
    int kind = operation == 'a' || operation == 'e' ? PST_CKPT_LIST : operation == 0x90 ? PST_CKPT_SET : PST_CKPT_DICT;
    size_t floor = walk->mark_count > 0 ? walk->marks[walk->mark_count - 1] : 0;
    if (first <= floor)
        return pst_walk_malformed(walk, "it adds to a container that is not there");
    uint32_t container = walk->stack[first - 1];
    const pst_walk_node *into = &walk->nodes[container];
    if (into->kind != kind || (kind == PST_CKPT_SET && into->flags & PST_WALK_VARIANT))
        return pst_walk_malformed(walk, "it adds to what is not such a container");
    if (kind == PST_CKPT_DICT && (walk->depth - first) % 2 != 0)
        return pst_walk_malformed(walk, "a key without a value");
    for (size_t i = first; i < walk->depth; i++) {
        bool is_key = kind == PST_CKPT_SET || (kind == PST_CKPT_DICT && (i - first) % 2 == 0);
        if (is_key && !(walk->nodes[walk->stack[i]].flags & PST_WALK_HASHABLE))
            return pst_walk_malformed(walk, "a key that cannot be one");
        PST_TRY(pst_walk_append(walk, container, walk->stack[i]));
    }
    walk->depth = first;
    return 0;
}

static int op_add_many(pst_walk *walk, unsigned char operation)
{
    size_t first = 0;
    PST_TRY(take_mark(walk, &first));
    return add_items(walk, operation, first);
}

static int op_add_one(pst_walk *walk, unsigned char operation)
{
    size_t count = operation == 's' ? 2 : 1, floor = walk->mark_count > 0 ? walk->marks[walk->mark_count - 1] : 0;
    if (walk->depth - floor < count)
        return pst_walk_malformed(walk, "it takes a value that is not there");
    return add_items(walk, operation, walk->depth - count);
}

/* ---- stack and memo ---- */

static int op_pop(pst_walk *walk, unsigned char operation)
{
    (void)operation;
    uint32_t dropped;
    return pst_walk_pop(walk, &dropped);
}

static int op_pop_mark(pst_walk *walk, unsigned char operation)
{
    (void)operation;
    size_t first = 0;
    PST_TRY(take_mark(walk, &first));
    walk->depth = first;
    return 0;
}

static int op_duplicate(pst_walk *walk, unsigned char operation)
{
    (void)operation;
    uint32_t top;
    PST_TRY(pst_walk_pop(walk, &top));
    walk->depth++;
    return pst_walk_push(walk, top);
}

/* Picklers number what they remember from 0 on, so numbers beyond the pickle's length are no pickler's, and the table stays
 * as small as that. */
static int remember(pst_walk *walk, uint64_t index)
{
    size_t limit = walk->bytes + 256;
    if (index >= limit)
        return pst_walk_malformed(walk, "it remembers under a number that is too high");
    uint32_t top;
    PST_TRY(pst_walk_pop(walk, &top));
    walk->depth++;
    if (index >= walk->memo_capacity) {
        size_t wanted = walk->memo_capacity * 2 > index + 64 ? walk->memo_capacity * 2 : (size_t)index + 64;
        wanted = wanted < limit ? wanted : limit;
        uint32_t *memo = pst_heap_reallocarray(walk->memo, wanted, sizeof *memo);
        if (memo == NULL)
            return pst_fail_memory(walk->err, "the memo of a pickle", wanted * sizeof *memo);
        memset(memo + walk->memo_capacity, 0xff, (wanted - walk->memo_capacity) * sizeof *memo);
        walk->memo = memo;
        walk->memo_capacity = wanted;
    }
    walk->memo_count += walk->memo[index] == PST_WALK_NO_NODE;
    walk->memo[index] = top;
    return 0;
}

static int op_put(pst_walk *walk, unsigned char operation)
{
    uint64_t index;
    PST_TRY(take_number(walk, width_of(operation), &index));
    return remember(walk, index);
}

static int op_memoize(pst_walk *walk, unsigned char operation)
{
    (void)operation;
    return remember(walk, walk->memo_count);
}

static int op_get(pst_walk *walk, unsigned char operation)
{
    uint64_t index;
    PST_TRY(take_number(walk, width_of(operation), &index));
    if (index >= walk->memo_capacity || walk->memo[index] == PST_WALK_NO_NODE)
        return pst_walk_malformed(walk, "it recalls what it did not remember");
    return pst_walk_push(walk, walk->memo[index]);
}

/* ---- globals ---- */

static int take_line(pst_walk *walk, pst_walk_text *out)
{
    const unsigned char *begin = walk->pickle + walk->at;
    const unsigned char *end = memchr(begin, '\n', walk->bytes - walk->at);
    if (end == NULL)
        return pst_walk_malformed(walk, "it ends inside a name");
    *out = (pst_walk_text){begin, (size_t)(end - begin)};
    walk->at += out->bytes + 1;
    return 0;
}

static int op_global(pst_walk *walk, unsigned char operation)
{
    pst_walk_text module, name;
    if (operation == 'c') {
        PST_TRY(take_line(walk, &module));
        PST_TRY(take_line(walk, &name));
        return pst_walk_push_global(walk, module, name);
    }
    uint32_t nodes[2]; /* STACK_GLOBAL */
    PST_TRY(pst_walk_pop(walk, &nodes[1]));
    PST_TRY(pst_walk_pop(walk, &nodes[0]));
    for (int i = 0; i < 2; i++)
        if (walk->nodes[nodes[i]].kind != PST_CKPT_TEXT)
            return pst_walk_malformed(walk, "the name of a global is no text");
    return pst_walk_push_global(walk, walk->nodes[nodes[0]].text, walk->nodes[nodes[1]].text);
}

static int op_reduce(pst_walk *walk, unsigned char operation)
{
    (void)operation;
    return pst_walk_reduce(walk);
}

static int op_build(pst_walk *walk, unsigned char operation)
{
    (void)operation;
    return pst_walk_build(walk);
}

static int op_persistent(pst_walk *walk, unsigned char operation)
{
    (void)operation;
    return pst_walk_persistent(walk);
}

/* NEWOBJ and NEWOBJ_EX: no class that is let through is ever saved so. */
static int op_object(pst_walk *walk, unsigned char operation)
{
    uint32_t class = PST_WALK_NO_NODE;
    for (int i = operation == 0x92 ? 3 : 2; i > 0; i--)
        PST_TRY(pst_walk_pop(walk, &class));
    const pst_walk_node *node = &walk->nodes[class];
    if (node->kind == PST_WALK_GLOBAL)
        return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path,
                        "its pickle makes an object of \"%s\" in a way that is refused",
                        pst_walk_global_at(node->global)->name);
    return pst_walk_malformed(walk, "it makes an object of what is no class");
}

/* Frames only tell a reader how much to read at once. */
static int op_frame(pst_walk *walk, unsigned char operation)
{
    uint64_t bytes;
    PST_TRY(take_number(walk, width_of(operation), &bytes));
    return bytes <= walk->bytes - walk->at ? 0 : pst_walk_malformed(walk, "a frame that is longer than the pickle");
}

/* ---- the walk ---- */

typedef int (*operation_function)(pst_walk *walk, unsigned char operation);

static const operation_function operations[256] = {
    ['N'] = op_constant,   [0x88] = op_constant, [0x89] = op_constant,  ['J'] = op_integer,  ['K'] = op_integer,
    ['M'] = op_integer,    [0x8a] = op_long,     [0x8b] = op_long,      ['G'] = op_float,    ['X'] = op_text,
    [0x8c] = op_text,      [0x8d] = op_text,     ['U'] = op_text,       ['T'] = op_text,     ['C'] = op_bytes,
    ['B'] = op_bytes,      [0x8e] = op_bytes,    [0x96] = op_bytes,     [']'] = op_empty,    ['}'] = op_empty,
    [')'] = op_empty,      [0x8f] = op_empty,    ['('] = op_mark,       ['t'] = op_tuple,    [0x85] = op_tuple,
    [0x86] = op_tuple,     [0x87] = op_tuple,    [0x91] = op_frozenset, ['a'] = op_add_one,  ['s'] = op_add_one,
    ['e'] = op_add_many,   ['u'] = op_add_many,  [0x90] = op_add_many,  ['0'] = op_pop,      ['1'] = op_pop_mark,
    ['2'] = op_duplicate,  ['q'] = op_put,       ['r'] = op_put,        [0x94] = op_memoize, ['h'] = op_get,
    ['j'] = op_get,        ['c'] = op_global,    [0x93] = op_global,    ['R'] = op_reduce,   ['b'] = op_build,
    ['Q'] = op_persistent, [0x81] = op_object,   [0x92] = op_object,    [0x95] = op_frame,
};

static int check_protocol(pst_walk *walk)
{
    if (walk->bytes < 2 || walk->pickle[0] != 0x80)
        return pst_walk_malformed(walk, "it does not begin with its protocol");
    if (walk->pickle[1] < 2 || walk->pickle[1] > 5)
        return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path,
                        "its pickle is of protocol %d; those from 2 to 5 can be read", walk->pickle[1]);
    walk->at = 2;
    return 0;
}

int pst_walk_run(pst_walk *walk, uint32_t *out_root)
{
    PST_TRY(check_protocol(walk));
    for (;;) {
        const unsigned char *at = NULL;
        walk->operation_at = walk->at;
        if (take(walk, 1, &at) < 0)
            return pst_walk_malformed(walk, "it ends without its end mark");
        if (*at == '.')
            break;
        if (operations[*at] == NULL)
            return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path,
                            "its pickle has the operation 0x%02x at byte %zu, which is refused", *at,
                            walk->operation_at);
        PST_TRY(operations[*at](walk, *at));
    }
    if (walk->mark_count != 0 || walk->depth != 1)
        return pst_walk_malformed(walk, "it does not end with one value");
    if (walk->at != walk->bytes)
        return pst_walk_malformed(walk, "there is something after its end");
    *out_root = walk->stack[0];
    return 0;
}
