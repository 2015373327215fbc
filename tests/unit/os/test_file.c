/* SPDX-License-Identifier: Apache-2.0 */
/* Small files and publishing; then the same with every system call and every allocation failing in turn. */
#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/heap.h"
#include "os/file.h"
#include "os/sys_fault.h"

static char root[4096];

static const char *at(const char *name)
{
    static char paths[8][4200];
    static unsigned turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", root, name);
    return path;
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *ftw)
{
    (void)info, (void)type, (void)ftw;
    return remove(path);
}

static int make_root(void **unused)
{
    (void)unused;
    const char *parent = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/pst-file-XXXXXX", parent != NULL && parent[0] != '\0' ? parent : "/tmp");
    pst_fault_reset();
    pst_sys_replace(&pst_sys_fault);
    return mkdtemp(root) == NULL;
}

static int remove_root(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    pst_heap_fail_after(-1, 0);
    return nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void expect_content(const char *path, const char *text)
{
    char *data;
    size_t bytes;
    assert_int_equal(pst_file_read_all(path, 1 << 20, &data, &bytes, NULL), 0);
    assert_int_equal(bytes, strlen(text));
    assert_string_equal(data, text);
    pst_heap_free(data);
}

/* Names in the root that contain ".tmp-": what a failed publish must not leave. */
static size_t leftovers(void)
{
    char **names;
    size_t count, found = 0;
    assert_int_equal(pst_file_list(root, NULL, &names, &count, NULL), 0);
    for (size_t i = 0; i < count; i++)
        found += strstr(names[i], ".tmp-") != NULL;
    pst_file_list_free(names, count);
    return found;
}

static void test_read(void **unused)
{
    (void)unused;
    pst_error err;
    char *data = NULL;
    size_t bytes = 77;
    assert_int_equal(pst_file_read_all(at("missing"), 100, &data, &bytes, &err), -ENOENT);
    assert_string_equal(err.path, at("missing"));
    assert_int_equal(pst_file_read_all(root, 100, &data, &bytes, &err), PST_E_FORMAT);
    assert_int_equal(mkfifo(at("pipe"), 0600), 0);
    assert_int_equal(pst_file_read_all(at("pipe"), 100, &data, &bytes, &err), PST_E_FORMAT); /* and does not hang */
    assert_int_equal(pst_file_publish(at("empty"), "", 0, &err), 0);
    expect_content(at("empty"), "");
    assert_int_equal(pst_file_publish(at("ten"), "0123456789", 10, &err), 0);
    assert_int_equal(pst_file_read_all(at("ten"), 9, &data, &bytes, &err), PST_E_FORMAT);
    assert_null(data);
    assert_int_equal(bytes, 77);
    char part[5] = "";
    assert_int_equal(pst_file_read_at(at("ten"), 3, part, 4, &err), 0);
    assert_string_equal(part, "3456");
    assert_int_equal(pst_file_read_at(at("ten"), 8, part, 4, &err), PST_E_SHORT);
    assert_int_equal(err.offset, 10);
    uint64_t size = 0;
    assert_int_equal(pst_file_size(at("ten"), &size, &err), 0);
    assert_int_equal(size, 10);
    const char *const special[] = {at("pipe"), root, "/dev/zero"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pst_file_size(special[i], &size, &err), PST_E_FORMAT);
        assert_string_equal(err.message, "is not a regular file");
    }
    assert_int_equal(size, 10);
    pst_fault_shorten(PST_FAULT_READ, 0, 100, 3); /* three bytes at a time */
    expect_content(at("ten"), "0123456789");
    pst_fault_fail(PST_FAULT_READ, 0, 2, EINTR);
    expect_content(at("ten"), "0123456789");
}

static void test_folders(void **unused)
{
    (void)unused;
    pst_error err;
    assert_int_equal(pst_folder_create(at("a/b//c"), &err), 0);
    assert_int_equal(pst_folder_create(at("a/b/c/"), &err), 0);
    assert_true(pst_file_is_folder(at("a/b/c")));
    assert_int_equal(pst_file_publish(at("a/x.json"), "x", 1, &err), 0);
    assert_int_equal(pst_file_publish(at("a/B.json"), "y", 1, &err), 0);
    assert_true(pst_folder_create(at("a/x.json/below"), &err) < 0);
    assert_int_equal(pst_folder_create(at("a/x.json"), &err), -ENOTDIR);
    char **names;
    size_t count;
    assert_int_equal(pst_file_list(at("a"), ".json", &names, &count, &err), 0);
    assert_int_equal(count, 2);
    assert_string_equal(names[0], "B.json");
    assert_string_equal(names[1], "x.json");
    pst_file_list_free(names, count);
    assert_int_equal(pst_file_list(at("a"), NULL, &names, &count, &err), 0);
    assert_int_equal(count, 3);
    pst_file_list_free(names, count);
    assert_int_equal(pst_file_list(at("none"), NULL, &names, &count, &err), -ENOENT);
    assert_int_equal(symlink(at("a/x.json"), at("link")), 0);
    assert_int_equal(symlink(at("nowhere"), at("dangling")), 0);
    assert_true(pst_file_exists(at("link")) && !pst_file_exists(at("dangling")) && !pst_file_is_folder(at("link")));
    assert_int_equal(pst_file_remove(at("a/x.json"), &err), 0);
    assert_int_equal(pst_file_remove(at("a/x.json"), &err), 0);
    assert_true(pst_file_remove(at("a"), &err) < 0);
    assert_int_equal(pst_folder_remove(at("a"), &err), -ENOTEMPTY);
    assert_int_equal(pst_folder_remove(at("a/b/c"), &err), 0);
    assert_int_equal(pst_folder_remove(at("a/b/c"), &err), 0);
    uint64_t space = 0, same = 0;
    assert_int_equal(pst_file_free_space(root, &space, &err), 0);
    assert_int_equal(pst_file_free_space(at("not/there/yet"), &same, &err), 0);
    assert_true(space > 0 && same > 0);
    assert_int_equal(pst_file_free_space("", &space, &err), 0);
    assert_int_equal(pst_file_free_space("not-there-either", &space, &err), 0);
}

/* "Nothing there" is one answer, "cannot be told" another. */
static void test_find(void **unused)
{
    (void)unused;
    pst_error err = {0};
    assert_int_equal(pst_file_publish(at("f"), "x", 1, &err), 0);
    assert_int_equal(symlink(at("loop"), at("loop")), 0);
    assert_int_equal(symlink(at("nowhere"), at("dangling")), 0);
    assert_int_equal(pst_file_find(at("f"), &err), 1);
    assert_int_equal(pst_file_find(root, &err), 1);
    assert_int_equal(pst_file_find(at("none"), &err), 0);
    assert_int_equal(pst_file_find(at("f/below"), &err), 0);
    assert_int_equal(pst_file_find(at("dangling"), &err), 0);
    assert_int_equal(err.code, 0);
    assert_int_equal(pst_file_find(at("loop"), &err), -ELOOP);
    assert_string_equal(err.path, at("loop"));
    pst_fault_fail(PST_FAULT_STATX, 0, 1, EACCES);
    assert_int_equal(pst_file_find(at("f"), &err), -EACCES);
}

static void test_publish(void **unused)
{
    (void)unused;
    pst_error err;
    assert_int_equal(pst_file_publish(at("f"), "old", 3, &err), 0);
    assert_int_equal(pst_file_publish(at("f"), "newer", 5, &err), 0);
    expect_content(at("f"), "newer");
    assert_int_equal(leftovers(), 0);
    assert_true(pst_fault_count(PST_FAULT_FDATASYNC) == 2 && pst_fault_count(PST_FAULT_FSYNC) == 2);
    char *name = pst_file_temporary_name(at("f")), *other = pst_file_temporary_name(at("f"));
    assert_string_not_equal(name, other);
    assert_memory_equal(name, at("f"), strlen(at("f")));
    assert_int_equal(strlen(name), strlen(at("f")) + strlen(".tmp-") + 12);
    assert_int_equal(pst_file_publish(name, "via", 3, &err), 0);
    assert_int_equal(pst_file_publish_rename(name, at("f"), &err), 0);
    expect_content(at("f"), "via");
    assert_int_equal(pst_file_publish_rename(other, at("f"), &err), -ENOENT);
    assert_string_equal(err.path, at("f")); /* not the temporary one, of which no user knows */
    pst_fault_fail(PST_FAULT_FDATASYNC, 0, 1, EIO);
    assert_int_equal(pst_file_publish_rename(at("f"), at("g"), &err), -EIO);
    assert_string_equal(err.path, at("g"));
    pst_fault_reset();
    pst_heap_free(name);
    pst_heap_free(other);
    assert_int_equal(pst_folder_create(at("new"), &err), 0);
    pst_fault_fail(PST_FAULT_FSYNC, 0, 1, EIO);
    assert_int_equal(pst_folder_publish(at("new"), at("final"), &err), -EIO);
    assert_string_equal(err.path, at("final"));
    pst_fault_reset();
    assert_int_equal(pst_folder_publish(at("new"), at("final"), &err), 0);
    assert_int_equal(pst_folder_create(at("new"), &err), 0);
    assert_int_equal(pst_folder_publish(at("new"), at("final"), &err), -EEXIST);
    pst_fault_fail(PST_FAULT_RENAME, 0, 1, EINVAL); /* no RENAME_NOREPLACE here */
    assert_int_equal(pst_folder_publish(at("new"), at("final"), &err), -EEXIST);
    pst_fault_fail(PST_FAULT_RENAME, 0, 1, EINVAL);
    assert_int_equal(pst_folder_publish(at("new"), at("other"), &err), 0);
    assert_true(pst_file_is_folder(at("other")));
}

/* Every call of every kind that publishing makes fails once: an error, no temporary file, and the old content
 * or, when only the last sync failed, the new one. */
static void test_publish_faults(void **unused)
{
    (void)unused;
    static const pst_fault_kind kinds[] = {PST_FAULT_OPEN,  PST_FAULT_WRITE,  PST_FAULT_FDATASYNC,
                                           PST_FAULT_CLOSE, PST_FAULT_RENAME, PST_FAULT_FSYNC};
    pst_error err;
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        for (int64_t nth = 0;; nth++) {
            pst_fault_reset();
            assert_int_equal(pst_file_publish(at("f"), "old", 3, &err), 0);
            pst_fault_fail(kinds[k], nth, 1, EIO);
            int status = pst_file_publish(at("f"), "new", 3, &err);
            pst_fault_reset();
            assert_int_equal(leftovers(), 0);
            if (status >= 0) {
                expect_content(at("f"), "new");
                break;
            }
            assert_int_equal(status, -EIO);
            assert_true(err.path[0] != '\0' && err.message[0] != '\0');
            assert_null(strstr(err.path, ".tmp-"));
            bool renamed = kinds[k] == PST_FAULT_FSYNC || (kinds[k] == PST_FAULT_OPEN && nth == 1);
            expect_content(at("f"), renamed ? "new" : "old");
            assert_true(nth < 10);
        }
    }
    pst_fault_shorten(PST_FAULT_WRITE, 0, 100, 2);
    assert_int_equal(pst_file_publish(at("f"), "in pieces", 9, &err), 0);
    expect_content(at("f"), "in pieces");
    pst_fault_shorten(PST_FAULT_WRITE, 0, 100, 0); /* a drive that takes nothing, and says nothing */
    assert_int_equal(pst_file_publish(at("f"), "in pieces", 9, &err), -EIO);
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_GETRANDOM, 0, 1, ENOSYS);
    assert_int_equal(pst_file_publish(at("f"), "x", 1, &err), 0);
    assert_int_equal(leftovers(), 0);
}

typedef int operation(pst_error *err);

static int op_publish(pst_error *err)
{
    return pst_file_publish(at("f"), "text", 4, err);
}

static int op_read_all(pst_error *err)
{
    char *data;
    size_t bytes;
    int status = pst_file_read_all(at("f"), 100, &data, &bytes, err);
    if (status >= 0)
        pst_heap_free(data);
    return status;
}

static int op_list(pst_error *err)
{
    char **names;
    size_t count;
    int status = pst_file_list(root, NULL, &names, &count, err);
    if (status >= 0)
        pst_file_list_free(names, count);
    return status;
}

static int op_create(pst_error *err)
{
    return pst_folder_create(at("one/two/three"), err);
}

static int op_space(pst_error *err)
{
    uint64_t bytes;
    return pst_file_free_space(at("x/y"), &bytes, err);
}

static int op_size(pst_error *err)
{
    uint64_t bytes;
    return pst_file_size(at("f"), &bytes, err);
}

/* Every allocation fails in turn, then every system call of every kind: an error that says where, and nothing
 * leaks. */
static void test_everything_fails(void **unused)
{
    (void)unused;
    static operation *const operations[] = {op_publish, op_read_all, op_list, op_create, op_space, op_size};
    pst_error err;
    for (size_t o = 0; o < sizeof operations / sizeof operations[0]; o++) {
        int status = -1;
        for (int64_t nth = 0; status < 0; nth++) {
            int64_t before = pst_heap_live_count();
            pst_heap_fail_after(nth, 0);
            status = operations[o](&err);
            pst_heap_fail_after(-1, 0);
            assert_true(status >= 0 || status == -ENOMEM);
            assert_int_equal(pst_heap_live_count(), before);
            assert_true(nth < 100);
        }
        for (int kind = 0; kind < PST_FAULT_KINDS; kind++) {
            int64_t calls;
            for (int64_t nth = 0;; nth++) {
                int64_t before = pst_heap_live_count();
                memset(&err, 0, sizeof err);
                pst_fault_reset();
                pst_fault_fail((pst_fault_kind)kind, nth, 1, EACCES);
                status = operations[o](&err);
                calls = pst_fault_count((pst_fault_kind)kind);
                pst_fault_reset();
                assert_int_equal(pst_heap_live_count(), before);
                if (status < 0)
                    assert_true(err.code == status && err.path[0] != '\0' && err.message[0] != '\0');
                if (nth >= calls)
                    break;
            }
            assert_int_equal(status, 0);
        }
    }
    assert_int_equal(leftovers(), 0);
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_root, remove_root)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_read),    IN_FOLDER(test_folders),        IN_FOLDER(test_find),
        IN_FOLDER(test_publish), IN_FOLDER(test_publish_faults), IN_FOLDER(test_everything_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
