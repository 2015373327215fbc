/* SPDX-License-Identifier: Apache-2.0 */
/* Manifests of steps: what is written comes back, and nothing else is accepted. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/heap.h"
#include "store/manifest.h"
#include "unit/io/io_test.h"

#define D1 "0123456789abcdef0123456789abcdef"
#define D2 "ffffffffffffffffffffffffffffffff"

static pst_manifest sample(void)
{
    static pst_metadata metadata[] = {{"loss", "2.5"}, {"a \"quoted\"\n\x01 key", "\xc3\xa4"}, {"", ""}};
    static pst_manifest_file files[] = {
        {.name = "a/b/model.safetensors", .bytes = INT64_MAX, .covers_header = true, .digest = D1},
        {.name = "config.json", .bytes = 0, .digest = D2},
        {.name = "na\xc3\xafve \\ name", .bytes = 7, .digest = D1},
    };
    return (pst_manifest){
        .step = 123456789, .ranks = 4, .metadata = metadata, .metadata_count = 3, .files = files, .file_count = 3};
}

static char *write_text(const pst_manifest *m, size_t *bytes)
{
    char *text = NULL;
    pst_error err = {0};
    assert_ok(pst_manifest_write(m, &text, bytes, &err), &err);
    assert_int_equal(strlen(text), *bytes);
    return text;
}

static void assert_same(const pst_manifest *a, const pst_manifest *b)
{
    assert_true(a->step == b->step && a->ranks == b->ranks);
    assert_int_equal(a->metadata_count, b->metadata_count);
    for (size_t i = 0; i < a->metadata_count; i++) {
        assert_string_equal(a->metadata[i].key, b->metadata[i].key);
        assert_string_equal(a->metadata[i].value, b->metadata[i].value);
    }
    assert_int_equal(a->file_count, b->file_count);
    for (size_t i = 0; i < a->file_count; i++) {
        assert_string_equal(a->files[i].name, b->files[i].name);
        assert_string_equal(a->files[i].digest, b->files[i].digest);
        assert_true(a->files[i].bytes == b->files[i].bytes);
        assert_int_equal(a->files[i].covers_header, b->files[i].covers_header);
    }
}

static void test_round_trip(void **unused)
{
    (void)unused;
    pst_manifest m = sample(), empty = {.step = INT64_MAX, .ranks = 1}, back;
    pst_error err = {0};
    size_t bytes = 0;
    int64_t live = pst_heap_live_count();
    char *text = write_text(&m, &bytes);
    assert_ok(pst_manifest_parse(text, bytes, "there", &back, &err), &err);
    assert_same(&m, &back);
    pst_manifest_free(&back);
    pst_heap_free(text);
    text = write_text(&empty, &bytes);
    assert_ok(pst_manifest_parse(text, bytes, "there", &back, &err), &err);
    assert_same(&empty, &back);
    pst_manifest_free(&back);
    pst_heap_free(text);
    assert_int_equal(pst_heap_live_count(), live);
}

static void assert_refused(const char *text, size_t bytes, const char *what, size_t where)
{
    pst_manifest back = {.step = 42};
    pst_error err = {0};
    int status = pst_manifest_parse(text, bytes, "there", &back, &err);
    if (status != PST_E_FORMAT && status != PST_E_UNSUPPORTED)
        fail_msg("%s at %zu: status %d", what, where, status);
    assert_true(back.step == 42 && err.message[0] != '\0');
    assert_string_equal(err.path, "there");
}

/* Any byte changed in any way, any part missing, anything added. */
static void test_damage(void **unused)
{
    (void)unused;
    pst_manifest m = sample();
    size_t bytes = 0;
    char *text = write_text(&m, &bytes);
    char *copy = malloc(bytes + 2);
    assert_non_null(copy);
    for (size_t at = 0; at < bytes; at++) {
        static const unsigned char flips[] = {0x01, 0x10, 0x20, 0x80};
        for (size_t f = 0; f < sizeof flips; f++) {
            memcpy(copy, text, bytes + 1);
            copy[at] = (char)(copy[at] ^ flips[f]);
            assert_refused(copy, bytes, "a flipped byte", at);
        }
        assert_refused(text, at, "a cut", at);
        memcpy(copy, text, at);
        copy[at] = ' ';
        memcpy(copy + at + 1, text + at, bytes - at);
        assert_refused(copy, bytes + 1, "a space", at);
    }
    memcpy(copy, text, bytes);
    copy[bytes] = '\n';
    assert_refused(copy, bytes + 1, "a line at the end", bytes);
    free(copy);
    pst_heap_free(text);
}

static void assert_not_written(const pst_manifest *m)
{
    char *text = (char *)"untouched";
    size_t bytes = 42;
    pst_error err = {0};
    assert_int_equal(pst_manifest_write(m, &text, &bytes, &err), PST_E_USAGE);
    assert_true(bytes == 42 && err.message[0] != '\0');
}

static void test_bad_names(void **unused)
{
    (void)unused;
    static const char *const names[] = {"",   "/etc/passwd", "..",  "../x", "a/../b", "a//b",
                                        "a/", ".",           "./a", "a/.",  "\xff",   PST_MANIFEST_NAME};
    pst_manifest_file file = {.bytes = 1, .digest = D1};
    pst_manifest m = {.ranks = 1, .files = &file, .file_count = 1}, back;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        file.name = names[i];
        assert_not_written(&m);
    }
    static const char *const good[] = {"..a", "a..", "...", ".x/y", "a/" PST_MANIFEST_NAME};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        size_t bytes = 0;
        pst_error err = {0};
        file.name = good[i];
        char *text = write_text(&m, &bytes);
        assert_ok(pst_manifest_parse(text, bytes, "there", &back, &err), &err);
        pst_manifest_free(&back);
        pst_heap_free(text);
    }
}

static void test_bad_values(void **unused)
{
    (void)unused;
    pst_manifest m = sample();
    m.ranks = 0;
    assert_not_written(&m);
    m = sample();
    m.step = (uint64_t)INT64_MAX + 1;
    assert_not_written(&m);
    pst_manifest_file two[] = {{.name = "b", .digest = D1}, {.name = "a", .digest = D1}};
    m = (pst_manifest){.ranks = 1, .files = two, .file_count = 2};
    assert_not_written(&m); /* out of order */
    two[1].name = "b";
    assert_not_written(&m); /* twice */
    two[1].name = "c";
    memcpy(two[1].digest, "0123456789ABCDEF0123456789abcdef", 32);
    assert_not_written(&m);
    pst_metadata twice[] = {{"k", "1"}, {"k", "2"}};
    m = (pst_manifest){.ranks = 1, .metadata = twice, .metadata_count = 2};
    assert_not_written(&m);
}

/* Well-formed JSON that nobody writes. */
static void test_hostile(void **unused)
{
    (void)unused;
    static const char *const texts[] = {
        "",
        "{}",
        "[]",
        "null",
        "{\"format\": \"penstock-checkpoint\"}",
        "{\"format\": \"penstock-checkpoint\", \"version\": 2, \"step\": 1}",
        "{\"format\": \"penstock-checkpoint\", \"version\": 1, \"step\": -1}",
        "{\"format\": \"penstock-checkpoint\", \"version\": 1, \"step\": 1, \"ranks\": 1, \"metadata\": {\"a\": 1}, "
        "\"files\": [], \"digest\": \"\"}",
        "{\"format\": \"penstock-checkpoint\", \"version\": 1, \"step\": 1, \"ranks\": 1, \"metadata\": {}, "
        "\"files\": [[]], \"digest\": \"\"}",
        "{\"format\": \"penstock-checkpoint\", \"version\": 1, \"step\": 1, \"ranks\": 1, \"metadata\": {}, "
        "\"files\": [{\"name\": \"a\\u0000b\", \"bytes\": 1, \"digest\": \"xxh3-128 " D1
        "\", \"covers\": \"file\"}], \"digest\": \"" D1 "\"}"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        assert_refused(texts[i], strlen(texts[i]), "hostile text", i);
    char *deep = malloc(100000);
    assert_non_null(deep);
    memset(deep, '[', 100000);
    assert_refused(deep, 100000, "depth", 0);
    free(deep);
}

static void test_allocations(void **unused)
{
    (void)unused;
    pst_manifest m = sample(), back = {0};
    int64_t live = pst_heap_live_count();
    for (int64_t n = 0;; n++) {
        char *text = NULL;
        size_t bytes = 0;
        pst_error err = {0};
        pst_heap_fail_after(n, 0);
        int status = pst_manifest_write(&m, &text, &bytes, &err);
        if (status >= 0)
            status = pst_manifest_parse(text, bytes, "there", &back, &err);
        pst_heap_fail_after(-1, 0);
        if (status >= 0)
            pst_manifest_free(&back);
        pst_heap_free(text);
        assert_int_equal(pst_heap_live_count(), live);
        if (status >= 0) {
            assert_true(n > 4);
            return;
        }
        assert_int_equal(status, -ENOMEM);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_damage),  cmocka_unit_test(test_bad_names),
        cmocka_unit_test(test_bad_values), cmocka_unit_test(test_hostile), cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
