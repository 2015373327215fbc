/* SPDX-License-Identifier: Apache-2.0 */
/* Standard output through stdio, every result checked. */
#include "output.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/stats.h"

static int failed(int cause, pst_error *err)
{
    if (cause == EPIPE)
        return pst_fail(err, CLI_E_READER_GONE, "standard output", "its reader is gone");
    return pst_fail(err, cause != 0 ? -cause : -EIO, "standard output", "cannot write: %s",
                    strerror(cause != 0 ? cause : EIO));
}

int cli_out_write(const void *data, size_t bytes, pst_error *err)
{
    errno = 0;
    if (fwrite(data, 1, bytes, stdout) != bytes)
        return failed(errno, err);
    return 0;
}

int cli_out_text(const char *text, pst_error *err)
{
    return cli_out_write(text, strlen(text), err);
}

int cli_out_printf(pst_error *err, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    errno = 0;
    int written = vfprintf(stdout, format, arguments);
    int cause = errno;
    va_end(arguments);
    return written < 0 ? failed(cause, err) : 0;
}

int cli_out_flush(pst_error *err)
{
    errno = 0;
    if (fflush(stdout) != 0 || ferror(stdout))
        return failed(errno, err);
    return 0;
}

static int write_chunk(const char *data, size_t bytes, void *user)
{
    return cli_out_write(data, bytes, user) < 0 ? -1 : 0;
}

int cli_out_json(json_t *document, pst_error *err)
{
    if (document == NULL)
        return pst_fail_memory(err, "the JSON document", 0);
    pst_error cause = {.code = 0};
    int status = json_dump_callback(document, write_chunk, &cause, 0);
    json_decref(document);
    if (status != 0) {
        if (cause.code == 0)
            return pst_fail_memory(err, "the JSON document", 0);
        *err = cause;
        return cause.code;
    }
    PST_TRY(cli_out_text("\n", err));
    return cli_out_flush(err);
}

int cli_out_safe(const char *text, pst_error *err)
{
    for (const char *at = text; *at != '\0'; at++) {
        unsigned char byte = (unsigned char)*at;
        char shown = byte < 0x20 || byte == 0x7f ? '?' : *at;
        PST_TRY(cli_out_write(&shown, 1, err));
    }
    return 0;
}

int cli_json_append(json_t *array, json_t *value)
{
    if (value == NULL)
        return -1;
    return json_array_append_new(array, value);
}

json_t *cli_json_ids(const uint32_t *ids, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; array != NULL && i < count; i++) {
        if (cli_json_append(array, json_integer(ids[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

json_t *cli_json_text(const char *text, size_t bytes)
{
    return text != NULL ? json_stringn(text, bytes) : json_null();
}

json_t *cli_json_stats(const pst_run_stats *stats)
{
    json_t *object = NULL;
    return pst_stats_to_json(pst_run_stat_table, pst_run_stat_count, stats, &object, NULL) < 0 ? NULL : object;
}

json_t *cli_json_document(json_t *results, json_t *stats)
{
    if (results == NULL || stats == NULL) {
        json_decref(results);
        json_decref(stats);
        return NULL;
    }
    return json_pack("{s:o, s:o}", "results", results, "stats", stats);
}
