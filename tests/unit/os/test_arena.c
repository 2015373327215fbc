/* SPDX-License-Identifier: Apache-2.0 */
/* Arenas with and without what they wish for, and the NUMA node of a drive from a made-up /sys. */
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

#include "os/arena.h"
#include "os/file.h"
#include "os/sys_fault.h"

static void put(const char *root, const char *folder, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, folder);
    assert_int_equal(pst_folder_create(path, NULL), 0);
    snprintf(path, sizeof path, "%s/%s/%s", root, folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *at)
{
    (void)info, (void)type, (void)at;
    return remove(path);
}

static void remove_tree(const char *root)
{
    assert_int_equal(nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
}

static void a_drive_has_its_controllers_node(void **state)
{
    (void)state;
    char root[] = "/tmp/penstock-arena-XXXXXX", above[64];
    assert_non_null(mkdtemp(root));
    put(root, "sys/devices/system/node", "online", "0-1\n");
    put(root, "sys/dev/block/259:0/device", "numa_node", "1\n");        /* a SCSI disk */
    put(root, "sys/dev/block/259:1", "partition", "1\n");               /* a partition: its disk is one above */
    put(root, "sys/dev/block/259:2/device/device", "numa_node", "0\n"); /* an NVMe namespace */
    put(root, "sys/dev/block/259:3/device", "numa_node", "-1\n");       /* the firmware does not say */
    put(root, "sys/dev/block/device", "numa_node", "1\n");              /* what 259:1/../device is here */
    assert_int_equal(pst_numa_node_of_device(root, 259, 0), 1);
    assert_int_equal(pst_numa_node_of_device(root, 259, 1), 1);
    assert_int_equal(pst_numa_node_of_device(root, 259, 2), 1); /* the disk above comes first */
    snprintf(above, sizeof above, "%s/sys/dev/block/device/numa_node", root);
    assert_int_equal(unlink(above), 0);
    assert_int_equal(pst_numa_node_of_device(root, 259, 2), 0);
    assert_int_equal(pst_numa_node_of_device(root, 259, 3), -1);
    assert_int_equal(pst_numa_node_of_device(root, 8, 0), -1);
    put(root, "sys/devices/system/node", "online", "0\n"); /* one node: there is nothing to choose */
    assert_int_equal(pst_numa_node_of_device(root, 259, 0), -1);
    remove_tree(root);
}

static void memory_is_aligned_zero_and_locked_if_it_may(void **state)
{
    (void)state;
    pst_arena_wish wish = {.huge = true, .lock = true, .node = -1};
    pst_arena arena;
    assert_int_equal(pst_arena_map((2 << 20) + 1, &wish, &arena, NULL), 0);
    assert_int_equal(arena.bytes, 4 << 20);
    assert_int_equal((uintptr_t)arena.memory % (2 << 20), 0);
    assert_int_equal(arena.locked, arena.lock_status >= 0);
    for (uint64_t i = 0; i < arena.bytes; i += 4096)
        assert_int_equal(arena.memory[i], 0);
    pst_arena_unmap(&arena);
    assert_null(arena.memory);
    assert_int_equal(pst_arena_map(UINT64_MAX, &wish, &arena, NULL), -ENOMEM);
}

static void a_node_that_is_not_there_does_no_harm(void **state)
{
    (void)state;
    pst_arena_wish wish = {.node = 1000};
    pst_arena arena;
    assert_int_equal(pst_arena_map(1, &wish, &arena, NULL), 0);
    memset(arena.memory, 1, arena.bytes);
    pst_arena_unmap(&arena);
}

static void a_refused_lock_is_told(void **state)
{
    (void)state;
    pst_fault_reset();
    pst_sys_replace(&pst_sys_fault);
    pst_fault_fail(PST_FAULT_MLOCK, 0, 1, EPERM);
    pst_arena_wish wish = {.lock = true, .node = -1};
    pst_arena arena;
    assert_int_equal(pst_arena_map(1, &wish, &arena, NULL), 0);
    assert_false(arena.locked);
    assert_int_equal(arena.lock_status, -EPERM);
    pst_arena_unmap(&arena);
    pst_sys_replace(NULL);
    pst_fault_reset();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_drive_has_its_controllers_node),
        cmocka_unit_test(memory_is_aligned_zero_and_locked_if_it_may),
        cmocka_unit_test(a_node_that_is_not_there_does_no_harm),
        cmocka_unit_test(a_refused_lock_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
