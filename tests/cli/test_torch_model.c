/* SPDX-License-Identifier: Apache-2.0 */
/* Models whose weights torch.save wrote, in one file or several: the same bits as from safetensors, in every command. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "penstock/ckpt.h"
#include "program.h"
#include "store/store.h"

enum { MOST = 256 };

typedef struct weights {
    pst_store *store;
    pst_ckpt_tensor tensors[MOST];
    char *data[MOST];
    size_t count;
} weights;

static void read_weights(weights *w)
{
    assert_int_equal(pst_store_open(MODEL, &w->store, NULL), 0);
    w->count = pst_store_tensor_count(w->store);
    assert_in_range(w->count, 2, MOST);
    for (size_t i = 0; i < w->count; i++) {
        const pst_tensor *t = pst_store_tensor_at(w->store, i);
        FILE *file = fopen(pst_store_file_path(w->store, t->file), "rb");
        assert_non_null(file);
        w->data[i] = malloc(t->bytes);
        assert_int_equal(fseek(file, (long)t->offset, SEEK_SET), 0);
        assert_int_equal(fread(w->data[i], 1, t->bytes, file), t->bytes);
        fclose(file);
        w->tensors[i] = (pst_ckpt_tensor){
            .name = t->name, .dtype = t->dtype, .rank = t->rank, .shape = t->shape, .data = w->data[i]};
    }
}

static void free_weights(weights *w)
{
    for (size_t i = 0; i < w->count; i++)
        free(w->data[i]);
    pst_store_close(w->store);
}

static void save(const char *folder, const char *name, const pst_ckpt_tensor *tensors, size_t count)
{
    char path[700];
    pst_error err = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    const pst_ckpt_options options = {.struct_size = sizeof options, .path = path, .format = PST_CKPT_TORCH};
    if (pst_ckpt_save(&options, tensors, count, NULL, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
}

/* A copy of the model without its safetensors, at `folder`. */
static void bare_model(const char *name, char folder[600])
{
    char command[1400];
    snprintf(folder, 600, "%s", copy_model(MODEL, name));
    snprintf(command, sizeof command, "rm %s/*.safetensors %s/*.index.json", folder, folder);
    assert_int_equal(system(command), 0);
}

/* The weights in two files, every other tensor in each, with their index. */
static void save_two(const char *folder, const weights *w)
{
    static const char *const files[] = {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"};
    static pst_ckpt_tensor half[MOST];
    json_t *map = json_object(), *index = json_object();
    for (size_t f = 0; f < 2; f++) {
        size_t count = 0;
        for (size_t i = f; i < w->count; i += 2) {
            half[count++] = w->tensors[i];
            json_object_set_new(map, w->tensors[i].name, json_string(files[f]));
        }
        save(folder, files[f], half, count);
    }
    char path[700];
    json_object_set_new(index, "weight_map", map);
    snprintf(path, sizeof path, "%s/pytorch_model.bin.index.json", folder);
    assert_int_equal(json_dump_file(index, path, 0), 0);
    json_decref(index);
}

static char *output_of(program_result result)
{
    if (result.status != 0)
        fail_msg("%s", result.err);
    char *out = strdup(result.out);
    program_free(&result);
    return out;
}

static void expect_same(program_result result, const char *expected)
{
    char *out = output_of(result);
    assert_string_equal(out, expected);
    free(out);
}

#define TEXT "--text", "Once upon a time, in the valley of"

static void test_same_bits(void **state)
{
    const weights *w = *state;
    char one[600], two[600];
    bare_model("one", one);
    bare_model("two", two);
    save(one, "pytorch_model.bin", w->tensors, w->count);
    save_two(two, w);
    size_t wanted_bytes, bytes;
    free(output_of(PENSTOCK("score", MODEL, TEXT, "--logits-out", scratch_path("wanted.npy"))));
    char *wanted = read_file(scratch_path("wanted.npy"), &wanted_bytes);
    const char *const folders[] = {one, two}, *const resident[] = {"0", "100%"};
    for (int i = 0; i < 4; i++) {
        free(output_of(PENSTOCK("score", folders[i / 2], TEXT, "--logits-out", scratch_path("got.npy"), "--resident",
                                resident[i % 2])));
        char *got = read_file(scratch_path("got.npy"), &bytes);
        assert_int_equal(bytes, wanted_bytes);
        assert_memory_equal(got, wanted, bytes);
        free(got);
    }
    free(wanted);
    /* What is converted no longer depends on where it came from. */
    free(output_of(PENSTOCK("convert", MODEL, scratch_path("from-safetensors"), "--bits", "4")));
    free(output_of(PENSTOCK("convert", two, scratch_path("from-torch"), "--bits", "4")));
    char *scored = output_of(PENSTOCK("score", scratch_path("from-safetensors"), TEXT));
    expect_same(PENSTOCK("score", scratch_path("from-torch"), TEXT), scored);
    expect_same(PENSTOCK("score", one, TEXT, "--quant-bits", "4", "--offload-dir", scratch_path("copies")), scored);
    free(scored);
    free(output_of(PENSTOCK("plan", one, "--prompt-len", "64")));
    char *listed = output_of(PENSTOCK("inspect", two));
    assert_non_null(strstr(listed, "pytorch_model-00002-of-00002.bin"));
    free(listed);
}

static void test_refused(void **state)
{
    const weights *w = *state;
    char folder[600], path[700];
    bare_model("refused", folder);
    snprintf(path, sizeof path, "%s/pytorch_model.bin", folder);
    save(folder, "pytorch_model.bin", w->tensors, w->count - 1);
    EXPECT_ERROR(1, "is missing", "score", folder, TEXT);
    size_t bytes;
    char *text = read_file(path, &bytes);
    write_file(path, text, bytes / 2);
    free(text);
    EXPECT_ERROR(1, "pytorch_model.bin: ", "score", folder, TEXT);
    write_text(path, "no zip file");
    EXPECT_ERROR(1, "not a file of torch.save", "score", folder, TEXT);
    /* Views of one storage in rows that are apart: what torch.save makes of a transposed matrix. */
    copy_file(PST_TEST_SOURCE_DIR "/tests/reference/torch/views.pt", path);
    EXPECT_ERROR(1, "rows do not lie one after the other", "score", folder, TEXT);
    /* A folder that has both is read from its safetensors. */
    char to[700];
    const char *both = copy_model(MODEL, "both");
    snprintf(to, sizeof to, "%s/pytorch_model.bin", both);
    write_text(to, "no zip file");
    free(output_of(PENSTOCK("score", both, TEXT)));
}

static int set_up(void **state)
{
    weights *w = calloc(1, sizeof *w);
    read_weights(w);
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    free_weights(*state);
    free(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests_name("torch model", tests, set_up, tear_down);
}
