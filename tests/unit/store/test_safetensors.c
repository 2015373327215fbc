/* SPDX-License-Identifier: Apache-2.0 */
/* The header reader: each defect of the format is refused with its cause, each liberty of the format is
 * accepted. */
#include "files.h"

#include <errno.h>

#include "base/error.h"
#include "base/heap.h"
#include "store/safetensors.h"

/* Parses a header text before data_bytes of data. */
static int parse(const char *header, uint64_t data_bytes, pst_safetensors *out, pst_error *err)
{
    /* An exact copy on the heap, not terminated: a read past its end is seen by the address sanitizer. */
    size_t length = strlen(header);
    char *copy = malloc(length ? length : 1);
    assert_non_null(copy);
    memcpy(copy, header, length);
    int status = pst_safetensors_parse(copy, length, 8 + length + data_bytes, "x.safetensors", out, err);
    free(copy);
    return status;
}

#define T(rest) "{\"t\":{" rest "}}"
#define F32_4   "\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]"

static const struct {
    const char *header;
    uint64_t data_bytes;
    const char *cause; /* in the message */
} defects[] = {
    {"", 0, "does not begin with '{'"},
    {" {}", 0, "does not begin with '{'"},
    {"[]", 0, "does not begin with '{'"},
    {"{", 0, "expected a string"},
    {"{}}", 0, "after the end"},
    {"{} x", 0, "after the end"},
    {"{}\0", 1, "longer than it says"},
    {T(F32_4) "{", 4, "after the end"},
    {"{\"t\":{" F32_4 "},}", 4, "expected a string"},
    {"{\"t\" {" F32_4 "}}", 4, "expected ':'"},
    {"{\"t\":{" F32_4 "}", 4, "expected '}', the text ends"},
    {"{\"t\":[]}", 0, "tensor \"t\" is not described by an object"},
    {"{\"t\":4}", 0, "tensor \"t\" is not described by an object"},
    {T(""), 0, "lacks one of"},
    {T("\"dtype\":\"F32\",\"shape\":[1]"), 4, "lacks one of"},
    {T("\"shape\":[1],\"data_offsets\":[0,4]"), 4, "lacks one of"},
    {T(F32_4 ",\"dtype\":\"F32\""), 4, "a field twice"},
    {T(F32_4 ",\"extra\":[1,{\"a\":tru}]"), 4, "expected a value"},
    {T(F32_4 ",\"extra\":01"), 4, "expected a value"},
    {T(F32_4 ",\"extra\":1."), 4, "malformed number"},
    {T(F32_4 ",\"extra\":\"\\q\""), 4, "escape"},
    {T("\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]"), 4, "unknown dtype \"f32\""},
    {T("\"dtype\":\"Q\\u0007\\n8\",\"shape\":[1],\"data_offsets\":[0,4]"), 4, "unknown dtype \"Q??8\""},
    {T("\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]"), 4, "expected a string"},
    {T("\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]"), 4, "whole number"},
    {T("\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]"), 4, "plain digits"},
    {T("\"dtype\":\"F32\",\"shape\":[1e0],\"data_offsets\":[0,4]"), 4, "plain digits"},
    {T("\"dtype\":\"F32\",\"shape\":[01],\"data_offsets\":[0,4]"), 4, "leading zeros"},
    {T("\"dtype\":\"F32\",\"shape\":[\"1\"],\"data_offsets\":[0,4]"), 4, "whole number"},
    {T("\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]"), 4, "expected '['"},
    {T("\"dtype\":\"F32\",\"shape\":[1,],\"data_offsets\":[0,4]"), 4, "whole number"},
    {T("\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]"), 4, "more than 8 dimensions"},
    {T("\"dtype\":\"F32\",\"shape\":[18446744073709551616],\"data_offsets\":[0,4]"), 4, "more than 64 bits"},
    {T("\"dtype\":\"F32\",\"shape\":[4294967296,4294967297],\"data_offsets\":[0,4]"), 4, "no whole number of bytes"},
    {T("\"dtype\":\"F32\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]"), 0, "no whole number of bytes"},
    {T("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]"), 1, "no whole number of bytes"},
    {T("\"dtype\":\"F6_E2M3\",\"shape\":[2],\"data_offsets\":[0,2]"), 2, "no whole number of bytes"},
    {T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]"), 4, "4 bytes by its offsets, 8 by its shape"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]"), 4, "ends before it begins"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]"), 4, "expected ','"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]"), 4, "expected ']'"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]"), 4, "plain digits"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]"), 8,
     "tensor \"t\" begins at 4 of the data, but the one "
     "before ends at 0: a hole"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[18446744073709551612,18446744073709551615]"), 4,
     "3 bytes by its offsets"},
    {T(F32_4), 3, "truncated: its header describes 4 bytes of data, but it has 3"},
    {T(F32_4), 0, "truncated"},
    {T(F32_4), 5, "longer than it says"},
    {"{" HEADER("a", "F32", "[1]", 0, 4) "," HEADER("b", "F32", "[2]", 2, 10) "}", 10,
     "tensor \"b\" begins at 2 of the data, "
     "but the one before ends at 4: they overlap"},
    {"{" HEADER("a", "F32", "[1]", 0, 4) "," HEADER("b", "F32", "[1]", 0, 4) "}", 4, "they overlap"},
    {"{" HEADER("a", "F32", "[1]", 0, 4) "," HEADER("b", "F32", "[1]", 8, 12) "}", 12, "a hole"},
    {"{" HEADER("a", "F32", "[1]", 0, 4) "," HEADER("b", "F32", "[0]", 8, 8) "}", 4, "a hole"},
    {"{" HEADER("a", "F32", "[1]", 0, 4) "," HEADER("\\u0061", "F32", "[1]", 4, 8) "}", 8, "the tensor \"a\" twice"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "\"__metadata__\" twice"},
    {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "metadata key \"k\" twice"},
    {"{\"__metadata__\":{\"k\":1}}", 0, "metadata \"k\" is not a string"},
    {"{\"__metadata__\":{\"k\":{\"a\":\"b\"}}}", 0, "metadata \"k\" is not a string"},
    {"{\"__metadata__\":[]}", 0, "expected '{'"},
    {"{\"t\\u0000\":{" F32_4 "}}", 4, "escape"},
    {"{\"\\ud800\":{" F32_4 "}}", 4, "escape"},
    {"{\"\\udc00\\ud800\":{" F32_4 "}}", 4, "escape"},
    {"{\"\\u12\":{" F32_4 "}}", 4, "escape"},
    {"{\"a\nb\":{" F32_4 "}}", 4, "control character"},
    {"{\"abc", 0, "does not end"},
    {"{\"\xff\":{" F32_4 "}}", 4, "invalid UTF-8"},
    {"{\"\xc0\x80\":{" F32_4 "}}", 4, "invalid UTF-8"},
    {"{\"\xed\xa0\x80\":{" F32_4 "}}", 4, "invalid UTF-8"},
    {"{\"\xf4\x90\x80\x80\":{" F32_4 "}}", 4, "invalid UTF-8"},
    {"{} \xe2\x82", 0, "invalid UTF-8"},
};

static void test_defects(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof defects / sizeof defects[0]; i++) {
        pst_safetensors out = {.count = 77};
        pst_error err = {0};
        int64_t live = pst_heap_live_count();
        int status = parse(defects[i].header, defects[i].data_bytes, &out, &err);
        if (status >= 0)
            fail_msg("accepted: %s", defects[i].header);
        assert_int_equal(status, err.code);
        assert_string_equal(err.path, "x.safetensors");
        assert_contains(err.message, defects[i].cause);
        assert_int_equal(out.count, 77); /* outputs untouched on failure */
        assert_int_equal(pst_heap_live_count(), live);
    }
}

static void test_error_names_the_byte(void **state)
{
    (void)state;
    pst_safetensors out;
    pst_error err = {0};
    assert_int_equal(parse("{\"t\":{\"dtype\":?", 0, &out, &err), PST_E_FORMAT);
    assert_int_equal(err.offset, 8 + 14);
    assert_int_equal(parse("{\"t\": ", 0, &out, NULL), PST_E_FORMAT); /* without a record */
}

static void test_deep_values(void **state)
{
    (void)state;
    for (int depth = 120; depth < 131; depth++) {
        char header[512] = "{\"t\":{" F32_4 ",\"x\":";
        for (int i = 0; i < depth; i++)
            strcat(header, "[");
        for (int i = 0; i < depth; i++)
            strcat(header, "]");
        strcat(header, "}}");
        pst_safetensors out;
        pst_error err = {0};
        int status = parse(header, 4, &out, &err);
        assert_int_equal(status, depth <= 125 ? 0 : PST_E_FORMAT);
        if (status == 0)
            pst_safetensors_free(&out);
        else
            assert_contains(err.message, "nested too deep");
    }
}

static void test_liberties(void **state)
{
    (void)state;
    pst_safetensors out;
    pst_error err = {0};
    assert_int_equal(parse("{}", 0, &out, &err), 0);
    assert_int_equal(out.count, 0);
    pst_safetensors_free(&out);
    assert_int_equal(parse("{\"__metadata__\":null}   \n", 0, &out, &err), 0);
    assert_int_equal(out.metadata_count, 0);
    pst_safetensors_free(&out);

    /* Any order of entries, fields, empty and 0-dimensional tensors, escapes, unknown fields, sub-byte
     * types. */
    const char *header =
        "{ \"\\u00e9\\ud83d\\ude00\\\"\\/\\t\":{\"data_offsets\":[9,17],\"shape\":[],\"dtype\":\"F64\"},"
        "\"__metadata__\":{\"format\":\"pt\",\"\":\"\\n\"},"
        "\"empty\":{\"x\":{\"a\":[null,true,-1.5e+3,\"\\u0041\"]},\"dtype\":\"F32\",\"shape\":[3,0,2],"
        "\"data_offsets\":[9,9]}," HEADER("f4", "F4", "[2,3]", 6, 9) "," HEADER("f6", "F6_E3M2", "[4,2]", 0, 6) "}    ";
    assert_int_equal(parse(header, 17, &out, &err), 0);
    assert_int_equal(out.count, 4);
    assert_int_equal(out.data_begin, 8 + strlen(header));
    assert_int_equal(out.data_bytes, 17);
    assert_string_equal(out.tensors[0].name, "f6");
    assert_string_equal(out.tensors[1].name, "f4");
    assert_string_equal(out.tensors[2].name, "empty");
    assert_string_equal(out.tensors[3].name, "\xc3\xa9\xf0\x9f\x98\x80\"/\t");
    assert_int_equal(out.tensors[1].offset, out.data_begin + 6);
    assert_int_equal(out.tensors[1].bytes, 3);
    assert_int_equal(out.tensors[2].rank, 3);
    assert_int_equal(out.tensors[2].shape[2], 2);
    assert_int_equal(out.tensors[3].rank, 0);
    assert_int_equal(out.tensors[3].dtype, PST_F64);
    assert_int_equal(out.metadata_count, 2);
    assert_string_equal(out.metadata[0].key, "format");
    assert_string_equal(out.metadata[1].value, "\n");
    pst_safetensors_free(&out);
    pst_safetensors_free(&out); /* empty by now */
    pst_safetensors_free(NULL);
}

static void test_header_length(void **state)
{
    (void)state;
    static const struct {
        uint64_t n, file_bytes;
        const char *cause; /* NULL: accepted */
    } cases[] = {
        {0, 8, NULL},
        {2, 10, NULL},
        {100000000, 100000008, NULL},
        {3, 10, "truncated"},
        {UINT64_MAX, 10, "100000000"},
        {100000001, UINT64_MAX, "100000000"},
        {0, 7, "only 7 bytes"},
        {0, 0, "only 0 bytes"},
        {99000000, 100, "truncated"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        unsigned char prefix[8];
        for (int b = 0; b < 8; b++)
            prefix[b] = (unsigned char)(cases[i].n >> 8 * b);
        uint64_t out = 4711;
        pst_error err = {0};
        int status = pst_safetensors_header_bytes(prefix, cases[i].file_bytes, "f", &out, &err);
        assert_int_equal(status, cases[i].cause ? PST_E_FORMAT : 0);
        assert_int_equal(out, cases[i].cause ? 4711 : cases[i].n);
        if (cases[i].cause)
            assert_contains(err.message, cases[i].cause);
    }
}

static void test_allocation_failures(void **state)
{
    (void)state;
    char header[8192] = "{\"__metadata__\":{";
    for (int i = 0; i < 40; i++)
        sprintf(header + strlen(header), "%s\"k%d\":\"v\"", i ? "," : "", i);
    strcat(header, "}");
    for (int i = 0; i < 40; i++)
        sprintf(header + strlen(header), ",\"t%d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}", i, i,
                i + 1);
    strcat(header, "}");
    int failures = 0;
    for (;; failures++) {
        pst_safetensors out;
        pst_error err = {0};
        int64_t live = pst_heap_live_count();
        pst_heap_fail_after(failures, 0);
        int status = parse(header, 40, &out, &err);
        pst_heap_fail_after(-1, 0);
        if (status == 0)
            pst_safetensors_free(&out);
        assert_int_equal(pst_heap_live_count(), live);
        if (status == 0)
            break;
        assert_int_equal(status, -ENOMEM);
    }
    assert_true(failures >= 4);
}

static void test_shape_bytes(void **state)
{
    (void)state;
    uint64_t out = 5;
    assert_int_equal(pst_tensor_shape_bytes(PST_BF16, (const uint64_t[]){3, 5}, 2, &out), 0);
    assert_int_equal(out, 30);
    assert_int_equal(pst_tensor_shape_bytes(PST_F64, NULL, 0, &out), 0);
    assert_int_equal(out, 8);
    assert_int_equal(pst_tensor_shape_bytes(PST_U8, (const uint64_t[]){UINT64_MAX}, 1, &out), PST_E_FORMAT);
    assert_int_equal(out, 8);
}

static void test_quote(void **state)
{
    (void)state;
    char out[PST_QUOTE_BYTES], name[400];
    assert_string_equal(pst_quote("a\x1b[2Jb\n\x7f", out), "a?[2Jb??");
    memset(name, 'x', sizeof name);
    name[399] = '\0';
    memcpy(name + 122, "\xf0\x9f\x98\x80", 4); /* across the cut */
    pst_quote(name, out);
    assert_int_equal(strlen(out), 125);
    assert_string_equal(out + 120, "xx...");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defects),       cmocka_unit_test(test_error_names_the_byte),
        cmocka_unit_test(test_deep_values),   cmocka_unit_test(test_liberties),
        cmocka_unit_test(test_header_length), cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_shape_bytes),   cmocka_unit_test(test_quote),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
