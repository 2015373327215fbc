/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A path's file system has a device number. With a block device behind it, /sys/dev/block/<number> is a link to the
 * device's folder, from which a partition's disk is one folder up and a volume's parts lie in slaves/. File systems with
 * a number of their own (btrfs, overlay, tmpfs, network ones) are found in mountinfo, whose source may be a block device
 * after all.
 *
 * What drives say about themselves is text from outside: it is made printable before it becomes part of an id.
 */
#include "os/drive.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/cgroup.h"
#include "os/file.h"
#include "os/sys.h"

enum { MOUNTS_BYTES = 1 << 20, PATH_BYTES = 4096, TEXT_BYTES = 1024, MOST_LEVELS = 8, MOST_PARTS = 64 };

/* ---- text ---- */

/* Printable ASCII, runs of anything else than that as one space, none at the ends. */
static void make_printable(char *text)
{
    char *to = text;
    for (const unsigned char *from = (const unsigned char *)text; *from != '\0'; from++) {
        if (*from > 0x7e)
            *to++ = '?';
        else if (*from > ' ')
            *to++ = (char)*from;
        else if (to > text && to[-1] != ' ')
            *to++ = ' ';
    }
    while (to > text && to[-1] == ' ')
        to--;
    *to = '\0';
}

/* FNV-1a. */
static uint64_t digest(const char *text)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (; *text != '\0'; text++)
        hash = (hash ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
    return hash;
}

/* Copies an id; a long one is cut, with a digest of all of it at the end. */
static void set_id(char out[PST_DRIVE_ID_BYTES], const char *id)
{
    enum { KEPT = PST_DRIVE_ID_BYTES - 1 - 17 };
    if (strlen(id) < PST_DRIVE_ID_BYTES)
        strcpy(out, id);
    else
        snprintf(out, PST_DRIVE_ID_BYTES, "%.*s#%016" PRIx64, KEPT, id, digest(id));
}

/* mountinfo writes space, tab, newline and backslash as \ooo. */
static void unescape(char *text)
{
    char *to = text;
    for (const char *from = text; *from != '\0'; from++) {
        if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' && from[2] <= '7' && from[3] >= '0' &&
            from[3] <= '7') {
            *to++ = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
            from += 3;
        } else {
            *to++ = *from;
        }
    }
    *to = '\0';
}

/* A small file of a device's folder, printable; "" when it is not there. */
static const char *attribute(const char *folder, const char *name, char text[TEXT_BYTES])
{
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (pst_os_read_text(path, text, TEXT_BYTES) <= 0)
        text[0] = '\0';
    make_printable(text);
    return text;
}

static bool has(const char *folder, const char *name)
{
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return pst_file_exists(path);
}

/* ---- block devices ---- */

static void disk_id(const char *folder, char out[PST_DRIVE_ID_BYTES])
{
    char text[TEXT_BYTES], other[TEXT_BYTES], id[3 * TEXT_BYTES], path[PATH_BYTES + 64], name[TEXT_BYTES] = "?";
    snprintf(path, sizeof path, "%s/uevent", folder);
    if (pst_os_read_text(path, text, sizeof text) > 0) {
        const char *line = strstr(text, "DEVNAME=");
        if (line != NULL)
            snprintf(name, sizeof name, "%.*s", (int)strcspn(line + 8, "\n"), line + 8);
    }
    make_printable(name);
    uint64_t bytes = (uint64_t)strtoull(attribute(folder, "size", other), NULL, 10) * 512;
    if (strncmp(name, "nvme", 4) == 0 && attribute(folder, "device/serial", text)[0] != '\0')
        snprintf(id, sizeof id, "nvme:%s:%s", attribute(folder, "device/model", other), text);
    else if (attribute(folder, "loop/backing_file", text)[0] != '\0')
        snprintf(id, sizeof id, "loop:%s", text);
    else if (attribute(folder, "wwid", text)[0] != '\0' || attribute(folder, "device/wwid", text)[0] != '\0')
        snprintf(id, sizeof id, "disk:%s", text);
    else /* a virtual disk's serial number is what somebody chose: the size helps to tell two apart */
        snprintf(id, sizeof id, "disk:%s:%" PRIu64, attribute(folder, "serial", text)[0] != '\0' ? text : name, bytes);
    set_id(out, id);
}

static int compare_ids(const void *a, const void *b)
{
    return strcmp(a, b);
}

void pst_drive_join(char (*ids)[PST_DRIVE_ID_BYTES], size_t count, char out[PST_DRIVE_ID_BYTES])
{
    static const char between[] = " + ";
    char digests[32];
    size_t used = 0;
    uint64_t all = 0;
    bool whole = true;
    qsort(ids, count, sizeof *ids, compare_ids);
    out[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && strcmp(ids[i], ids[i - 1]) == 0)
            continue;
        size_t length = strlen(ids[i]), gap = used > 0 ? sizeof between - 1 : 0;
        all = all * 31 + digest(ids[i]);
        whole = whole && used + gap + length < PST_DRIVE_ID_BYTES;
        if (!whole)
            continue; /* the digest goes over every one */
        memcpy(out + used, between, gap);
        memcpy(out + used + gap, ids[i], length + 1);
        used += gap + length;
    }
    if (!whole) {
        int length = snprintf(digests, sizeof digests, "#%016" PRIx64, all);
        size_t at = used < PST_DRIVE_ID_BYTES - 1 - (size_t)length ? used : PST_DRIVE_ID_BYTES - 1 - (size_t)length;
        memcpy(out + at, digests, (size_t)length + 1);
    }
}

static int block_id(const char *folder, int level, char out[PST_DRIVE_ID_BYTES]);

/* A volume or an array: its only part's id, or those of all. */
static int volume_id(const char *folder, char *const *names, size_t count, int level, char out[PST_DRIVE_ID_BYTES])
{
    char part[PATH_BYTES];
    if (count > MOST_PARTS)
        return -E2BIG;
    char(*ids)[PST_DRIVE_ID_BYTES] = pst_heap_calloc(count, sizeof *ids);
    if (ids == NULL)
        return -ENOMEM;
    int status = 0;
    for (size_t i = 0; status >= 0 && i < count; i++) {
        int length = snprintf(part, sizeof part, "%s/slaves/%s", folder, names[i]);
        status = length < (int)sizeof part ? block_id(part, level + 1, ids[i]) : -ENAMETOOLONG;
    }
    if (status >= 0) {
        char joined[PST_DRIVE_ID_BYTES], id[PST_DRIVE_ID_BYTES + 8];
        pst_drive_join(ids, count, joined);
        snprintf(id, sizeof id, "%s%s", count == 1 ? "" : has(folder, "md") ? "md:" : "dm:", joined);
        set_id(out, id);
    }
    pst_heap_free(ids);
    return status;
}

/* folder: of a block device in sysfs, possibly through a link, so that "/.." is its true parent. */
static int block_id(const char *folder, int level, char out[PST_DRIVE_ID_BYTES])
{
    char own[PATH_BYTES], slaves[PATH_BYTES + 16];
    if (level > MOST_LEVELS)
        return -ELOOP;
    int length = snprintf(own, sizeof own - 16, "%s%s", folder, has(folder, "partition") ? "/.." : "");
    if (length >= (int)sizeof own - 16)
        return -ENAMETOOLONG;
    snprintf(slaves, sizeof slaves, "%s/slaves", own);
    char **names = NULL;
    size_t count = 0;
    int status = 0;
    if (pst_file_is_folder(slaves))
        PST_TRY(pst_file_list(slaves, NULL, &names, &count, NULL));
    if (count > 0)
        status = volume_id(own, names, count, level, out);
    else
        disk_id(own, out);
    pst_file_list_free(names, count);
    return status;
}

/* ---- mounts ---- */

typedef struct mount {
    char type[64], source[PATH_BYTES];
} mount;

/* "id parent major:minor root point options [tags] - type source super_options" */
static bool parse_mount(const char *line, const pst_drive_place *place, bool by_id, mount *out)
{
    uint64_t id;
    uint32_t major, minor;
    const char *rest = strstr(line, " - ");
    if (rest == NULL || sscanf(line, "%" SCNu64 " %*u %" SCNu32 ":%" SCNu32, &id, &major, &minor) != 3)
        return false;
    if (by_id ? id != place->mount_id : major != place->major || minor != place->minor)
        return false;
    out->source[0] = '\0'; /* it may be empty */
    return sscanf(rest, " - %63s %4095s", out->type, out->source) >= 1;
}

enum { LINE_BYTES = 4 * PATH_BYTES };

/* By the mount's number, else by the device's. line: LINE_BYTES of room. */
static bool find_mount(const char *mounts, const pst_drive_place *place, char *line, mount *out)
{
    bool found = false;
    for (int by_id = place->mount_id != 0; !found && by_id >= 0; by_id--) {
        for (const char *at = mounts; !found && *at != '\0';) {
            size_t length = strcspn(at, "\n");
            snprintf(line, LINE_BYTES, "%.*s", (int)length, at);
            found = parse_mount(line, place, by_id != 0, out);
            at += length + (at[length] == '\n');
        }
    }
    unescape(out->source);
    return found;
}

static int read_mount(const char *root, const pst_drive_place *place, mount *out)
{
    char path[PATH_BYTES];
    char *mounts = pst_heap_alloc(MOUNTS_BYTES), *line = pst_heap_alloc(LINE_BYTES);
    int status = -ENOMEM;
    if (mounts != NULL && line != NULL) {
        snprintf(path, sizeof path, "%s/proc/self/mountinfo", root);
        status = pst_os_read_text(path, mounts, MOUNTS_BYTES);
    }
    if (status >= 0)
        status = find_mount(mounts, place, line, out) ? 0 : -ENODEV;
    pst_heap_free(line);
    pst_heap_free(mounts);
    return status;
}

/* The folder of a mount's source "/dev/NAME" or "/dev/mapper/NAME" in sysfs. */
static bool source_folder(const char *root, const char *source, char folder[PATH_BYTES])
{
    char classes[PATH_BYTES], text[TEXT_BYTES];
    if (strncmp(source, "/dev/", 5) != 0 || strstr(source, "..") != NULL || strlen(source) > 255)
        return false;
    if (strncmp(source, "/dev/mapper/", 12) != 0) {
        int length = snprintf(folder, PATH_BYTES, "%s/sys/class/block/%s", root, source + 5);
        return strchr(source + 5, '/') == NULL && length < PATH_BYTES && pst_file_is_folder(folder);
    }
    char **names = NULL;
    size_t count = 0;
    bool found = false;
    snprintf(classes, sizeof classes, "%s/sys/class/block", root);
    if (pst_file_list(classes, NULL, &names, &count, NULL) < 0)
        return false;
    for (size_t i = 0; i < count && !found; i++) {
        if (strncmp(names[i], "dm-", 3) != 0)
            continue;
        int length = snprintf(folder, PATH_BYTES, "%s/%s", classes, names[i]);
        found = length < PATH_BYTES && strcmp(attribute(folder, "dm/name", text), source + 12) == 0;
    }
    pst_file_list_free(names, count);
    return found;
}

static int mount_id(const char *root, const pst_drive_place *place, char out[PST_DRIVE_ID_BYTES])
{
    char folder[PATH_BYTES], id[PATH_BYTES + 80];
    mount *where = pst_heap_calloc(1, sizeof *where);
    if (where == NULL)
        return -ENOMEM;
    int status = read_mount(root, place, where), of_source = -ENODEV;
    if (status >= 0 && place->major == 0 && source_folder(root, where->source, folder))
        of_source = block_id(folder, 0, out);
    if (of_source == -ENOMEM)
        status = of_source;
    if (status >= 0 && of_source < 0) {
        make_printable(where->type);
        make_printable(where->source);
        snprintf(id, sizeof id, "fs:%s:%s", where->type, where->source);
        set_id(out, id);
    }
    pst_heap_free(where);
    return status;
}

/* ---- both ---- */

int pst_drive_identify_at(const char *root, const pst_drive_place *place, const char *path,
                          char out[PST_DRIVE_ID_BYTES], pst_error *err)
{
    char folder[PATH_BYTES], id[PST_DRIVE_ID_BYTES];
    int status = -ENODEV;
    if (place->major != 0) {
        snprintf(folder, sizeof folder, "%s/sys/dev/block/%u:%u", root, place->major, place->minor);
        status = pst_file_is_folder(folder) ? block_id(folder, 0, id) : -ENODEV;
    }
    if (status < 0 && status != -ENOMEM) /* no block device, or a container that does not see it */
        status = mount_id(root, place, id);
    if (status < 0)
        return pst_fail(err, status, path, "cannot tell which drive holds it: %s", pst_strerror(status));
    strcpy(out, id);
    return 0;
}

/* Cuts the last name off a path; "." and "/" stay. */
static void cut_name(char *path)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    while (length > 1 && path[length - 1] == '/')
        length--;
    if (length == 0)
        strcpy(path, ".");
    else
        path[length] = '\0';
}

int pst_drive_identify(const char *path, char out[PST_DRIVE_ID_BYTES], pst_error *err)
{
    unsigned mask = STATX_TYPE;
#ifdef STATX_MNT_ID
    mask |= STATX_MNT_ID;
#endif
    char *at = pst_heap_strdup(path[0] != '\0' ? path : ".");
    if (at == NULL)
        return pst_fail_memory(err, path, strlen(path));
    struct statx info;
    int status;
    while ((status = pst_sys->statx(AT_FDCWD, at, 0, mask, &info)) == -ENOENT && strcmp(at, ".") != 0 &&
           strcmp(at, "/") != 0)
        cut_name(at);
    pst_heap_free(at);
    if (status < 0)
        return pst_fail(err, status, path, "cannot examine: %s", pst_strerror(status));
    pst_drive_place place = {.major = info.stx_dev_major, .minor = info.stx_dev_minor};
#ifdef STATX_MNT_ID
    if ((info.stx_mask & STATX_MNT_ID) != 0)
        place.mount_id = info.stx_mnt_id;
#endif
    if (S_ISBLK(info.stx_mode)) /* the drive itself, not the file system that its name lies on */
        place = (pst_drive_place){.major = info.stx_rdev_major, .minor = info.stx_rdev_minor};
    return pst_drive_identify_at("", &place, path, out, err);
}
