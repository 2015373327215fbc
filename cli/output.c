/* SPDX-License-Identifier: Apache-2.0 */
/* Standard output through stdio, every result checked. */
#include "output.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/stats.h"
#include "input.h"

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

int cli_out_json_value(json_t *value, pst_error *err)
{
    if (value == NULL)
        return pst_fail_memory(err, "the JSON document", 0);
    pst_error cause = {.code = 0};
    int status = json_dump_callback(value, write_chunk, &cause, JSON_ENCODE_ANY);
    json_decref(value);
    if (status != 0) {
        if (cause.code == 0)
            return pst_fail_memory(err, "the JSON document", 0);
        *err = cause;
        return cause.code;
    }
    return 0;
}

int cli_out_json(json_t *document, pst_error *err)
{
    PST_TRY(cli_out_json_value(document, err));
    PST_TRY(cli_out_text("\n", err));
    return cli_out_flush(err);
}

/* Bytes at the beginning of the text that a terminal shows and does not obey; *skip: those of what follows them. */
static size_t safe_bytes(const char *text, size_t bytes, size_t *skip)
{
    size_t at = 0;
    *skip = 0;
    while (at < bytes) {
        const unsigned char *byte = (const unsigned char *)text + at;
        size_t length = cli_utf8_sequence_bytes(text + at, bytes - at);
        bool control = byte[0] < 0x20 || byte[0] == 0x7f || (length == 2 && byte[0] == 0xC2 && byte[1] < 0xA0);
        if (length == 0 || control) {
            *skip = length > 0 ? length : 1;
            return at;
        }
        at += length;
    }
    return at;
}

size_t cli_make_safe(char *text, size_t bytes)
{
    size_t kept = 0, skip;
    for (size_t at = 0; at < bytes; at += skip) {
        size_t run = safe_bytes(text + at, bytes - at, &skip);
        memmove(text + kept, text + at, run);
        kept += run;
        at += run;
        if (skip > 0)
            text[kept++] = '?';
    }
    return kept;
}

int cli_out_safe(const char *text, pst_error *err)
{
    size_t bytes = strlen(text), skip;
    for (size_t at = 0; at < bytes; at += skip) {
        size_t run = safe_bytes(text + at, bytes - at, &skip);
        PST_TRY(cli_out_write(text + at, run, err));
        at += run;
        if (skip > 0)
            PST_TRY(cli_out_write("?", 1, err));
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

int cli_json_stream_result(cli_json_stream *stream, json_t *result, pst_error *err)
{
    int status = cli_out_text(stream->begun ? ", " : "{\"results\": [", err);
    if (status < 0) {
        json_decref(result);
        return status;
    }
    stream->begun = true;
    return cli_out_json_value(result, err);
}

int cli_json_stream_end(cli_json_stream *stream, json_t *stats, pst_error *err)
{
    int status = cli_out_text(stream->begun ? "], \"stats\": " : "{\"results\": [], \"stats\": ", err);
    if (status < 0) {
        json_decref(stats);
        return status;
    }
    PST_TRY(cli_out_json_value(stats, err));
    PST_TRY(cli_out_text("}\n", err));
    return cli_out_flush(err);
}
