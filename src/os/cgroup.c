/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control groups. /proc/self/cgroup names this process's group in each hierarchy; /proc/self/mountinfo says
 * where a hierarchy is mounted and which part of it the mount shows. A limit of any level from the group up
 * to the root of the mount holds, so every level is read. In a container the two may not fit together (the
 * group is named from outside, only the container's part is mounted): then, and where a level's folder is not
 * visible, the levels that are visible are read.
 */
#include "os/cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/heap.h"
#include "os/sys.h"

enum { TEXT_BYTES = 64 * 1024, PATH_BYTES = 4096 };

int pst_os_read_text(const char *path, char *text, int text_bytes)
{
    int fd;
    do {
        fd = pst_sys->open(path, O_RDONLY, 0);
    } while (fd == -EINTR);
    if (fd < 0)
        return fd;
    ssize_t got = pst_sys_read_all(fd, text, (size_t)text_bytes - 1, 0);
    pst_sys->close(fd);
    text[got > 0 ? got : 0] = '\0';
    return (int)got;
}

int64_t pst_os_text_value(const char *text, const char *key)
{
    size_t length = strlen(key);
    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, key, length) == 0 && (line[length] == ' ' || line[length] == '\t'))
            return strtoll(line + length, NULL, 10);
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    return -1;
}

/* A number of a limit file; "max", a missing file and nonsense are UINT64_MAX. */
static uint64_t read_number(const char *folder, const char *name)
{
    char path[PATH_BYTES + 64], text[64], *end;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (pst_os_read_text(path, text, sizeof text) <= 0 || text[0] < '0' || text[0] > '9')
        return UINT64_MAX;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    return errno == 0 ? value : UINT64_MAX;
}

/* The page cache of one level that is given back without any loss when memory is short. */
static uint64_t read_reclaimable(const char *folder)
{
    char path[PATH_BYTES + 64], text[8192];
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    if (pst_os_read_text(path, text, sizeof text) <= 0)
        return 0;
    /* Version 1 counts this level alone without "total_", while its usage is that of the whole subtree. */
    int64_t bytes = pst_os_text_value(text, "total_inactive_file");
    if (bytes < 0)
        bytes = pst_os_text_value(text, "inactive_file");
    return bytes > 0 ? (uint64_t)bytes : 0;
}

static void apply_memory(const char *folder, const char *limit_name, const char *usage_name, pst_cgroup_limits *out)
{
    uint64_t limit = read_number(folder, limit_name);
    /* Version 1 writes "no limit" as the largest whole number of pages below 2^63. */
    if (limit >= (uint64_t)INT64_MAX - (1u << 20))
        return;
    uint64_t usage = read_number(folder, usage_name);
    if (usage == UINT64_MAX)
        usage = 0;
    uint64_t reclaimable = read_reclaimable(folder);
    uint64_t held = usage > reclaimable ? usage - reclaimable : 0;
    uint64_t left = limit > held ? limit - held : 0;
    if (limit < out->memory_limit_bytes)
        out->memory_limit_bytes = limit;
    if (left < out->memory_left_bytes)
        out->memory_left_bytes = left;
}

static void apply_quota(double quota, double period, pst_cgroup_limits *out)
{
    if (quota <= 0 || period <= 0)
        return;
    if (out->processors == 0 || quota / period < out->processors)
        out->processors = quota / period;
}

static void level_memory_v1(const char *folder, pst_cgroup_limits *out)
{
    apply_memory(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", out);
}

static void level_cpu_v1(const char *folder, pst_cgroup_limits *out)
{
    /* "-1" (no quota) reads as UINT64_MAX. */
    uint64_t quota = read_number(folder, "cpu.cfs_quota_us"), period = read_number(folder, "cpu.cfs_period_us");
    if (quota != UINT64_MAX && period != UINT64_MAX)
        apply_quota((double)quota, (double)period, out);
}

static void level_v2(const char *folder, pst_cgroup_limits *out)
{
    apply_memory(folder, "memory.max", "memory.current", out);
    apply_memory(folder, "memory.high", "memory.current", out); /* beyond it the kernel throttles to a crawl */
    char path[PATH_BYTES + 64], text[128];
    double quota, period;
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    if (pst_os_read_text(path, text, sizeof text) > 0 && sscanf(text, "%lf %lf", &quota, &period) == 2)
        apply_quota(quota, period, out);
}

/* Undoes the octal escapes (\040 for a blank) of mountinfo. */
static void unescape(char *text)
{
    char *out = text;
    for (const char *in = text; *in != '\0';) {
        if (in[0] == '\\' && in[1] >= '0' && in[1] <= '3' && in[2] >= '0' && in[2] <= '7' && in[3] >= '0' &&
            in[3] <= '7') {
            *out++ = (char)((in[1] - '0') * 64 + (in[2] - '0') * 8 + (in[3] - '0'));
            in += 4;
        } else {
            *out++ = *in++;
        }
    }
    *out = '\0';
}

/* True when the comma-separated list holds `word`. */
static bool list_has(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; (at = strstr(at, word)) != NULL; at += length) {
        if ((at == list || at[-1] == ',') && (at[length] == ',' || at[length] == '\0'))
            return true;
    }
    return false;
}

/* This process's group in a hierarchy: controller NULL is version 2. */
static bool find_group(const char *cgroup_text, const char *controller, char *path)
{
    for (const char *line = cgroup_text; line != NULL && *line != '\0';) {
        char controllers[512] = "";
        int at = 0;
        const char *end = strchr(line, '\n');
        const char *first = strchr(line, ':'), *second = first != NULL ? strchr(first + 1, ':') : NULL;
        if (second != NULL && (end == NULL || second < end)) {
            at = snprintf(controllers, sizeof controllers, "%.*s", (int)(second - first - 1), first + 1);
            bool match = controller == NULL ? at == 0 : list_has(controllers, controller);
            if (match) {
                int length = end != NULL ? (int)(end - second - 1) : (int)strlen(second + 1);
                snprintf(path, PATH_BYTES, "%.*s", length, second + 1);
                return true;
            }
        }
        line = end != NULL ? end + 1 : NULL;
    }
    return false;
}

typedef struct mount {
    char shown[PATH_BYTES]; /* the part of the hierarchy that the mount shows */
    char point[PATH_BYTES];
} mount;

/* One line of mountinfo: "id parent dev root point options ... - type source super_options". */
static bool parse_mount(char *line, const char *controller, mount *out)
{
    char *separator = strstr(line, " - ");
    char type[64], super_options[1024] = "";
    if (separator == NULL)
        return false;
    if (sscanf(separator, " - %63s %*s %1023s", type, super_options) < 1)
        return false;
    if (strcmp(type, controller == NULL ? "cgroup2" : "cgroup") != 0)
        return false;
    if (controller != NULL && !list_has(super_options, controller))
        return false;
    if (sscanf(line, "%*s %*s %*s %4095s %4095s", out->shown, out->point) != 2)
        return false;
    unescape(out->shown);
    unescape(out->point);
    return true;
}

static bool find_mount(const char *mounts_text, const char *controller, mount *out)
{
    char line[2 * PATH_BYTES];
    for (const char *at = mounts_text; *at != '\0';) {
        size_t length = strcspn(at, "\n");
        snprintf(line, sizeof line, "%.*s", (int)length, at);
        if (parse_mount(line, controller, out))
            return true;
        at += length + (at[length] == '\n');
    }
    return false;
}

/* Visits every visible level, from this process's group to the top of the mount. */
static void walk(const char *root, const char *group, const mount *where,
                 void (*level)(const char *, pst_cgroup_limits *), pst_cgroup_limits *out)
{
    const char *below = "";
    size_t shown = strcmp(where->shown, "/") == 0 ? 0 : strlen(where->shown);
    if (strncmp(group, where->shown, shown) == 0 && group[shown] == '/' && strstr(group, "/..") == NULL)
        below = group + shown;
    char folder[3 * PATH_BYTES];
    int top = snprintf(folder, sizeof folder, "%s%s", root, where->point);
    if (top < 0 || (size_t)top + strlen(below) >= PATH_BYTES)
        return;
    strcat(folder, below);
    for (;;) {
        level(folder, out);
        char *slash = strrchr(folder, '/');
        if (slash == NULL || slash < folder + top)
            return;
        bool was_top = slash[1] == '\0';
        *slash = '\0';
        if (was_top && slash == folder + top)
            return; /* "<mount>/" was the mount itself */
    }
}

void pst_cgroup_read(const char *root, pst_cgroup_limits *out)
{
    static const struct {
        const char *controller; /* NULL: version 2 */
        void (*level)(const char *, pst_cgroup_limits *);
    } hierarchies[] = {{"memory", level_memory_v1}, {"cpu", level_cpu_v1}, {NULL, level_v2}};
    pst_cgroup_limits limits = {UINT64_MAX, UINT64_MAX, 0};
    char *groups = pst_heap_alloc(TEXT_BYTES), *mounts = pst_heap_alloc(TEXT_BYTES * 4);
    mount *where = pst_heap_alloc(sizeof *where);
    char path[PATH_BYTES], group[PATH_BYTES];
    if (groups == NULL || mounts == NULL || where == NULL)
        goto done;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    if (pst_os_read_text(path, groups, TEXT_BYTES) <= 0)
        goto done;
    snprintf(path, sizeof path, "%s/proc/self/mountinfo", root);
    if (pst_os_read_text(path, mounts, TEXT_BYTES * 4) <= 0)
        goto done;
    for (size_t i = 0; i < sizeof hierarchies / sizeof hierarchies[0]; i++) {
        if (find_group(groups, hierarchies[i].controller, group) &&
            find_mount(mounts, hierarchies[i].controller, where))
            walk(root, group, where, hierarchies[i].level, &limits);
    }
done:
    pst_heap_free(where);
    pst_heap_free(mounts);
    pst_heap_free(groups);
    *out = limits;
}
