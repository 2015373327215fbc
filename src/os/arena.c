/* SPDX-License-Identifier: Apache-2.0 */
/* Arenas: one mapping each, with the fallbacks in one place. */
#include "os/arena.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "os/cgroup.h"
#include "os/memory.h"
#include "os/sys.h"

enum { HUGE_BYTES = 2 << 20, NUMBER_BYTES = 64 };

static uint64_t round_to_huge(uint64_t bytes)
{
    return bytes == 0 ? HUGE_BYTES : (bytes + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
}

/* In reserved huge pages; false where there are not enough. A control group may refuse them only when they are touched,
 * with a signal, so they are brought in by a call that can fail. */
static bool map_reserved(uint64_t bytes, int32_t node, void **out)
{
    void *memory;
    if (pst_sys->mmap_huge(bytes, &memory) < 0)
        return false;
    if (node >= 0)
        pst_sys->prefer_node(memory, bytes, node);
    if (pst_sys->populate(memory, bytes) < 0) {
        pst_sys->munmap(memory, bytes);
        return false;
    }
    *out = memory;
    return true;
}

static int map_pages(uint64_t bytes, const pst_arena_wish *wish, pst_arena *arena, pst_error *err)
{
    void *memory;
    arena->huge = wish->huge && map_reserved(bytes, wish->node, &memory);
    if (!arena->huge)
        PST_TRY(pst_memory_map(bytes, "I/O buffers", &memory, err));
    arena->memory = memory;
    arena->bytes = bytes;
    return 0;
}

int pst_arena_map(uint64_t bytes, const pst_arena_wish *wish, pst_arena *out, pst_error *err)
{
    pst_arena arena = {0};
    if (bytes > (uint64_t)INT64_MAX / 2)
        return pst_fail_memory(err, "I/O buffers", bytes);
    PST_TRY(map_pages(round_to_huge(bytes), wish, &arena, err));
    if (wish->node >= 0 && !arena.huge)
        pst_sys->prefer_node(arena.memory, arena.bytes, wish->node); /* a wish: elsewhere it is only slower */
    if (wish->lock) { /* after the node was named: locking brings the pages in */
        arena.lock_status = pst_sys->mlock(arena.memory, arena.bytes);
        arena.locked = arena.lock_status >= 0;
    }
    *out = arena;
    return 0;
}

void pst_arena_unmap(pst_arena *arena)
{
    pst_memory_unmap(arena->memory, arena->bytes); /* which unlocks it too */
    *arena = (pst_arena){0};
}

/* A number in a file of /sys; -1 when it is not there. */
static int read_number(const char *path)
{
    char text[NUMBER_BYTES], *end;
    if (pst_os_read_text(path, text, sizeof text) <= 0)
        return -1;
    long value = strtol(text, &end, 10);
    return end == text || value < 0 || value > INT32_MAX ? -1 : (int)value;
}

static bool has_several_nodes(const char *root)
{
    char path[4096], text[NUMBER_BYTES];
    snprintf(path, sizeof path, "%s/sys/devices/system/node/online", root);
    return pst_os_read_text(path, text, sizeof text) > 0 && strpbrk(text, ",-") != NULL;
}

int32_t pst_numa_node_of_device(const char *root, unsigned major, unsigned minor)
{
    /* A disk has its controller at device/; a partition lies in its disk's folder; NVMe namespaces are one deeper. */
    static const char *const places[] = {"device/numa_node", "../device/numa_node", "device/device/numa_node",
                                         "../device/device/numa_node"};
    if (!has_several_nodes(root))
        return -1;
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/sys/dev/block/%u:%u/%s", root, major, minor, places[i]);
        int node = read_number(path);
        if (node >= 0)
            return node;
    }
    return -1;
}

int32_t pst_numa_node_of(const char *path)
{
    struct statx info;
    if (pst_sys->statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &info) < 0)
        return -1;
    bool device = S_ISBLK(info.stx_mode);
    return pst_numa_node_of_device("", device ? info.stx_rdev_major : info.stx_dev_major,
                                   device ? info.stx_rdev_minor : info.stx_dev_minor);
}
