/* SPDX-License-Identifier: Apache-2.0 */
/* The dynamic loader. */
#include "os/library.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "os/sys.h"

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

int pst_library_open(const char *path, pst_library **out, pst_error *err)
{
    /* The loader would wait for somebody to write into a pipe of that name. */
    struct statx info;
    int status = pst_sys->statx(AT_FDCWD, path, 0, STATX_TYPE, &info);
    if (status < 0)
        return pst_fail(err, status, path, "cannot be loaded: %s", pst_strerror(status));
    if (!S_ISREG(info.stx_mode))
        return pst_fail(err, PST_E_FORMAT, path, "cannot be loaded: is not a regular file");
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
