/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of torch.save (tests/reference/torch): what is found in them is what the script that made them says; a file that was
 * cut short or changed in any byte is an error or something sane; so is one whose records contradict each other.
 */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/file.h"
#include "store/zip_read.h"
#include "support/torch_json.h"

#define FOLDER PST_TEST_SOURCE_DIR "/tests/reference/torch"

static void test_stored_files(void **state)
{
    (void)state;
    DIR *folder = opendir(FOLDER);
    assert_non_null(folder);
    int files = 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char path[600], expected_path[600];
        size_t length = strlen(entry->d_name);
        if (length < 4 || strcmp(entry->d_name + length - 3, ".pt") != 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", FOLDER, entry->d_name);
        snprintf(expected_path, sizeof expected_path, "%.*s.json", (int)(strlen(path) - 3), path);
        assert_int_equal(pst_torch_file_is(path, NULL), 1);
        pst_torch_file file;
        pst_error err;
        if (pst_torch_file_read(path, &file, &err) < 0)
            fail_msg("%s: %s", path, err.message);
        assert_memory_equal(entry->d_name, file.archive_name, strlen(file.archive_name));
        assert_int_equal(strlen(file.archive_name), length - 3);
        json_t *expected = json_load_file(expected_path, JSON_DECODE_ANY, NULL), *found = torch_json(path, &file);
        assert_non_null(expected);
        if (!json_equal(expected, found))
            fail_msg("%s holds %s", path, json_dumps(found, JSON_ENCODE_ANY | JSON_COMPACT));
        json_decref(expected);
        json_decref(found);
        pst_torch_file_free(&file);
        assert_int_equal(pst_heap_live_count(), 0);
        files++;
    }
    closedir(folder);
    assert_true(files >= 14);
}

/* ---- a file in memory ---- */

typedef struct image {
    unsigned char bytes[8192];
    size_t count;
} image;

static image tiny;

static int fetch(void *user, uint64_t offset, void *out, size_t bytes, pst_error *err)
{
    (void)err;
    const image *from = user;
    assert_true(offset <= from->count && bytes <= from->count - offset);
    memcpy(out, from->bytes + offset, bytes);
    return 0;
}

static int read_image(image *in, pst_torch_file *out, pst_error *err)
{
    pst_zip_source source = {.path = "x.pt", .file_bytes = in->count, .fetch = fetch, .user = in};
    return pst_torch_source_read(&source, out, err);
}

static void load(const char *name, image *out)
{
    char *bytes, path[600];
    size_t count;
    snprintf(path, sizeof path, "%s/%s.pt", FOLDER, name);
    assert_int_equal(pst_file_read_all(path, sizeof out->bytes, &bytes, &count, NULL), 0);
    memcpy(out->bytes, bytes, count);
    out->count = count;
    pst_heap_free(bytes);
}

static int load_tiny(void **state)
{
    (void)state;
    load("tiny", &tiny);
    return 0;
}

/* As torch writes it, as other writers do, and with all of ZIP64. */
static const char *const writers[] = {"tiny", "repacked", "wide"};

static void test_every_prefix(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        image whole, cut;
        pst_torch_file file;
        load(writers[i], &whole);
        cut = whole;
        for (cut.count = 0; cut.count < whole.count; cut.count++) {
            int status = read_image(&cut, &file, NULL);
            assert_true(status == PST_E_FORMAT || status == PST_E_UNSUPPORTED);
        }
        assert_int_equal(read_image(&cut, &file, NULL), 0);
        pst_torch_file_free(&file);
    }
    assert_int_equal(pst_heap_live_count(), 0);
}

/* Sane: the one tensor is of the one storage, and both are in the file. */
static void check_sane(const pst_torch_file *file, size_t bytes)
{
    for (size_t i = 0; i < file->record_count; i++)
        assert_true(file->records[i].offset <= bytes && file->records[i].bytes <= bytes - file->records[i].offset);
    for (size_t i = 0; i < file->storage_count; i++)
        assert_true(file->storages[i].bytes == file->records[file->storages[i].record].bytes);
    for (size_t i = 0; i < file->tensor_count; i++)
        assert_true(file->tensors[i].bytes == 0 ||
                    file->tensors[i].begin < file->storages[file->tensors[i].storage].bytes);
}

static void test_every_byte(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        image whole, changed;
        load(writers[i], &whole);
        changed = whole;
        for (size_t at = 0; at < whole.count; at++) {
            for (int other = 1; other < 256; other += i == 0 && at < 400 ? 1 : 7) {
                pst_torch_file file;
                changed.bytes[at] = (unsigned char)(whole.bytes[at] ^ other);
                if (read_image(&changed, &file, NULL) == 0) {
                    check_sane(&file, whole.count);
                    pst_torch_file_free(&file);
                }
            }
            changed.bytes[at] = whole.bytes[at];
        }
    }
    assert_int_equal(pst_heap_live_count(), 0);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    pst_torch_file file;
    pst_error err;
    int status = -1;
    for (int64_t n = 0; status < 0; n++) {
        memset(&file, 0xaa, sizeof file);
        pst_heap_fail_after(n, 0);
        status = read_image(&tiny, &file, &err);
        pst_heap_fail_after(-1, 0);
        assert_true(status == 0 || (status == -ENOMEM && *(unsigned char *)&file == 0xaa));
        assert_int_equal(pst_heap_live_count() == 0, status < 0);
    }
    pst_torch_file_free(&file);
}

/* ---- contradictions ---- */

static size_t find_text(const image *in, const char *text, size_t bytes, size_t from)
{
    for (size_t at = from; at + bytes <= in->count; at++)
        if (memcmp(in->bytes + at, text, bytes) == 0)
            return at;
    fail_msg("not there: %s", text);
    return 0;
}

static void expect_refusal(image *in, const char *what)
{
    pst_torch_file file;
    pst_error err = {0};
    int status = read_image(in, &file, &err);
    assert_true(status == PST_E_FORMAT || status == PST_E_UNSUPPORTED);
    if (strstr(err.message, what) == NULL)
        fail_msg("\"%s\" is not in \"%s\"", what, err.message);
    assert_string_equal(err.path, "x.pt");
}

/* Puts `bytes` at an offset from the directory's entry number `entry`, refuses, and takes them back. */
static void expect_entry_refusal(int entry, size_t offset, const char *bytes, size_t count, const char *what)
{
    image changed = tiny;
    size_t at = find_text(&tiny, "PK\1\2", 4, 0);
    for (int i = 0; i < entry; i++)
        at = find_text(&tiny, "PK\1\2", 4, at + 4);
    memcpy(changed.bytes + at + offset, bytes, count);
    expect_refusal(&changed, what);
}

static void test_contradictions(void **state)
{
    (void)state;
    expect_entry_refusal(0, 10, "\x08", 1, "\"tiny/data.pkl\" is compressed");
    expect_entry_refusal(0, 8, "\x09", 1, "\"tiny/data.pkl\" is encrypted");
    expect_entry_refusal(0, 24, "\0", 1, "has two sizes");
    expect_entry_refusal(0, 16, "\0", 1, "other sums behind its data");
    expect_entry_refusal(0, 8, "\0", 1, "another kind in its header");
    expect_entry_refusal(0, 42, "\1", 1, "no header where the directory says");
    expect_entry_refusal(0, 45, "\x7f", 1, "lies outside of the file");
    expect_entry_refusal(1, 42, "\0\0", 2, "overlaps the one before it");
    expect_entry_refusal(0, 42, "\xff\xff\xff\xff", 4, "a ZIP64 field is missing");
    expect_entry_refusal(0, 46, "tin\0", 4, "empty or not a text");
    expect_entry_refusal(0, 46, "other", 5, "has no header where the directory says");
    expect_entry_refusal(0, 34, "\1", 1, "in another part");
    expect_entry_refusal(0, 28, "\xff\xff", 2, "longer than what is left");

    image changed = tiny;
    size_t end = find_text(&tiny, "PK\5\6", 4, 0);
    changed.bytes[end + 4] = 1;
    expect_refusal(&changed, "several parts");
    changed = tiny;
    changed.bytes[end + 8]++;
    changed.bytes[end + 10]++;
    expect_refusal(&changed, "contradict each other");
    changed = tiny;
    changed.bytes[end + 20] = 1;
    expect_refusal(&changed, "not at the end");
    changed.bytes[changed.count++] = 'x'; /* a comment */
    pst_torch_file file;
    assert_int_equal(read_image(&changed, &file, NULL), 0);
    pst_torch_file_free(&file);

    changed = tiny;
    for (size_t at = 0; at + 12 <= tiny.count; at++)
        if (memcmp(tiny.bytes + at, "tiny/version", 12) == 0)
            memcpy(changed.bytes + at, "tiny/versioN", 12);
    expect_refusal(&changed, "it has no version");
    changed = tiny;
    size_t order = find_text(&tiny, "little", 6, 0);
    memcpy(changed.bytes + order, "bigger", 6);
    expect_refusal(&changed, "neither \"little\" nor \"big\"");
}

static void test_other_files(void **state)
{
    (void)state;
    pst_error err;
    pst_torch_file file;
    assert_int_equal(pst_torch_file_is(FOLDER "/tiny.json", NULL), 0);
    assert_int_equal(pst_torch_file_is(FOLDER "/absent", &err), -ENOENT);
    assert_int_equal(pst_torch_file_read(FOLDER "/absent", &file, &err), -ENOENT);
    assert_int_equal(pst_torch_file_read(FOLDER "/tiny.json", &file, &err), PST_E_FORMAT);
    assert_non_null(strstr(err.message, "not a file of torch.save"));
    pst_torch_file empty = {0};
    pst_torch_file_free(&empty);
    pst_torch_file_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stored_files),   cmocka_unit_test(test_every_prefix),
        cmocka_unit_test(test_every_byte),     cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_contradictions), cmocka_unit_test(test_other_files),
    };
    return cmocka_run_group_tests(tests, load_tiny, NULL);
}
