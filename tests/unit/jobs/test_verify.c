/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify of checkpoints: every byte of what pst_ckpt_save wrote is flipped in turn, in both formats, and every one
 * must be found; so must every byte of a step's manifest, and files that are missing, exchanged or of another length.
 */
#include "unit/store/files.h"

#include <errno.h>
#include <fcntl.h>

#include "base/heap.h"
#include "penstock/ckpt.h"
#include "penstock/jobs.h"
#include "store/image.h"
#include "store/manifest.h"
#include "support/ckpt_scene.h"
#include "support/random.h"
#include "unit/io/io_test.h"

static struct {
    unsigned damaged, remarks;
    char last[200], tensor[100];
    uint64_t offset, bytes;
} seen;

static void on_finding(void *user, const pst_verify_finding *finding)
{
    (void)user;
    seen.damaged += finding->damaged;
    seen.remarks += !finding->damaged;
    seen.offset = finding->offset;
    seen.bytes = finding->bytes;
    snprintf(seen.last, sizeof seen.last, "%s", finding->what);
    snprintf(seen.tensor, sizeof seen.tensor, "%s", finding->tensor != NULL ? finding->tensor : "");
    assert_non_null(finding->file);
}

static int verify(const char *path, pst_verify_report *report, pst_error *err)
{
    memset(&seen, 0, sizeof seen);
    pst_verify_options options = {.struct_size = sizeof options,
                                  .path = path,
                                  .on_finding = on_finding,
                                  .io_engine = "threads",
                                  .queue_depth = 1,
                                  .io_workers = 1,
                                  .threads = 1};
    return pst_verify(&options, report, err);
}

static bool is_good(const char *path)
{
    pst_verify_report report;
    pst_error err = {0};
    int status = verify(path, &report, &err);
    if (status < 0)
        assert_true(err.path[0] != '\0');
    else
        assert_int_equal(seen.damaged, report.damaged + report.broken);
    return status == 0 && report.damaged == 0 && report.broken == 0;
}

static int open_for_flips(const char *path, uint64_t *bytes)
{
    struct stat info;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &info), 0);
    *bytes = (uint64_t)info.st_size;
    return fd;
}

static void assert_found(int fd, const char *flipped, const char *verified, uint64_t at, unsigned char flip)
{
    unsigned char byte, changed;
    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    changed = byte ^ flip;
    assert_int_equal(pwrite(fd, &changed, 1, (off_t)at), 1);
    if (is_good(verified))
        fail_msg("%s: byte %llu: 0x%02x instead of 0x%02x was not found", flipped, (unsigned long long)at, changed,
                 byte);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
}

/* Every byte of the file by a random value; `verified` is it, or the folder that it lies in. */
static void flip_all(const char *path, const char *verified)
{
    uint64_t bytes;
    int fd = open_for_flips(path, &bytes);
    assert_true(is_good(verified));
    for (uint64_t i = 0; i < bytes; i++)
        assert_found(fd, path, verified, i, (unsigned char)(1 + random_below(255)));
    assert_true(is_good(verified));
    close(fd);
}

/* ---- files ---- */

static const uint64_t shape_a[] = {3, 50}, shape_b[] = {7}, shape_empty[] = {0, 4};
static const unsigned char data_a[600] = {1, 2, 3}, data_b[7] = {9}, data_one[2] = {4};

static const pst_ckpt_tensor tensors[] = {
    {.name = "layer.a", .dtype = PST_F32, .rank = 2, .shape = shape_a, .data = data_a},
    {.name = "b", .dtype = PST_U8, .rank = 1, .shape = shape_b, .data = data_b},
    {.name = "empty", .dtype = PST_F32, .rank = 2, .shape = shape_empty},
    {.name = "scalar", .dtype = PST_BF16, .rank = 0, .data = data_one},
};

static void save(const char *path, pst_ckpt_options options)
{
    pst_error err = {0};
    options.struct_size = sizeof options;
    options.path = path;
    options.io = (pst_io_options){.struct_size = sizeof options.io, .engine = "threads", .workers = 1};
    if (pst_ckpt_save(&options, tensors, sizeof tensors / sizeof tensors[0], NULL, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
}

static void test_flipped_safetensors(void **state)
{
    (void)state;
    static const pst_ckpt_pair pair = {"made by", "a test"};
    const char *path = files_path("flipped.safetensors");
    save(path, (pst_ckpt_options){.metadata = &pair, .metadata_count = 1});
    flip_all(path, path);
}

/* The name under which the file's own digest is kept, by every value: without it nothing would tell of the header. */
static void test_flipped_key(void **state)
{
    (void)state;
    const char *path = files_path("key.safetensors");
    save(path, (pst_ckpt_options){0});
    uint64_t bytes;
    unsigned char *text = test_read_file(path, &bytes);
    unsigned char *key = memmem(text, bytes, "\"" PST_FILE_DIGEST_KEY "\"", strlen(PST_FILE_DIGEST_KEY) + 2);
    assert_non_null(key);
    int fd = open_for_flips(path, &bytes);
    for (size_t i = 0; i < strlen(PST_FILE_DIGEST_KEY) + 4; i++)
        for (unsigned flip = 1; flip < 256; flip++)
            assert_found(fd, path, path, (uint64_t)(key - text) + i, (unsigned char)flip);
    close(fd);
    free(text);
}

static void test_flipped_torch(void **state)
{
    (void)state;
    const char *path = files_path("flipped.pt");
    save(path, (pst_ckpt_options){.format = PST_CKPT_TORCH});
    flip_all(path, path);
}

/* Written by three, so that tensors are cut inside: their digests are of another kind. */
static void test_flipped_shares(void **state)
{
    (void)state;
    static const char *const names[] = {"shares.safetensors", "shares.pt"};
    for (int i = 0; i < 2; i++) {
        const char *path = files_path("%s", names[i]);
        const uint64_t shape[] = {9000}, shape_small[] = {3};
        scene s = {0};
        scene_add(&s, "long", PST_F32, 1, shape, 1, false);
        scene_add(&s, "short", PST_U8, 1, shape_small, 2, false);
        const pst_ckpt_options options = {.struct_size = sizeof options, .path = path};
        pst_error errors[3] = {0};
        if (scene_save_by_ranks(&options, &s, 3, NULL, errors, NULL) < 0)
            fail_msg("%s", errors[0].message);
        uint64_t bytes;
        unsigned char *text = test_read_file(path, &bytes);
        assert_non_null(memmem(text, bytes, PST_CUTS_KEY, strlen(PST_CUTS_KEY)));
        free(text);
        int fd = open_for_flips(path, &bytes);
        assert_true(is_good(path));
        for (uint64_t at = random_below(30); at < bytes; at += 1 + random_below(60))
            assert_found(fd, path, path, at, (unsigned char)(1 + random_below(255)));
        close(fd);
        scene_free(&s);
    }
}

/* Where it is, and in which tensor. */
static void test_places(void **state)
{
    (void)state;
    static const char *const names[] = {"places.safetensors", "places.pt"};
    for (int i = 0; i < 2; i++) {
        const char *path = files_path("%s", names[i]);
        save(path, (pst_ckpt_options){0});
        uint64_t bytes;
        unsigned char *text = test_read_file(path, &bytes);
        unsigned char *at = memmem(text, bytes, data_a, sizeof data_a);
        assert_non_null(at);
        at[77] ^= 1;
        test_write_file(path, text, bytes);
        pst_verify_report report;
        assert_int_equal(verify(path, &report, NULL), 0);
        assert_int_equal(report.damaged, 1);
        assert_int_equal(report.broken, 0);
        assert_string_equal(seen.tensor, "layer.a");
        assert_int_equal(seen.offset, at - text);
        assert_int_equal(seen.bytes, sizeof data_a);
        assert_int_equal(report.checked, 4);
        free(text);
    }
}

/* Without digests: a torch file has its CRCs, a safetensors file nothing. */
static void test_without_digests(void **state)
{
    (void)state;
    const char *torch = files_path("plain.pt"), *plain = files_path("plain.safetensors");
    save(torch, (pst_ckpt_options){.no_digests = true});
    save(plain, (pst_ckpt_options){.no_digests = true});
    pst_verify_report report;
    assert_int_equal(verify(plain, &report, NULL), 0);
    assert_int_equal(report.files_without_digests, 1);
    assert_int_equal(seen.remarks, 1);
    assert_int_equal(verify(torch, &report, NULL), 0);
    assert_int_equal(report.files_without_digests, 0);
    assert_int_equal(report.files_with_crcs_only, 1);
    assert_int_equal(report.checked, 4);
    assert_int_equal(seen.remarks, 1);
    assert_contains(seen.last, "CRCs");
    uint64_t bytes;
    unsigned char *text = test_read_file(torch, &bytes);
    unsigned char *at = memmem(text, bytes, data_a, sizeof data_a);
    at[5] ^= 8;
    test_write_file(torch, text, bytes);
    assert_int_equal(verify(torch, &report, NULL), 0);
    assert_int_equal(report.damaged, 1);
    assert_contains(seen.last, "CRC");
    free(text);
}

/* ---- steps ---- */

static void make_step(const char *folder, uint64_t number)
{
    pst_ckpt_step *step;
    char path[600];
    pst_error err = {0};
    if (pst_ckpt_step_begin(folder, number, NULL, &step, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    snprintf(path, sizeof path, "%s/model.safetensors", pst_ckpt_step_path(step));
    save(path, (pst_ckpt_options){0});
    snprintf(path, sizeof path, "%s/optimizer.pt", pst_ckpt_step_path(step));
    save(path, (pst_ckpt_options){0});
    snprintf(path, sizeof path, "%s/notes.txt", pst_ckpt_step_path(step));
    files_write(path, "no tensors", 10);
    if (pst_ckpt_step_commit(step, NULL, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    pst_ckpt_step_end(step);
}

static void test_step(void **state)
{
    (void)state;
    const char *folder = files_folder("run");
    make_step(folder, 3);
    make_step(folder, 12);
    const char *step = files_path("run/step-000012");
    pst_verify_report report;
    assert_int_equal(verify(step, &report, NULL), 0);
    assert_int_equal(report.files, 3);
    assert_int_equal(report.tensors, 8);
    assert_int_equal(report.checked, 8);
    assert_int_equal(report.damaged + report.broken, 0);
    assert_int_equal(verify(folder, &report, NULL), 0);
    assert_int_equal(report.files, 6);
    assert_int_equal(report.checked, 16);
    flip_all(files_path("run/step-000012/" PST_MANIFEST_NAME), step);
    flip_all(files_path("run/step-000012/notes.txt"), folder);
    flip_all(files_path("run/latest"), folder);
    /* Another file of the right length; one too long; none. */
    const char *model = files_path("run/step-000012/model.safetensors");
    uint64_t bytes;
    unsigned char *text = test_read_file(model, &bytes);
    static const pst_ckpt_pair pair = {"an", "other"};
    save(model, (pst_ckpt_options){.metadata = &pair, .metadata_count = 1});
    assert_false(is_good(step));
    test_write_file(model, text, bytes);
    assert_true(is_good(step));
    FILE *file = fopen(model, "ab");
    fputc(0, file);
    fclose(file);
    assert_false(is_good(step));
    assert_int_equal(remove(model), 0);
    assert_int_equal(verify(folder, &report, NULL), 0);
    assert_int_equal(report.broken, 1);
    assert_int_equal(report.damaged, 0);
    assert_int_equal(report.files, 5); /* the others are checked all the same */
    free(text);
}

/* What is no checkpoint, or one that is not loaded, is verified all the same. */
static void test_other_files(void **state)
{
    (void)state;
    static const char refused[] = "\x80\x02"
                                  "cposix\nsystem\n.",
                      old[] = "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.";
    const char *alone = files_path("refused.pt"), *folder = files_folder("others");
    pst_verify_report report;
    pst_ckpt_step *step;
    pst_ckpt *ckpt;
    save(alone, (pst_ckpt_options){.pickle = refused, .pickle_bytes = sizeof refused - 1});
    assert_int_equal(verify(alone, &report, NULL), 0);
    assert_true(report.checked > 0 && report.checked == report.tensors && report.damaged + report.broken == 0);
    flip_all(alone, alone);
    assert_int_equal(pst_ckpt_step_begin(folder, 1, NULL, &step, NULL), 0);
    char path[700];
    snprintf(path, sizeof path, "%s/model.safetensors", pst_ckpt_step_path(step));
    save(path, (pst_ckpt_options){0});
    snprintf(path, sizeof path, "%s/arrays.npz", pst_ckpt_step_path(step));
    test_write_file(path, "PK\3\4 of another program", 25);
    assert_int_equal(pst_ckpt_step_commit(step, NULL, NULL), 0);
    pst_ckpt_step_end(step);
    const pst_ckpt_open_options options = {.struct_size = sizeof options, .path = folder, .verify = true};
    assert_int_equal(pst_ckpt_open(&options, &ckpt, NULL), 0);
    pst_ckpt_close(ckpt);
    assert_int_equal(verify(folder, &report, NULL), 0);
    assert_int_equal(report.damaged + report.broken, 0);
    flip_all(files_path("others/step-000001/arrays.npz"), folder);
    /* Files that are refused by name are refused when they are opened, and verified. */
    assert_int_equal(pst_ckpt_step_begin(folder, 2, NULL, &step, NULL), 0);
    snprintf(path, sizeof path, "%s/refused.pt", pst_ckpt_step_path(step));
    save(path, (pst_ckpt_options){.pickle = refused, .pickle_bytes = sizeof refused - 1});
    snprintf(path, sizeof path, "%s/old.bin", pst_ckpt_step_path(step));
    test_write_file(path, old, sizeof old - 1);
    assert_int_equal(pst_ckpt_step_commit(step, NULL, NULL), 0);
    pst_ckpt_step_end(step);
    assert_int_equal(pst_ckpt_open(&options, &ckpt, NULL), PST_E_UNSUPPORTED);
    assert_int_equal(verify(folder, &report, NULL), 0);
    assert_int_equal(report.damaged + report.broken, 0);
}

/* Where all steps are gone, nothing that could be checked is not the same as nothing being wrong. */
static void test_no_steps(void **state)
{
    (void)state;
    const char *folder = files_folder("gone");
    pst_error err = {0};
    FILE *file = fopen(files_path("gone/latest"), "wb");
    assert_non_null(file);
    fputs("step-000012", file);
    fclose(file);
    assert_int_equal(verify(folder, NULL, &err), -ENOENT);
    assert_string_equal(err.path, folder);
}

/* ---- allocations ---- */

static void test_allocations(void **state)
{
    (void)state;
    static const char *const names[] = {"memory.safetensors", "memory.pt"};
    for (int i = 0; i < 2; i++) {
        const char *path = files_path("%s", names[i]);
        save(path, (pst_ckpt_options){0});
        int64_t live = pst_heap_live_count();
        int status = -ENOMEM;
        for (int64_t n = 0; status < 0; n++) {
            pst_heap_fail_after(n, 0);
            status = verify(path, NULL, NULL);
            pst_heap_fail_after(-1, 0);
            if (status < 0)
                assert_int_equal(status, -ENOMEM);
            assert_int_equal(pst_heap_live_count(), live);
            assert_true(n < 2000);
        }
    }
}

static int set_up(void **state)
{
    random_start("test_verify");
    if (getenv("TMPDIR") == NULL && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1); /* thousands of small files: what is tested does not depend on the drive */
    return files_create(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flipped_safetensors),
        cmocka_unit_test(test_flipped_key),
        cmocka_unit_test(test_flipped_torch),
        cmocka_unit_test(test_flipped_shares),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_without_digests),
        cmocka_unit_test(test_step),
        cmocka_unit_test(test_other_files),
        cmocka_unit_test(test_no_steps),
        cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests_name("verify", tests, set_up, files_remove);
}
