/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Manifests are written in one way only. Reading takes the values out and writes them again: unless that gives the same
 * bytes, the file is refused. So the digest needs no place to be found at, and nothing can hide beside what is read.
 */
#include "store/manifest.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/json.h"
#include "os/file.h"
#include "store/json_scan.h"
#include "store/json_text.h"

enum { MAX_BYTES = 16 << 20, MAX_NAME_BYTES = 4096, VERSION = 1 };

#define FORMAT      "penstock-checkpoint"
#define DIGEST_TAIL "\"}\n" /* behind the digest's digits, which end the text */

static const char no_digest[] = "00000000000000000000000000000000";

/* ---- writing ---- */

static bool is_utf8(const char *text)
{
    const pst_scan scan = {.text = text, .bytes = strlen(text)};
    return pst_scan_utf8_length(&scan) == scan.bytes;
}

/* Relative, without empty parts, "." and "..". */
static bool is_name(const char *name)
{
    size_t bytes = strlen(name);
    if (bytes == 0 || bytes > MAX_NAME_BYTES || strcmp(name, PST_MANIFEST_NAME) == 0)
        return false;
    for (const char *part = name; part != NULL;) {
        const char *slash = strchr(part, '/');
        size_t length = slash != NULL ? (size_t)(slash - part) : strlen(part);
        if (length == 0 || (length <= 2 && strncmp(part, "..", length) == 0))
            return false;
        part = slash != NULL ? slash + 1 : NULL;
    }
    return true;
}

static bool is_digest(const char *digest)
{
    return strlen(digest) == PST_DIGEST_DIGITS && strspn(digest, "0123456789abcdef") == PST_DIGEST_DIGITS;
}

/* What is_name and the like refuse when written, they refuse when read. */
static int check_files(const pst_manifest *m, int code, const char *path, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    for (size_t i = 0; i < m->file_count; i++) {
        const pst_manifest_file *file = &m->files[i];
        pst_quote(file->name, quoted);
        if (!is_name(file->name))
            return pst_fail(err, code, path, "\"%s\" is no name of a file in a step", quoted);
        if (!is_utf8(file->name))
            return pst_fail(err, code, path, "the name of file \"%s\" is not UTF-8", quoted);
        if (i > 0 && strcmp(m->files[i - 1].name, file->name) >= 0)
            return pst_fail(err, code, path, "file \"%s\" is out of order, or there twice", quoted);
        if (file->bytes > INT64_MAX || !is_digest(file->digest))
            return pst_fail(err, code, path, "file \"%s\" has a size or digest that cannot be", quoted);
    }
    return 0;
}

static int check(const pst_manifest *m, int code, const char *path, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    if (m->step > INT64_MAX || m->ranks == 0)
        return pst_fail(err, code, path, "a step of that number or of no ranks cannot be");
    for (size_t i = 0; i < m->metadata_count; i++) {
        if (!is_utf8(m->metadata[i].key) || !is_utf8(m->metadata[i].value))
            return pst_fail(err, code, path, "the metadata \"%s\" is not UTF-8", pst_quote(m->metadata[i].key, quoted));
    }
    return check_files(m, code, path, err);
}

/* What is read has been checked for this by the JSON parser. */
static int check_keys(const pst_manifest *m, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    for (size_t i = 0; i < m->metadata_count; i++)
        for (size_t k = 0; k < i; k++)
            if (strcmp(m->metadata[k].key, m->metadata[i].key) == 0)
                return pst_fail(err, PST_E_USAGE, NULL, "the metadata \"%s\" are there twice",
                                pst_quote(m->metadata[i].key, quoted));
    return 0;
}

static void compose(const pst_manifest *m, pst_json_text *out)
{
    pst_json_text_add(out, "{\"format\": \"" FORMAT "\", \"version\": %d, \"step\": %" PRIu64 ", \"ranks\": %" PRIu32,
                      VERSION, m->step, m->ranks);
    pst_json_text_add(out, ",\n \"metadata\": {");
    for (size_t i = 0; i < m->metadata_count; i++) {
        pst_json_text_add(out, i > 0 ? ", " : "");
        pst_json_text_string(out, m->metadata[i].key);
        pst_json_text_add(out, ": ");
        pst_json_text_string(out, m->metadata[i].value);
    }
    pst_json_text_add(out, "},\n \"files\": [");
    for (size_t i = 0; i < m->file_count; i++) {
        const pst_manifest_file *file = &m->files[i];
        pst_json_text_add(out, "%s\n  {\"name\": ", i > 0 ? "," : "");
        pst_json_text_string(out, file->name);
        pst_json_text_add(out, ", \"bytes\": %" PRIu64 ", \"digest\": \"" PST_DIGESTS_KIND " %s\", \"covers\": \"%s\"}",
                          file->bytes, file->digest, file->covers_header ? "header" : "file");
    }
    pst_json_text_add(out, "],\n \"digest\": \"%s" DIGEST_TAIL, no_digest);
}

/* The text with its digest. */
static int make_text(const pst_manifest *m, pst_json_text *out, pst_error *err)
{
    pst_digest *digest = NULL;
    PST_TRY(pst_digest_create(&digest, err));
    compose(m, out);
    int status = out->failed ? pst_fail_memory(err, "a manifest", out->bytes) : 0;
    if (status >= 0) {
        pst_digest_begin(digest);
        pst_digest_add(digest, out->text, out->bytes);
        pst_digest_end(digest, out->text + out->bytes - strlen(DIGEST_TAIL) - PST_DIGEST_DIGITS);
    }
    pst_digest_destroy(digest);
    return status;
}

int pst_manifest_write(const pst_manifest *manifest, char **out, size_t *out_bytes, pst_error *err)
{
    PST_TRY(check(manifest, PST_E_USAGE, NULL, err));
    PST_TRY(check_keys(manifest, err));
    pst_json_text text = {0};
    int status = make_text(manifest, &text, err);
    if (status >= 0 && text.bytes > MAX_BYTES)
        status = pst_fail(err, PST_E_UNSUPPORTED, NULL, "too many files: the manifest of a step would have %zu bytes",
                          text.bytes);
    if (status < 0) {
        pst_json_text_free(&text);
        return status;
    }
    *out = text.text;
    *out_bytes = text.bytes;
    return 0;
}

/* ---- reading ---- */

static int parse_metadata(const json_t *metadata, pst_manifest *m, const char *path, pst_error *err)
{
    size_t count = json_object_size(metadata);
    m->metadata = pst_heap_calloc(count, sizeof *m->metadata);
    if (m->metadata == NULL)
        return pst_fail_memory(err, "a manifest", count * sizeof *m->metadata);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value)
    {
        if (!json_is_string(value))
            return pst_fail(err, PST_E_FORMAT, path, "its metadata are not all strings");
        m->metadata[m->metadata_count++] = (pst_metadata){.key = key, .value = json_string_value(value)};
    }
    return 0;
}

static int parse_file(const json_t *entry, pst_manifest_file *out, const char *path, pst_error *err)
{
    const char *digest, *covers;
    if (!json_is_object(entry))
        return pst_fail(err, PST_E_FORMAT, path, "an entry of \"files\" is not an object");
    PST_TRY(pst_json_string(entry, "name", true, &out->name, path, err));
    PST_TRY(pst_json_u64(entry, "bytes", true, 0, INT64_MAX, &out->bytes, path, err));
    PST_TRY(pst_json_string(entry, "digest", true, &digest, path, err));
    PST_TRY(pst_json_string(entry, "covers", true, &covers, path, err));
    size_t kind = strlen(PST_DIGESTS_KIND " ");
    if (strncmp(digest, PST_DIGESTS_KIND " ", kind) != 0 || !is_digest(digest + kind))
        return pst_fail(err, PST_E_FORMAT, path, "a digest is not \"" PST_DIGESTS_KIND "\" and its %d digits",
                        PST_DIGEST_DIGITS);
    memcpy(out->digest, digest + kind, sizeof out->digest);
    out->covers_header = strcmp(covers, "header") == 0;
    return 0;
}

static int parse_values(const json_t *document, pst_manifest *m, const char *path, pst_error *err)
{
    const char *format;
    uint64_t version, ranks;
    json_t *metadata, *files;
    if (!json_is_object(document))
        return pst_fail(err, PST_E_FORMAT, path, "is not a JSON object");
    PST_TRY(pst_json_string(document, "format", true, &format, path, err));
    if (strcmp(format, FORMAT) != 0)
        return pst_fail(err, PST_E_FORMAT, path, "is not of the format \"" FORMAT "\"");
    PST_TRY(pst_json_u64(document, "version", true, 0, INT64_MAX, &version, path, err));
    if (version != VERSION)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "is of version %" PRIu64 "; this program knows %d", version,
                        VERSION);
    PST_TRY(pst_json_u64(document, "step", true, 0, INT64_MAX, &m->step, path, err));
    PST_TRY(pst_json_u64(document, "ranks", true, 1, UINT32_MAX, &ranks, path, err));
    m->ranks = (uint32_t)ranks;
    PST_TRY(pst_json_object(document, "metadata", true, &metadata, path, err));
    PST_TRY(parse_metadata(metadata, m, path, err));
    PST_TRY(pst_json_array(document, "files", true, &files, path, err));
    size_t count = json_array_size(files);
    m->files = pst_heap_calloc(count, sizeof *m->files);
    if (m->files == NULL)
        return pst_fail_memory(err, "a manifest", count * sizeof *m->files);
    for (; m->file_count < count; m->file_count++)
        PST_TRY(parse_file(json_array_get(files, m->file_count), &m->files[m->file_count], path, err));
    return check(m, PST_E_FORMAT, path, err);
}

/* Whether the text is what these values are written as. */
static int compare(const pst_manifest *m, const char *text, size_t bytes, const char *path, pst_error *err)
{
    pst_json_text again = {0};
    int status = make_text(m, &again, err);
    if (status < 0) {
        pst_json_text_free(&again);
        return status;
    }
    size_t digest_at = again.bytes - strlen(DIGEST_TAIL) - PST_DIGEST_DIGITS;
    if (again.bytes != bytes || memcmp(again.text, text, digest_at) != 0)
        status = pst_fail(err, PST_E_FORMAT, path, "is not as a manifest is written: damaged, or changed by hand");
    else if (memcmp(again.text + digest_at, text + digest_at, bytes - digest_at) != 0)
        status = pst_fail(err, PST_E_FORMAT, path, "its digest does not fit: damaged, or changed by hand");
    pst_json_text_free(&again);
    return status;
}

int pst_manifest_parse(const char *text, size_t bytes, const char *path, pst_manifest *out, pst_error *err)
{
    pst_manifest m = {0};
    json_t *document = NULL;
    if (bytes > MAX_BYTES)
        return pst_fail(err, PST_E_FORMAT, path, "has %zu bytes, more than a manifest can have", bytes);
    PST_TRY(pst_json_parse(text, bytes, path, &document, err));
    m.owned = document;
    int status = parse_values(document, &m, path, err);
    if (status >= 0)
        status = compare(&m, text, bytes, path, err);
    if (status < 0) {
        pst_manifest_free(&m);
        return status;
    }
    *out = m;
    return 0;
}

int pst_manifest_read(const char *folder, pst_manifest *out, pst_error *err)
{
    char *path = pst_heap_printf("%s/%s", folder, PST_MANIFEST_NAME), *text = NULL;
    if (path == NULL)
        return pst_fail_memory(err, "a path", strlen(folder));
    size_t bytes;
    int status = pst_file_read_all(path, MAX_BYTES, &text, &bytes, err);
    if (status >= 0)
        status = pst_manifest_parse(text, bytes, path, out, err);
    pst_heap_free(text);
    pst_heap_free(path);
    return status;
}

void pst_manifest_free(pst_manifest *manifest)
{
    pst_heap_free(manifest->metadata);
    pst_heap_free(manifest->files);
    json_decref(manifest->owned);
    *manifest = (pst_manifest){0};
}
