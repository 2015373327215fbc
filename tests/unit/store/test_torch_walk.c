/* SPDX-License-Identifier: Apache-2.0 */
/* The walk over pickles made by hand: each operation's value, each refusal's cause, memory that stays small, and failing
 * allocations. Storages "0", "1", "2" ... have 16 bytes each, "e" none. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/heap.h"
#include "store/torch_file.h"

static int64_t find(void *user, const char *key, uint64_t *out_bytes)
{
    (void)user;
    *out_bytes = strcmp(key, "e") == 0 ? 0 : 16;
    if (strcmp(key, "e") == 0)
        return 100;
    return key[0] >= '0' && key[0] <= '9' && key[1] == '\0' ? key[0] - '0' : -1;
}

/* From memory of exactly this size, so that the address sanitizer sees a read past its end. */
static int walk_bytes(const void *pickle, size_t bytes, pst_torch_file *out, pst_error *err)
{
    void *copy = malloc(bytes ? bytes : 1);
    assert_non_null(copy);
    memcpy(copy, pickle, bytes);
    int status = pst_torch_walk(copy, bytes, "x.pt", find, NULL, out, err);
    free(copy);
    return status;
}

/* ("storage", <type>, "<key>", "cpu", <elements>) */
#define STORAGE(type, key, length, elements)                                                                           \
    "(X\x07\0\0\0storagec" type "\nX" length "\0\0\0" key "X\x03\0\0\0"                                                \
    "cpuK" elements "tQ"
#define HOOKS        "ccollections\nOrderedDict\n)R"
#define V2           "ctorch._utils\n_rebuild_tensor_v2\n"
#define V3           "ctorch._utils\n_rebuild_tensor_v3\n"
/* Four float32 of the storage "0" */
#define F32          STORAGE("torch\nFloatStorage", "0", "\x01", "\x04")
#define TENSOR(rest) "\x80\x02" V2 "(" F32 rest HOOKS "tR."

/* ---- values ---- */

typedef struct rendering {
    const pst_torch_file *file;
    char text[4000];
    size_t used;
} rendering;

static void add(rendering *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(rendering *r, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int bytes = vsnprintf(r->text + r->used, sizeof r->text - r->used, format, arguments);
    va_end(arguments);
    assert_true(bytes >= 0 && (size_t)bytes < sizeof r->text - r->used);
    r->used += (size_t)bytes;
}

static void render(rendering *r, uint32_t node);

static void render_children(rendering *r, const pst_ckpt_value *value, char open, char close)
{
    add(r, "%s%c", value->text != NULL ? value->text : "", open);
    for (size_t i = 0; i < value->child_count; i++) {
        if (i > 0)
            add(r, "%s", value->kind == PST_CKPT_DICT && i % 2 == 1 ? ":" : ",");
        render(r, value->children[i]);
    }
    add(r, "%c", close);
}

static void render_tensor(rendering *r, const pst_ckpt_value *value)
{
    const pst_torch_tensor *tensor = &r->file->tensors[value->integer];
    add(r, "<%s%s %s", tensor->name, value->text != NULL ? value->text : "", pst_dtype_name(tensor->dtype));
    for (uint32_t i = 0; i < tensor->rank; i++)
        add(r, " %llu/%lld", (unsigned long long)tensor->shape[i], (long long)tensor->strides[i]);
    add(r, " @%u+%llu=%llu%s%s%s%s>", tensor->storage, (unsigned long long)tensor->begin,
        (unsigned long long)tensor->bytes, tensor->contiguous ? "" : " strided", value->requires_grad ? " grad" : "",
        value->conjugate ? " conj" : "", value->negative ? " neg" : "");
}

/* Something like Python's notation. */
static void render(rendering *r, uint32_t node)
{
    const pst_ckpt_value *value = &r->file->values[node];
    switch (value->kind) {
    case PST_CKPT_NONE: add(r, "None"); break;
    case PST_CKPT_BOOL: add(r, "%s", value->integer ? "True" : "False"); break;
    case PST_CKPT_INT:
        if (value->text == NULL)
            add(r, "%lld", (long long)value->integer);
        for (size_t i = value->text_bytes; i > 0; i--)
            add(r, "%02x", (unsigned char)value->text[i - 1]);
        break;
    case PST_CKPT_FLOAT: add(r, "%.17g", value->number); break;
    case PST_CKPT_COMPLEX: add(r, "(%.17g%+.17gj)", value->number, value->imaginary); break;
    case PST_CKPT_TEXT:
    case PST_CKPT_BYTES:
    case PST_CKPT_BYTEARRAY:
        add(r, "%s'", value->kind == PST_CKPT_TEXT ? "" : value->kind == PST_CKPT_BYTES ? "b" : "a");
        for (size_t i = 0; i < value->text_bytes; i++)
            add(r, value->text[i] > ' ' && value->text[i] < 0x7f ? "%c" : "\\%02x", (unsigned char)value->text[i]);
        assert_int_equal(value->text[value->text_bytes], 0);
        add(r, "'");
        break;
    case PST_CKPT_LIST: render_children(r, value, '[', ']'); break;
    case PST_CKPT_SET:
    case PST_CKPT_DICT: render_children(r, value, '{', '}'); break;
    case PST_CKPT_TUPLE: render_children(r, value, '(', ')'); break;
    case PST_CKPT_NAMED: render_children(r, value, '(', ')'); break;
    case PST_CKPT_TENSOR: render_tensor(r, value); break;
    }
    if (value->attributes != 0) {
        add(r, "~");
        render(r, value->attributes);
    }
}

typedef struct pickle_case {
    const char *pickle;
    size_t bytes;
    const char *expected; /* its rendering, or what the message has */
} pickle_case;

#define CASE(text, expected)                                                                                           \
    {                                                                                                                  \
        "\x80\x02" text, sizeof("\x80\x02" text) - 1, expected                                                         \
    }

static const pickle_case values[] = {
    /* numbers */
    CASE("N.", "None"),
    CASE("(\x88\x89t.", "(True,False)"),
    CASE("K\xff.", "255"),
    CASE("M\x01\x02.", "513"),
    CASE("J\xff\xff\xff\xff.", "-1"),
    CASE("J\0\0\0\x80.", "-2147483648"),
    CASE("\x8a\0.", "0"),
    CASE("\x8a\x01\x80.", "-128"),
    CASE("\x8a\x02\x80\0.", "128"),
    CASE("\x8a\x08\0\0\0\0\0\0\0\x80.", "-9223372036854775808"),
    CASE("\x8a\x0a\xff\xff\xff\xff\xff\xff\xff\x7f\0\0.", "9223372036854775807"),
    CASE("\x8b\x0b\0\0\0\xfe\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff.", "-2"),
    CASE("\x8a\x0a\0\0\0\0\0\0\0\x80\0\0.", "008000000000000000"), /* 2^63 */
    CASE("G\x3f\xf8\0\0\0\0\0\0.", "1.5"),
    CASE("G\x80\0\0\0\0\0\0\0.", "-0"),
    CASE("G\x7f\xf0\0\0\0\0\0\0.", "inf"),
    CASE("G\x7f\xf8\0\0\0\0\0\0.", "nan"),
    CASE("c__builtin__\ncomplex\nG\x80\0\0\0\0\0\0\0G\xbf\xf0\0\0\0\0\0\0\x86R.", "(-0-1j)"),
    /* texts and bytes */
    CASE("X\x03\0\0\0a\xc3\xa9.", "'a\\c3\\a9'"),
    CASE("\x8c\x03\xed\xa0\x80.", "'\\ed\\a0\\80'"),
    CASE("\x8d\x01\0\0\0\0\0\0\0\0.", "'\\00'"),
    CASE("U\x02py.", "'py'"),
    CASE("T\x02\0\0\0py.", "'py'"),
    CASE("C\x02\0\xff.", "b'\\00\\ff'"),
    CASE("B\x01\0\0\0b.", "b'b'"),
    CASE("\x8e\x01\0\0\0\0\0\0\0b.", "b'b'"),
    CASE("\x96\x01\0\0\0\0\0\0\0b.", "a'b'"),
    CASE("c_codecs\nencode\nX\x04\0\0\0a\xc3\xbf!X\x06\0\0\0latin1\x86R.", "b'a\\ff!'"),
    CASE("c__builtin__\nbytes\n)R.", "b''"),
    CASE("cbuiltins\nbytearray\n)R.", "a''"),
    CASE("cbuiltins\nbytearray\nC\x01q\x85R.", "a'q'"),
    CASE("c__builtin__\nbytearray\nX\x02\0\0\0\xc2\x80X\x07\0\0\0latin-1\x86R.", "a'\\80'"),
    /* containers */
    CASE("(](}\x8f)t.", NULL), /* a mark is left */
    CASE("(]}\x8f)t.", "([],{},{},())"),
    CASE("](K\x01K\x02](K\x03\x65\x65.", "[1,2,[3]]"),
    CASE("]K\x01\x61K\x02\x61.", "[1,2]"),
    CASE("K\x01K\x02K\x03\x87\x85.", "((1,2,3))"),
    CASE("K\x01K\x02\x86.", "(1,2)"),
    CASE("}(X\x01\0\0\0aK\x01K\x02Nu.", "{'a':1,2:None}"),
    CASE("}K\x01K\x02s.", "{1:2}"),
    CASE("\x8f(K\x01K\x02\x90.", "{1,2}"),
    CASE("(K\x01K\x02\x91.", "frozenset{1,2}"),
    CASE("c__builtin__\nset\n](K\x01K\x02\x65\x85R.", "{1,2}"),
    CASE("cbuiltins\nfrozenset\n]K\x01\x61\x85R.", "frozenset{1}"),
    CASE("ccollections\nCounter\n}K\x01K\x02s\x85R.", "Counter{1:2}"),
    CASE(HOOKS "(K\x01K\x02u}X\x01\0\0\0mK\x09sb.", "OrderedDict{1:2}~{'m':9}"),
    CASE("ctorch\nSize\nK\x02K\x03\x86\x85R.", "torch.Size(2,3)"),
    /* names */
    CASE("ctorch\nbfloat16\n.", "torch.bfloat16()"),
    CASE("\x8c\x05torch\x8c\x05uint4\x93.", "torch.uint4()"),
    CASE("\x8c\x0ctorch._utils\x8c\x13torch.channels_last\x93.", "torch.channels_last()"),
    CASE("ctorch.serialization\n_get_layout\nX\x0d\0\0\0torch.strided\x85R.", "torch.strided()"),
    CASE("ctorch\ndevice\nX\x04\0\0\0cudaK\x01\x86R.", "torch.device('cuda',1)"),
    /* stack and memo */
    CASE("](K\x01K\x02\x30K\x03\x65.", "[1,3]"),
    CASE("](K\x01(K\x02K\x03\x31K\x04\x65.", "[1,4]"),
    CASE("K\x07\x32\x86.", "(7,7)"),
    CASE("(K\x07q\x05K\x08r\x06\x01\0\0h\x05j\x06\x01\0\0t.", "(7,8,7,8)"),
    CASE("(]\x94K\x05\x94\x61h\x01h\x00t.", "([5],5,[5])"),
    CASE("\x95\x02\0\0\0\0\0\0\0K\x01.", "1"),
    /* tensors */
    {TENSOR("K\0K\x04\x85K\x01\x85\x89"), sizeof TENSOR("K\0K\x04\x85K\x01\x85\x89") - 1, "< F32 4/1 @0+0=16>"},
    {TENSOR("K\x03))\x88"), sizeof TENSOR("K\x03))\x88") - 1, "< F32 @0+12=4 grad>"},
    {TENSOR("K\x01K\x02K\0\x86K\x05K\x07\x86\x89"), sizeof TENSOR("K\x01K\x02K\0\x86K\x05K\x07\x86\x89") - 1,
     "< F32 2/5 0/7 @0+4=0 strided>"},
    {TENSOR("M\0\x02K\0\x85K\x01\x85\x89"), sizeof TENSOR("M\0\x02K\0\x85K\x01\x85\x89") - 1, "< F32 0/1 @0+2048=0>"},
    {TENSOR("K\0K\x02K\x02\x86K\x01K\x02\x86\x89"), sizeof TENSOR("K\0K\x02K\x02\x86K\x01K\x02\x86\x89") - 1,
     "< F32 2/1 2/2 @0+0=16 strided>"},
    {TENSOR("K\x03K\x05K\x01\x86K\0K\x09\x86\x89"), sizeof TENSOR("K\x03K\x05K\x01\x86K\0K\x09\x86\x89") - 1,
     "< F32 5/0 1/9 @0+12=20 strided>"},
    CASE(V3 "(" STORAGE("torch.storage\nUntypedStorage", "1", "\x01", "\x10") "K\x04K\x04\x85K\x01\x85\x89" HOOKS
                                                                              "ctorch\nfloat8_e5m2\ntR.",
         "< F8_E5M2 4/1 @0+4=4>"),
    CASE(V3 "(" STORAGE("torch.storage\nUntypedStorage", "1", "\x01",
                        "\x10") "K\x04K\x02K\x03\x86K\x03K\x01\x86\x89" HOOKS "ctorch\nfloat4_e2m1fn_x2\ntR.",
         "< F4 2/6 6/1 @0+4=6>"),
    CASE(V2 "(" STORAGE("torch\nComplexDoubleStorage", "1", "\x01",
                        "\x01") "K\0))\x89" HOOKS "}X\x04\0\0\0conj\x88sX\x03\0\0\0neg\x88stR.",
         "< C128 @0+0=16 conj neg>"),
    CASE("ctorch._utils\n_rebuild_parameter\n(" V2 "(" F32 "K\0K\x04\x85K\x01\x85\x89" HOOKS "tR\x88" HOOKS "tR.",
         "<Parameter F32 4/1 @0+0=16 grad>"),
    CASE("ctorch._utils\n_rebuild_parameter_with_state\n(" V2 "(" F32 "K\0))\x88" HOOKS "tR\x89" HOOKS
         "}X\x01\0\0\0tK\x05stR.",
         "<Parameter F32 @0+0=4>~{'t':5}"),
    CASE("ctorch._tensor\n_rebuild_from_type_v2\n(" V2 "ctorch\nTensor\n(" F32 "K\0))\x89" HOOKS
         "t}X\x01\0\0\0tK\x05stR.",
         "< F32 @0+0=4>~{'t':5}"),
    /* names of tensors: keys of every kind, joined; the same tensor twice is one */
    CASE("}(X\x01\0\0\0a](" V2 "(" F32 "K\0))\x89" HOOKS "tRq\x01h\x01\x65X\x02\0\0\0b\0" V2 "(" F32 "K\x01))\x89" HOOKS
         "tRu.",
         "{'a':[<a.0 F32 @0+0=4>,<a.0 F32 @0+0=4>],'b\\00':<b? F32 @0+4=4>}"),
    CASE("}U\0]s.", "{'':[]}"),
    CASE("}U\0](N\x65s.", "{'':[None]}"),
    /* an empty storage as two types */
    CASE("(" V2
         "(" STORAGE("torch\nFloatStorage", "e", "\x01", "\0") "K\0K\0\x85K\x01\x85\x89" HOOKS "tR" V2 "(" STORAGE(
             "torch\nIntStorage", "e", "\x01", "\0") "K\0K\0\x85K\x01\x85\x89" HOOKS "tRt.",
         "(<0 F32 0/1 @0+0=0>,<1 I32 0/1 @0+0=0>)"),
    CASE("}(N}(\x88}(J\xff\xff\xff\xff" V2 "(" STORAGE("torch\nIntStorage", "7", "\x01", "\x04") "K\0))\x89" HOOKS
                                                                                                 "tRuuu.",
         "{None:{True:{-1:<None.True.-1 I32 @0+0=4>}}}"),
};

static void test_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        pst_torch_file file;
        pst_error err;
        int status = walk_bytes(values[i].pickle, values[i].bytes, &file, &err);
        if (values[i].expected == NULL) {
            assert_int_equal(status, PST_E_FORMAT);
            continue;
        }
        if (status < 0)
            fail_msg("case %zu (%s): %s", i, values[i].expected, err.message);
        rendering r = {.file = &file};
        render(&r, 0);
        assert_string_equal(r.text, values[i].expected);
        pst_torch_file_free(&file);
        assert_int_equal(pst_heap_live_count(), 0);
    }
}

/* ---- refusals ---- */

static const pickle_case refusals[] = {
    CASE("", "ends without its end mark"),
    CASE(".", "does not end with one value"),
    CASE("NN.", "does not end with one value"),
    CASE("N.N", "something after its end"),
    CASE("N", "ends without its end mark"),
    CASE("X\xff\xff\xff\xff", "ends inside an operation"),
    CASE("\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "ends inside an operation"),
    CASE("\x8b\xff\xff\xff\xff.", "ends inside an operation"),
    CASE("\x8a\x05.", "ends inside an operation"),
    CASE("J\0\0.", "ends inside an operation"),
    CASE("\x95\x05\0\0\0\0\0\0\0N.", "a frame that is longer"),
    CASE("X\x02\0\0\0\xc0\x80.", "not UTF-8"),
    CASE("X\x04\0\0\0\xf4\x90\x80\x80.", "not UTF-8"),
    CASE("X\x02\0\0\0\xe2\x82.", "not UTF-8"),
    CASE("0.", "a value that is not there"),
    CASE("2.", "a value that is not there"),
    CASE("N(0.", "a value that is not there"),
    CASE("N\x86.", "values that are not there"),
    CASE("N(N\x86.", "values that are not there"),
    CASE("t.", "a mark that is not there"),
    CASE("1.", "a mark that is not there"),
    CASE("(K\x01\x65.", "a container that is not there"),
    CASE("N\x61.", "a container that is not there"),
    CASE("}K\x01\x61.", "not such a container"),
    CASE("]K\x01K\x01s.", "not such a container"),
    CASE("(K\x01\x91(K\x02\x90.", "not such a container"),
    CASE("](K\x01K\x01\x90.", "not such a container"),
    CASE("}(K\x01u.", "a key without a value"),
    CASE("}]Ns.", "a key that cannot be one"),
    CASE("}]\x85Ns.", "a key that cannot be one"),
    CASE("\x8f(}\x90.", "a key that cannot be one"),
    CASE("(]\x91.", "what cannot be in one"),
    CASE("cbuiltins\nset\n]]\x61\x85R.", "what cannot be in one"),
    CASE("}(K\x01NK\x01Nu.", "twice in one dict"),
    CASE("}(K\x01N\x88Nu.", "twice in one dict"),
    CASE("}(G\x3f\xf0\0\0\0\0\0\0N\x88Nu.", "twice in one dict"),
    CASE("}(X\x02\0\0\0ab\x89\x8c\x02\x61\x62Nu.", "the key \"ab\" twice"),
    CASE("h\0.", "recalls what it did not remember"),
    CASE("j\xff\xff\xff\xff.", "recalls what it did not remember"),
    CASE("Nr\xff\xff\xff\xff.", "a number that is too high"),
    CASE("q\0.", "a value that is not there"),
    CASE("]q\0h\0\x61.", "holds itself"),
    CASE("}q\0K\x01h\0s.", "holds itself"),
    CASE("]q\0h\0\x85\x61.", "holds itself"),
    CASE(HOOKS "q\0}X\x01\0\0\0mh\0sb.", "holds itself"),
    /* what it wants */
    CASE("cposix\nsystem\nX\x01\0\0\0x\x85R.", "\"posix.system\", which is refused"),
    CASE("\x8c\x08"
         "builtins\x8c\x04"
         "eval\x93.",
         "\"builtins.eval\", which is refused"),
    CASE("c__builtin__\neval\n.", "\"__builtin__.eval\", which is refused"),
    CASE("ca\n", "ends inside a name"),
    CASE("c\x07\xff\n\n.", "\"??.\", which is refused"),
    CASE("K\x01K\x01\x93.", "a global is no text"),
    CASE("ctorch\nQInt8Storage\n.", "\"torch.QInt8Storage\", which is refused"),
    CASE("ctorch._utils\ntorch.Tensor.x\n.", "\"torch._utils.torch.Tensor.x\", which is refused"),
    CASE("ctorch\nFloatStorage\n.", "\"torch.FloatStorage\" itself"),
    CASE("ccollections\nOrderedDict\n.", "\"collections.OrderedDict\" itself"),
    CASE("ccollections\nOrderedDict\n)\x81.", "makes an object of \"collections.OrderedDict\""),
    CASE("ccollections\nOrderedDict\n)}\x92.", "makes an object of \"collections.OrderedDict\""),
    CASE("N)\x81.", "what is no class"),
    CASE("N)R.", "what is no function"),
    CASE("ctorch\nfloat32\n)R.", "calls \"torch.float32\""),
    CASE("ctorch\nFloatStorage\n)R.", "calls \"torch.FloatStorage\""),
    CASE("ccollections\nOrderedDict\nNR.", "arguments that are no tuple"),
    CASE("ccollections\nOrderedDict\n]\x85R.", "another length"),
    CASE("cbuiltins\nset\n}\x85R.", "do not suit builtins.set"),
    CASE("cbuiltins\ncomplex\nK\x01K\x01\x86R.", "do not suit builtins.complex"),
    CASE("cbuiltins\nbytes\nN\x85R.", "another length"),
    CASE("cbuiltins\nbytearray\nX\0\0\0\0\x85R.", "do not suit builtins.bytearray"),
    CASE("c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf-8\x86R.", "do not suit _codecs.encode"),
    CASE("c_codecs\nencode\nX\x02\0\0\0\xc4\x80X\x06\0\0\0latin1\x86R.", "do not suit _codecs.encode"),
    CASE("ctorch\nSize\n]\x85R.", "do not suit torch.Size"),
    CASE("ctorch\nSize\nN\x85\x85R.", "do not suit torch.Size"),
    CASE("ctorch\ndevice\nK\x01\x85R.", "do not suit torch.device"),
    CASE("ctorch.serialization\n_get_layout\nX\x0d\0\0\0torch.float32\x85R.", "do not suit torch.serialization"),
    CASE("}}b.", "attributes to what has none"),
    CASE(HOOKS "K\x01\x62.", "attributes that are no dict"),
    CASE(HOOKS "}K\x01Nsb.", "an attribute whose name is no text"),
    CASE(HOOKS "}X\x01\0\0\0aNsb}X\x01\0\0\0aNsb.", "attributes twice"),
    CASE("i.", "operation 0x69 at byte 2"),
    CASE("\x82\0.", "operation 0x82"),
    CASE("\x97.", "operation 0x97"),
    /* storages */
    CASE("NQ.", "another length"),
    CASE("(NNNNNtQ.", "what is no storage"),
    CASE("(X\x07\0\0\0storageNNNNtQ.", "a storage of no type"),
    CASE(F32 ".", "a storage that is not in a tensor"),
    CASE(STORAGE("torch\nFloatStorage", "x", "\x01", "\x04") ".", "no record of the storage \"x\""),
    CASE(STORAGE("torch\nFloatStorage", "\n", "\x01", "\x04") ".", "no record of the storage \"?\""),
    CASE(STORAGE("torch\nFloatStorage", "\0", "\x01", "\x04") ".", "key is no short text"),
    CASE(STORAGE("torch\nFloatStorage", "", "\0", "\x04") ".", "key is no short text"),
    CASE(STORAGE("torch\nFloatStorage", "0", "\x01", "\x05") ".", "5 elements of F32"),
    CASE(STORAGE("torch\nDoubleStorage", "0", "\x01", "\x04") ".", "4 elements of F64"),
    CASE("(" F32 STORAGE("torch\nIntStorage", "0", "\x01", "\x04") "t.", "the two types F32 and I32"),
/* tensors */
#define BAD(rest, what)                                                                                                \
    {                                                                                                                  \
        TENSOR(rest), sizeof TENSOR(rest) - 1, what                                                                    \
    }
    BAD("K\x01K\x04\x85K\x01\x85\x89", "outside of its storage"),
    BAD("K\0K\x02\x85K\x04\x85\x89", "outside of its storage"),
    BAD("K\x04))\x89", "outside of its storage"),
    BAD("K\0K\x02\x85\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85\x89", "outside of its storage"),
    BAD("\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\0\x85K\x01\x85\x89", "outside of its storage"),
    BAD("K\0\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\0\x85\x89", "no number below 2^64"),
    BAD("K\0J\xff\xff\xff\xff\x85K\x01\x85\x89", "impossible size or stride"),
    BAD("K\0K\x02\x85J\xff\xff\xff\xff\x85\x89", "impossible size or stride"),
    BAD("J\xff\xff\xff\xffK\x02\x85K\x01\x85\x89", "without a storage or an offset"),
    BAD("K\0K\x02\x85)\x89", "more or fewer strides"),
    BAD("K\0)]\x89", "another length"),
    BAD("K\0(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t)\x89", "9 dimensions"),
    BAD("K\0))N", "without a storage or an offset"),
    CASE(V2 "(NK\0))\x89" HOOKS "tR.", "without a storage"),
    CASE(V2 "(" F32 "K\0))\x89}K\x01NstR.", "backward hooks, which is refused"),
    CASE(V2 "(" F32 "K\0))\x89)tR.", "backward hooks, which is refused"),
    CASE(V2 "(" F32 "K\0))\x89" HOOKS "}X\x01\0\0\0x\x88stR.", "bits other than"),
    CASE(V3 "(" F32 "K\0))\x89" HOOKS "NtR.", "whose type is none"),
    CASE(V3 "(" F32 "K\0))\x89" HOOKS "ctorch\nquint8\ntR.", "a tensor of \"torch.quint8\""),
    CASE(V3 "(" F32 "K\0))\x89" HOOKS "ctorch\nfloat4_e2m1fn_x2\ntR.", "not contiguous"),
    CASE("ctorch._utils\n_rebuild_parameter\n(N\x88" HOOKS "tR.", "do not suit torch._utils._rebuild_parameter"),
    CASE("ctorch._tensor\n_rebuild_from_type_v2\n(" V2 "NNNtR.", "do not suit torch._tensor"),
    CASE("ctorch._utils\n_rebuild_qtensor\n.", "\"torch._utils._rebuild_qtensor\", which is refused"),
};

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        pst_torch_file file;
        pst_error err = {0};
        int status = walk_bytes(refusals[i].pickle, refusals[i].bytes, &file, &err);
        if (status != PST_E_FORMAT && status != PST_E_UNSUPPORTED)
            fail_msg("case %zu (%s): status %d", i, refusals[i].expected, status);
        if (strstr(err.message, refusals[i].expected) == NULL)
            fail_msg("case %zu: \"%s\" is not in \"%s\"", i, refusals[i].expected, err.message);
        assert_string_equal(err.path, "x.pt");
        assert_int_equal(pst_heap_live_count(), 0);
    }
    pst_torch_file file;
    assert_int_equal(walk_bytes("\x80\x01N.", 4, &file, NULL), PST_E_UNSUPPORTED);
    assert_int_equal(walk_bytes("\x80\x06N.", 4, &file, NULL), PST_E_UNSUPPORTED);
    assert_int_equal(walk_bytes("N.", 2, &file, NULL), PST_E_FORMAT);
    assert_int_equal(walk_bytes("", 0, &file, NULL), PST_E_FORMAT);
}

/* ---- whatever happens ---- */

static void test_every_prefix_and_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        unsigned char changed[1000];
        size_t bytes = values[i].bytes;
        assert_true(bytes <= sizeof changed);
        pst_torch_file file;
        for (size_t cut = 0; cut < bytes; cut++)
            assert_true(walk_bytes(values[i].pickle, cut, &file, NULL) < 0);
        memcpy(changed, values[i].pickle, bytes);
        for (size_t at = 0; at < bytes; at++) {
            for (int byte = 0; byte < 256; byte++) {
                changed[at] = (unsigned char)byte;
                if (walk_bytes(changed, bytes, &file, NULL) == 0)
                    pst_torch_file_free(&file);
            }
            changed[at] = (unsigned char)values[i].pickle[at];
        }
        assert_int_equal(pst_heap_live_count(), 0);
    }
}

static void test_failing_allocations(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        if (values[i].expected == NULL)
            continue;
        pst_torch_file file;
        pst_error err;
        int status = -1;
        for (int64_t n = 0; status < 0; n++) {
            memset(&file, 0xaa, sizeof file);
            pst_heap_fail_after(n, 0);
            status = walk_bytes(values[i].pickle, values[i].bytes, &file, &err);
            pst_heap_fail_after(-1, 0);
            assert_true(status == 0 || (status == -ENOMEM && err.code == -ENOMEM));
            assert_true(status == 0 || *(unsigned char *)&file == 0xaa); /* untouched */
            assert_int_equal(pst_heap_live_count() == 0, status < 0);
        }
        pst_torch_file_free(&file);
        assert_int_equal(pst_heap_live_count(), 0);
    }
}

/* `count` times `unit` between a beginning and an end. */
static int walk_repeated(const char *begin, size_t begin_bytes, const char *unit, size_t unit_bytes, size_t count,
                         const char *end, size_t end_bytes, pst_torch_file *out, pst_error *err)
{
    size_t bytes = 2 + begin_bytes + unit_bytes * count + end_bytes;
    char *pickle = malloc(bytes), *at = pickle;
    assert_non_null(pickle);
    memcpy(at, "\x80\x02", 2);
    memcpy(at += 2, begin, begin_bytes);
    at += begin_bytes;
    for (size_t i = 0; i < count; i++, at += unit_bytes)
        memcpy(at, unit, unit_bytes);
    memcpy(at, end, end_bytes);
    int status = walk_bytes(pickle, bytes, out, err);
    free(pickle);
    return status;
}

#define REPEATED(begin, unit, count, end, out)                                                                         \
    walk_repeated(begin, sizeof(begin) - 1, unit, sizeof(unit) - 1, count, end, sizeof(end) - 1, out, &err)

static void test_deep(void **state)
{
    (void)state;
    enum { DEEP = 300000 };
    pst_torch_file file;
    pst_error err;
    assert_int_equal(REPEATED("N", "\x85", DEEP, ".", &file), 0);
    assert_int_equal(file.value_count, DEEP + 1);
    pst_torch_file_free(&file);
    assert_int_equal(REPEATED("", "}K\x01", DEEP, "N.", &file), PST_E_FORMAT);
    /* What "](](](" leaves open is no value. */
    assert_int_equal(REPEATED("", "](", DEEP, ".", &file), PST_E_FORMAT);
}

/* Each of these would be enormous if what is named twice were there twice. */
static void test_sharing(void **state)
{
    (void)state;
    pst_torch_file file;
    pst_error err;
    /* x = [x, x] a thousand times: 2^1000 values, or 1,001 */
    assert_int_equal(REPEATED("](K\x01", "\x32\x86", 1000, "\x65.", &file), 0);
    assert_int_equal(file.value_count, 1002);
    pst_torch_file_free(&file);
    /* sets of one long list, bytes of one long text: copies are paid for */
    char *list = malloc(200100);
    assert_non_null(list);
    memcpy(list, "](", 2);
    memset(list + 2, 'N', 100000);
    memcpy(list + 100002, "eq\0(", 4);
    static const char unit[] = "cbuiltins\nset\nh\0\x85R";
    assert_int_equal(walk_repeated(list, 100006, unit, sizeof unit - 1, 50, "t.", 2, &file, &err), PST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "repeats its content too often"));
    free(list);
    /* a long key again and again above tensors: names are paid for */
    char *key = malloc(50100);
    assert_non_null(key);
    memcpy(key, "X\x50\xc3\0\0", 5);
    memset(key + 5, 'k', 50000);
    memcpy(key + 50005, "q\0000(", 4);
    static const char dict[] = "}h\0" V2 "(" F32 "K\0))\x89" HOOKS "tRs";
    assert_int_equal(walk_repeated(key, 50009, dict, sizeof dict - 1, 1000, "t.", 2, &file, &err), PST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "names of its tensors are too long"));
    free(key);
    assert_int_equal(pst_heap_live_count(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_every_prefix_and_byte),
        cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_deep),
        cmocka_unit_test(test_sharing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
