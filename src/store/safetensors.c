/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads and checks safetensors headers. All strings are decoded into one block as long as the header (a
 * decoded string with its NUL is shorter than its quoted form), the tensor table grows by doubling: nothing
 * is allocated by what the file claims, only by what is there.
 */
#include "store/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/file.h"
#include "store/json_scan.h"

typedef struct parser {
    pst_scan scan;
    pst_safetensors out;
    size_t text_used;
    size_t tensor_capacity, metadata_capacity;
    bool metadata_seen;
} parser;

char *pst_quote(const char *name, char out[PST_QUOTE_BYTES])
{
    size_t length = strlen(name), kept = length < PST_QUOTE_BYTES - 4 ? length : PST_QUOTE_BYTES - 4;
    while (kept < length && kept > 0 && ((unsigned char)name[kept] & 0xc0) == 0x80)
        kept--; /* not inside a character */
    for (size_t i = 0; i < kept; i++)
        out[i] = (unsigned char)name[i] < 0x20 || name[i] == 0x7f ? '?' : name[i];
    strcpy(out + kept, kept < length ? "..." : "");
    return out;
}

int pst_tensor_shape_bytes(pst_dtype dtype, const uint64_t *shape, uint32_t rank, uint64_t *out)
{
    uint64_t bits = 1;
    for (uint32_t i = 0; i < rank; i++)
        if (__builtin_mul_overflow(bits, shape[i], &bits))
            return PST_E_FORMAT;
    if (__builtin_mul_overflow(bits, (uint64_t)pst_dtype_bits(dtype), &bits) || bits % 8 != 0)
        return PST_E_FORMAT;
    *out = bits / 8;
    return 0;
}

int pst_safetensors_header_bytes(const void *prefix, uint64_t file_bytes, const char *path, uint64_t *out,
                                 pst_error *err)
{
    if (file_bytes < 8)
        return pst_fail(err, PST_E_FORMAT, path, "not a safetensors file: it has only %" PRIu64 " bytes", file_bytes);
    const unsigned char *bytes = prefix;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | bytes[i];
    if (n > PST_SAFETENSORS_MAX_HEADER)
        return pst_fail(err, PST_E_FORMAT, path,
                        "not a safetensors file: its header would have %" PRIu64 " bytes (the most is %" PRIu64 ")", n,
                        PST_SAFETENSORS_MAX_HEADER);
    if (n > file_bytes - 8)
        return pst_fail(err, PST_E_FORMAT, path,
                        "truncated: its header has %" PRIu64 " bytes, but the file has only %" PRIu64, n, file_bytes);
    *out = n;
    return 0;
}

/* Decodes the string that comes next into the text block. */
static int take_string(parser *p, const char **out)
{
    char *text = p->out.text + p->text_used;
    size_t length;
    PST_TRY(pst_scan_string(&p->scan, text, &length));
    p->text_used += length + 1;
    *out = text;
    return 0;
}

/* Makes room for one more element; element_bytes * capacity cannot overflow, the header is at most 100 MB
 * long. */
static int grow(parser *p, void *array_pointer, size_t count, size_t *capacity, size_t element_bytes)
{
    if (count < *capacity)
        return 0;
    void *array;
    memcpy(&array, array_pointer, sizeof array);
    size_t wanted = *capacity ? *capacity * 2 : 16;
    array = pst_heap_reallocarray(array, wanted, element_bytes);
    if (array == NULL)
        return pst_fail_memory(p->scan.err, "a table of tensors", wanted * element_bytes);
    memcpy(array_pointer, &array, sizeof array);
    *capacity = wanted;
    return 0;
}

static int parse_metadata(parser *p)
{
    pst_scan *scan = &p->scan;
    if (p->metadata_seen)
        return pst_fail(scan->err, PST_E_FORMAT, scan->path, "the header has \"__metadata__\" twice");
    p->metadata_seen = true;
    if (pst_scan_null(scan))
        return 0;
    PST_TRY(pst_scan_expect(scan, '{'));
    if (pst_scan_take(scan, '}'))
        return 0;
    do {
        PST_TRY(grow(p, &p->out.metadata, p->out.metadata_count, &p->metadata_capacity, sizeof(pst_metadata)));
        pst_metadata entry = {0};
        PST_TRY(take_string(p, &entry.key));
        PST_TRY(pst_scan_expect(scan, ':'));
        char quoted[PST_QUOTE_BYTES];
        if (!pst_scan_take(scan, '"'))
            return pst_fail(scan->err, PST_E_FORMAT, scan->path, "the value of metadata \"%s\" is not a string",
                            pst_quote(entry.key, quoted));
        scan->at--;
        PST_TRY(take_string(p, &entry.value));
        p->out.metadata[p->out.metadata_count++] = entry;
    } while (pst_scan_take(scan, ','));
    return pst_scan_expect(scan, '}');
}

static int fail_tensor(const parser *p, const pst_tensor *tensor, int code, const char *what)
{
    char quoted[PST_QUOTE_BYTES];
    return pst_fail(p->scan.err, code, p->scan.path, "tensor \"%s\" %s", pst_quote(tensor->name, quoted), what);
}

static int parse_dtype(parser *p, pst_tensor *tensor)
{
    const char *name;
    size_t used = p->text_used;
    PST_TRY(take_string(p, &name));
    p->text_used = used; /* needed no longer */
    char quoted[PST_QUOTE_BYTES], what[PST_QUOTE_BYTES + 40];
    if (pst_dtype_parse(name, &tensor->dtype) >= 0)
        return 0;
    snprintf(what, sizeof what, "has the unknown dtype \"%s\"", pst_quote(name, quoted));
    return fail_tensor(p, tensor, PST_E_FORMAT, what);
}

static int parse_shape(parser *p, pst_tensor *tensor)
{
    PST_TRY(pst_scan_expect(&p->scan, '['));
    tensor->rank = 0;
    if (pst_scan_take(&p->scan, ']'))
        return 0;
    do {
        if (tensor->rank == PST_MAX_RANK)
            return fail_tensor(p, tensor, PST_E_UNSUPPORTED, "has more than 8 dimensions");
        PST_TRY(pst_scan_u64(&p->scan, &tensor->shape[tensor->rank++]));
    } while (pst_scan_take(&p->scan, ','));
    return pst_scan_expect(&p->scan, ']');
}

static int parse_offsets(parser *p, pst_tensor *tensor)
{
    uint64_t begin, end;
    PST_TRY(pst_scan_expect(&p->scan, '['));
    PST_TRY(pst_scan_u64(&p->scan, &begin));
    PST_TRY(pst_scan_expect(&p->scan, ','));
    PST_TRY(pst_scan_u64(&p->scan, &end));
    PST_TRY(pst_scan_expect(&p->scan, ']'));
    if (end < begin)
        return fail_tensor(p, tensor, PST_E_FORMAT, "ends before it begins");
    tensor->offset = begin;
    tensor->bytes = end - begin;
    return 0;
}

/* One field of a tensor's entry; `seen` collects which have been there. */
static int parse_field(parser *p, pst_tensor *tensor, unsigned *seen)
{
    static const struct {
        const char *key;
        int (*parse)(parser *p, pst_tensor *tensor);
    } fields[] = {{"dtype", parse_dtype}, {"shape", parse_shape}, {"data_offsets", parse_offsets}};
    const char *key;
    size_t used = p->text_used;
    PST_TRY(take_string(p, &key));
    p->text_used = used; /* compared at once, before the block is used again */
    for (unsigned i = 0; i < 3; i++) {
        if (strcmp(key, fields[i].key) != 0)
            continue;
        if (*seen & 1u << i)
            return fail_tensor(p, tensor, PST_E_FORMAT, "has a field twice");
        *seen |= 1u << i;
        PST_TRY(pst_scan_expect(&p->scan, ':'));
        return fields[i].parse(p, tensor);
    }
    PST_TRY(pst_scan_expect(&p->scan, ':'));
    return pst_scan_skip(&p->scan); /* unknown fields are allowed, as in the reference reader */
}

static int parse_tensor(parser *p, const char *name)
{
    PST_TRY(grow(p, &p->out.tensors, p->out.count, &p->tensor_capacity, sizeof(pst_tensor)));
    pst_tensor tensor = {.name = name};
    unsigned seen = 0;
    if (!pst_scan_take(&p->scan, '{'))
        return fail_tensor(p, &tensor, PST_E_FORMAT, "is not described by an object");
    if (!pst_scan_take(&p->scan, '}')) {
        do
            PST_TRY(parse_field(p, &tensor, &seen));
        while (pst_scan_take(&p->scan, ','));
        PST_TRY(pst_scan_expect(&p->scan, '}'));
    }
    if (seen != 7)
        return fail_tensor(p, &tensor, PST_E_FORMAT, "lacks one of \"dtype\", \"shape\", \"data_offsets\"");
    uint64_t bytes;
    if (pst_tensor_shape_bytes(tensor.dtype, tensor.shape, tensor.rank, &bytes) < 0)
        return fail_tensor(p, &tensor, PST_E_FORMAT, "has a shape whose size is no whole number of bytes below 2^64");
    if (bytes != tensor.bytes) {
        char what[120];
        snprintf(what, sizeof what, "has %" PRIu64 " bytes by its offsets, %" PRIu64 " by its shape", tensor.bytes,
                 bytes);
        return fail_tensor(p, &tensor, PST_E_FORMAT, what);
    }
    p->out.tensors[p->out.count++] = tensor;
    return 0;
}

static int parse_entries(parser *p)
{
    pst_scan *scan = &p->scan;
    if (scan->bytes == 0 || scan->text[0] != '{')
        return pst_fail_at(scan->err, PST_E_FORMAT, scan->path, scan->file_offset,
                           "not a safetensors file: its header does not begin with '{'");
    PST_TRY(pst_scan_utf8(scan));
    PST_TRY(pst_scan_expect(scan, '{'));
    if (!pst_scan_take(scan, '}')) {
        do {
            const char *name;
            PST_TRY(take_string(p, &name));
            PST_TRY(pst_scan_expect(scan, ':'));
            PST_TRY(strcmp(name, "__metadata__") == 0 ? parse_metadata(p) : parse_tensor(p, name));
        } while (pst_scan_take(scan, ','));
        PST_TRY(pst_scan_expect(scan, '}'));
    }
    return pst_scan_end(scan);
}

static int compare_places(const void *left, const void *right)
{
    const pst_tensor *a = left, *b = right;
    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    if (a->bytes != b->bytes) /* empty ones first: they lie between two neighbours */
        return a->bytes < b->bytes ? -1 : 1;
    return strcmp(a->name, b->name);
}

static int compare_names(const void *left, const void *right)
{
    const char *const *a = left, *const *b = right;
    return strcmp(*a, *b);
}

/* Sorted by place, each tensor must begin where the one before ends, and the last must end with the file. */
static int check_places(parser *p, uint64_t file_bytes)
{
    pst_safetensors *out = &p->out;
    if (out->count > 1)
        qsort(out->tensors, out->count, sizeof *out->tensors, compare_places);
    uint64_t end = 0;
    for (size_t i = 0; i < out->count; i++) {
        pst_tensor *tensor = &out->tensors[i];
        if (tensor->offset != end) {
            char what[120];
            snprintf(what, sizeof what, "begins at %" PRIu64 " of the data, but the one before ends at %" PRIu64 ": %s",
                     tensor->offset, end, tensor->offset < end ? "they overlap" : "a hole");
            return fail_tensor(p, tensor, PST_E_FORMAT, what);
        }
        end += tensor->bytes; /* cannot overflow: it was read as a 64-bit number */
    }
    uint64_t there = file_bytes - out->data_begin;
    if (end != there)
        return pst_fail(p->scan.err, PST_E_FORMAT, p->scan.path,
                        "%s: its header describes %" PRIu64 " bytes of data, but it has %" PRIu64,
                        end > there ? "truncated" : "longer than it says", end, there);
    for (size_t i = 0; i < out->count; i++)
        out->tensors[i].offset += out->data_begin;
    out->data_bytes = end;
    return 0;
}

/* No tensor name and no metadata key may come twice. */
static int check_names(parser *p)
{
    pst_safetensors *out = &p->out;
    size_t count = out->count > out->metadata_count ? out->count : out->metadata_count;
    const char **names = pst_heap_reallocarray(NULL, count, sizeof *names);
    if (names == NULL)
        return pst_fail_memory(p->scan.err, "a list of names", count * sizeof *names);
    int status = 0;
    for (int metadata = 0; metadata < 2 && status == 0; metadata++) {
        count = metadata ? out->metadata_count : out->count;
        for (size_t i = 0; i < count; i++)
            names[i] = metadata ? out->metadata[i].key : out->tensors[i].name;
        qsort(names, count, sizeof *names, compare_names);
        char quoted[PST_QUOTE_BYTES];
        for (size_t i = 1; i < count && status == 0; i++)
            if (strcmp(names[i - 1], names[i]) == 0)
                status = pst_fail(p->scan.err, PST_E_FORMAT, p->scan.path, "the header has the %s \"%s\" twice",
                                  metadata ? "metadata key" : "tensor", pst_quote(names[i], quoted));
    }
    pst_heap_free(names);
    return status;
}

int pst_safetensors_parse(const char *header, size_t header_bytes, uint64_t file_bytes, const char *path,
                          pst_safetensors *out, pst_error *err)
{
    if (header_bytes > PST_SAFETENSORS_MAX_HEADER || file_bytes < 8 || header_bytes > file_bytes - 8)
        return pst_fail(err, PST_E_FORMAT, path, "a header of %zu bytes in a file of %" PRIu64, header_bytes,
                        file_bytes);
    parser p = {.scan = {.text = header, .bytes = header_bytes, .path = path, .file_offset = 8, .err = err}};
    p.out.data_begin = 8 + header_bytes;
    p.out.text = pst_heap_alloc(header_bytes + 1);
    if (p.out.text == NULL)
        return pst_fail_memory(err, "a safetensors header", header_bytes + 1);
    int status;
    PST_TRY_GOTO(failed, parse_entries(&p));
    PST_TRY_GOTO(failed, check_names(&p));
    PST_TRY_GOTO(failed, check_places(&p, file_bytes));
    *out = p.out;
    return 0;
failed:
    pst_safetensors_free(&p.out);
    return status;
}

void pst_safetensors_free(pst_safetensors *header)
{
    if (header == NULL)
        return;
    pst_heap_free(header->tensors);
    pst_heap_free(header->metadata);
    pst_heap_free(header->text);
    *header = (pst_safetensors){0};
}

int pst_safetensors_read(const char *path, pst_safetensors *out, pst_error *err)
{
    uint64_t file_bytes, header_bytes;
    unsigned char prefix[8] = {0};
    PST_TRY(pst_file_size(path, &file_bytes, err));
    if (file_bytes >= sizeof prefix)
        PST_TRY(pst_file_read_at(path, 0, prefix, sizeof prefix, err));
    PST_TRY(pst_safetensors_header_bytes(prefix, file_bytes, path, &header_bytes, err));
    char *header = pst_heap_alloc(header_bytes);
    if (header == NULL)
        return pst_fail_memory(err, "a safetensors header", header_bytes);
    int status = pst_file_read_at(path, sizeof prefix, header, header_bytes, err);
    if (status >= 0)
        status = pst_safetensors_parse(header, header_bytes, file_bytes, path, out, err);
    pst_heap_free(header);
    return status < 0 ? status : 0;
}
