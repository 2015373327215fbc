/* SPDX-License-Identifier: Apache-2.0 */
/* The crash table itself: what it must lose, and what it must not. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/heap.h"
#include "fault/crash_test.h"
#include "os/sys_fault.h"

enum { SEEDS = 100, SECTOR = 512 };

static char *folder;
static unsigned descriptors;
static int64_t allocations;

static unsigned count_descriptors(void)
{
    unsigned count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static int set_up(void **unused)
{
    (void)unused;
    descriptors = count_descriptors();
    allocations = pst_heap_live_count();
    folder = crash_make_folder();
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_crash_forget();
    pst_sys_replace(NULL);
    crash_remove_tree(folder);
    free(folder);
    assert_int_equal(count_descriptors(), descriptors);
    assert_int_equal(pst_heap_live_count(), allocations);
    return 0;
}

/* ---- small words for what happens in the folder ---- */

static const char *at(const char *name)
{
    return test_path(folder, name);
}

static void watch(void)
{
    pst_error err = {0};
    pst_sys_replace(&pst_sys_crash);
    assert_ok(pst_crash_watch(folder, &err), &err);
}

static void recover(pst_crash_loss loss, uint64_t seed)
{
    pst_error err = {0};
    assert_ok(pst_crash_recover(loss, seed, &err), &err);
}

static int open_file(const char *name, int flags)
{
    int fd = pst_sys->open(at(name), flags, 0644);
    assert_true(fd >= 0);
    return fd;
}

static void write_at(int fd, const char *text, uint64_t offset)
{
    assert_int_equal(pst_sys->pwrite(fd, text, strlen(text), offset), (ssize_t)strlen(text));
}

/* Writes the text over the beginning of a file, which is made if it is not there; not synced unless `sync`. */
static void put(const char *name, const char *text, bool sync)
{
    int fd = open_file(name, O_RDWR | O_CREAT);
    write_at(fd, text, 0);
    if (sync)
        assert_int_equal(pst_sys->fdatasync(fd), 0);
    assert_int_equal(pst_sys->close(fd), 0);
}

static void sync_folder(const char *name)
{
    int fd = open_file(name, O_RDONLY | O_DIRECTORY);
    assert_int_equal(pst_sys->fsync(fd), 0);
    assert_int_equal(pst_sys->close(fd), 0);
}

static void move(const char *from, const char *to)
{
    assert_int_equal(pst_sys->rename(at(from), at(to)), 0);
}

/* Whether a file holds exactly this text; NULL: is not there. */
static bool is(const char *name, const char *text)
{
    char *found = crash_read_text(at(name));
    bool same = text == NULL || found == NULL ? text == found : strcmp(text, found) == 0;
    free(found);
    return same;
}

#define assert_is(name, text)                                                                                          \
    do {                                                                                                               \
        if (!is(name, text))                                                                                           \
            fail_msg("%s is not \"%s\"", name, (const char *)(text) != NULL ? (const char *)(text) : "(missing)");     \
    } while (0)

/* ---- data ---- */

static void test_unsynced_data(void **unused)
{
    (void)unused;
    test_write_file(at("a"), "old", 3);
    watch();
    put("a", "new", false);
    assert_is("a", "new"); /* the live file */
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("a", "old");
    recover(PST_CRASH_KEEP_ALL, 0);
    assert_is("a", "new");
    unsigned old = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        recover(PST_CRASH_MIXED, seed);
        old += is("a", "old");
        assert_true(is("a", "old") || is("a", "new"));
    }
    assert_in_range(old, SEEDS / 4, SEEDS * 3 / 4);
}

static void test_synced_data(void **unused)
{
    (void)unused;
    test_write_file(at("a"), "old", 3);
    watch();
    put("a", "newer", true);
    assert_int_equal(pst_crash_steps(), 2);
    assert_int_equal(pst_crash_syncs(), 1);
    for (uint64_t seed = 0; seed < 30; seed++) {
        recover(seed == 0 ? PST_CRASH_LOSE_ALL : seed == 1 ? PST_CRASH_KEEP_ALL : PST_CRASH_MIXED, seed);
        assert_is("a", "newer");
    }
}

/* Sector by sector: each is old or new, and many combinations come about. The same seed gives the same one. */
static void test_mixed_sectors(void **unused)
{
    (void)unused;
    enum { SECTORS = 300, BYTES = SECTORS * SECTOR };
    char *text = malloc(BYTES);
    memset(text, 'o', BYTES);
    test_write_file(at("a"), text, BYTES);
    watch();
    memset(text, 'n', BYTES);
    int fd = open_file("a", O_WRONLY);
    assert_int_equal(pst_sys->pwrite(fd, text, BYTES - 2 * SECTOR - 100, SECTOR + 100), BYTES - 2 * SECTOR - 100);
    assert_int_equal(pst_sys->close(fd), 0);
    unsigned torn = 0, partly = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        uint64_t bytes, again_bytes;
        recover(PST_CRASH_MIXED, seed);
        uint8_t *found = test_read_file(at("a"), &bytes);
        assert_int_equal(bytes, BYTES);
        unsigned fresh = 0;
        for (unsigned s = 0; s < SECTORS; s++) {
            const uint8_t *sector = found + s * SECTOR;
            for (unsigned i = 1; s != 1 && i < SECTOR; i++)
                assert_int_equal(sector[i], sector[0]);
            fresh += sector[SECTOR - 1] == 'n';
            if (s == 0 || s == SECTORS - 1)
                assert_int_equal(sector[SECTOR - 1], 'o'); /* never written */
            if (s == 1) {                                  /* written from byte 100 on */
                assert_int_equal(sector[99], 'o');
                partly += sector[100] == 'n';
            }
        }
        torn += fresh > 0 && fresh < SECTORS - 2;
        recover(PST_CRASH_MIXED, seed);
        uint8_t *again = test_read_file(at("a"), &again_bytes);
        assert_int_equal(again_bytes, bytes);
        assert_memory_equal(again, found, bytes);
        free(again);
        free(found);
    }
    assert_in_range(torn, SEEDS / 2, SEEDS * 3 / 4); /* the chances of 0 and 100 % do not tear */
    assert_in_range(partly, SEEDS / 4, SEEDS * 3 / 4);
    free(text);
}

/* A file that grew may be long and hold zeros, or short; what was synced is there. */
static void test_growing(void **unused)
{
    (void)unused;
    test_write_file(at("a"), "durable", 7);
    watch();
    int fd = open_file("a", O_WRONLY);
    write_at(fd, "end", 2000);
    assert_int_equal(pst_sys->close(fd), 0);
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("a", "durable");
    unsigned holes = 0, cut = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        uint64_t bytes;
        recover(PST_CRASH_MIXED, seed);
        uint8_t *found = test_read_file(at("a"), &bytes);
        assert_in_range(bytes, 7, 2003);
        assert_memory_equal(found, "durable", 7);
        cut += bytes < 2003;
        if (bytes == 2003) {
            holes += found[2000] == 0;
            assert_true(memcmp(found + 2000, "end", 3) == 0 || memcmp(found + 2000, "\0\0", 3) == 0);
        }
        free(found);
    }
    assert_true(holes > 10 && cut > 10);
}

static void test_truncation(void **unused)
{
    (void)unused;
    enum { BYTES = 200000 };
    char *text = malloc(BYTES + 1);
    memset(text, 'o', BYTES);
    text[BYTES] = '\0';
    test_write_file(at("a"), text, BYTES);
    test_write_file(at("b"), text, BYTES);
    test_write_file(at("c"), text, BYTES);
    test_write_file(at("d"), text, BYTES);
    watch();
    assert_int_equal(pst_sys->close(open_file("a", O_WRONLY | O_TRUNC)), 0);
    int fd = open_file("b", O_RDWR);
    assert_int_equal(pst_sys->ftruncate(fd, 3), 0);
    assert_int_equal(pst_sys->fdatasync(fd), 0);
    assert_int_equal(pst_sys->ftruncate(fd, 10), 0); /* zeros, not what was there */
    assert_int_equal(pst_sys->close(fd), 0);
    fd = open_file("c", O_RDWR);
    assert_int_equal(pst_sys->ftruncate(fd, 100), 0);
    assert_int_equal(pst_sys->ftruncate(fd, BYTES), 0);
    assert_int_equal(pst_sys->fsync(fd), 0);
    assert_int_equal(pst_sys->close(fd), 0);
    put("d", "N", false);
    fd = open_file("d", O_RDWR);
    assert_int_equal(pst_sys->fallocate(fd, 0, 0, BYTES + 10), 0);
    assert_int_equal(pst_sys->close(fd), 0);
    uint64_t bytes;
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("a", text);
    assert_is("b", "ooo");
    assert_is("d", text);
    recover(PST_CRASH_KEEP_ALL, 0);
    assert_is("a", "");
    uint8_t *found = test_read_file(at("b"), &bytes);
    assert_int_equal(bytes, 10);
    assert_memory_equal(found, "ooo\0\0\0\0\0\0\0", 10);
    free(found);
    found = test_read_file(at("d"), &bytes);
    assert_int_equal(bytes, BYTES + 10);
    assert_true(found[0] == 'N' && found[1] == 'o' && found[BYTES - 1] == 'o' && found[BYTES + 5] == 0);
    free(found);
    for (uint64_t seed = 0; seed < 30; seed++) { /* c was synced */
        recover(PST_CRASH_MIXED, seed);
        found = test_read_file(at("c"), &bytes);
        assert_int_equal(bytes, BYTES);
        assert_true(found[99] == 'o' && found[100] == 0 && found[511] == 0 && found[BYTES - 1] == 0);
        free(found);
    }
    free(text);
}

static void test_holes(void **unused)
{
    (void)unused;
    char text[4 * SECTOR + 1];
    memset(text, 'o', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    test_write_file(at("a"), text, sizeof text - 1);
    watch();
    int fd = open_file("a", O_RDWR), status = -EOPNOTSUPP;
    status = pst_sys->fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, SECTOR, SECTOR);
    assert_int_equal(pst_sys->close(fd), 0);
    if (status == -EOPNOTSUPP)
        return; /* a file system without holes has nothing to lose */
    assert_int_equal(status, 0);
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("a", text);
    recover(PST_CRASH_KEEP_ALL, 0);
    text[SECTOR] = '\0';
    assert_is("a", text);
}

/* ---- names ---- */

/* A new file is there only when both the folder was synced, and as long as its own sync said. */
static void test_creation(void **unused)
{
    (void)unused;
    watch();
    put("lost", "x", true);
    put("empty", "x", false);
    sync_folder(".");
    put("later", "whole", true);
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("lost", "x"); /* the folder was synced after all */
    assert_is("empty", "");
    assert_is("later", NULL);
    unsigned there = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        recover(PST_CRASH_MIXED, seed);
        assert_is("lost", "x");
        there += is("later", "whole");
        assert_true(is("later", "whole") || is("later", NULL));
    }
    assert_in_range(there, SEEDS / 4, SEEDS * 3 / 4);
}

static void test_rename(void **unused)
{
    (void)unused;
    test_write_file(at("path"), "old", 3);
    watch();
    put("tmp", "new", true);
    move("tmp", "path");
    assert_is("path", "new");
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("path", "old");
    assert_is("tmp", NULL);
    recover(PST_CRASH_KEEP_ALL, 0);
    assert_is("path", "new");
    assert_is("tmp", NULL);
    unsigned old = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        recover(PST_CRASH_MIXED, seed);
        old += is("path", "old");
        assert_true(is("path", "old") || is("path", "new")); /* never neither */
    }
    assert_in_range(old, SEEDS / 4, SEEDS * 3 / 4);
}

/* A file that is renamed twice has one name, whichever of the changes survive. */
static void test_renamed_twice(void **unused)
{
    (void)unused;
    test_write_file(at("a"), "text", 4);
    watch();
    move("a", "b");
    move("b", "c");
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        recover(PST_CRASH_MIXED, seed);
        assert_int_equal(is("a", "text") + is("b", "text") + is("c", "text"), 1);
    }
}

static void test_rename_synced(void **unused)
{
    (void)unused;
    test_write_file(at("path"), "old", 3);
    watch();
    put("tmp", "new", true);
    move("tmp", "path");
    sync_folder(".");
    for (uint64_t seed = 0; seed < 30; seed++) {
        recover(seed == 0 ? PST_CRASH_LOSE_ALL : PST_CRASH_MIXED, seed);
        assert_is("path", "new");
        assert_is("tmp", NULL);
    }
}

/* The classical mistake: the name is durable, the data is not. */
static void test_rename_without_data(void **unused)
{
    (void)unused;
    test_write_file(at("path"), "old", 3);
    watch();
    put("tmp", "new", false);
    move("tmp", "path");
    sync_folder(".");
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("path", "");
    recover(PST_CRASH_KEEP_ALL, 0);
    assert_is("path", "new");
}

static void test_removal(void **unused)
{
    (void)unused;
    test_write_file(at("a"), "a", 1);
    test_write_file(at("b"), "b", 1);
    test_write_file(at("c"), "c", 1);
    watch();
    assert_int_equal(pst_sys->unlink(at("b")), 0);
    sync_folder(".");
    assert_int_equal(pst_sys->unlink(at("a")), 0);
    put("a", "another", true); /* very likely the inode number of the file before, were it not kept */
    int fd = open_file("c", O_RDWR);
    assert_int_equal(pst_sys->unlink(at("c")), 0);
    write_at(fd, "C", 0); /* still open: it may come back with this */
    assert_int_equal(pst_sys->fdatasync(fd), 0);
    write_at(fd, "X", 0);
    assert_int_equal(pst_sys->close(fd), 0);
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("a", "a");
    assert_is("b", NULL);
    assert_is("c", "C");
    recover(PST_CRASH_KEEP_ALL, 0);
    assert_is("a", "another");
    assert_is("c", NULL);
    unsigned came_back = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        recover(PST_CRASH_MIXED, seed);
        assert_is("b", NULL);
        assert_true(is("a", "a") || is("a", NULL) || is("a", "another"));
        assert_true(is("c", "C") || is("c", "X") || is("c", NULL));
        came_back += is("c", "X");
    }
    assert_true(came_back > 0);
}

static void test_folders(void **unused)
{
    (void)unused;
    assert_int_equal(mkdir(at("gone"), 0755), 0);
    watch();
    assert_int_equal(pst_sys->mkdir(at("kept"), 0755), 0);
    put("kept/file", "text", true);
    sync_folder("kept");
    sync_folder(".");
    assert_int_equal(pst_sys->mkdir(at("lost"), 0755), 0);
    put("lost/file", "text", true);
    sync_folder("lost"); /* its own name is not durable */
    put("kept/second", "text", true);
    assert_int_equal(pst_sys->rmdir(at("gone")), 0);
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("kept/file", "text");
    assert_is("kept/second", NULL);
    assert_int_equal(access(at("lost"), F_OK), -1);
    assert_int_equal(access(at("gone"), F_OK), 0);
    recover(PST_CRASH_KEEP_ALL, 0);
    assert_is("kept/second", "text");
    assert_is("lost/file", "text");
    assert_int_equal(access(at("gone"), F_OK), -1);
}

static void test_folder_rename(void **unused)
{
    (void)unused;
    watch();
    assert_int_equal(pst_sys->mkdir(at("tmp"), 0755), 0);
    put("tmp/file", "text", true);
    sync_folder("tmp");
    sync_folder(".");
    assert_int_equal(pst_sys->rename_new(at("tmp"), at("final")), 0);
    put("final/file", "more", true); /* known under the new path */
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        recover(PST_CRASH_MIXED, seed);
        assert_true(is("tmp/file", "more") != is("final/file", "more"));
    }
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("tmp/file", "more");
    recover(PST_CRASH_KEEP_ALL, 0);
    assert_is("final/file", "more");
}

/* Between folders: the old name may come back, but nothing that was durable is lost, whichever folder is synced. */
static void try_move_between(int synced)
{
    crash_remove_tree(folder);
    assert_int_equal(mkdir(folder, 0755), 0);
    assert_int_equal(mkdir(at("from"), 0755), 0);
    assert_int_equal(mkdir(at("to"), 0755), 0);
    assert_int_equal(mkdir(at("from/sub"), 0755), 0);
    test_write_file(at("from/a"), "text", 4);
    test_write_file(at("from/sub/b"), "text", 4);
    watch();
    move("from/a", "to/a");
    move("from/sub", "to/sub");
    if (synced > 0)
        sync_folder(synced == 1 ? "from" : "to");
    unsigned moved = 0, twice = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        recover(seed == 0 ? PST_CRASH_LOSE_ALL : seed == 1 ? PST_CRASH_KEEP_ALL : PST_CRASH_MIXED, seed);
        bool old_a = is("from/a", "text"), new_a = is("to/a", "text");
        assert_true(old_a || new_a);
        assert_true(is("from/sub/b", "text") != is("to/sub/b", "text"));
        if (synced > 0) {
            assert_true(new_a);
            assert_is("to/sub/b", "text");
        }
        moved += new_a && !old_a;
        twice += new_a && old_a;
    }
    if (synced == 1)
        assert_int_equal(moved, SEEDS);
    else
        assert_true(moved > 0 && twice > 0);
    pst_crash_forget();
}

static void test_move_between(void **unused)
{
    (void)unused;
    for (int synced = 0; synced < 3; synced++)
        try_move_between(synced);
}

/* ---- steps ---- */

/* Every call fails from the step on, and nothing that happens later is durable or survives in any other way. */
static void test_darkness(void **unused)
{
    (void)unused;
    char text[8];
    DIR *entries;
    struct dirent *entry;
    struct statx info;
    struct statvfs space;
    test_write_file(at("a"), "old", 3);
    assert_int_equal(mkdir(at("sub"), 0755), 0);
    watch();
    int fd = open_file("a", O_RDWR), root = open_file(".", O_RDONLY | O_DIRECTORY);
    assert_int_equal(pst_sys->opendir(folder, &entries), 0);
    pst_crash_at(1);
    write_at(fd, "new", 0);
    assert_false(pst_crash_happened());
    assert_int_equal(pst_sys->fdatasync(fd), -EIO);
    assert_true(pst_crash_happened());
    assert_int_equal(pst_sys->fdatasync(fd), -EIO);
    assert_int_equal(pst_sys->fsync(root), -EIO);
    assert_int_equal(pst_sys->pwrite(fd, "later", 5, 0), -EIO);
    assert_int_equal(pst_sys->async_result(fd, true, "later", 5, 0, 5), -EIO);
    assert_int_equal(pst_sys->async_result(fd, false, text, 5, 0, 5), -EIO);
    assert_int_equal(pst_sys->pread(fd, text, 3, 0), -EIO);
    assert_int_equal(pst_sys->ftruncate(fd, 0), -EIO);
    assert_int_equal(pst_sys->fallocate(fd, 0, 0, 100), -EIO);
    assert_int_equal(pst_sys->open(at("a"), O_RDONLY, 0), -EIO);
    assert_int_equal(pst_sys->open(at("sub/new"), O_RDWR | O_CREAT, 0600), -EIO);
    assert_int_equal(pst_sys->open(at("none/new"), O_RDWR | O_CREAT, 0600), -EIO);
    assert_int_equal(pst_sys->rename(at("a"), at("b")), -EIO);
    assert_int_equal(pst_sys->rename_new(at("a"), at("b")), -EIO);
    assert_int_equal(pst_sys->unlink(at("a")), -EIO);
    assert_int_equal(pst_sys->mkdir(at("c"), 0755), -EIO);
    assert_int_equal(pst_sys->rmdir(at("sub")), -EIO);
    assert_int_equal(pst_sys->readdir(entries, &entry), -EIO);
    assert_int_equal(pst_sys->opendir(at("sub"), &(DIR *){NULL}), -EIO);
    assert_int_equal(pst_sys->statx(AT_FDCWD, at("a"), 0, STATX_SIZE, &info), -EIO);
    assert_int_equal(pst_sys->statx(fd, "", AT_EMPTY_PATH, STATX_SIZE, &info), -EIO);
    assert_int_equal(pst_sys->statvfs(at("a"), &space), -EIO);
    assert_int_equal(pst_sys->closedir(entries), 0);
    assert_int_equal(pst_sys->close(fd), -EIO); /* and is closed */
    assert_int_equal(pst_sys->close(root), -EIO);
    /* What is elsewhere goes on. */
    fd = pst_sys->open("/dev/null", O_WRONLY, 0);
    assert_true(fd >= 0);
    assert_int_equal(pst_sys->pwrite(fd, "x", 1, 0), 1);
    assert_int_equal(pst_sys->close(fd), 0);
    /* What a ring carries out after the failure reaches the live file, and nothing else. */
    test_write_file(at("a"), "after", 5);
    recover(PST_CRASH_KEEP_ALL, 0);
    assert_is("a", "new");
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("a", "old");
    put("a", "OLD", false); /* the table works again, on what was recovered */
    assert_is("a", "OLD");
}

/* A write that is struck may leave any of its sectors; anything else that is struck leaves nothing. */
static void test_struck(void **unused)
{
    (void)unused;
    char text[4 * SECTOR + 1] = {0};
    memset(text, 'o', 4 * SECTOR);
    test_write_file(at("a"), text, 4 * SECTOR);
    watch();
    pst_crash_at(0);
    int fd = open_file("a", O_RDWR);
    memset(text, 'n', 4 * SECTOR);
    assert_int_equal(pst_sys->pwrite(fd, text, 4 * SECTOR, 0), -EIO);
    assert_true(pst_crash_happened());
    assert_int_equal(pst_sys->close(fd), -EIO);
    unsigned torn = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        recover(PST_CRASH_MIXED, seed);
        char *found = crash_read_text(at("a"));
        torn += strchr(found, 'o') != NULL && strchr(found, 'n') != NULL;
        free(found);
    }
    assert_true(torn > SEEDS / 4);
    pst_crash_forget();
    crash_remove_tree(at("a"));
    test_write_file(at("a"), "old", 3);
    for (int64_t step = 0; step < 6; step++) {
        watch();
        pst_crash_at(step);
        fd = pst_sys->open(at("b"), O_RDWR | O_CREAT | O_EXCL, 0600); /* step 0 */
        assert_int_equal(fd < 0, step == 0);
        if (fd >= 0)
            pst_sys->close(fd);
        assert_int_equal(pst_sys->mkdir(at("c"), 0755) < 0, step <= 1);
        assert_int_equal(pst_sys->rename(at("a"), at("d")) < 0, step <= 2);
        assert_int_equal(pst_sys->unlink(at("d")) < 0, step <= 3);
        assert_int_equal(pst_sys->rmdir(at("c")) < 0, step <= 4);
        assert_int_equal(pst_crash_happened(), step <= 4);
        assert_int_equal(pst_crash_steps(), step <= 4 ? step + 1 : 5);
        recover(PST_CRASH_KEEP_ALL, 0);
        assert_int_equal(access(at("b"), F_OK) == 0, step > 0);
        assert_int_equal(access(at("c"), F_OK) == 0, step > 1 && step < 5);
        assert_is("a", step > 2 ? NULL : "old");
        assert_is("d", step == 3 ? "old" : NULL);
        recover(PST_CRASH_LOSE_ALL, 0);
        assert_is("a", "old");
        assert_is("b", NULL);
        pst_crash_forget();
    }
}

/* Calls that fail by themselves, and calls elsewhere, change nothing. */
static void test_refused_calls(void **unused)
{
    (void)unused;
    test_write_file(at("a"), "old", 3);
    watch();
    assert_int_equal(pst_sys->open(at("a"), O_RDWR | O_CREAT | O_EXCL | O_TRUNC, 0600), -EEXIST);
    assert_int_equal(pst_sys->unlink(at("none")), -ENOENT);
    assert_int_equal(pst_sys->rename(at("none"), at("a")), -ENOENT);
    assert_int_equal(pst_sys->mkdir(at("a"), 0755), -EEXIST);
    assert_int_equal(pst_sys->rename(at("a"), "/nowhere/at/all"), -EXDEV);
    char *elsewhere = crash_make_folder();
    int64_t before = pst_crash_steps();
    int fd = pst_sys->open(test_path(elsewhere, "x"), O_RDWR | O_CREAT, 0600);
    assert_int_equal(pst_sys->pwrite(fd, "x", 1, 0), 1);
    assert_int_equal(pst_sys->fdatasync(fd), 0);
    assert_int_equal(pst_sys->close(fd), 0);
    assert_int_equal(pst_crash_steps(), before);
    crash_remove_tree(elsewhere);
    free(elsewhere);
    for (uint64_t seed = 0; seed < 10; seed++) {
        recover(PST_CRASH_MIXED, seed);
        assert_is("a", "old");
    }
    pst_error err = {0};
    assert_int_equal(pst_crash_watch(folder, &err), PST_E_USAGE);
    pst_crash_forget();
    assert_int_equal(pst_crash_recover(PST_CRASH_KEEP_ALL, 0, &err), PST_E_USAGE);
    assert_int_equal(pst_crash_watch(at("none"), &err), -ENOENT);
    assert_int_equal(pst_crash_watch(at("a"), &err), -ENOTDIR);
    assert_int_equal(mkfifo(at("pipe"), 0600), 0);
    assert_int_equal(pst_crash_watch(folder, &err), PST_E_UNSUPPORTED);
}

/* The same file by other ways: a relative path, a link to the folder, a duplicated descriptor, hard and soft links. */
static void test_other_ways(void **unused)
{
    (void)unused;
    char *outside = crash_make_folder(), here[4096];
    test_write_file(at("a"), "old", 3);
    assert_int_equal(link(at("a"), at("hard")), 0);
    assert_int_equal(symlink("a", at("soft")), 0);
    assert_int_equal(symlink(folder, test_path(outside, "way")), 0);
    assert_non_null(getcwd(here, sizeof here));
    watch();
    assert_int_equal(chdir(outside), 0);
    int fd = pst_sys->open("way/a", O_RDWR, 0), again = pst_sys->dup(fd);
    assert_true(fd >= 0 && again >= 0);
    assert_int_equal(pst_sys->close(fd), 0);
    write_at(again, "new", 0);
    assert_int_equal(pst_sys->close(again), 0);
    fd = pst_sys->open("way/./b", O_RDWR | O_CREAT, 0600);
    assert_int_equal(pst_sys->close(fd), 0);
    assert_int_equal(chdir(here), 0);
    assert_int_equal(pst_crash_steps(), 2);
    recover(PST_CRASH_LOSE_ALL, 0);
    assert_is("a", "old");
    assert_is("hard", "old");
    assert_is("soft", "old");
    assert_is("b", NULL);
    recover(PST_CRASH_KEEP_ALL, 0);
    assert_is("hard", "new");
    assert_is("soft", "new");
    assert_is("b", "");
    struct stat info;
    assert_int_equal(stat(at("hard"), &info), 0);
    assert_int_equal(info.st_nlink, 2);
    crash_remove_tree(outside);
    free(outside);
}

/* No entry of a table was forgotten: one that is missing would be a jump to nowhere. */
static void test_whole_tables(void **unused)
{
    (void)unused;
    typedef void (*entry)(void);
    static const pst_sys_table *const tables[] = {&pst_sys_real, &pst_sys_fault, &pst_sys_crash};
    for (size_t t = 0; t < sizeof tables / sizeof tables[0]; t++) {
        entry entries[sizeof *tables[t] / sizeof(entry)];
        memcpy(entries, tables[t], sizeof entries);
        for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++)
            assert_true(entries[i] != NULL);
    }
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_unsynced_data),
        IN_FOLDER(test_synced_data),
        IN_FOLDER(test_mixed_sectors),
        IN_FOLDER(test_growing),
        IN_FOLDER(test_truncation),
        IN_FOLDER(test_holes),
        IN_FOLDER(test_creation),
        IN_FOLDER(test_rename),
        IN_FOLDER(test_renamed_twice),
        IN_FOLDER(test_rename_synced),
        IN_FOLDER(test_rename_without_data),
        IN_FOLDER(test_removal),
        IN_FOLDER(test_folders),
        IN_FOLDER(test_folder_rename),
        IN_FOLDER(test_move_between),
        IN_FOLDER(test_darkness),
        IN_FOLDER(test_struck),
        IN_FOLDER(test_refused_calls),
        IN_FOLDER(test_other_ways),
        IN_FOLDER(test_whole_tables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
