/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A safetensors file: one literal, the header, then the tensors in the order given. The data begins at a multiple of
 * PST_IMAGE_ALIGNMENT, so the header ends with spaces. Where the shares cut depends on where the data begins, so there is room
 * for as many cuts as there can be, and what is not needed becomes spaces, too.
 */
#include "store/image_internal.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "store/json_text.h"

typedef struct safetensors_state {
    pst_json_text header; /* with the 8 bytes of its length */
    size_t digests_at, file_digest_at;
} safetensors_state;

static const void *literal(pst_image *image, uint32_t number)
{
    const safetensors_state *s = image->state;
    (void)number;
    return s->header.text;
}

static bool is_final(const pst_image *image, uint32_t number)
{
    (void)number;
    return !image->digests;
}

static int finish(pst_image *image, pst_error *err)
{
    (void)err;
    safetensors_state *s = image->state;
    if (!image->digests)
        return 0;
    pst_image_put_digests(image, s->header.text + s->digests_at);
    char *own = s->header.text + s->file_digest_at;
    memset(own, '0', PST_DIGEST_DIGITS);
    pst_image_digest_literals(image);
    memcpy(own, image->file_digest, PST_DIGEST_DIGITS);
    return 0;
}

static void free_state(void *state)
{
    safetensors_state *s = state;
    if (s == NULL)
        return;
    pst_json_text_free(&s->header);
    pst_heap_free(s);
}

static const pst_image_format format = {.literal = literal, .is_final = is_final, .finish = finish, .free = free_state};

/* ---- checks ---- */

static int check_metadata(const pst_image_options *options, pst_error *err)
{
    static const char *const own[] = {PST_DIGESTS_KEY, PST_CUTS_KEY, PST_FILE_DIGEST_KEY};
    char quoted[PST_QUOTE_BYTES];
    pst_tensor *keys = pst_heap_calloc(options->metadata_count, sizeof *keys); /* they are names like others */
    pst_tensor *values = pst_heap_calloc(1, sizeof *values);
    int status = keys != NULL && values != NULL ? 0 : pst_fail_memory(err, "metadata", sizeof *keys);
    for (size_t i = 0; i < options->metadata_count && status == 0; i++) {
        const pst_metadata *entry = &options->metadata[i];
        keys[i].name = entry->key;
        values->name = entry->value;
        for (size_t k = 0; k < sizeof own / sizeof own[0] && status == 0; k++)
            if (strcmp(entry->key, own[k]) == 0)
                status =
                    pst_fail(err, PST_E_USAGE, NULL, "the metadata key \"%s\" is taken", pst_quote(entry->key, quoted));
        if (status == 0)
            status = pst_image_check_names(values, 1, "metadata value", err);
    }
    if (status == 0)
        status = pst_image_check_names(keys, options->metadata_count, "metadata key", err);
    pst_heap_free(keys);
    pst_heap_free(values);
    return status;
}

static int check_tensors(const pst_tensor *tensors, size_t count, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    for (size_t i = 0; i < count; i++) {
        pst_dtype known;
        if (strcmp(tensors[i].name, "__metadata__") == 0)
            return pst_fail(err, PST_E_USAGE, NULL, "a tensor cannot be named \"__metadata__\"");
        if (pst_dtype_parse(pst_dtype_name(tensors[i].dtype), &known) < 0)
            return pst_fail(err, PST_E_UNSUPPORTED, NULL,
                            "tensor \"%s\" is of type %s, which safetensors files do not have",
                            pst_quote(tensors[i].name, quoted), pst_dtype_name(tensors[i].dtype));
    }
    return pst_image_check_names(tensors, count, "tensor", err);
}

/* ---- the header ---- */

static void add_key(pst_json_text *text, const char *key, bool first)
{
    pst_json_text_add(text, first ? "" : ",");
    pst_json_text_string(text, key);
    pst_json_text_add(text, ":");
}

/* cuts: the value of PST_CUTS_KEY, "" for none. */
static void add_metadata(safetensors_state *s, const pst_image_options *options, const char *cuts, size_t count)
{
    static const char zeros[1 + PST_DIGEST_DIGITS + 1] = " 00000000000000000000000000000000";
    pst_json_text *text = &s->header;
    pst_json_text_add(text, "\"__metadata__\":{");
    for (size_t i = 0; i < options->metadata_count; i++) {
        add_key(text, options->metadata[i].key, i == 0);
        pst_json_text_string(text, options->metadata[i].value);
    }
    if (options->digests) {
        add_key(text, PST_DIGESTS_KEY, options->metadata_count == 0);
        s->digests_at = text->bytes + 1;
        pst_json_text_add(text, "\"" PST_DIGESTS_KIND);
        for (size_t i = 0; i < count; i++)
            pst_json_text_bytes(text, zeros, 1 + PST_DIGEST_DIGITS);
        pst_json_text_add(text, "\"");
        if (cuts[0] != '\0') {
            add_key(text, PST_CUTS_KEY, false);
            pst_json_text_string(text, cuts);
        }
        add_key(text, PST_FILE_DIGEST_KEY, false);
        s->file_digest_at = text->bytes + 1;
        pst_json_text_string(text, zeros + 1);
    }
    pst_json_text_add(text, "}");
}

static void write_header(safetensors_state *s, const pst_tensor *tensors, size_t count,
                         const pst_image_options *options, const char *cuts)
{
    pst_json_text *text = &s->header;
    text->bytes = 0;
    pst_json_text_add(text, "%8s{", ""); /* the length comes here */
    bool metadata = options->metadata_count > 0 || options->digests;
    if (metadata)
        add_metadata(s, options, cuts, count);
    uint64_t begin = 0;
    for (size_t i = 0; i < count; i++) {
        add_key(text, tensors[i].name, i == 0 && !metadata);
        pst_json_text_add(text, "{\"dtype\":\"%s\",\"shape\":[", pst_dtype_name(tensors[i].dtype));
        for (uint32_t d = 0; d < tensors[i].rank; d++)
            pst_json_text_add(text, d ? ",%" PRIu64 : "%" PRIu64, tensors[i].shape[d]);
        pst_json_text_add(text, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", begin, begin + tensors[i].bytes);
        begin += tensors[i].bytes;
    }
    pst_json_text_add(text, "}");
}

/* Up to header_bytes, with the length in front. */
static void close_header(pst_json_text *text, size_t header_bytes)
{
    static const char spaces[] = "                                                                ";
    while (text->bytes < header_bytes && !text->failed)
        pst_json_text_bytes(text, spaces, pst_min(header_bytes - text->bytes, sizeof spaces - 1));
    for (int i = 0; i < 8 && !text->failed; i++)
        text->text[i] = (char)((uint64_t)(header_bytes - 8) >> 8 * i);
}

/* The header is written without cuts to know its size, and, where there are cuts, once more with them. */
static int build(safetensors_state *s, const pst_tensor *tensors, size_t count, const pst_image_options *options,
                 pst_image **out, pst_error *err)
{
    uint64_t data_bytes = 0;
    for (size_t i = 0; i < count; i++)
        data_bytes += tensors[i].bytes;
    write_header(s, tensors, count, options, "");
    uint32_t shares = (uint32_t)pst_min(options->shares, PST_IMAGE_MAX_SHARES); /* more are refused below */
    size_t room = options->digests && shares > 1 ? pst_image_cuts_bytes(shares) + 32 : 0;
    size_t header_bytes = pst_round_up(s->header.bytes + room, PST_IMAGE_ALIGNMENT);
    if (s->header.failed)
        return pst_fail_memory(err, "a safetensors header", header_bytes);
    if (header_bytes - 8 > PST_SAFETENSORS_MAX_HEADER)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "too many tensors: the header would have %zu bytes",
                        header_bytes - 8);
    PST_TRY(pst_image_begin(&format, options, header_bytes + data_bytes, count + 1, count, out, err));
    (*out)->state = s;
    pst_image_add_literal(*out, header_bytes);
    for (size_t i = 0; i < count; i++)
        pst_image_add_unit(*out, i, tensors[i].bytes);
    char *cuts = pst_heap_calloc(1, pst_image_cuts_bytes((*out)->share_count) + 1);
    if (cuts == NULL)
        return pst_fail_memory(err, "a safetensors header", header_bytes);
    if (room > 0 && pst_image_put_cuts(*out, cuts) > 0)
        write_header(s, tensors, count, options, cuts);
    pst_heap_free(cuts);
    close_header(&s->header, header_bytes);
    return s->header.failed ? pst_fail_memory(err, "a safetensors header", header_bytes) : 0;
}

int pst_image_safetensors(pst_tensor *tensors, size_t count, const pst_image_options *options, pst_image **out,
                          pst_error *err)
{
    PST_TRY(pst_image_measure(tensors, count, err));
    PST_TRY(check_metadata(options, err));
    PST_TRY(check_tensors(tensors, count, err));
    pst_image *image = NULL;
    safetensors_state *s = pst_heap_calloc(1, sizeof *s);
    if (s == NULL)
        return pst_fail_memory(err, "an image", sizeof *s);
    int status = build(s, tensors, count, options, &image, err);
    if (status < 0) {
        if (image == NULL || image->state == NULL)
            free_state(s);
        pst_image_destroy(image);
        return status;
    }
    uint64_t offset = s->header.bytes;
    for (size_t i = 0; i < count; i++) {
        tensors[i].offset = offset;
        offset += tensors[i].bytes;
    }
    *out = image;
    return 0;
}
