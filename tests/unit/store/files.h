/* SPDX-License-Identifier: Apache-2.0 */
/* Small files and folders for tests: everything below one mkdtemp folder, removed by files_remove. */
#ifndef PST_TESTS_UNIT_STORE_FILES_H
#define PST_TESTS_UNIT_STORE_FILES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ftw.h>

#include <cmocka.h>

#define HEADER(name, dtype, shape, begin, end)                                                                         \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static char files_root[256];

static inline int files_create(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(files_root, sizeof files_root, "%s/penstock-store-XXXXXX", base && base[0] ? base : "/tmp");
    return mkdtemp(files_root) == NULL;
}

static inline int files_unlink(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info, (void)kind, (void)place;
    return remove(path);
}

static inline int files_remove(void **state)
{
    (void)state;
    return nftw(files_root, files_unlink, 16, FTW_DEPTH | FTW_PHYS);
}

/* A path below the root; the last 64 stay valid. */
__attribute__((format(printf, 1, 2))) static inline const char *files_path(const char *format, ...)
{
    static char paths[64][1024];
    static unsigned next;
    char *path = paths[next++ % 64];
    int length = snprintf(path, sizeof paths[0], "%s/", files_root);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(path + length, sizeof paths[0] - (size_t)length, format, arguments);
    va_end(arguments);
    return path;
}

static inline const char *files_folder(const char *name)
{
    const char *path = files_path("%s", name);
    assert_int_equal(mkdir(path, 0777), 0);
    return path;
}

static inline void files_write(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

/* A safetensors file of this header text (a whole JSON object) and that many bytes of data, counting up. */
static inline void files_write_tensors(const char *path, const char *header, size_t data_bytes)
{
    size_t length = strlen(header);
    unsigned char *text = malloc(8 + length + data_bytes);
    assert_non_null(text);
    for (int i = 0; i < 8; i++)
        text[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(text + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++)
        text[8 + length + i] = (unsigned char)i;
    files_write(path, text, 8 + length + data_bytes);
    free(text);
}

static inline void assert_contains(const char *text, const char *part)
{
    if (strstr(text, part) == NULL)
        fail_msg("\"%s\" does not contain \"%s\"", text, part);
    assert_null(strchr(text, '\n'));
}

#endif
