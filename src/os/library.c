/* SPDX-License-Identifier: Apache-2.0 */
/* The dynamic loader. */
#include "os/library.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "os/file.h"
#include "os/sys.h"

enum { MAX_SEGMENTS = 64 };

/* What the loader says, without the path that it begins with and err has anyway. */
static int fail_loading(const char *path, pst_error *err)
{
    const char *why = dlerror();
    const size_t length = strlen(path);
    if (why == NULL)
        why = "the loader does not say why";
    if (strncmp(why, path, length) == 0 && why[length] == ':')
        why += length + 1 + (why[length + 1] == ' ');
    return pst_fail(err, PST_E_UNSUPPORTED, path, "cannot be loaded: %s", why);
}

/* The loader maps what the segments say and dies at the first access beyond the file's end: a copy that was cut short must not
 * reach it. What is no library at all is left to it to name. */
static int check_segments(const char *path, uint64_t file_bytes, pst_error *err)
{
    ElfW(Ehdr) header;
    ElfW(Phdr) segments[MAX_SEGMENTS];
    if (file_bytes < sizeof header)
        return 0;
    PST_TRY(pst_file_read_at(path, 0, &header, sizeof header, err));
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_phentsize != sizeof *segments)
        return 0;
    const size_t bytes = header.e_phnum * sizeof *segments;
    if (header.e_phnum > MAX_SEGMENTS)
        return pst_fail(err, PST_E_FORMAT, path, "cannot be loaded: %u segments", header.e_phnum);
    bool is_whole = bytes <= file_bytes && header.e_phoff <= file_bytes - bytes;
    if (is_whole)
        PST_TRY(pst_file_read_at(path, header.e_phoff, segments, bytes, err));
    for (size_t i = 0; is_whole && i < header.e_phnum; i++)
        is_whole = segments[i].p_type != PT_LOAD ||
                   (segments[i].p_filesz <= file_bytes && segments[i].p_offset <= file_bytes - segments[i].p_filesz);
    return is_whole ? 0 : pst_fail(err, PST_E_FORMAT, path, "cannot be loaded: the file ends too early");
}

int pst_library_open(const char *path, pst_library **out, pst_error *err)
{
    /* The loader would wait for somebody to write into a pipe of that name. */
    struct statx info;
    int status = pst_sys->statx(AT_FDCWD, path, 0, STATX_TYPE | STATX_SIZE, &info);
    if (status < 0)
        return pst_fail(err, status, path, "cannot be loaded: %s", pst_strerror(status));
    if (!S_ISREG(info.stx_mode))
        return pst_fail(err, PST_E_FORMAT, path, "cannot be loaded: is not a regular file");
    PST_TRY(check_segments(path, info.stx_size, err));
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        return fail_loading(path, err);
    *out = handle;
    return 0;
}

void *pst_library_symbol(pst_library *library, const char *name)
{
    return dlsym(library, name);
}

int pst_library_keep(const char *path, pst_error *err)
{
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (handle == NULL)
        return fail_loading(path, err);
    dlclose(handle);
    return 0;
}

void pst_library_close(pst_library *library)
{
    if (library != NULL)
        dlclose(library);
}

int pst_library_own_folder(char *out, size_t out_bytes, pst_error *err)
{
    char path[4096];
    Dl_info info;
    struct link_map *map = NULL;
    if (dladdr1((void *)pst_library_own_folder, &info, (void **)&map, RTLD_DL_LINKMAP) == 0)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "the loader does not know the file of this code");
    if (map != NULL &&
        map->l_name[0] == '\0') { /* the program: the loader knows it by the name that it was called by */
        int status = pst_sys->readlink("/proc/self/exe", path, sizeof path);
        if (status < 0)
            return pst_fail(err, status, "/proc/self/exe", "cannot be read: %s", pst_strerror(status));
    } else if (snprintf(path, sizeof path, "%s", info.dli_fname) >= (int)sizeof path) {
        return pst_fail(err, -ENAMETOOLONG, NULL, "the path of this library is too long");
    }
    const char *slash = strrchr(path, '/');
    const int length = slash == NULL ? 1 : slash == path ? 1 : (int)(slash - path);
    if ((size_t)length >= out_bytes)
        return pst_fail(err, -ENAMETOOLONG, NULL, "the path of this library is too long");
    snprintf(out, out_bytes, "%.*s", length, slash == NULL ? "." : path);
    return 0;
}
