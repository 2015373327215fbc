/* SPDX-License-Identifier: Apache-2.0 */
/* inspect: what it reports is what the files say, also for a model of no known family. */
#include "unit/store/files.h"

#include <errno.h>

#include "base/heap.h"
#include "penstock/jobs.h"

#define HEADER_A                                                                                                       \
    "{" HEADER("b", "BF16", "[2,3]", 0, 12) "," HEADER("s", "F64", "[]", 12,                                           \
                                                       20) ",\"__metadata__\":{\"format\":\"pt\",\"x\":\"y\"}}"

static void write_model(const char *name, const char *config)
{
    files_folder(name);
    files_write_tensors(files_path("%s/a.safetensors", name), HEADER_A, 20);
    files_write_tensors(files_path("%s/z.safetensors", name), "{" HEADER("c", "BF16", "[0,5]", 0, 0) "}", 0);
    if (config != NULL)
        files_write(files_path("%s/config.json", name), config, strlen(config));
}

static void test_folder(void **state)
{
    (void)state;
    write_model("model",
                "{\"model_type\":\"something\",\"architectures\":[\"SomethingForCausalLM\"],\"hidden_size\":64,"
                "\"num_hidden_layers\":\"four\",\"vocab_size\":-1,\"dtype\":\"bfloat16\"}");
    pst_inspection *inspection;
    pst_error err = {0};
    int64_t live = pst_heap_live_count();
    assert_int_equal(pst_inspect(files_path("model"), NULL, &inspection, &err), 0);
    assert_string_equal(pst_inspection_path(inspection), files_path("model"));
    assert_int_equal(pst_inspection_file_count(inspection), 2);
    assert_int_equal(pst_inspection_tensor_count(inspection), 3);
    pst_inspect_file file;
    assert_int_equal(pst_inspection_file(inspection, 0, &file), 0);
    assert_string_equal(file.path, files_path("model/a.safetensors"));
    assert_int_equal(file.header_bytes, 8 + strlen(HEADER_A));
    assert_int_equal(file.data_bytes, 20);
    assert_int_equal(file.file_bytes, 28 + strlen(HEADER_A));
    assert_int_equal(file.tensors, 2);
    assert_int_equal(file.metadata, 2);
    assert_int_equal(pst_inspection_file(inspection, 2, &file), PST_E_USAGE);
    pst_inspect_tensor tensor;
    assert_int_equal(pst_inspection_tensor(inspection, 0, &tensor), 0);
    assert_string_equal(tensor.name, "b");
    assert_int_equal(tensor.rank, 2);
    assert_int_equal(tensor.shape[1], 3);
    assert_int_equal(tensor.elements, 6);
    assert_int_equal(tensor.offset, file.header_bytes);
    assert_int_equal(pst_inspection_tensor(inspection, 1, &tensor), 0);
    assert_int_equal(tensor.elements, 1);
    assert_int_equal(pst_inspection_tensor(inspection, 3, &tensor), PST_E_USAGE);
    const char *key, *value;
    assert_int_equal(pst_inspection_metadata(inspection, 0, 1, &key, &value), 0);
    assert_string_equal(key, "x");
    assert_string_equal(value, "y");
    assert_int_equal(pst_inspection_metadata(inspection, 0, 2, &key, &value), PST_E_USAGE);
    assert_int_equal(pst_inspection_metadata(inspection, 2, 0, &key, &value), PST_E_USAGE);
    pst_inspect_dtype total;
    assert_int_equal(pst_inspection_dtype(inspection, PST_BF16, &total), 0);
    assert_int_equal(total.tensors, 2);
    assert_int_equal(total.elements, 6);
    assert_int_equal(total.bytes, 12);
    assert_int_equal(pst_inspection_dtype(inspection, PST_F32, &total), 0);
    assert_int_equal(total.tensors, 0);
    assert_int_equal(pst_inspection_dtype(inspection, PST_DTYPE_COUNT, &total), PST_E_USAGE);
    pst_inspect_config config;
    assert_true(pst_inspection_config(inspection, &config));
    assert_string_equal(config.path, files_path("model/config.json"));
    assert_string_equal(config.model_type, "something");
    assert_string_equal(config.architecture, "SomethingForCausalLM");
    assert_string_equal(config.dtype, "bfloat16");
    assert_int_equal(config.hidden, 64);
    assert_int_equal(config.layers, 0);
    assert_int_equal(config.vocab, 0);
    pst_inspection_close(inspection);
    pst_inspection_close(NULL);
    assert_int_equal(pst_heap_live_count(), live);
}

static void test_single_file(void **state)
{
    (void)state;
    write_model("plain", NULL);
    pst_inspection *inspection;
    pst_inspect_config config;
    assert_int_equal(pst_inspect(files_path("plain/a.safetensors"), NULL, &inspection, NULL), 0);
    assert_int_equal(pst_inspection_tensor_count(inspection), 2);
    assert_false(pst_inspection_config(inspection, &config));
    pst_inspection_close(inspection);
    assert_int_equal(pst_inspect(files_path("plain"), NULL, &inspection, NULL), 0);
    assert_false(pst_inspection_config(inspection, &config));
    pst_inspection_close(inspection);
}

static void test_torch_file(void **state)
{
    (void)state;
    const char *path = PST_TEST_SOURCE_DIR "/tests/reference/torch/views.pt";
    pst_inspection *inspection;
    pst_inspect_file file;
    pst_inspect_tensor tensor, base;
    pst_inspect_dtype total;
    const char *key, *value;
    int64_t live = pst_heap_live_count();
    assert_int_equal(pst_inspect(path, NULL, &inspection, NULL), 0);
    assert_int_equal(pst_inspection_file_count(inspection), 1);
    assert_int_equal(pst_inspection_file(inspection, 0, &file), 0);
    assert_string_equal(file.path, path);
    assert_int_equal(file.data_bytes, 24 * 4 + 6 * 8 + 8);
    assert_int_equal(file.header_bytes + file.data_bytes, file.file_bytes);
    assert_int_equal(file.tensors, pst_inspection_tensor_count(inspection));
    assert_int_equal(pst_inspection_file(inspection, 1, &file), PST_E_USAGE);
    assert_int_equal(pst_inspection_tensor(inspection, file.tensors, &tensor), PST_E_USAGE);
    assert_int_equal(pst_inspection_metadata(inspection, 0, 0, &key, &value), PST_E_USAGE);
    assert_int_equal(pst_inspection_tensor(inspection, 0, &base), 0);
    assert_string_equal(base.name, "base");
    assert_int_equal(base.offset % 64, 0);
    assert_null(base.strides);
    assert_int_equal(pst_inspection_tensor(inspection, 1, &tensor), 0);
    assert_string_equal(tensor.name, "row");
    assert_int_equal(tensor.offset, base.offset + 24);
    assert_int_equal(tensor.storage, base.storage);
    assert_int_equal(pst_inspection_tensor(inspection, 3, &tensor), 0);
    assert_string_equal(tensor.name, "transposed");
    assert_int_equal(tensor.strides[1], 6);
    assert_int_equal(tensor.bytes, 96);
    assert_int_equal(tensor.elements, 24);
    assert_int_equal(pst_inspection_dtype(inspection, PST_F64, &total), 0);
    assert_int_equal(total.tensors, 1);
    pst_inspection_close(inspection);
    assert_int_equal(pst_heap_live_count(), live);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *config, *cause;
    } cases[] = {{"{", "not valid JSON"}, {"[1]", "not a JSON object"}, {"", "not valid JSON"}};
    pst_inspection *inspection = (pst_inspection *)0x1;
    pst_error err = {0};
    int64_t live = pst_heap_live_count();
    for (size_t i = 0; i < 3; i++) {
        char name[16];
        snprintf(name, sizeof name, "bad%zu", i);
        write_model(name, cases[i].config);
        assert_int_equal(pst_inspect(files_path("%s", name), NULL, &inspection, &err), PST_E_FORMAT);
        assert_contains(err.path, "config.json");
        assert_contains(err.message, cases[i].cause);
    }
    assert_int_equal(pst_inspect(files_path("nothing"), NULL, &inspection, &err), -ENOENT);
    assert_int_equal(mkfifo(files_path("pipe"), 0600), 0);
    const char *const special[] = {files_path("pipe"), "/dev/zero"};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(pst_inspect(special[i], NULL, &inspection, &err), PST_E_FORMAT);
        assert_string_equal(err.path, special[i]);
        assert_string_equal(err.message, "is not a regular file");
    }
    assert_int_equal(symlink("circle", files_path("circle")), 0);
    assert_int_equal(pst_inspect(files_path("circle"), files_root, &inspection, &err), -ELOOP);
    assert_ptr_equal(inspection, (pst_inspection *)0x1);
    assert_int_equal(pst_heap_live_count(), live);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, files_create, files_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_folder), TEST(test_single_file), TEST(test_torch_file),
                                       TEST(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
