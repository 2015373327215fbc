/* SPDX-License-Identifier: Apache-2.0 */
/* Saving: what comes out, what is refused, and what the file system is left with. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/image.h"
#include "store/safetensors.h"
#include "store/store.h"
#include "support/ckpt_scene.h"

static char *folder;

static int set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(false);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    scene_remove_folder(folder);
    return 0;
}

static pst_ckpt_options plain(const char *name)
{
    return (pst_ckpt_options){.struct_size = sizeof(pst_ckpt_options), .path = test_path(folder, name)};
}

static const char *const both[] = {"model.safetensors", "model.pt"};

static void save_and_look(const pst_ckpt_options *options, const scene *s)
{
    pst_error err = {0};
    pst_ckpt_report report = {.struct_size = sizeof report};
    assert_ok(pst_ckpt_save(options, s->tensors, s->count, &report, &err), &err);
    assert_true(scene_is_saved(options, options->path, s));
    assert_int_equal(report.tensors, s->count);
    assert_int_equal(report.files, scene_files(options, s));
    assert_true(report.written_bytes >= report.file_bytes && report.file_bytes > 0);
    assert_true(report.seconds > 0 && report.copied_seconds > 0 && report.copied_seconds <= report.seconds);
    assert_non_null(report.io_engine);
    assert_int_equal(report.retried, 0);
}

/* ---- contents ---- */

static void test_small(void **unused)
{
    (void)unused;
    for (int i = 0; i < 2; i++) {
        const uint64_t shape[] = {3, 5};
        scene s = {0};
        scene_add(&s, "a", PST_F32, 2, shape, 1, false);
        scene_add(&s, "scalar", PST_I64, 0, NULL, 2, false);
        scene_add(&s, "empty", PST_F32, 1, (const uint64_t[]){0}, 3, false);
        scene_add(&s, "u", PST_U8, 1, (const uint64_t[]){4097}, 4, true);
        pst_ckpt_options options = plain(both[i]);
        save_and_look(&options, &s);
        assert_int_equal(scene_count_entries(folder), i + 1);
        scene_free(&s);
    }
}

static void test_no_tensors(void **unused)
{
    (void)unused;
    const scene s = {0};
    for (int i = 0; i < 2; i++) {
        pst_ckpt_options options = plain(both[i]);
        save_and_look(&options, &s);
    }
    pst_ckpt_options options = plain("folder");
    options.shard_bytes = 1000;
    save_and_look(&options, &s);
}

static void test_very_many(void **unused)
{
    (void)unused;
    enum { MANY = 66000 };
    scene s = {0};
    for (int i = 0; i < MANY; i++) {
        char name[32];
        snprintf(name, sizeof name, "t%d", i);
        scene_add(&s, name, PST_U8, 1, (const uint64_t[]){(uint64_t)i % 3}, (uint64_t)i, false);
    }
    for (int i = 0; i < 2; i++) {
        pst_ckpt_options options = plain(both[i]);
        options.ring_bytes = 2 << 20;
        save_and_look(&options, &s);
    }
    scene_free(&s);
}

/* More than the ring holds, in the least ring there is: buffers of 224 KiB. */
static void test_through_a_small_ring(void **unused)
{
    (void)unused;
    scene s = {0};
    for (uint64_t i = 0; i < 6; i++) {
        char name[32];
        snprintf(name, sizeof name, "t%d", (int)i);
        scene_add(&s, name, i % 2 ? PST_F32 : PST_BF16, 1, (const uint64_t[]){200001 + i * 100000}, i, i == 3);
    }
    for (int i = 0; i < 2; i++) {
        pst_ckpt_options options = plain(both[i]);
        options.ring_bytes = 2 << 20;
        save_and_look(&options, &s);
        options.no_digests = true;
        save_and_look(&options, &s);
    }
    scene_free(&s);
}

/* What other readers see, without this room's help. */
static void test_safetensors_are_readable(void **unused)
{
    (void)unused;
    scene s = {0};
    pst_error err = {0};
    scene_add(&s, "bytes", PST_U8, 1, (const uint64_t[]){7}, 1, false);
    scene_add(&s, "doubles", PST_F64, 1, (const uint64_t[]){1000}, 2, false);
    scene_add(&s, "halves", PST_F16, 2, (const uint64_t[]){2, 3}, 3, false);
    const pst_ckpt_pair pairs[] = {{"format", "pt"}, {"note", "\"quoted\" \xc3\xa4"}};
    pst_ckpt_options options = plain("x.safetensors");
    options.metadata = pairs;
    options.metadata_count = 2;
    save_and_look(&options, &s);
    pst_store *store;
    assert_ok(pst_store_open(options.path, &store, &err), &err);
    assert_string_equal(pst_store_metadata(store, 0, "note"), pairs[1].value);
    assert_non_null(pst_store_metadata(store, 0, PST_FILE_DIGEST_KEY));
    uint64_t bytes;
    uint8_t *file = test_read_file(options.path, &bytes);
    for (size_t i = 0; i < s.count; i++) {
        uint64_t wanted;
        const void *data = scene_data(&s, i, &wanted);
        const pst_tensor *t = pst_store_find(store, s.tensors[i].name);
        assert_non_null(t);
        assert_int_equal(t->bytes, wanted);
        assert_memory_equal(file + t->offset, data, wanted);
        assert_int_equal(t->offset % (pst_dtype_bits(t->dtype) / 8), 0);
    }
    free(file);
    pst_store_close(store);
    scene_free(&s);
}

static void test_shards(void **unused)
{
    (void)unused;
    scene s = {0};
    pst_error err = {0};
    for (uint64_t i = 0; i < 9; i++) {
        char name[32];
        snprintf(name, sizeof name, "t%d", (int)i);
        scene_add(&s, name, PST_F32, 1, (const uint64_t[]){i == 4 ? 5000 : 500}, i, false);
    }
    pst_ckpt_options options = plain("model/"); /* a slash at the end does no harm */
    options.shard_bytes = 5000;
    assert_int_equal(scene_files(&options, &s), 5); /* 2 + 2 + the large one + 2 + 2 */
    assert_ok(pst_ckpt_save(&options, s.tensors, s.count, NULL, &err), &err);
    options.path = test_path(folder, "model");
    assert_true(scene_is_saved(&options, options.path, &s));
    pst_store *store;
    assert_ok(pst_store_open(options.path, &store, &err), &err);
    assert_int_equal(pst_store_tensor_count(store), 9);
    assert_int_equal(pst_store_file_count(store), 5);
    pst_store_close(store);
    assert_int_equal(scene_count_entries(options.path), 6);
    assert_int_equal(pst_ckpt_save(&options, s.tensors, s.count, NULL, &err), -EEXIST);
    assert_true(scene_is_saved(&options, options.path, &s));
    assert_int_equal(scene_count_entries(folder), 1);
    scene_free(&s);
}

/* More shards than files are kept open. */
static void test_many_shards(void **unused)
{
    (void)unused;
    scene s = {0};
    for (uint64_t i = 0; i < 150; i++) {
        char name[32];
        snprintf(name, sizeof name, "t%d", (int)i);
        scene_add(&s, name, PST_U8, 1, (const uint64_t[]){5000 + i}, i, false);
    }
    pst_ckpt_options options = plain("many");
    options.shard_bytes = 1;
    save_and_look(&options, &s);
    for (uint32_t ranks = 2; ranks < 4; ranks++) {
        const pst_ckpt_ranks several = {.count = ranks};
        pst_error err[3] = {0};
        options.path = test_path(folder, ranks == 2 ? "two" : "three");
        assert_ok(scene_save_by_ranks(&options, &s, ranks, NULL, err, NULL), &err[0]);
        pst_ckpt_options how = options;
        how.ranks = &several;
        assert_true(scene_is_saved(&how, how.path, &s));
    }
    scene_free(&s);
}

static void test_pickle_of_the_caller(void **unused)
{
    (void)unused;
    scene s = {0};
    scene_add(&s, "0", PST_U8, 1, (const uint64_t[]){100000}, 1, false);
    scene_add(&s, "1", PST_U8, 1, (const uint64_t[]){3}, 2, false);
    pst_ckpt_options options = plain("made.ckpt");
    options.pickle = "\x80\x02}.";
    options.pickle_bytes = 4;
    options.archive_name = "made";
    save_and_look(&options, &s);
    scene_free(&s);
}

/* ---- the path ---- */

static void save_one(const char *path, uint64_t elements, uint64_t seed)
{
    scene s = {0};
    scene_add(&s, "t", PST_U8, 1, &elements, seed, false);
    pst_ckpt_options options = {.path = path};
    save_and_look(&options, &s);
    scene_free(&s);
}

static void test_replaces_and_keeps_mappings(void **unused)
{
    (void)unused;
    const char *path = test_path(folder, "x.safetensors");
    save_one(path, 1000000, 1);
    uint64_t before_bytes;
    uint8_t *before = test_read_file(path, &before_bytes);
    int fd = open(path, O_RDONLY);
    const uint8_t *mapped = mmap(NULL, before_bytes, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(mapped, MAP_FAILED);
    save_one(path, 500, 2); /* a shorter one */
    save_one(path, 2000000, 3);
    assert_memory_equal(mapped, before, before_bytes);
    munmap((void *)mapped, before_bytes);
    close(fd);
    free(before);
    assert_int_equal(scene_count_entries(folder), 1);
}

static void test_links_are_followed(void **unused)
{
    (void)unused;
    char target[4096], link[4096], far[4096];
    struct stat info;
    snprintf(target, sizeof target, "%s/real.pt", folder);
    snprintf(link, sizeof link, "%s/link.pt", folder);
    snprintf(far, sizeof far, "%s/far.pt", folder);
    assert_int_equal(symlink("real.pt", link), 0); /* leads nowhere yet */
    assert_int_equal(symlink(link, far), 0);
    save_one(far, 100, 1);
    assert_int_equal(lstat(target, &info), 0);
    assert_true(S_ISREG(info.st_mode));
    assert_int_equal(lstat(link, &info), 0);
    assert_true(S_ISLNK(info.st_mode));
    save_one(far, 20000, 2);
    assert_int_equal(lstat(far, &info), 0);
    assert_true(S_ISLNK(info.st_mode));
    assert_int_equal(scene_count_entries(folder), 3);
    assert_int_equal(symlink("loop.pt", test_path(folder, "loop.pt")), 0);
    pst_ckpt_options options = plain("loop.pt");
    pst_error err = {0};
    assert_int_equal(pst_ckpt_save(&options, NULL, 0, NULL, &err), -ELOOP);
}

static void test_mode_follows_the_umask(void **unused)
{
    (void)unused;
    struct stat info;
    mode_t before = umask(027);
    const char *path = test_path(folder, "x.pt");
    save_one(path, 100, 1);
    umask(before);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0640);
}

static void test_two_savers(void **unused)
{
    (void)unused;
    enum { SAVERS = 2 };
    scene s[SAVERS] = {0};
    const char *path = test_path(folder, "x.pt");
    pid_t children[SAVERS];
    pst_ckpt_options options = {.path = path};
    for (int i = 0; i < SAVERS; i++)
        scene_add(&s[i], "t", PST_U8, 1, (const uint64_t[]){3000000 + (uint64_t)i * 1000000}, (uint64_t)i, false);
    for (int i = 0; i < SAVERS; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            for (int k = 0; k < 3; k++)
                if (pst_ckpt_save(&options, s[i].tensors, s[i].count, NULL, NULL) < 0)
                    _exit(1);
            _exit(0);
        }
    }
    for (int i = 0; i < SAVERS; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_int_equal(status, 0);
    }
    assert_true(scene_is_saved(&options, path, &s[0]) || scene_is_saved(&options, path, &s[1]));
    assert_int_equal(scene_count_entries(folder), 1);
    for (int i = 0; i < SAVERS; i++)
        scene_free(&s[i]);
}

/* ---- refusals ---- */

static void refused(const pst_ckpt_options *options, const scene *s, int code, const char *words)
{
    pst_error err = {0};
    size_t before = scene_count_entries(folder);
    assert_int_equal(pst_ckpt_save(options, s->tensors, s->count, NULL, &err), code);
    if (strstr(err.message, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.message, words);
    assert_int_equal(scene_count_entries(folder), before);
}

static void test_refusals(void **unused)
{
    (void)unused;
    scene s = {0}, twice = {0}, bad = {0}, without = {0};
    scene_add(&s, "t", PST_U8, 1, (const uint64_t[]){100}, 1, false);
    scene_add(&twice, "t", PST_U8, 1, (const uint64_t[]){100}, 1, false);
    scene_add(&twice, "t", PST_U8, 1, (const uint64_t[]){0}, 1, false);
    scene_add(&bad, "\xff", PST_U8, 1, (const uint64_t[]){100}, 1, false);
    scene_add(&without, "t", PST_U8, 1, (const uint64_t[]){0}, 1, false);
    ((uint64_t *)without.tensors[0].shape)[0] = 5;
    without.tensors[0].data = NULL;
    pst_ckpt_options options = plain("x.safetensors"), torch = plain("x.pt");
    refused(&options, &twice, PST_E_USAGE, "two tensors");
    refused(&options, &bad, PST_E_USAGE, "UTF-8");
    refused(&options, &without, PST_E_USAGE, "no data");
    options.metadata = &(const pst_ckpt_pair){"penstock.x", "y"};
    options.metadata_count = 1;
    refused(&options, &s, PST_E_USAGE, "taken");
    torch.shard_bytes = 1;
    refused(&torch, &s, PST_E_USAGE, "shards");
    options = plain("x.safetensors");
    options.ring_bytes = 4096;
    refused(&options, &s, PST_E_BUDGET, "2097152");
    options = plain("x.safetensors");
    options.ranks = &(const pst_ckpt_ranks){.rank = 2, .count = 2};
    refused(&options, &s, PST_E_USAGE, "rank 2");
    options = plain("none/x.safetensors");
    refused(&options, &s, -ENOENT, "create");
    assert_int_equal(mkdir(test_path(folder, "there"), 0700), 0);
    options = plain("there");
    refused(&options, &s, -EISDIR, "folder");
    assert_int_equal(mkfifo(test_path(folder, "pipe"), 0600), 0);
    options = plain("pipe");
    refused(&options, &s, PST_E_FORMAT, "regular");
    options = plain("x/");
    refused(&options, &s, PST_E_USAGE, "name");
    options.path = "";
    refused(&options, &s, PST_E_USAGE, "path");
    assert_int_equal(rmdir(test_path(folder, "there")), 0);
    scene_free(&s);
    scene_free(&twice);
    scene_free(&bad);
    without.tensors[0].data = "";
    scene_free(&without);
}

static int fail_source(void *user, uint64_t offset, uint64_t bytes, void *out, pst_error *err)
{
    (void)user;
    memset(out, 0, bytes);
    if (offset + bytes <= 1000000)
        return 0;
    if (err != NULL)
        snprintf(err->message, sizeof err->message, "the device is gone");
    return -ENODEV;
}

static void test_failing_source(void **unused)
{
    (void)unused;
    scene s = {0};
    scene_add(&s, "fine", PST_U8, 1, (const uint64_t[]){500000}, 1, false);
    scene_add(&s, "gone", PST_U8, 1, (const uint64_t[]){5000000}, 1, true);
    s.tensors[1].source = fail_source;
    for (int i = 0; i < 2; i++) {
        pst_ckpt_options options = plain(both[i]);
        options.ring_bytes = 2 << 20;
        save_one(options.path, 77, 7);
        refused(&options, &s, -ENODEV, "\"gone\" cannot be had: the device is gone");
        scene old = {0};
        scene_add(&old, "t", PST_U8, 1, (const uint64_t[]){77}, 7, false);
        assert_true(scene_is_saved(&(pst_ckpt_options){.path = options.path}, options.path, &old));
        scene_free(&old);
    }
    scene_free(&s);
}

/* A limit of the file's size; and more than the file system has. */
static void test_no_room(void **unused)
{
    (void)unused;
    scene s = {0};
    struct rlimit before;
    scene_add(&s, "t", PST_U8, 1, (const uint64_t[]){3000000}, 1, false);
    pst_ckpt_options options = plain("x.safetensors");
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &(struct rlimit){.rlim_cur = 1 << 20, .rlim_max = before.rlim_max}), 0);
    refused(&options, &s, -EFBIG, "reserve");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    const uint64_t huge = UINT64_C(1) << 58, *real = s.tensors[0].shape;
    s.tensors[0].shape = &huge;
    refused(&options, &s, -ENOSPC, "are free");
    s.tensors[0].shape = real;
    scene_free(&s);
}

/* ---- ranks ---- */

static void test_ranks_differ(void **unused)
{
    (void)unused;
    scene one = {0}, other = {0};
    scene_add(&one, "t", PST_F32, 1, (const uint64_t[]){30000}, 1, false);
    scene_add(&other, "u", PST_F32, 1, (const uint64_t[]){30000}, 1, false);
    const scene *scenes[] = {&one, &one, &other};
    pst_error err[3] = {0};
    int statuses[3];
    pst_ckpt_options options = plain("x.pt");
    scene_save_scenes(&options, scenes, 3, statuses, err, NULL);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(statuses[i], PST_E_USAGE);
        assert_non_null(strstr(err[i].message, "rank 2"));
    }
    assert_int_equal(scene_count_entries(folder), 0);
    scene_free(&one);
    scene_free(&other);
}

static void test_a_rank_fails(void **unused)
{
    (void)unused;
    scene fine = {0}, broken = {0};
    scene_add(&fine, "t", PST_U8, 1, (const uint64_t[]){5000000}, 1, true);
    scene_add(&broken, "t", PST_U8, 1, (const uint64_t[]){5000000}, 1, true);
    broken.tensors[0].source = fail_source;
    for (int at = 1; at < 3; at++) {
        const scene *scenes[] = {&fine, at == 1 ? &broken : &fine, at == 2 ? &broken : &fine};
        pst_error err[3] = {0};
        int statuses[3];
        pst_ckpt_options options = plain(both[at - 1]);
        save_one(options.path, 5, 5);
        scene_save_scenes(&options, scenes, 3, statuses, err, NULL);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(statuses[i], -ENODEV);
            assert_non_null(strstr(err[i].message, "the device is gone"));
            assert_true(i == at || strstr(err[i].message, at == 1 ? "rank 1" : "rank 2") != NULL);
        }
        assert_int_equal(scene_count_entries(folder), at);
    }
    scene_free(&fine);
    scene_free(&broken);
}

static void test_rate(void **unused)
{
    (void)unused;
    scene s = {0};
    scene_add(&s, "t", PST_U8, 1, (const uint64_t[]){3000000}, 1, false);
    pst_ckpt_options options = plain("x.safetensors");
    options.ring_bytes = 2 << 20;
    options.bytes_per_second = 20000000;
    pst_error err = {0};
    pst_ckpt_report report = {.struct_size = sizeof report};
    assert_ok(pst_ckpt_save(&options, s.tensors, s.count, &report, &err), &err);
    assert_true(scene_is_saved(&options, options.path, &s));
    assert_true(report.seconds > 0.1); /* 0.15, but for the first buffer */
    assert_true(report.ring_bytes <= options.ring_bytes);
    scene_free(&s);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_small),
        TEST(test_no_tensors),
        TEST(test_very_many),
        TEST(test_through_a_small_ring),
        TEST(test_safetensors_are_readable),
        TEST(test_shards),
        TEST(test_many_shards),
        TEST(test_pickle_of_the_caller),
        TEST(test_replaces_and_keeps_mappings),
        TEST(test_links_are_followed),
        TEST(test_mode_follows_the_umask),
        TEST(test_two_savers),
        TEST(test_refusals),
        TEST(test_failing_source),
        TEST(test_no_room),
        TEST(test_ranks_differ),
        TEST(test_a_rank_fails),
        TEST(test_rate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
