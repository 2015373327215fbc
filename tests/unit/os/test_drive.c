/* SPDX-License-Identifier: Apache-2.0 */
/* Drive ids from fixture trees of /proc and /sys, and of this machine's own paths. */
#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/heap.h"
#include "os/drive.h"
#include "os/sys_fault.h"

static char root[2048];

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *ftw)
{
    (void)info, (void)type, (void)ftw;
    return remove(path);
}

static int make_root(void **unused)
{
    (void)unused;
    const char *parent = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/pst-drive-XXXXXX", parent != NULL && parent[0] != '\0' ? parent : "/tmp");
    return mkdtemp(root) == NULL;
}

static int remove_root(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    return nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* The folders above <root>/<path>. */
static void make_folders(const char *path, char full[4096])
{
    int length = snprintf(full, 4096, "%s/%s", root, path);
    for (char *slash = full + strlen(root) + 1; slash < full + length && (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        assert_true(mkdir(full, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
}

static void put(const char *path, const char *text)
{
    char full[4096];
    make_folders(path, full);
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void put_link(const char *path, const char *target)
{
    char full[4096];
    make_folders(path, full);
    assert_int_equal(symlink(target, full), 0);
}

/* A block device at sys/devices/<path> with its number. */
static void put_device(const char *path, const char *number, const char *name)
{
    char at[1024], text[1024];
    snprintf(at, sizeof at, "sys/devices/%s/uevent", path);
    snprintf(text, sizeof text, "MAJOR=1\nMINOR=2\nDEVNAME=%s\nDEVTYPE=disk\n", name);
    put(at, text);
    snprintf(at, sizeof at, "sys/devices/%s/dev", path);
    snprintf(text, sizeof text, "%s\n", number);
    put(at, text);
    snprintf(at, sizeof at, "sys/dev/block/%s", number);
    snprintf(text, sizeof text, "../../devices/%s", path);
    put_link(at, text);
    snprintf(at, sizeof at, "sys/class/block/%s", strrchr(path, '/') + 1);
    put_link(at, text);
}

static void put_text(const char *device, const char *name, const char *text)
{
    char at[1024];
    snprintf(at, sizeof at, "sys/devices/%s/%s", device, name);
    put(at, text);
}

#define NVME0 "pci0000:00/0000:00:01.0/nvme/nvme0/nvme0n1"
#define NVME1 "pci0000:00/0000:00:02.0/nvme/nvme1/nvme1n1"

static void put_nvmes(void)
{
    put_device(NVME0, "259:0", "nvme0n1");
    put_text(NVME0, "device/model", "Samsung SSD 990 PRO 2TB                 \n");
    put_text(NVME0, "device/serial", "S7DNNJ0W123456      \n");
    put_text(NVME0, "wwid", "eui.0025384131b0c1d2\n");
    put_device(NVME0 "/nvme0n1p2", "259:2", "nvme0n1p2");
    put_text(NVME0 "/nvme0n1p2", "partition", "2\n");
    put_device(NVME1, "259:3", "nvme1n1");
    put_text(NVME1, "device/model", "Samsung SSD 990 PRO 2TB                 \n");
    put_text(NVME1, "device/serial", "S7DNNJ0W654321      \n");
}

#define ID0 "nvme:Samsung SSD 990 PRO 2TB:S7DNNJ0W123456"
#define ID1 "nvme:Samsung SSD 990 PRO 2TB:S7DNNJ0W654321"

static void expect_at(const pst_drive_place *place, const char *wanted)
{
    char id[PST_DRIVE_ID_BYTES];
    pst_error err = {0};
    int status = pst_drive_identify_at(root, place, "somewhere", id, &err);
    if (status != 0)
        fail_msg("%u:%u: %d %s", place->major, place->minor, status, err.message);
    assert_string_equal(id, wanted);
}

static void expect(uint32_t major, uint32_t minor, const char *wanted)
{
    expect_at(&(pst_drive_place){.major = major, .minor = minor}, wanted);
}

static void test_nvme(void **unused)
{
    (void)unused;
    put_nvmes();
    expect(259, 0, ID0);
    expect(259, 2, ID0); /* a partition is its drive */
    expect(259, 3, ID1);
}

static void test_other_disks(void **unused)
{
    (void)unused;
    put_device("pci0000:00/ata1/host0/block/sda", "8:0", "sda");
    put_text("pci0000:00/ata1/host0/block/sda", "device/wwid", "naa.5002538e40000000\n");
    put_text("pci0000:00/ata1/host0/block/sda", "size", "1000215216\n");
    put_device("pci0000:00/ata1/host0/block/sda/sda1", "8:1", "sda1");
    put_text("pci0000:00/ata1/host0/block/sda/sda1", "partition", "1\n");
    expect(8, 1, "disk:naa.5002538e40000000");
    put_device("pci0000:00/virtio1/block/vda", "254:0", "vda");
    put_text("pci0000:00/virtio1/block/vda", "serial", "volume-7\n");
    put_text("pci0000:00/virtio1/block/vda", "size", "2048\n");
    expect(254, 0, "disk:volume-7:1048576");
    put_text("pci0000:00/virtio1/block/vda", "serial", ""); /* says nothing of itself */
    expect(254, 0, "disk:vda:1048576");
    put_device("virtual/block/loop7", "7:7", "loop7");
    put_text("virtual/block/loop7", "loop/backing_file", "/srv/images/a b.img\n");
    expect(7, 7, "loop:/srv/images/a b.img");
}

static void test_volumes(void **unused)
{
    (void)unused;
    put_nvmes();
    /* A logical volume in a LUKS container on a partition. */
    put_device("virtual/block/dm-1", "253:1", "dm-1");
    put_link("sys/devices/virtual/block/dm-1/slaves/nvme0n1p2", "../../../../" NVME0 "/nvme0n1p2");
    put_text("virtual/block/dm-1", "dm/name", "luks-1234\n");
    put_device("virtual/block/dm-2", "253:2", "dm-2");
    put_link("sys/devices/virtual/block/dm-2/slaves/dm-1", "../../dm-1");
    put_text("virtual/block/dm-2", "dm/name", "vg-data\n");
    expect(253, 2, ID0);
    /* An array of two drives, and a partition of it. */
    put_device("virtual/block/md0", "9:0", "md0");
    put_text("virtual/block/md0", "md/level", "raid0\n");
    put_link("sys/devices/virtual/block/md0/slaves/nvme1n1", "../../../../" NVME1);
    put_link("sys/devices/virtual/block/md0/slaves/nvme0n1", "../../../../" NVME0);
    put_device("virtual/block/md0/md0p1", "259:9", "md0p1");
    put_text("virtual/block/md0/md0p1", "partition", "1\n");
    expect(9, 0, "md:" ID0 " + " ID1);
    expect(259, 9, "md:" ID0 " + " ID1);
    /* A volume that spans both. */
    put_device("virtual/block/dm-3", "253:3", "dm-3");
    put_link("sys/devices/virtual/block/dm-3/slaves/nvme1n1", "../../../../" NVME1);
    put_link("sys/devices/virtual/block/dm-3/slaves/dm-2", "../../dm-2");
    expect(253, 3, "dm:" ID0 " + " ID1);
    /* A loop of volumes does not go on for ever. */
    put_device("virtual/block/dm-4", "253:4", "dm-4");
    put_link("sys/devices/virtual/block/dm-4/slaves/dm-4", "../../dm-4");
    put("proc/self/mountinfo", "40 1 253:4 / /x rw - ext4 /dev/mapper/loopy rw\n");
    expect(253, 4, "fs:ext4:/dev/mapper/loopy");
}

#define MOUNTS                                                                                                         \
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n"                                                                  \
    "27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard\n"                                        \
    "25 24 0:23 / /dev/shm rw,nosuid - tmpfs tmpfs rw,size=24684092k\n"                                                \
    "60 27 0:50 / /mnt/share rw - nfs4 server:/export/my\\040data rw,vers=4.2\n"                                       \
    "61 27 0:51 /@home /home rw - btrfs /dev/nvme0n1p2 rw,subvol=/@home\n"                                             \
    "62 27 0:52 / /data rw - btrfs /dev/mapper/vg-data rw\n"                                                           \
    "63 27 0:53 / / rw - overlay overlay rw,lowerdir=/a:/b\n"                                                          \
    "64 27 0:54 / /odd rw - fuse.x  rw\n"                                                                              \
    "65 27 0:55 / /gone rw - btrfs /dev/sdz1 rw\n"                                                                     \
    "66 27 0:56 / /evil rw - fuse.\\033[31m /dev/../../etc rw\n"

static void test_mounts(void **unused)
{
    (void)unused;
    put_nvmes();
    put("proc/self/mountinfo", MOUNTS);
    put_device("virtual/block/dm-1", "253:1", "dm-1");
    put_link("sys/devices/virtual/block/dm-1/slaves/nvme1n1", "../../../../" NVME1);
    put_text("virtual/block/dm-1", "dm/name", "vg-data\n");
    expect(0, 23, "fs:tmpfs:tmpfs");
    expect(0, 50, "fs:nfs4:server:/export/my data");
    expect(0, 51, ID0); /* a file system with a number of its own on a block device */
    expect(0, 52, ID1);
    expect(0, 53, "fs:overlay:overlay");
    expect(0, 55, "fs:btrfs:/dev/sdz1");
    expect(0, 56, "fs:fuse.\\033[31m:/dev/../../etc"); /* nothing that commands a terminal, and no way out of /sys */
    expect(254, 0, "fs:ext4:/dev/vda");                /* a container that does not see the device */
    /* btrfs gives each subvolume a number that mountinfo does not know: then the mount's own number tells. */
    expect_at(&(pst_drive_place){.major = 0, .minor = 99, .mount_id = 61}, ID0);
    expect_at(&(pst_drive_place){.major = 0, .minor = 50, .mount_id = 9999}, "fs:nfs4:server:/export/my data");
    char id[PST_DRIVE_ID_BYTES] = "untouched";
    pst_error err = {0};
    assert_int_equal(pst_drive_identify_at(root, &(pst_drive_place){.minor = 98}, "/x", id, &err), -ENODEV);
    assert_string_equal(id, "untouched");
    assert_string_equal(err.path, "/x");
}

static void test_hostile_text(void **unused)
{
    (void)unused;
    put_device(NVME0, "259:0", "nvme0n1");
    put_text(NVME0, "device/model", "  Bad\x1b[31m\tModel\xff\xfe \n\n");
    put_text(NVME0, "device/serial", "\x01 1 \x02");
    expect(259, 0, "nvme:Bad [31m Model??:1");
    /* Long ones are cut and still differ. */
    char serial[900], first[PST_DRIVE_ID_BYTES], second[PST_DRIVE_ID_BYTES];
    memset(serial, 'x', sizeof serial - 1);
    serial[sizeof serial - 1] = '\0';
    put_text(NVME0, "device/serial", serial);
    pst_drive_place place = {.major = 259};
    assert_int_equal(pst_drive_identify_at(root, &place, "", first, NULL), 0);
    serial[sizeof serial - 2] = 'y';
    put_text(NVME0, "device/serial", serial);
    assert_int_equal(pst_drive_identify_at(root, &place, "", second, NULL), 0);
    assert_int_equal(strlen(first), PST_DRIVE_ID_BYTES - 1);
    assert_string_not_equal(first, second);
}

static void test_join(void **unused)
{
    (void)unused;
    char ids[40][PST_DRIVE_ID_BYTES] = {"b", "a", "b"}, out[PST_DRIVE_ID_BYTES], other[PST_DRIVE_ID_BYTES];
    pst_drive_join(ids, 1, out);
    assert_string_equal(out, "b");
    pst_drive_join(ids, 3, out);
    assert_string_equal(out, "a + b");
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 0; i < 40; i++)
            snprintf(ids[i], sizeof ids[i], "nvme:a model of some length:serial%03d", turn == 1 && i == 39 ? 77 : i);
        pst_drive_join(ids, 40, turn == 0 ? out : other);
    }
    assert_true(strlen(out) < PST_DRIVE_ID_BYTES && strlen(other) < PST_DRIVE_ID_BYTES);
    assert_string_not_equal(out, other); /* though what was cut off alone differs */
    for (int i = 0; i < 40; i++)
        snprintf(ids[i], sizeof ids[i], "nvme:a model of some length:serial%03d", 39 - i);
    pst_drive_join(ids, 40, other);
    assert_string_equal(out, other); /* in any order */
}

/* The machine's own: every path of a drive has the same id, paths that do not exist yet too. */
static void test_real_paths(void **unused)
{
    (void)unused;
    char id[PST_DRIVE_ID_BYTES], other[PST_DRIVE_ID_BYTES], path[4096];
    pst_error err = {0};
    put("folder/file", "x");
    assert_int_equal(pst_drive_identify(root, id, &err), 0);
    assert_non_null(strchr(id, ':'));
    snprintf(path, sizeof path, "%s/folder/file", root);
    assert_int_equal(pst_drive_identify(path, other, &err), 0);
    assert_string_equal(id, other);
    snprintf(path, sizeof path, "%s/not/there/yet", root);
    assert_int_equal(pst_drive_identify(path, other, &err), 0);
    assert_string_equal(id, other);
    assert_int_equal(pst_drive_identify("not-there-either", other, &err), 0);
    assert_int_equal(pst_drive_identify("", other, &err), 0);
    assert_int_equal(pst_drive_identify("/proc", other, &err), 0);
    assert_string_equal(other, "fs:proc:proc");
}

static void test_failures(void **unused)
{
    (void)unused;
    put_nvmes();
    put("proc/self/mountinfo", MOUNTS);
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    pst_error err = {0};
    char id[PST_DRIVE_ID_BYTES];
    pst_fault_fail(PST_FAULT_STATX, 0, 1, EACCES);
    assert_int_equal(pst_drive_identify(root, id, &err), -EACCES);
    assert_string_equal(err.path, root);
    pst_fault_reset();
    /* Every allocation in turn: an error or the right answer, nothing held. */
    int64_t held = pst_heap_live_count();
    bool done = false;
    for (int64_t n = 0; n < 200 && !done; n++) {
        pst_heap_fail_after(n, 0);
        int status = pst_drive_identify_at(root, &(pst_drive_place){.minor = 51}, "", id, NULL);
        pst_heap_fail_after(-1, 0);
        assert_int_equal(pst_heap_live_count(), held);
        if (status == 0)
            assert_string_equal(id, ID0);
        else
            assert_int_equal(status, -ENOMEM);
        done = status == 0 && n > 20;
    }
    assert_true(done);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nvme, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_other_disks, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_volumes, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_mounts, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_hostile_text, make_root, remove_root),
        cmocka_unit_test(test_join),
        cmocka_unit_test_setup_teardown(test_real_paths, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_failures, make_root, remove_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
