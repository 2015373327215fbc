/* SPDX-License-Identifier: Apache-2.0 */
/* penstock verify on checkpoints: files of both formats, a step's folder, a training folder; how damage is told. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "penstock/ckpt.h"
#include "program.h"

/* Names begin with `prefix`, as those of a step's files must differ. */
static void save_at(const char *path, const char *prefix)
{
    static const float weight[300] = {1, 2, 3};
    static const uint64_t shape[] = {30, 10}, short_shape[] = {4};
    char names[2][32];
    snprintf(names[0], sizeof names[0], "%s.weight", prefix);
    snprintf(names[1], sizeof names[1], "%s.bias", prefix);
    const pst_ckpt_tensor tensors[] = {
        {.name = names[0], .dtype = PST_F32, .rank = 2, .shape = shape, .data = weight},
        {.name = names[1], .dtype = PST_F32, .rank = 1, .shape = short_shape, .data = weight}};
    const pst_ckpt_options options = {.struct_size = sizeof options, .path = path};
    pst_error err = {0};
    if (pst_ckpt_save(&options, tensors, 2, NULL, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
}

static void flip(const char *path, size_t offset)
{
    size_t bytes;
    char *text = read_file(path, &bytes);
    text[offset] ^= 1;
    write_file(path, text, bytes);
    free(text);
}

/* The number after `key` in what is printed of the damage. */
static size_t number_after(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    assert_non_null(at);
    return strtoull(at + strlen(key), NULL, 10);
}

static void test_files(void **state)
{
    (void)state;
    static const char *const names[] = {"model.safetensors", "model.pt"};
    for (int i = 0; i < 2; i++) {
        const char *path = scratch_path(names[i]);
        save_at(path, "layer");
        program_result good = PENSTOCK("verify", path);
        assert_int_equal(good.status, 0);
        assert_non_null(strstr(good.out, "2 of 2 tensors checked, 0 damaged; "));
        assert_string_equal(good.err, "");
        program_free(&good);
        size_t bytes;
        char *text = read_file(path, &bytes);
        static const float begin[3] = {1, 2, 3};
        char *data = memmem(text, bytes, begin, sizeof begin);
        assert_non_null(data);
        size_t at = (size_t)(data - text);
        free(text);
        flip(path, at + 5);
        program_result bad = PENSTOCK("verify", path);
        assert_int_equal(bad.status, 1);
        assert_non_null(strstr(bad.out, ": damaged: layer."));
        assert_int_equal(number_after(bad.out, "(bytes "), at);
        assert_non_null(strstr(bad.err, "1 of its tensors are damaged"));
        program_free(&bad);
        flip(path, at + 5);
        flip(path, i == 0 ? 3000 : bytes - 50); /* padding; the tables at the end */
        program_result outside = PENSTOCK("verify", path);
        assert_int_equal(outside.status, 1);
        assert_non_null(strstr(outside.err, "penstock: error: "));
        program_free(&outside);
    }
}

static void test_steps(void **state)
{
    (void)state;
    const char *run = scratch_path("run");
    char path[700];
    for (uint64_t number = 1; number <= 2; number++) {
        pst_ckpt_step *step;
        pst_error err = {0};
        assert_int_equal(pst_ckpt_step_begin(run, number, NULL, &step, &err), 0);
        snprintf(path, sizeof path, "%s/model.safetensors", pst_ckpt_step_path(step));
        save_at(path, "layer");
        snprintf(path, sizeof path, "%s/optimizer.pt", pst_ckpt_step_path(step));
        save_at(path, "moment");
        assert_int_equal(pst_ckpt_step_commit(step, NULL, &err), 0);
        pst_ckpt_step_end(step);
    }
    json_t *good = expect_json(PENSTOCK("verify", run, "--json"));
    const json_t *report = json_array_get(json_object_get(good, "results"), 0);
    assert_true(number(report, "files") == 4 && number(report, "checked") == 8);
    assert_true(number(report, "damaged") == 0 && number(report, "broken") == 0);
    json_decref(good);
    json_t *inspected = expect_json(PENSTOCK("inspect", run, "--json")); /* the newest step */
    const json_t *tensors = json_object_get(inspected, "tensors");
    assert_int_equal(json_array_size(tensors), 4);
    assert_string_equal(text(json_array_get(tensors, 3), "name"), "moment.bias");
    assert_int_equal(json_array_size(json_object_get(inspected, "files")), 2);
    json_decref(inspected);
    snprintf(path, sizeof path, "%s/step-000001/model.safetensors", run);
    size_t bytes;
    char *content = read_file(path, &bytes);
    write_file(path, content, bytes - 1);
    free(content);
    program_result bad = PENSTOCK("verify", run, "--json");
    assert_int_equal(bad.status, 1);
    json_t *found = json_loads(bad.out, 0, NULL);
    report = json_array_get(json_object_get(found, "results"), 0);
    assert_true(number(report, "files") == 3 && number(report, "broken") == 1 && number(report, "damaged") == 0);
    const json_t *damage = json_array_get(json_object_get(report, "other_damage"), 0);
    assert_non_null(strstr(json_string_value(json_object_get(damage, "file")), "step-000001/model.safetensors"));
    assert_non_null(strstr(json_string_value(json_object_get(damage, "what")), "manifest"));
    json_decref(found);
    program_free(&bad);
    program_result lines = PENSTOCK("verify", run);
    assert_int_equal(lines.status, 1);
    assert_non_null(strstr(lines.out, "model.safetensors: damaged: "));
    assert_non_null(strstr(lines.out, ", 1 other damage"));
    program_free(&lines);
    EXPECT_ERROR(1, "", "verify", scratch_path("nowhere.pt"));
    write_file(scratch_path("old.pt"), "\x80\x02}q\x00.", 6);
    EXPECT_ERROR(1, "old.pt", "verify", scratch_path("old.pt"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_steps),
    };
    return cmocka_run_group_tests_name("verify", tests, NULL, NULL);
}
