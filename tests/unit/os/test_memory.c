/* SPDX-License-Identifier: Apache-2.0 */
/* Memory figures from fixture trees of /proc and control groups, and mapped memory. */
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

#include "os/cgroup.h"
#include "os/memory_internal.h"
#include "os/sys_fault.h"

#define MIB (1024ull * 1024)
#define GIB (1024 * MIB)

static char root[4096];

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *ftw)
{
    (void)info, (void)type, (void)ftw;
    return remove(path);
}

static int make_root(void **unused)
{
    (void)unused;
    const char *parent = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/pst-mem-XXXXXX", parent != NULL && parent[0] != '\0' ? parent : "/tmp");
    return mkdtemp(root) == NULL;
}

static int remove_root(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    return nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* Writes <root>/<path>, making its folders. */
static void put(const char *path, const char *text)
{
    char full[8192];
    int length = snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *slash = full + strlen(root) + 1; slash < full + length && (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        assert_true(mkdir(full, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void put_number(const char *path, uint64_t value)
{
    char text[64];
    snprintf(text, sizeof text, "%llu\n", (unsigned long long)value);
    put(path, text);
}

static void put_meminfo(uint64_t total, uint64_t available)
{
    char text[256];
    snprintf(text, sizeof text, "MemTotal:       %llu kB\nMemFree:  1 kB\nMemAvailable:   %llu kB\n",
             (unsigned long long)(total / 1024), (unsigned long long)(available / 1024));
    put("proc/meminfo", text);
}

static pst_memory_info info(void)
{
    pst_memory_info out;
    pst_error err;
    assert_int_equal(pst_memory_get_info_at(root, &out, &err), 0);
    return out;
}

#define V1_MOUNTS                                                                                                      \
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"                                              \
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct\n"                    \
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
#define V2_MOUNTS "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"

static void test_no_groups(void **unused)
{
    (void)unused;
    put_meminfo(8 * GIB, 6 * GIB);
    pst_memory_info i = info();
    assert_int_equal(i.total_bytes, 8 * GIB);
    assert_int_equal(i.available_bytes, 6 * GIB);
    assert_int_equal(i.limit_bytes, 8 * GIB);
    assert_false(i.limited);
}

/* The parent's limit is tighter than the own one, and has page cache that can go. */
static void test_v1_levels(void **unused)
{
    (void)unused;
    put_meminfo(8 * GIB, 6 * GIB);
    put("proc/self/mountinfo", V1_MOUNTS);
    put("proc/self/cgroup", "5:pids:/\n4:memory:/outer/inner\n1:cpu,cpuacct:/outer\n0::/\n");
    put_number("sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712ull);
    put_number("sys/fs/cgroup/memory/memory.usage_in_bytes", 7 * GIB);
    put_number("sys/fs/cgroup/memory/outer/memory.limit_in_bytes", 2 * GIB);
    put_number("sys/fs/cgroup/memory/outer/memory.usage_in_bytes", 1800 * MIB);
    put("sys/fs/cgroup/memory/outer/memory.stat", "cache 99\ninactive_file 5\ntotal_inactive_file 838860800\n");
    put_number("sys/fs/cgroup/memory/outer/inner/memory.limit_in_bytes", 3 * GIB);
    put_number("sys/fs/cgroup/memory/outer/inner/memory.usage_in_bytes", 100 * MIB);
    put_number("sys/fs/cgroup/cpu,cpuacct/outer/cpu.cfs_quota_us", 150000);
    put_number("sys/fs/cgroup/cpu,cpuacct/outer/cpu.cfs_period_us", 100000);
    put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    put_number("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", 100000);
    pst_memory_info i = info();
    assert_true(i.limited);
    assert_int_equal(i.limit_bytes, 2 * GIB);
    assert_int_equal(i.available_bytes, 2 * GIB - 1000 * MIB);
    pst_cgroup_limits limits;
    pst_cgroup_read(root, &limits);
    assert_true(limits.processors == 1.5);
}

/* The group is named as seen from outside; the mount shows the container's part alone. */
static void test_v1_container(void **unused)
{
    (void)unused;
    put_meminfo(8 * GIB, 6 * GIB);
    put("proc/self/mountinfo", "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
    put("proc/self/cgroup", "4:memory:/docker/abc\n");
    put_number("sys/fs/cgroup/memory/memory.limit_in_bytes", GIB);
    put_number("sys/fs/cgroup/memory/memory.usage_in_bytes", 256 * MIB);
    pst_memory_info i = info();
    assert_int_equal(i.limit_bytes, GIB);
    assert_int_equal(i.available_bytes, 768 * MIB);
    put("proc/self/cgroup", "4:memory:/somewhere/else\n");
    assert_int_equal(info().limit_bytes, GIB);
    put("proc/self/cgroup", "4:memory:/docker/abcdef\n"); /* not below /docker/abc */
    assert_int_equal(info().limit_bytes, GIB);
    put_number("sys/fs/cgroup/memory/job/memory.limit_in_bytes", 512 * MIB);
    put_number("sys/fs/cgroup/memory/job/memory.usage_in_bytes", 600 * MIB); /* above: shrinking right now */
    put("proc/self/cgroup", "4:memory:/docker/abc/job\n");
    assert_int_equal(info().limit_bytes, 512 * MIB);
    assert_int_equal(info().available_bytes, 0);
}

static void test_v2(void **unused)
{
    (void)unused;
    put_meminfo(8 * GIB, 6 * GIB);
    put("proc/self/mountinfo", V2_MOUNTS);
    put("proc/self/cgroup", "0::/user.slice/job.scope\n");
    put("sys/fs/cgroup/user.slice/job.scope/memory.max", "max\n");
    put_number("sys/fs/cgroup/user.slice/job.scope/memory.current", 5 * GIB);
    put_number("sys/fs/cgroup/user.slice/memory.max", 5 * GIB);
    put_number("sys/fs/cgroup/user.slice/memory.high", 4 * GIB);
    put_number("sys/fs/cgroup/user.slice/memory.current", 3 * GIB);
    put("sys/fs/cgroup/user.slice/memory.stat", "anon 1\nfile 2\ninactive_file 1073741824\nactive_file 3\n");
    put("sys/fs/cgroup/user.slice/cpu.max", "250000 100000\n");
    put("sys/fs/cgroup/user.slice/job.scope/cpu.max", "max 100000\n");
    pst_memory_info i = info();
    assert_int_equal(i.limit_bytes, 4 * GIB);
    assert_int_equal(i.available_bytes, 2 * GIB);
    pst_cgroup_limits limits;
    pst_cgroup_read(root, &limits);
    assert_true(limits.processors == 2.5);
}

/* A namespace of its own: the group is "/", the mount shows it as its root. */
static void test_v2_namespace(void **unused)
{
    (void)unused;
    put_meminfo(8 * GIB, 6 * GIB);
    put("proc/self/mountinfo", "garbage\n1 2 3\n\n30 23 0:26 / /sys/fs/my\\040cgroup rw - cgroup2 cgroup rw\n");
    put("proc/self/cgroup", "nonsense\n0::/\n");
    put_number("sys/fs/my cgroup/memory.max", 3 * GIB);
    put_number("sys/fs/my cgroup/memory.current", GIB);
    pst_memory_info i = info();
    assert_int_equal(i.limit_bytes, 3 * GIB);
    assert_int_equal(i.available_bytes, 2 * GIB);
    put("proc/self/cgroup", "0::/../../elsewhere\n");
    assert_int_equal(info().limit_bytes, 3 * GIB);
    put("sys/fs/my cgroup/memory.max", "gibberish\n");
    assert_false(info().limited);
    put_number("sys/fs/my cgroup/memory.max", 64 * GIB); /* more than the machine has */
    assert_false(info().limited);
    assert_int_equal(info().limit_bytes, 8 * GIB);
}

static void test_bad_meminfo(void **unused)
{
    (void)unused;
    pst_memory_info out;
    pst_error err;
    assert_int_equal(pst_memory_get_info_at(root, &out, &err), -ENOENT);
    put("proc/meminfo", "MemTotal: many kB\n");
    assert_int_equal(pst_memory_get_info_at(root, &out, &err), PST_E_FORMAT);
    assert_non_null(strstr(err.path, "meminfo"));
}

static void test_this_machine(void **unused)
{
    (void)unused;
    pst_memory_info out;
    pst_error err;
    assert_int_equal(pst_memory_get_info(&out, &err), 0);
    assert_true(out.total_bytes > 64 * MIB);
    assert_true(out.available_bytes <= out.limit_bytes && out.limit_bytes <= out.total_bytes);
    uint64_t now = pst_memory_resident_bytes();
    assert_true(now > 0 && pst_memory_peak_bytes() >= now);
    pst_memory_trim();
}

static void test_map(void **unused)
{
    (void)unused;
    static const uint64_t sizes[] = {0, 1, 4096, 100000, 2 * MIB, 5 * MIB + 1};
    pst_error err;
    for (size_t i = 0; i < 6; i++) {
        void *memory;
        assert_int_equal(pst_memory_map(sizes[i], "test", &memory, &err), 0);
        assert_int_equal((uintptr_t)memory % (sizes[i] >= 2 * MIB ? 2 * MIB : 4096), 0);
        for (uint64_t b = 0; b < sizes[i]; b++)
            assert_int_equal(((char *)memory)[b], 0);
        if (sizes[i] > 0)
            memset(memory, 1, sizes[i]);
        pst_memory_unmap(memory, sizes[i]);
    }
    void *untouched = NULL;
    assert_int_equal(pst_memory_map(UINT64_MAX - 5, "everything", &untouched, &err), -ENOMEM);
    assert_int_equal(pst_memory_map(1ull << 60, "everything", &untouched, &err), -ENOMEM);
    assert_non_null(strstr(err.message, "everything"));
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    pst_fault_fail(PST_FAULT_MMAP, 0, 1, ENOMEM);
    assert_int_equal(pst_memory_map(4096, "a page", &untouched, &err), -ENOMEM);
    assert_null(untouched);
    pst_memory_unmap(NULL, 4096);
}

int main(void)
{
#define IN_TREE(test) cmocka_unit_test_setup_teardown(test, make_root, remove_root)
    const struct CMUnitTest tests[] = {
        IN_TREE(test_no_groups),    IN_TREE(test_v1_levels),   IN_TREE(test_v1_container), IN_TREE(test_v2),
        IN_TREE(test_v2_namespace), IN_TREE(test_bad_meminfo), IN_TREE(test_this_machine), IN_TREE(test_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
