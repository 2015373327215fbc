/* SPDX-License-Identifier: Apache-2.0 */
/* Opening files, folders and indexes, and finding models in a cache. */
#include "files.h"

#include <errno.h>

#include "base/heap.h"
#include "os/sys_fault.h"
#include "penstock/io_stripe.h"
#include "store/store.h"

#define A "{" HEADER("a", "F32", "[2,1]", 0, 8) ",\"__metadata__\":{\"format\":\"pt\"}}"
#define B "{" HEADER("b.bias", "BF16", "[3]", 0, 6) "," HEADER("b", "U8", "[2]", 6, 8) "}"

static void write_text(const char *path, const char *text)
{
    files_write(path, text, strlen(text));
}

/* A folder with a.safetensors, b.safetensors and this index. */
static const char *indexed_folder(const char *name, const char *index)
{
    const char *folder = files_folder(name);
    files_write_tensors(files_path("%s/a.safetensors", name), A, 8);
    files_write_tensors(files_path("%s/b.safetensors", name), B, 8);
    write_text(files_path("%s/model.safetensors.index.json", name), index);
    return folder;
}

static void assert_refused(const char *path, int code, const char *error_path_part, const char *cause)
{
    pst_store *store = (pst_store *)0x1;
    pst_error err = {0};
    int64_t live = pst_heap_live_count();
    int status = pst_store_open(path, &store, &err);
    if (status != code || err.code != code)
        fail_msg("%s: status %d, error %d (%s: %s), not %d", path, status, err.code, err.path, err.message, code);
    assert_ptr_equal(store, (pst_store *)0x1);
    assert_contains(err.path, error_path_part);
    assert_contains(err.message, cause);
    assert_int_equal(pst_heap_live_count(), live);
}

static void test_single_file(void **state)
{
    (void)state;
    const char *path = files_path("one.safetensors");
    files_write_tensors(path, B, 8);
    pst_store *store;
    pst_error err;
    assert_int_equal(pst_store_open(path, &store, &err), 0);
    assert_int_equal(pst_store_tensor_count(store), 2);
    assert_int_equal(pst_store_file_count(store), 1);
    assert_string_equal(pst_store_file_path(store, 0), path);
    assert_int_equal(pst_store_data_bytes(store), 8);
    const pst_tensor *tensor = pst_store_find(store, "b");
    assert_non_null(tensor);
    assert_ptr_equal(tensor, pst_store_tensor_at(store, 1));
    assert_int_equal(tensor->offset, 8 + strlen(B) + 6);
    assert_null(pst_store_find(store, "b."));
    assert_null(pst_store_find(store, ""));
    assert_null(pst_store_tensor_at(store, 2));
    assert_null(pst_store_metadata(store, 0, "format"));
    pst_store_close(store);
    pst_store_close(NULL);
}

static void test_index(void **state)
{
    (void)state;
    const char *folder = indexed_folder("indexed", "{\"metadata\":{\"total_size\":16},\"weight_map\":{"
                                                   "\"b\":\"b.safetensors\",\"a\":\"a.safetensors\","
                                                   "\"b.bias\":\"b.safetensors\"}}");
    files_write_tensors(files_path("indexed/z.safetensors"), A, 8); /* not in the index: not read */
    pst_store *store;
    pst_error err;
    assert_int_equal(pst_store_open(folder, &store, &err), 0);
    assert_int_equal(pst_store_file_count(store), 2);
    assert_int_equal(pst_store_tensor_count(store), 3);
    assert_int_equal(pst_store_data_bytes(store), 16);
    assert_string_equal(pst_store_tensor_at(store, 0)->name, "a");
    assert_string_equal(pst_store_tensor_at(store, 1)->name, "b.bias");
    assert_int_equal(pst_store_tensor_at(store, 1)->file, 1);
    assert_int_equal(pst_store_find(store, "a")->file, 0);
    assert_string_equal(pst_store_metadata(store, 0, "format"), "pt");
    assert_null(pst_store_metadata(store, 1, "format"));
    pst_store_file_info info;
    pst_store_get_file(store, 0, &info);
    assert_int_equal(info.metadata, 1);
    assert_int_equal(info.tensors, 1);
    assert_int_equal(info.header_bytes, 8 + strlen(A));
    const char *key, *value;
    pst_store_metadata_at(store, 0, 0, &key, &value);
    assert_string_equal(key, "format");
    assert_string_equal(value, "pt");
    pst_store_close(store);
    /* The same with a slash behind it. */
    assert_int_equal(pst_store_open(files_path("indexed/"), &store, &err), 0);
    pst_store_close(store);
}

static void test_index_in_subfolders(void **state)
{
    (void)state;
    const char *folder = files_folder("sub");
    files_folder("sub/part");
    files_write_tensors(files_path("sub/part/a.safetensors"), A, 8);
    write_text(files_path("sub/model.safetensors.index.json"), "{\"weight_map\":{\"a\":\"part/a.safetensors\"}}");
    pst_store *store;
    assert_int_equal(pst_store_open(folder, &store, NULL), 0);
    pst_store_close(store);
}

#define MAP(entries) "{\"weight_map\":{" entries "}}"

static void test_hostile_indexes(void **state)
{
    (void)state;
    static const struct {
        const char *index;
        int code;
        const char *cause;
    } cases[] = {
        {"", PST_E_FORMAT, "not valid JSON"},
        {"[]", PST_E_FORMAT, "not a JSON object"},
        {"{}", PST_E_FORMAT, "\"weight_map\" is missing"},
        {"{\"weight_map\":[]}", PST_E_FORMAT, "\"weight_map\" is not an object"},
        {MAP(""), PST_E_FORMAT, "\"weight_map\" is empty"},
        {MAP("\"a\":1"), PST_E_FORMAT, "maps \"a\" to something that is no file name"},
        {MAP("\"a\":{\"a\":\"a.safetensors\"}"), PST_E_FORMAT, "no file name"},
        {MAP("\"a\":\"a.safetensors\\u0000x\""), PST_E_FORMAT, "no file name"},
        {MAP("\"a\":\"\""), PST_E_FORMAT, "not a file inside the folder"},
        {MAP("\"a\":\"/etc/passwd\""), PST_E_FORMAT, "not a file inside the folder"},
        {MAP("\"a\":\"../a.safetensors\""), PST_E_FORMAT, "not a file inside the folder"},
        {MAP("\"a\":\"x/../../a.safetensors\""), PST_E_FORMAT, "not a file inside the folder"},
        {MAP("\"a\":\"./a.safetensors\""), PST_E_FORMAT, "not a file inside the folder"},
        {MAP("\"a\":\"a.safetensors/\""), PST_E_FORMAT, "not a file inside the folder"},
        {MAP("\"a\":\"..\""), PST_E_FORMAT, "not a file inside the folder"},
        {MAP("\"a\":\"a.safetensors\",\"c\":\"c\\n.safetensors\""), -ENOENT,
         "the file \"c?.safetensors\", which is missing"},
        {MAP("\"a\":\"a.safetensors\",\"c\":\"a.safetensors\""), PST_E_FORMAT,
         "\"c\" to \"a.safetensors\", which does not hold it"},
        {MAP("\"a\":\"a.safetensors\",\"b\":\"a.safetensors\""), PST_E_FORMAT,
         "\"b\" to \"a.safetensors\", which does not hold it"},
        {MAP("\"b\":\"b.safetensors\",\"a\":\"b.safetensors\""), PST_E_FORMAT,
         "\"a\" to \"b.safetensors\", which does not hold it"},
        {MAP("\"a\":\"a.safetensors\",\"a\":\"b.safetensors\""), PST_E_FORMAT, "duplicate"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char name[32];
        snprintf(name, sizeof name, "hostile%zu", i);
        assert_refused(indexed_folder(name, cases[i].index), cases[i].code, "model.safetensors.index.json",
                       cases[i].cause);
    }
    /* An index that names itself as a shard: what it holds is no tensors. */
    assert_refused(indexed_folder("cycle", MAP("\"a\":\"model.safetensors.index.json\"")), PST_E_FORMAT, "index.json",
                   "not a safetensors file");
    /* A folder where a shard should be. */
    const char *folder = indexed_folder("isfolder", MAP("\"a\":\"d\""));
    files_folder("isfolder/d");
    assert_refused(folder, PST_E_FORMAT, "isfolder/d", "");
}

static void test_tensor_in_two_shards(void **state)
{
    (void)state;
    const char *folder = indexed_folder("twice", MAP("\"a\":\"a.safetensors\",\"b\":\"c.safetensors\""));
    files_write_tensors(files_path("twice/c.safetensors"),
                        "{" HEADER("a", "U8", "[1]", 0, 1) "," HEADER("b", "U8", "[1]", 1, 2) "}", 2);
    assert_refused(folder, PST_E_FORMAT, "safetensors", "the tensor \"a\", and so does");
    /* One file by two names. */
    folder = indexed_folder("linked", MAP("\"a\":\"a.safetensors\",\"b\":\"c.safetensors\""));
    assert_int_equal(symlink("a.safetensors", files_path("linked/c.safetensors")), 0);
    assert_refused(folder, PST_E_FORMAT, "safetensors", "the tensor \"a\", and so does");
}

/* Keys of one tensor, and of one place, are tensors each; a dimension of one has whatever stride. */
static void test_torch_tied(void **state)
{
    (void)state;
    const char *folder = files_folder("tied");
    assert_int_equal(
        symlink(PST_TEST_SOURCE_DIR "/tests/reference/torch/tied.pt", files_path("tied/pytorch_model.bin")), 0);
    pst_store *store;
    assert_int_equal(pst_store_open(folder, &store, NULL), 0);
    assert_int_equal(pst_store_tensor_count(store), 5);
    const pst_tensor *embed = pst_store_find(store, "embed.weight"), *head = pst_store_find(store, "head.weight"),
                     *view = pst_store_find(store, "view.weight"), *row = pst_store_find(store, "row.weight");
    assert_non_null(embed);
    assert_non_null(head);
    assert_non_null(view);
    assert_non_null(row);
    assert_int_equal(head->offset, embed->offset);
    assert_int_equal(view->offset, embed->offset);
    assert_int_equal(head->bytes, 24);
    assert_int_equal(head->rank, 2);
    assert_int_equal(head->shape[1], 3);
    assert_int_equal(row->bytes, 16);
    assert_non_null(pst_store_find(store, "norm.weight"));
    pst_store_close(store);
}

static void test_folders_without_index(void **state)
{
    (void)state;
    const char *folder = files_folder("plain");
    assert_refused(folder, PST_E_UNSUPPORTED, "plain", "holds no *.safetensors");
    write_text(files_path("plain/optimizer.bin"), "x");
    assert_refused(folder, PST_E_UNSUPPORTED, "plain", "its *.bin are not called pytorch_model.bin");
    write_text(files_path("plain/pytorch_model.bin"), "x");
    assert_refused(folder, PST_E_FORMAT, "pytorch_model.bin", "not a file of torch.save");
    files_write_tensors(files_path("plain/x.safetensors"), A, 8);
    files_write_tensors(files_path("plain/y.safetensors"), B, 8);
    pst_store *store;
    assert_int_equal(pst_store_open(folder, &store, NULL), 0);
    assert_int_equal(pst_store_tensor_count(store), 3);
    pst_store_close(store);
    files_write_tensors(files_path("plain/z.safetensors"), B, 8);
    assert_refused(folder, PST_E_FORMAT, "z.safetensors", "and so does");
    /* model.safetensors goes before the others. */
    files_write_tensors(files_path("plain/model.safetensors"), A, 8);
    assert_int_equal(pst_store_open(folder, &store, NULL), 0);
    assert_int_equal(pst_store_tensor_count(store), 1);
    pst_store_close(store);
}

static void test_numbered_shards(void **state)
{
    (void)state;
    const char *folder = files_folder("numbered");
    files_write_tensors(files_path("numbered/model-00001-of-00002.safetensors"), A, 8);
    assert_refused(folder, -ENOENT, "numbered", "1 of the 2 files model-*-of-00002.safetensors");
    files_write_tensors(files_path("numbered/model-00002-of-00002.safetensors"), B, 8);
    pst_store *store;
    assert_int_equal(pst_store_open(folder, &store, NULL), 0);
    pst_store_close(store);
    /* A second set, and a file that merely looks alike. */
    files_write_tensors(files_path("numbered/zusatz-00001-of-00001.safetensors"), "{}", 0);
    files_write_tensors(files_path("numbered/x-1-of-00009.safetensors"), "{}", 0);
    assert_int_equal(pst_store_open(folder, &store, NULL), 0);
    pst_store_close(store);
    files_write_tensors(files_path("numbered/zusatz-00002-of-00003.safetensors"), "{}", 0);
    assert_refused(folder, -ENOENT, "numbered", "1 of the 3 files zusatz-*-of-00003.safetensors");
}

static void test_broken_files(void **state)
{
    (void)state;
    assert_refused(files_path("nothing here"), -ENOENT, "nothing here", "No such file");
    write_text(files_path("empty.safetensors"), "");
    assert_refused(files_path("empty.safetensors"), PST_E_FORMAT, "empty.safetensors", "only 0 bytes");
    /* 100 bytes that claim a header of 99 MB. */
    unsigned char lie[100] = {0xc0, 0x9e, 0xe6, 0x05};
    files_write(files_path("lie.safetensors"), lie, sizeof lie);
    assert_refused(files_path("lie.safetensors"), PST_E_FORMAT, "lie.safetensors",
                   "truncated: its header has 99000000 bytes");
    files_write_tensors(files_path("short.safetensors"), A, 7);
    assert_refused(files_path("short.safetensors"), PST_E_FORMAT, "short.safetensors", "truncated");
    assert_int_equal(mkfifo(files_path("pipe.safetensors"), 0666), 0);
    assert_refused(files_path("pipe.safetensors"), PST_E_FORMAT, "pipe.safetensors", "");
    assert_int_equal(symlink("loop.safetensors", files_path("loop.safetensors")), 0);
    assert_refused(files_path("loop.safetensors"), -ELOOP, "loop.safetensors", "symbolic links");
}

static void test_many_tensors(void **state)
{
    (void)state;
    enum { COUNT = 20000 };
    char *header = malloc(COUNT * 100);
    assert_non_null(header);
    size_t length = 0;
    for (int i = 0; i < COUNT; i++) /* names in no order, neighbours reversed */
        length += (size_t)sprintf(header + length,
                                  "%c\"layers.%d.w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                                  i ? ',' : '{', i * 7919 % COUNT, i ^ 1, (i ^ 1) + 1);
    strcpy(header + length, "}");
    files_write_tensors(files_path("many.safetensors"), header, COUNT);
    free(header);
    pst_store *store;
    assert_int_equal(pst_store_open(files_path("many.safetensors"), &store, NULL), 0);
    assert_int_equal(pst_store_tensor_count(store), COUNT);
    for (int i = 0; i < COUNT; i += 37) {
        char name[40];
        sprintf(name, "layers.%d.w", i * 7919 % COUNT);
        assert_ptr_equal(pst_store_find(store, name), pst_store_tensor_at(store, (size_t)(i ^ 1)));
    }
    pst_store_close(store);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    const char *folder = indexed_folder("scarce", MAP("\"a\":\"a.safetensors\",\"b\":\"b.safetensors\""));
    /* JSON is parsed once before, so that what it sets up once is not counted. */
    pst_store *store;
    assert_int_equal(pst_store_open(folder, &store, NULL), 0);
    pst_store_close(store);
    int failures = 0;
    for (;; failures++) {
        pst_error err = {0};
        int64_t live = pst_heap_live_count();
        pst_heap_fail_after(failures, 0);
        int status = pst_store_open(folder, &store, &err);
        pst_heap_fail_after(-1, 0);
        if (status == 0)
            pst_store_close(store);
        assert_int_equal(pst_heap_live_count(), live);
        if (status == 0)
            break;
        assert_int_equal(status, err.code);
        /* The JSON library reports some of its own failures as malformed text. */
        assert_true(status == -ENOMEM || status == PST_E_FORMAT);
    }
    assert_true(failures > 15);
}

/* ---- finding models ---- */

static void assert_located(const char *model, const char *cache, const char *expected)
{
    char *found = NULL;
    pst_error err = {0};
    int64_t live = pst_heap_live_count();
    int status = pst_store_locate(model, cache, &found, &err);
    if (status < 0)
        fail_msg("%s: %s: %s", model, err.path, err.message);
    assert_string_equal(found, expected);
    pst_heap_free(found);
    assert_int_equal(pst_heap_live_count(), live);
}

static void assert_not_located(const char *model, const char *cache, int code, const char *cause)
{
    char *found = (char *)0x1;
    pst_error err = {0};
    int64_t live = pst_heap_live_count();
    assert_int_equal(pst_store_locate(model, cache, &found, &err), code);
    assert_ptr_equal(found, (char *)0x1);
    assert_contains(err.message, cause);
    assert_int_equal(pst_heap_live_count(), live);
}

#define REVISION   "0123456789abcdef0123456789abcdef01234567"
#define REPOSITORY "home/hub/models--some-org--Model-1.5_x"

static void test_cache(void **state)
{
    (void)state;
    char cache[512], home[512];
    strcpy(home, files_folder("home"));
    strcpy(cache, files_folder("home/hub"));
    files_folder(REPOSITORY);
    files_folder(REPOSITORY "/blobs");
    files_folder(REPOSITORY "/snapshots");
    assert_not_located("some-org/Model-1.5_x", cache, -ENOENT, "holds no revision");
    files_folder(REPOSITORY "/snapshots/" REVISION);
    files_write_tensors(files_path(REPOSITORY "/blobs/deadbeef"), A, 8);
    assert_int_equal(
        symlink("../../blobs/deadbeef", files_path(REPOSITORY "/snapshots/" REVISION "/model.safetensors")), 0);

    /* Without refs/main: the only revision; also from the folder above the hub, and from the repository's
     * folder. */
    const char *snapshot = files_path(REPOSITORY "/snapshots/" REVISION);
    assert_located("some-org/Model-1.5_x", cache, snapshot);
    assert_located("some-org/Model-1.5_x", home, snapshot);
    assert_located(files_path(REPOSITORY), NULL, snapshot);
    pst_store *store;
    assert_int_equal(pst_store_open(snapshot, &store, NULL), 0);
    assert_non_null(pst_store_find(store, "a"));
    pst_store_close(store);

    /* With two, refs/main decides. */
    files_folder(REPOSITORY "/snapshots/other");
    assert_not_located("some-org/Model-1.5_x", cache, PST_E_USAGE, "several revisions");
    files_folder(REPOSITORY "/refs");
    write_text(files_path(REPOSITORY "/refs/main"), "other\n");
    assert_located("some-org/Model-1.5_x", cache, files_path(REPOSITORY "/snapshots/other"));
    write_text(files_path(REPOSITORY "/refs/main"), REVISION);
    assert_located("some-org/Model-1.5_x", cache, files_path(REPOSITORY "/snapshots/" REVISION));

    static const char *const nonsense[] = {"", "\n", "../../../../etc", "a b", "/etc", ".", "a/b", " x"};
    for (size_t i = 0; i < sizeof nonsense / sizeof nonsense[0]; i++) {
        write_text(files_path(REPOSITORY "/refs/main"), nonsense[i]);
        assert_not_located("some-org/Model-1.5_x", cache, PST_E_FORMAT, "holds no revision");
    }
    files_write(files_path(REPOSITORY "/refs/main"), "other\0x", 7);
    assert_not_located("some-org/Model-1.5_x", cache, PST_E_FORMAT, "holds no revision");
    write_text(files_path(REPOSITORY "/refs/main"), "missing");
    assert_not_located("some-org/Model-1.5_x", cache, -ENOENT, "not in the cache");

    assert_not_located("some-org/none", cache, -ENOENT, "nor a model in the cache");
    assert_not_located("some-org/none", NULL, -ENOENT, "no cache to look in");
    assert_not_located("../Model-1.5_x", cache, -ENOENT, "no such file or folder");
    assert_not_located("a/b/c", cache, -ENOENT, "no such file or folder");
    assert_not_located("some-org/", cache, -ENOENT, "no such file or folder");
    assert_not_located("", cache, PST_E_USAGE, "empty");
}

static void test_paths(void **state)
{
    (void)state;
    const char *folder = files_folder("model folder");
    assert_located(folder, NULL, folder);
    files_write_tensors(files_path("file.safetensors"), A, 8);
    assert_located(files_path("file.safetensors"), "/nonexistent", files_path("file.safetensors"));
    files_folder("hub1");
    files_folder("hub1/models--gpt");
    files_folder("hub1/models--gpt/snapshots");
    files_folder("hub1/models--gpt/snapshots/r");
    assert_located("gpt", files_path("hub1"), files_path("hub1/models--gpt/snapshots/r"));
    int failures = 0;
    for (;; failures++) {
        char *found = NULL;
        int64_t live = pst_heap_live_count();
        pst_heap_fail_after(failures, 0);
        int status = pst_store_locate("gpt", files_path("hub1"), &found, NULL);
        pst_heap_fail_after(-1, 0);
        pst_heap_free(found);
        assert_int_equal(pst_heap_live_count(), live);
        if (status == 0)
            break;
        assert_int_equal(status, -ENOMEM);
    }
    assert_true(failures >= 4);
}

/* What stands in the way of a path is said; the cache is asked only for what is not there. */
static void test_unreachable(void **state)
{
    (void)state;
    files_folder("hub");
    assert_int_equal(symlink(files_path("loop"), files_path("loop")), 0);
    assert_not_located(files_path("loop"), files_path("hub"), -ELOOP, "Too many levels of symbolic links");
    assert_refused(files_path("loop"), -ELOOP, "loop", "Too many levels of symbolic links");
    assert_not_located("org/name", files_path("loop"), -ELOOP, "Too many levels of symbolic links");
    const char *folder = files_folder("closed");
    files_write_tensors(files_path("closed/model.safetensors"), A, 8);
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_STATX, 0, 1, EACCES);
    assert_not_located(folder, files_path("hub"), -EACCES, "Permission denied");
    pst_fault_fail(PST_FAULT_STATX, 0, 1, EACCES);
    assert_refused(folder, -EACCES, "closed", "Permission denied");
    pst_fault_fail(PST_FAULT_STATX, 2, 1, EACCES); /* a stripe set's manifest: not the same as none */
    assert_refused(folder, -EACCES, "penstock-stripe.json", "Permission denied");
    pst_fault_fail(PST_FAULT_STATX, 3, 1, EACCES); /* nor is the index */
    assert_refused(folder, -EACCES, "model.safetensors.index.json", "Permission denied");
    pst_fault_reset();
    pst_sys_replace(NULL);
    assert_int_equal(unlink(files_path("closed/model.safetensors")), 0);
    assert_int_equal(symlink("model.safetensors", files_path("closed/model.safetensors")), 0);
    assert_refused(folder, -ELOOP, "closed/model.safetensors", "Too many levels of symbolic links");
}

/* Pipes, devices and folders in the place of a file: not waited for, not read without end. */
static void test_special_files(void **state)
{
    (void)state;
    assert_int_equal(mkfifo(files_path("pipe"), 0600), 0);
    assert_refused(files_path("pipe"), PST_E_FORMAT, "pipe", "is not a regular file");
    assert_refused("/dev/zero", PST_E_FORMAT, "/dev/zero", "is not a regular file");
    const char *folder = files_folder("device");
    assert_int_equal(symlink("/dev/zero", files_path("device/model.safetensors")), 0);
    assert_refused(folder, PST_E_FORMAT, "device/model.safetensors", "is not a regular file");
}

static int transfer(pst_io *io, pst_io_file *file, pst_io_kind kind, uint64_t offset, void *buffer, uint64_t bytes)
{
    pst_io_op op = {.file = file, .offset = offset, .buffer = buffer, .bytes = bytes, .kind = kind};
    return pst_io_transfer(io, &op, NULL);
}

/* A file spread over three folders is opened by any of them. */
static void test_stripes(void **state)
{
    (void)state;
    enum { DATA = 40000 };
    static const char header[] =
        "{" HEADER("a", "U8", "[15000]", 0, 15000) "," HEADER("b", "U8", "[25000]", 15000, 40000) "}";
    const char *folders[3] = {files_folder("s0"), files_folder("s1"), files_folder("s2")};
    pst_error err = {0};
    unsigned char bytes[8 + sizeof header - 1 + DATA], back[DATA];
    memcpy(bytes, &(uint64_t){sizeof header - 1}, 8);
    memcpy(bytes + 8, header, sizeof header - 1);
    for (int i = 0; i < DATA; i++)
        bytes[8 + sizeof header - 1 + i] = (unsigned char)(i * 7 + i / 251);
    const pst_io_options options = {.struct_size = sizeof options, .engine = "threads"};
    pst_io *io;
    pst_io_file *file;
    pst_stripe_set *set;
    assert_int_equal(pst_io_open(&options, &io, &err), 0);
    assert_int_equal(pst_stripe_create(folders, 3, 4096, &err), 0);
    assert_int_equal(pst_stripe_open(folders, 3, &set, &err), 0);
    assert_int_equal(
        pst_stripe_file_open(set, io, "model.safetensors", PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE, &file, &err), 0);
    assert_int_equal(transfer(io, file, PST_IO_WRITE, 0, bytes, sizeof bytes), 0);
    assert_int_equal(pst_io_file_close(file, NULL), 0);
    pst_stripe_close(set);
    for (int i = 0; i < 3; i++) {
        pst_store *store;
        if (pst_store_open(folders[i], &store, &err) < 0)
            fail_msg("%s: %s", err.path, err.message);
        const pst_tensor *b = pst_store_find(store, "b");
        assert_int_equal(b->bytes, 25000);
        assert_int_equal(pst_store_file_open(store, b->file, io, &file, &err), 0);
        assert_int_equal(transfer(io, file, PST_IO_READ, b->offset, back, b->bytes), 0);
        assert_memory_equal(back, bytes + 8 + sizeof header - 1 + 15000, 25000);
        pst_io_file_close(file, NULL);
        pst_store_close(store);
    }
    assert_int_equal(truncate(files_path("s1/model.safetensors"), 100), 0);
    assert_refused(folders[0], PST_E_FORMAT, "model.safetensors", "");
    assert_int_equal(unlink(files_path("s1/penstock-stripe.json")), 0);
    assert_refused(folders[0], PST_E_FORMAT, "s1", "is not member 1");
    pst_io_close(io);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, files_create, files_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_single_file),
        TEST(test_index),
        TEST(test_index_in_subfolders),
        TEST(test_hostile_indexes),
        TEST(test_tensor_in_two_shards),
        TEST(test_torch_tied),
        TEST(test_folders_without_index),
        TEST(test_numbered_shards),
        TEST(test_broken_files),
        TEST(test_many_tensors),
        TEST(test_allocation_failures),
        TEST(test_cache),
        TEST(test_paths),
        TEST(test_unreachable),
        TEST(test_special_files),
        TEST(test_stripes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
