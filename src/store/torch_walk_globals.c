/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The globals that a pickle may name, and what applying them means: the list is the one of what torch.save writes for plain
 * data and dense tensors, and nothing on it is ever looked up in a Python interpreter. Protocol 2 spells "builtins" as
 * "__builtin__".
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "store/torch_walk.h"

#define DTYPE(name, dtype)                                                                                             \
    {                                                                                                                  \
        "torch." name, PST_USE_DTYPE, dtype                                                                            \
    }
#define STORAGE(name, dtype)                                                                                           \
    {                                                                                                                  \
        name, PST_USE_STORAGE, dtype                                                                                   \
    }
#define VALUE(name)                                                                                                    \
    {                                                                                                                  \
        "torch." name, PST_USE_VALUE, -1                                                                               \
    }
#define LAYOUT(name)                                                                                                   \
    {                                                                                                                  \
        "torch." name, PST_USE_LAYOUT_VALUE, -1                                                                        \
    }

static const pst_walk_global globals[] = {
    {"torch._utils._rebuild_tensor_v2", PST_USE_TENSOR_V2, -1},
    {"torch._utils._rebuild_tensor_v3", PST_USE_TENSOR_V3, -1},
    {"torch._utils._rebuild_parameter", PST_USE_PARAMETER, -1},
    {"torch._utils._rebuild_parameter_with_state", PST_USE_PARAMETER_STATE, -1},
    {"torch._tensor._rebuild_from_type_v2", PST_USE_FROM_TYPE, -1},
    {"torch.Tensor", PST_USE_TENSOR_TYPE, -1},
    {"torch._tensor.Tensor", PST_USE_TENSOR_TYPE, -1},
    {"collections.OrderedDict", PST_USE_ORDERED_DICT, -1},
    {"collections.Counter", PST_USE_COUNTER, -1},
    {"builtins.set", PST_USE_SET, -1},
    {"builtins.frozenset", PST_USE_FROZENSET, -1},
    {"builtins.bytes", PST_USE_BYTES, -1},
    {"builtins.bytearray", PST_USE_BYTEARRAY, -1},
    {"builtins.complex", PST_USE_COMPLEX, -1},
    {"_codecs.encode", PST_USE_ENCODE, -1},
    {"torch.Size", PST_USE_SIZE, -1},
    {"torch.device", PST_USE_DEVICE, -1},
    {"torch.serialization._get_layout", PST_USE_LAYOUT, -1},
    /* How a storage says what is in it; the typed ones of the oldest dtypes only. */
    STORAGE("torch.DoubleStorage", PST_F64),
    STORAGE("torch.FloatStorage", PST_F32),
    STORAGE("torch.HalfStorage", PST_F16),
    STORAGE("torch.BFloat16Storage", PST_BF16),
    STORAGE("torch.LongStorage", PST_I64),
    STORAGE("torch.IntStorage", PST_I32),
    STORAGE("torch.ShortStorage", PST_I16),
    STORAGE("torch.CharStorage", PST_I8),
    STORAGE("torch.ByteStorage", PST_U8),
    STORAGE("torch.BoolStorage", PST_BOOL),
    STORAGE("torch.ComplexDoubleStorage", PST_C128),
    STORAGE("torch.ComplexFloatStorage", PST_C64),
    STORAGE("torch.storage.UntypedStorage", PST_U8),
    STORAGE("torch.storage._UntypedStorage", PST_U8), /* torch 1.11 and 1.12 */
    STORAGE("torch.UntypedStorage", PST_U8),
    DTYPE("float32", PST_F32),
    DTYPE("float64", PST_F64),
    DTYPE("float16", PST_F16),
    DTYPE("bfloat16", PST_BF16),
    DTYPE("int64", PST_I64),
    DTYPE("int32", PST_I32),
    DTYPE("int16", PST_I16),
    DTYPE("int8", PST_I8),
    DTYPE("uint8", PST_U8),
    DTYPE("uint16", PST_U16),
    DTYPE("uint32", PST_U32),
    DTYPE("uint64", PST_U64),
    DTYPE("bool", PST_BOOL),
    DTYPE("complex32", PST_C32),
    DTYPE("complex64", PST_C64),
    DTYPE("complex128", PST_C128),
    DTYPE("float8_e4m3fn", PST_F8_E4M3),
    DTYPE("float8_e5m2", PST_F8_E5M2),
    DTYPE("float8_e8m0fnu", PST_F8_E8M0),
    DTYPE("float8_e4m3fnuz", PST_F8_E4M3FNUZ),
    DTYPE("float8_e5m2fnuz", PST_F8_E5M2FNUZ),
    DTYPE("float4_e2m1fn_x2", PST_F4),
    /* As values they do no harm; tensors of them are refused. */
    DTYPE("quint8", -1),
    DTYPE("qint8", -1),
    DTYPE("qint32", -1),
    DTYPE("quint4x2", -1),
    DTYPE("quint2x4", -1),
    DTYPE("bits8", -1),
    DTYPE("bits16", -1),
    DTYPE("bits1x8", -1),
    DTYPE("bits2x4", -1),
    DTYPE("bits4x2", -1),
    DTYPE("uint1", -1),
    DTYPE("uint2", -1),
    DTYPE("uint3", -1),
    DTYPE("uint4", -1),
    DTYPE("uint5", -1),
    DTYPE("uint6", -1),
    DTYPE("uint7", -1),
    DTYPE("int1", -1),
    DTYPE("int2", -1),
    DTYPE("int3", -1),
    DTYPE("int4", -1),
    DTYPE("int5", -1),
    DTYPE("int6", -1),
    DTYPE("int7", -1),
    LAYOUT("strided"),
    LAYOUT("sparse_coo"),
    LAYOUT("sparse_csr"),
    LAYOUT("sparse_csc"),
    LAYOUT("sparse_bsr"),
    LAYOUT("sparse_bsc"),
    LAYOUT("jagged"),
    LAYOUT("_mkldnn"),
    VALUE("contiguous_format"),
    VALUE("channels_last"),
    VALUE("channels_last_3d"),
    VALUE("preserve_format"),
    VALUE("per_tensor_affine"),
    VALUE("per_tensor_symmetric"),
    VALUE("per_channel_affine"),
    VALUE("per_channel_symmetric"),
    VALUE("per_channel_affine_float_qparams"),
};
enum { GLOBALS = sizeof globals / sizeof globals[0] };

const pst_walk_global *pst_walk_global_at(size_t index)
{
    return &globals[index];
}

static bool text_is(pst_walk_text text, const char *what)
{
    return text.bytes == strlen(what) && memcmp(text.at, what, text.bytes) == 0;
}

/* Whether "module.name" is `full`. */
static bool names(const char *full, pst_walk_text module, pst_walk_text name)
{
    return strlen(full) == module.bytes + 1 + name.bytes && memcmp(full, module.at, module.bytes) == 0 &&
           full[module.bytes] == '.' && memcmp(full + module.bytes + 1, name.at, name.bytes) == 0;
}

int pst_walk_push_global(pst_walk *walk, pst_walk_text module, pst_walk_text name)
{
    static const unsigned char builtins[] = "builtins";
    pst_walk_text known = module;
    pst_walk_text full_name = name;
    if (text_is(module, "__builtin__"))
        known = (pst_walk_text){builtins, sizeof builtins - 1};
    /* Memory formats: protocol 4 finds "torch.channels_last" in torch._utils. */
    if (text_is(module, "torch._utils") && name.bytes > 6 && memcmp(name.at, "torch.", 6) == 0) {
        known.bytes = 5;
        name.at += 6;
        name.bytes -= 6;
    }
    for (uint16_t i = 0; i < GLOBALS; i++) {
        if (!names(globals[i].name, known, name))
            continue;
        bool is_value = globals[i].use <= PST_USE_DTYPE;
        pst_walk_node node = pst_walk_container(is_value ? PST_CKPT_NAMED : PST_WALK_GLOBAL, PST_WALK_HASHABLE);
        node.global = i;
        return pst_walk_push_node(walk, &node);
    }
    char module_text[PST_QUOTE_BYTES], name_text[PST_QUOTE_BYTES], full[2 * PST_QUOTE_BYTES + 2];
    pst_walk_quote(module, module_text);
    pst_walk_quote(full_name, name_text);
    strcpy(full, module_text);
    strcat(full, ".");
    return pst_walk_refuse(walk, strcat(full, name_text));
}

/* ---- what comes of applying one ---- */

static int wrong_arguments(const pst_walk *walk, uint16_t global)
{
    char what[PST_QUOTE_BYTES + 64] = "arguments that do not suit ";
    return pst_walk_malformed(walk, strncat(what, globals[global].name, PST_QUOTE_BYTES));
}

/* A container of what another one holds, paid for. The keys of sets must be able to be that. */
static int copy_items(pst_walk *walk, uint32_t from, uint32_t into)
{
    uint32_t count = walk->nodes[from].list.count;
    PST_TRY(pst_walk_spend(walk, count));
    uint32_t link = walk->nodes[from].list.first;
    for (uint32_t i = 0; i < count; i++, link = walk->links[link].next) {
        uint32_t node = walk->links[link].node;
        if (walk->nodes[into].kind == PST_CKPT_SET && !(walk->nodes[node].flags & PST_WALK_HASHABLE))
            return pst_walk_malformed(walk, "a set of what cannot be in one");
        PST_TRY(pst_walk_append(walk, into, node));
    }
    return 0;
}

/* set, frozenset, Counter, torch.Size: of nothing, or of one container of the kind that stock files have there. */
static int make_container(pst_walk *walk, uint16_t global, uint32_t tuple, uint32_t *out)
{
    pst_walk_use use = globals[global].use;
    int kind = use == PST_USE_SIZE ? PST_CKPT_TUPLE : use == PST_USE_COUNTER ? PST_CKPT_DICT : PST_CKPT_SET;
    int from_kind = kind == PST_CKPT_SET ? PST_CKPT_LIST : kind;
    unsigned flags = use == PST_USE_SIZE        ? PST_WALK_VARIANT | PST_WALK_HASHABLE
                     : use == PST_USE_FROZENSET ? PST_WALK_VARIANT | PST_WALK_HASHABLE
                     : use == PST_USE_COUNTER   ? PST_WALK_COUNTER
                                                : 0;
    uint32_t from;
    size_t count;
    PST_TRY(pst_walk_arguments(walk, tuple, 0, 1, &from, &count));
    if (count == 1 && walk->nodes[from].kind != from_kind)
        return wrong_arguments(walk, global);
    pst_walk_node node = pst_walk_container(kind, flags);
    PST_TRY(pst_walk_add_node(walk, &node, out));
    if (count == 0)
        return 0;
    PST_TRY(copy_items(walk, from, *out));
    if (use != PST_USE_SIZE)
        return 0;
    for (uint32_t link = walk->nodes[*out].list.first; link != PST_WALK_NO_NODE; link = walk->links[link].next)
        if (walk->nodes[walk->links[link].node].kind != PST_CKPT_INT)
            return wrong_arguments(walk, global);
    return 0;
}

/* The bytes that a text of U+0000 to U+00FF stands for: how protocol 2 has bytes. */
static int decode_latin1(pst_walk *walk, uint16_t global, pst_walk_text text, pst_walk_text *out)
{
    PST_TRY(pst_walk_spend(walk, text.bytes));
    unsigned char *bytes = pst_walk_memory(walk, text.bytes);
    if (bytes == NULL)
        return -ENOMEM;
    size_t count = 0;
    for (size_t i = 0; i < text.bytes; i++) {
        unsigned char c = text.at[i];
        if (c >= 0x80) { /* the text was checked to be UTF-8: another byte follows */
            if (c > 0xc3)
                return wrong_arguments(walk, global);
            c = (unsigned char)((c & 3) << 6 | (text.at[++i] & 0x3f));
        }
        bytes[count++] = c;
    }
    *out = (pst_walk_text){bytes, count};
    return 0;
}

/* bytes(), _codecs.encode(text, "latin1"), bytearray(), bytearray(bytes), bytearray(text, "latin-1") */
static int make_bytes(pst_walk *walk, uint16_t global, uint32_t tuple, uint32_t *out)
{
    pst_walk_use use = globals[global].use;
    uint32_t given[2];
    size_t count;
    PST_TRY(
        pst_walk_arguments(walk, tuple, use == PST_USE_ENCODE ? 2 : 0, use == PST_USE_BYTES ? 0 : 2, given, &count));
    static const unsigned char nothing[1];
    bool is_array = use == PST_USE_BYTEARRAY;
    pst_walk_node node = {.kind = is_array ? PST_CKPT_BYTEARRAY : PST_CKPT_BYTES,
                          .flags = is_array ? 0 : PST_WALK_HASHABLE,
                          .attributes = PST_WALK_NO_NODE,
                          .text = {nothing, 0}};
    if (count == 1) {
        const pst_walk_node *from = &walk->nodes[given[0]];
        if (from->kind != PST_CKPT_BYTES)
            return wrong_arguments(walk, global);
        PST_TRY(pst_walk_spend(walk, from->text.bytes)); /* the result has them twice */
        node.text = from->text;
    } else if (count == 2) {
        const pst_walk_node *from = &walk->nodes[given[0]], *code = &walk->nodes[given[1]];
        if (from->kind != PST_CKPT_TEXT || code->kind != PST_CKPT_TEXT ||
            !(text_is(code->text, "latin1") || text_is(code->text, "latin-1")))
            return wrong_arguments(walk, global);
        PST_TRY(decode_latin1(walk, global, from->text, &node.text));
    }
    return pst_walk_add_node(walk, &node, out);
}

static int make_complex(pst_walk *walk, uint16_t global, uint32_t tuple, uint32_t *out)
{
    uint32_t given[2];
    PST_TRY(pst_walk_arguments(walk, tuple, 2, 2, given, NULL));
    pst_walk_node node = {.kind = PST_CKPT_COMPLEX, .flags = PST_WALK_HASHABLE, .attributes = PST_WALK_NO_NODE};
    for (int i = 0; i < 2; i++) {
        if (walk->nodes[given[i]].kind != PST_CKPT_FLOAT)
            return wrong_arguments(walk, global);
        node.number[i] = walk->nodes[given[i]].number[0];
    }
    return pst_walk_add_node(walk, &node, out);
}

/* torch.device("cuda") or torch.device("cuda", 0): its arguments are kept. */
static int make_device(pst_walk *walk, uint16_t global, uint32_t tuple, uint32_t *out)
{
    uint32_t given[2];
    size_t count;
    PST_TRY(pst_walk_arguments(walk, tuple, 1, 2, given, &count));
    if (walk->nodes[given[0]].kind != PST_CKPT_TEXT || (count == 2 && walk->nodes[given[1]].kind != PST_CKPT_INT))
        return wrong_arguments(walk, global);
    pst_walk_node node = pst_walk_container(PST_CKPT_NAMED, PST_WALK_HASHABLE);
    node.global = global;
    PST_TRY(pst_walk_add_node(walk, &node, out));
    for (size_t i = 0; i < count; i++)
        PST_TRY(pst_walk_append(walk, *out, given[i]));
    return 0;
}

static int make_layout(pst_walk *walk, uint16_t global, uint32_t tuple, uint32_t *out)
{
    uint32_t given;
    PST_TRY(pst_walk_arguments(walk, tuple, 1, 1, &given, NULL));
    if (walk->nodes[given].kind != PST_CKPT_TEXT)
        return wrong_arguments(walk, global);
    for (uint16_t i = 0; i < GLOBALS; i++) {
        if (globals[i].use != PST_USE_LAYOUT_VALUE || !text_is(walk->nodes[given].text, globals[i].name))
            continue;
        pst_walk_node node = pst_walk_container(PST_CKPT_NAMED, PST_WALK_HASHABLE);
        node.global = i;
        return pst_walk_add_node(walk, &node, out);
    }
    return wrong_arguments(walk, global);
}

/* Attributes of an object: a dict, or nothing. An older one is not replaced. */
static int set_attributes(pst_walk *walk, pst_walk_node *object, uint32_t state)
{
    const pst_walk_node *given = &walk->nodes[state];
    if (given->kind == PST_CKPT_NONE || (given->kind == PST_CKPT_DICT && given->list.count == 0))
        return 0;
    if (given->kind == PST_CKPT_TUPLE) { /* (attributes, slots) */
        uint32_t parts[2];
        PST_TRY(pst_walk_arguments(walk, state, 2, 2, parts, NULL));
        const pst_walk_node *slots = &walk->nodes[parts[1]], *first = &walk->nodes[parts[0]];
        if (slots->kind != PST_CKPT_NONE || first->kind == PST_CKPT_TUPLE)
            return pst_walk_malformed(walk, "an object with slots");
        return set_attributes(walk, object, parts[0]);
    }
    if (given->kind != PST_CKPT_DICT)
        return pst_walk_malformed(walk, "attributes that are no dict");
    if (object->attributes != PST_WALK_NO_NODE)
        return pst_walk_malformed(walk, "attributes twice");
    uint32_t link = given->list.first;
    for (uint32_t i = 0; i < given->list.count; i++, link = walk->links[link].next)
        if (i % 2 == 0 && walk->nodes[walk->links[link].node].kind != PST_CKPT_TEXT)
            return pst_walk_malformed(walk, "an attribute whose name is no text");
    object->attributes = state;
    return 0;
}

/* Hooks are never saved; the place where they would be is an empty dict. */
static int check_hooks(const pst_walk *walk, uint32_t hooks)
{
    const pst_walk_node *node = &walk->nodes[hooks];
    if (node->kind == PST_CKPT_NONE || (node->kind == PST_CKPT_DICT && node->list.count == 0))
        return 0;
    return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path,
                    "its pickle has a tensor with backward hooks, which is refused");
}

/* (data, requires_grad, hooks[, attributes]) */
static int make_parameter(pst_walk *walk, uint16_t global, uint32_t tuple, uint32_t *out)
{
    uint32_t given[4];
    size_t count = globals[global].use == PST_USE_PARAMETER ? 3 : 4;
    PST_TRY(pst_walk_arguments(walk, tuple, count, count, given, NULL));
    pst_walk_node node = walk->nodes[given[0]];
    if (node.kind != PST_CKPT_TENSOR || walk->nodes[given[1]].kind != PST_CKPT_BOOL)
        return wrong_arguments(walk, global);
    PST_TRY(check_hooks(walk, given[2]));
    node.flags &= (uint8_t)~PST_WALK_REQUIRES_GRAD;
    node.flags |= PST_WALK_VARIANT;
    if (walk->nodes[given[1]].integer)
        node.flags |= PST_WALK_REQUIRES_GRAD;
    if (count == 4)
        PST_TRY(set_attributes(walk, &node, given[3]));
    return pst_walk_add_node(walk, &node, out);
}

static int make_tensor(pst_walk *walk, uint16_t global, uint32_t tuple, uint32_t *out)
{
    uint32_t given[8];
    PST_TRY(pst_walk_arguments(walk, tuple, 6, 8, given, NULL));
    PST_TRY(check_hooks(walk, given[5]));
    pst_walk_node node;
    PST_TRY(pst_walk_make_tensor(walk, global, tuple, &node));
    return pst_walk_add_node(walk, &node, out);
}

/* A tensor with attributes: (function, torch.Tensor, its arguments, attributes) */
static int make_from_type(pst_walk *walk, uint16_t global, uint32_t tuple, uint32_t *out)
{
    uint32_t given[4];
    PST_TRY(pst_walk_arguments(walk, tuple, 4, 4, given, NULL));
    const pst_walk_node *function = &walk->nodes[given[0]], *type = &walk->nodes[given[1]];
    if (function->kind != PST_WALK_GLOBAL || type->kind != PST_WALK_GLOBAL)
        return wrong_arguments(walk, global);
    pst_walk_use use = globals[function->global].use;
    if ((use != PST_USE_TENSOR_V2 && use != PST_USE_TENSOR_V3) || globals[type->global].use != PST_USE_TENSOR_TYPE)
        return wrong_arguments(walk, global);
    PST_TRY(make_tensor(walk, function->global, given[2], out));
    pst_walk_node node = walk->nodes[*out];
    PST_TRY(set_attributes(walk, &node, given[3]));
    walk->nodes[*out] = node;
    return 0;
}

static int apply(pst_walk *walk, uint16_t global, uint32_t tuple, uint32_t *out)
{
    pst_walk_node node = pst_walk_container(PST_CKPT_DICT, PST_WALK_VARIANT);
    switch (globals[global].use) {
    case PST_USE_ORDERED_DICT:
        PST_TRY(pst_walk_arguments(walk, tuple, 0, 0, NULL, NULL));
        return pst_walk_add_node(walk, &node, out);
    case PST_USE_COUNTER:
    case PST_USE_SET:
    case PST_USE_FROZENSET:
    case PST_USE_SIZE: return make_container(walk, global, tuple, out);
    case PST_USE_BYTES:
    case PST_USE_BYTEARRAY:
    case PST_USE_ENCODE: return make_bytes(walk, global, tuple, out);
    case PST_USE_COMPLEX: return make_complex(walk, global, tuple, out);
    case PST_USE_DEVICE: return make_device(walk, global, tuple, out);
    case PST_USE_LAYOUT: return make_layout(walk, global, tuple, out);
    case PST_USE_TENSOR_V2:
    case PST_USE_TENSOR_V3: return make_tensor(walk, global, tuple, out);
    case PST_USE_PARAMETER:
    case PST_USE_PARAMETER_STATE: return make_parameter(walk, global, tuple, out);
    case PST_USE_FROM_TYPE: return make_from_type(walk, global, tuple, out);
    default: break;
    }
    return pst_fail(walk->err, PST_E_UNSUPPORTED, walk->path, "its pickle calls \"%s\", which is refused",
                    globals[global].name);
}

int pst_walk_reduce(pst_walk *walk)
{
    uint32_t tuple, function, result;
    PST_TRY(pst_walk_pop(walk, &tuple));
    PST_TRY(pst_walk_pop(walk, &function));
    const pst_walk_node *node = &walk->nodes[function];
    if (walk->nodes[tuple].kind != PST_CKPT_TUPLE)
        return pst_walk_malformed(walk, "arguments that are no tuple");
    if (node->kind != PST_WALK_GLOBAL && node->kind != PST_CKPT_NAMED)
        return pst_walk_malformed(walk, "it calls what is no function");
    PST_TRY(apply(walk, node->global, tuple, &result));
    return pst_walk_push(walk, result);
}

int pst_walk_build(pst_walk *walk)
{
    uint32_t state, object;
    PST_TRY(pst_walk_pop(walk, &state));
    PST_TRY(pst_walk_pop(walk, &object));
    pst_walk_node node = walk->nodes[object];
    if (node.kind != PST_CKPT_DICT || !(node.flags & (PST_WALK_VARIANT | PST_WALK_COUNTER)))
        return pst_walk_malformed(walk, "it gives attributes to what has none");
    PST_TRY(set_attributes(walk, &node, state));
    walk->nodes[object] = node;
    return pst_walk_push(walk, object);
}
