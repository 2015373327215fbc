/* SPDX-License-Identifier: Apache-2.0 */
/*
 * torch's zip file. Records in the order of torch.save: data.pkl, .format_version, .storage_alignment, byteorder, data/0 ...,
 * [.penstock/digests,] version, .data/serialization_id.
 *
 * Literals. What lies between two large contents (the pickle, storages, the digests) is a "link": the descriptor of the record
 * before, small records whole, the local header of the next. Links and the directory are put together when they are asked
 * for, since a million of them would take more memory than all else: a literal's number says what it is. In order:
 * the local header of data.pkl | the pickle | links | the digests | the last link | the directory, in pieces | the end.
 */
#include "store/image_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/heap.h"
#include "base/number.h"
#include "store/crc32.h"
#include "store/pickle_write.h"
#include "store/zip_write.h"

enum {
    SMALL_ALIGNMENT = 64,
    LARGE_STORAGE = 128 << 10, /* on average: padding of 2 KiB each is little then */
    MAX_NAME = 200,            /* torch's zip reader keeps names in 512 bytes */
    PIECE = 1024,              /* records of one literal of the directory */
    LINK_RECORDS = 256,        /* in one link, where many storages are empty */
    MAX_HEADS = 4,
    MAX_TAILS = 3,
    ID_DIGITS = 20, /* of each half of the serialization id */
    ID_BYTES = 2 * ID_DIGITS,
    FIRST_LINK = 2 /* number of that literal */
};

#define NONE UINT32_MAX

typedef struct record {
    uint64_t header_offset, bytes;
    const char *name;    /* within the folder; NULL: a storage that is named by its number */
    const void *content; /* NULL: a storage */
    uint32_t crc;        /* of a content */
} record;

typedef struct torch_state {
    char *folder;
    char *keys;          /* the storages' names, where the caller gave them */
    void *pickle;        /* made here */
    size_t pickle_bytes; /* of that, or of the caller's */
    record *records;     /* in order of the file */
    uint32_t *storages;  /* by tensor: the storage's number */
    uint32_t *owners;    /* by storage: its tensor */
    uint32_t *stops;     /* records that links lead to: data.pkl, storages, the digests; then record_count */
    uint32_t record_count, first_storage, storage_count, stop_count;
    uint32_t digests_record; /* NONE: there is none */
    uint32_t links;          /* stop_count - 1 */
    uint32_t alignment;
    char align_text[8], id[ID_BYTES + 1];
    char *digests; /* content of that record */
    size_t digests_bytes;
    uint64_t directory_offset, directory_bytes;
    unsigned char *scratch; /* of one literal */
    size_t scratch_bytes;
    uint32_t scratch_number; /* which one is there */
} torch_state;

/* ---- records ---- */

static bool is_storage(const torch_state *s, uint32_t index)
{
    return index - s->first_storage < s->storage_count; /* below it, the difference wraps around */
}

enum { NAME_ROOM = 24 };

/* Without its CRC. `room` holds the name of a storage that is named by its number. */
static pst_zip_entry entry_of(const torch_state *s, uint32_t index, char room[NAME_ROOM])
{
    const record *r = &s->records[index];
    if (r->name == NULL)
        snprintf(room, NAME_ROOM, "data/%" PRIu32, index - s->first_storage);
    return (pst_zip_entry){.folder = s->folder,
                           .name = r->name != NULL ? r->name : room,
                           .header_offset = r->header_offset,
                           .bytes = r->bytes};
}

/* With it, as far as it is known. */
static pst_zip_entry summed_entry(const pst_image *image, uint32_t index, char room[NAME_ROOM])
{
    const torch_state *s = image->state;
    pst_zip_entry entry = entry_of(s, index, room);
    uint32_t unit = index - s->first_storage;
    if (!is_storage(s, index))
        entry.crc = s->records[index].crc;
    else if (pst_image_unit_known(image, unit))
        entry.crc = pst_image_unit_crc(image, unit);
    return entry;
}

/* Puts a record at `offset`; returns where the next one's header comes. */
static uint64_t place(torch_state *s, uint32_t index, uint64_t offset)
{
    char room[NAME_ROOM];
    s->records[index].header_offset = offset;
    pst_zip_entry entry = entry_of(s, index, room);
    return pst_zip_data_offset(&entry, s->alignment) + entry.bytes + pst_zip_descriptor_bytes(&entry);
}

static uint64_t data_offset(const torch_state *s, uint32_t index)
{
    char room[NAME_ROOM];
    pst_zip_entry entry = entry_of(s, index, room);
    return pst_zip_data_offset(&entry, s->alignment);
}

static void add_record(torch_state *s, const char *name, const void *content, size_t bytes)
{
    s->records[s->record_count++] =
        (record){.bytes = bytes, .name = name, .content = content, .crc = pst_crc32(0, content, bytes)};
}

/* ---- literals ---- */

static size_t put_link(const pst_image *image, uint32_t from, uint32_t to, unsigned char *out)
{
    const torch_state *s = image->state;
    char room[NAME_ROOM];
    pst_zip_entry entry = summed_entry(image, from, room);
    size_t bytes = pst_zip_put_descriptor(&entry, out);
    for (uint32_t i = from + 1; i <= to && i < s->record_count; i++) {
        entry = summed_entry(image, i, room);
        bytes += pst_zip_put_local(&entry, s->alignment, out + bytes);
        if (i == to)
            break;
        if (entry.bytes > 0)
            memcpy(out + bytes, s->records[i].content, entry.bytes);
        bytes += entry.bytes;
        bytes += pst_zip_put_descriptor(&entry, out + bytes);
    }
    return bytes;
}

static size_t put_piece(const pst_image *image, uint32_t piece, unsigned char *out)
{
    const torch_state *s = image->state;
    size_t bytes = 0;
    char room[NAME_ROOM];
    for (uint32_t i = piece * PIECE; i < s->record_count && i / PIECE == piece; i++) {
        pst_zip_entry entry = summed_entry(image, i, room);
        bytes += pst_zip_put_directory(&entry, out + bytes);
    }
    return bytes;
}

typedef enum literal_kind { HEADER, PICKLE, LINK, DIGESTS, DIRECTORY, END } literal_kind;

/* What a literal's number means; *index: which link or piece of the directory. */
static literal_kind kind_of(const torch_state *s, uint32_t number, uint32_t *index)
{
    *index = 0;
    if (number < FIRST_LINK)
        return number == 0 ? HEADER : PICKLE;
    number -= FIRST_LINK;
    if (s->digests_record != NONE && number >= s->links - 1) {
        if (number == s->links - 1)
            return DIGESTS;
        number--; /* the last link comes behind them */
    }
    *index = number;
    if (number < s->links)
        return LINK;
    *index = number - s->links;
    return *index < (s->record_count + PIECE - 1) / PIECE ? DIRECTORY : END;
}

static const void *literal(pst_image *image, uint32_t number)
{
    torch_state *s = image->state;
    uint32_t index;
    literal_kind kind = kind_of(s, number, &index);
    if (kind == PICKLE)
        return s->records[0].content;
    if (kind == DIGESTS)
        return s->digests;
    if (s->scratch_number == number)
        return s->scratch;
    s->scratch_number = number;
    char room[NAME_ROOM];
    pst_zip_entry entry;
    switch (kind) {
    case HEADER:
        entry = summed_entry(image, 0, room);
        pst_zip_put_local(&entry, s->alignment, s->scratch);
        break;
    case LINK: put_link(image, s->stops[index], s->stops[index + 1], s->scratch); break;
    case DIRECTORY: put_piece(image, index, s->scratch); break;
    default: pst_zip_put_end(s->record_count, s->directory_offset, s->directory_bytes, s->scratch);
    }
    return s->scratch;
}

static bool record_known(const pst_image *image, uint32_t index)
{
    const torch_state *s = image->state;
    return is_storage(s, index) ? pst_image_unit_known(image, index - s->first_storage) : index < s->first_storage;
}

static bool is_final(const pst_image *image, uint32_t number)
{
    const torch_state *s = image->state;
    uint32_t index;
    switch (kind_of(s, number, &index)) {
    case DIGESTS: return false;
    case LINK: return index + 1 < s->links && record_known(image, s->stops[index]); /* the last holds the id */
    case DIRECTORY:
        for (uint32_t i = index * PIECE; i < s->record_count && i / PIECE == index; i++)
            if (!record_known(image, i))
                return false;
        return true;
    default: return true;
    }
}

/* ---- the end ---- */

/* Two halves of 20 digits as in torch: of the records' names, and of their CRCs in the order of the file. */
static void make_id(const pst_image *image, torch_state *s)
{
    uint64_t names = PST_HASH_START, contents = PST_HASH_START;
    char room[NAME_ROOM];
    for (uint32_t i = 0; i < s->first_storage + s->storage_count; i++) {
        pst_zip_entry entry = summed_entry(image, i, room);
        names = pst_hash(names, entry.name, strlen(entry.name) + 1);
        contents = pst_hash(contents, &entry.crc, sizeof entry.crc);
    }
    char digits[ID_BYTES + 1];
    snprintf(digits, sizeof digits, "%020" PRIu64 "%020" PRIu64, names, contents);
    memcpy(s->id, digits, ID_BYTES);
}

static int finish(pst_image *image, pst_error *err)
{
    (void)err;
    torch_state *s = image->state;
    make_id(image, s);
    record *id = &s->records[s->record_count - 1];
    id->crc = pst_crc32(0, s->id, ID_BYTES);
    s->scratch_number = NONE;
    if (s->digests_record == NONE)
        return 0;
    record *digests = &s->records[s->digests_record];
    char *own = s->digests + s->digests_bytes - 1 - PST_DIGEST_DIGITS; /* at the end, before a line feed */
    pst_image_put_digests(image, s->digests + sizeof PST_DIGESTS_KEY);
    memset(own, '0', PST_DIGEST_DIGITS);
    digests->crc = 0;
    pst_image_digest_literals(image);
    memcpy(own, image->file_digest, PST_DIGEST_DIGITS);
    digests->crc = pst_crc32(0, s->digests, s->digests_bytes);
    s->scratch_number = NONE;
    return 0;
}

static void free_state(void *state)
{
    torch_state *s = state;
    if (s == NULL)
        return;
    pst_heap_free(s->folder);
    pst_heap_free(s->keys);
    pst_heap_free(s->pickle);
    pst_heap_free(s->records);
    pst_heap_free(s->storages);
    pst_heap_free(s->owners);
    pst_heap_free(s->stops);
    pst_heap_free(s->digests);
    pst_heap_free(s->scratch);
    pst_heap_free(s);
}

static void sums_changed(pst_image *image)
{
    torch_state *s = image->state;
    s->scratch_number = NONE;
}

static const pst_image_format format = {.has_crc = true,
                                        .literal = literal,
                                        .is_final = is_final,
                                        .sums_changed = sums_changed,
                                        .finish = finish,
                                        .free = free_state};

/* ---- layout ---- */

/* A name that becomes part of a path when the file is extracted. */
static int check_path(const char *name, const char *what, pst_error *err)
{
    char quoted[PST_QUOTE_BYTES];
    bool fits = name[0] != '\0' && strlen(name) <= MAX_NAME && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
    for (const char *at = name; *at != '\0' && fits; at++)
        fits = (unsigned char)*at >= ' ' && *at != '/' && *at != '\\' && *at != ':' && *at != 0x7f;
    return fits ? 0
                : pst_fail(err, PST_E_USAGE, NULL, "%s cannot be named \"%s\" in a zip file", what,
                           pst_quote(name, quoted));
}

/* Which tensors have a storage of their own. */
static int find_storages(torch_state *s, const pst_tensor *tensors, size_t count, const pst_image_options *options,
                         pst_error *err)
{
    if (count > UINT32_MAX / 4)
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "too many tensors");
    s->storages = pst_heap_calloc(count, sizeof *s->storages);
    s->owners = pst_heap_calloc(count, sizeof *s->owners);
    if (s->storages == NULL || s->owners == NULL)
        return pst_fail_memory(err, "a table of storages", count * sizeof *s->storages);
    bool tied = options->pickle == NULL && options->same_as != NULL;
    for (size_t i = 0; i < count; i++) {
        size_t other = tied ? options->same_as[i] : i;
        if (other > i || (other < i && options->same_as[other] != other))
            return pst_fail(err, PST_E_USAGE, NULL, "a tensor shares the storage of one that has none");
        if (tensors[other].dtype == tensors[i].dtype && tensors[other].bytes == tensors[i].bytes && other < i) {
            s->storages[i] = s->storages[other];
        } else {
            s->storages[i] = s->storage_count;
            s->owners[s->storage_count++] = (uint32_t)i;
        }
    }
    return 0;
}

/* Copies the caller's keys. *in_order: they are "0", "1", ... */
static int copy_keys(torch_state *s, const pst_tensor *tensors, bool *in_order, pst_error *err)
{
    size_t bytes = 0;
    *in_order = true;
    for (uint32_t i = 0; i < s->storage_count; i++) {
        char number[16];
        PST_TRY(check_path(tensors[i].name, "a storage", err));
        snprintf(number, sizeof number, "%" PRIu32, i);
        *in_order = *in_order && strcmp(number, tensors[i].name) == 0;
        bytes += strlen("data/") + strlen(tensors[i].name) + 1;
    }
    if (*in_order)
        return 0;
    s->keys = pst_heap_alloc(bytes);
    if (s->keys == NULL)
        return pst_fail_memory(err, "names of storages", bytes);
    char *at = s->keys;
    for (uint32_t i = 0; i < s->storage_count; i++)
        at += sprintf(at, "data/%s", tensors[i].name) + 1;
    return 0;
}

static int make_records(torch_state *s, const pst_tensor *tensors, const pst_image_options *options, pst_error *err)
{
    bool in_order = true;
    if (options->pickle != NULL)
        PST_TRY(copy_keys(s, tensors, &in_order, err));
    s->records = pst_heap_calloc((size_t)s->storage_count + MAX_HEADS + MAX_TAILS, sizeof *s->records);
    if (s->records == NULL)
        return pst_fail_memory(err, "a table of records", s->storage_count * sizeof *s->records);
    uint64_t total = 0;
    for (uint32_t i = 0; i < s->storage_count; i++)
        total += tensors[s->owners[i]].bytes;
    s->alignment =
        s->storage_count > 0 && total / s->storage_count >= LARGE_STORAGE ? PST_IMAGE_ALIGNMENT : SMALL_ALIGNMENT;
    snprintf(s->align_text, sizeof s->align_text, "%" PRIu32, s->alignment);
    add_record(s, "data.pkl", options->pickle != NULL ? options->pickle : s->pickle, s->pickle_bytes);
    if (in_order) /* it says: the storages' offsets can be computed */
        add_record(s, ".format_version", "1", 1);
    add_record(s, ".storage_alignment", s->align_text, strlen(s->align_text));
    add_record(s, "byteorder", "little", 6);
    s->first_storage = s->record_count;
    const char *key = s->keys;
    for (uint32_t i = 0; i < s->storage_count; i++) {
        s->records[s->record_count++] = (record){.bytes = tensors[s->owners[i]].bytes, .name = key};
        key = key != NULL ? key + strlen(key) + 1 : NULL;
    }
    return 0;
}

static int make_stops(torch_state *s, bool digests, pst_error *err)
{
    s->stops = pst_heap_reallocarray(NULL, (size_t)s->storage_count + 3, sizeof *s->stops);
    if (s->stops == NULL)
        return pst_fail_memory(err, "a table of records", s->storage_count * sizeof *s->stops);
    s->stops[s->stop_count++] = 0;
    for (uint32_t i = 0; i < s->storage_count; i++)
        if (s->records[s->first_storage + i].bytes > 0 || i % LINK_RECORDS == LINK_RECORDS - 1)
            s->stops[s->stop_count++] = s->first_storage + i;
    s->digests_record = digests ? s->first_storage + s->storage_count : NONE;
    if (digests)
        s->stops[s->stop_count++] = s->digests_record;
    s->links = s->stop_count; /* the last one is added when all records are there */
    return 0;
}

/* The digests' record, with zeros in place of digests: its size depends on where the shares cut. */
static int make_digests(pst_image *image, torch_state *s, uint32_t shares, pst_error *err)
{
    size_t digests = pst_image_digests_bytes(image);
    size_t bytes = digests + pst_image_cuts_bytes(shares) + PST_DIGEST_DIGITS + 64 /* keys and ends of lines */;
    s->digests = pst_heap_alloc(bytes + 1);
    if (s->digests == NULL)
        return pst_fail_memory(err, "digests", bytes);
    char *at = stpcpy(s->digests, PST_DIGESTS_KEY " ");
    pst_image_put_digests(image, at);
    at = stpcpy(at + digests, "\n");
    char *line = at;
    at = stpcpy(at, PST_CUTS_KEY " ");
    size_t cuts = pst_image_put_cuts(image, at);
    at = cuts > 0 ? stpcpy(at + cuts, "\n") : line;
    at = stpcpy(at, PST_FILE_DIGEST_KEY " ");
    memset(at, '0', PST_DIGEST_DIGITS);
    at = stpcpy(at + PST_DIGEST_DIGITS, "\n");
    s->digests_bytes = (size_t)(at - s->digests);
    return 0;
}

static void add_literal(pst_image *image, torch_state *s, uint64_t bytes, bool on_demand)
{
    pst_image_add_literal(image, bytes);
    if (on_demand)
        s->scratch_bytes = pst_max(s->scratch_bytes, bytes);
}

/* All up to the header of the last stop: pickle, storages, links between them. */
static void add_storages(pst_image *image, torch_state *s)
{
    add_literal(image, s, data_offset(s, 0), true);
    add_literal(image, s, s->records[0].bytes, false);
    uint32_t unit = 0;
    for (uint32_t i = 1; i < s->stop_count; i++) {
        uint32_t stop = s->stops[i];
        add_literal(image, s, data_offset(s, stop) - image->file_bytes, true);
        for (; unit < s->storage_count && s->first_storage + unit <= stop; unit++) /* empty ones before it, too */
            pst_image_add_unit(image, s->owners[unit], s->records[s->first_storage + unit].bytes);
    }
    for (; unit < s->storage_count; unit++)
        pst_image_add_unit(image, s->owners[unit], 0);
}

/* The last records and the directory. */
static int add_tail(pst_image *image, torch_state *s, uint64_t offset, pst_error *err)
{
    if (s->digests_record != NONE) {
        PST_TRY(make_digests(image, s, image->share_count, err));
        s->records[s->digests_record].bytes = s->digests_bytes;
        s->records[s->digests_record].content = s->digests;
        offset = place(s, s->digests_record, s->records[s->digests_record].header_offset);
        add_literal(image, s, s->digests_bytes, false);
    }
    memset(s->id, '0', ID_BYTES);
    uint32_t first = s->record_count;
    add_record(s, "version", "3\n", 2);
    add_record(s, ".data/serialization_id", s->id, ID_BYTES);
    for (uint32_t i = first; i < s->record_count; i++)
        offset = place(s, i, offset);
    s->stops[s->stop_count++] = s->record_count;
    add_literal(image, s, offset - image->file_bytes, true);
    s->directory_offset = offset;
    char room[NAME_ROOM];
    for (uint32_t i = 0; i < s->record_count;) {
        size_t bytes = 0;
        do {
            pst_zip_entry entry = entry_of(s, i, room);
            bytes += pst_zip_directory_bytes(&entry);
        } while (++i < s->record_count && i % PIECE != 0);
        add_literal(image, s, bytes, true);
        s->directory_bytes += bytes;
    }
    add_literal(image, s, pst_zip_put_end(s->record_count, s->directory_offset, s->directory_bytes, NULL), true);
    s->scratch = pst_heap_alloc(s->scratch_bytes);
    s->scratch_number = NONE;
    return s->scratch != NULL ? 0 : pst_fail_memory(err, "an image", s->scratch_bytes);
}

/* All that is known before the shares' borders are. */
static int plan(torch_state *s, pst_tensor *tensors, size_t count, const pst_image_options *options, pst_error *err)
{
    const char *folder = options->archive_name != NULL ? options->archive_name : "archive";
    PST_TRY(check_path(folder, "the folder of a checkpoint", err));
    PST_TRY(pst_image_check_names(tensors, count, options->pickle != NULL ? "storage" : "tensor", err));
    PST_TRY(pst_image_measure(tensors, count, err));
    PST_TRY(find_storages(s, tensors, count, options, err));
    s->folder = pst_heap_strdup(folder);
    if (s->folder == NULL)
        return pst_fail_memory(err, "a name", strlen(folder));
    s->pickle_bytes = options->pickle_bytes;
    if (options->pickle == NULL)
        PST_TRY(pst_pickle_tensors(tensors, count, s->storages, &s->pickle, &s->pickle_bytes, err));
    if (s->pickle_bytes == 0)
        return pst_fail(err, PST_E_USAGE, NULL, "a checkpoint with an empty pickle");
    PST_TRY(make_records(s, tensors, options, err));
    return make_stops(s, options->digests, err);
}

static int build(torch_state *s, const pst_image_options *options, pst_image **out, pst_error *err)
{
    uint64_t offset = 0;
    uint32_t heads = s->record_count;
    for (uint32_t i = 0; i < heads; i++)
        offset = place(s, i, offset);
    if (s->digests_record != NONE)
        s->records[s->digests_record] = (record){.header_offset = offset, .name = ".penstock/digests", .content = ""};
    s->record_count += s->digests_record != NONE;
    size_t stretches = 2 * (size_t)heads + MAX_TAILS + heads / PIECE + 8;
    int status = pst_image_begin(&format, options, offset, stretches, s->storage_count, out, err);
    if (status < 0)
        return status;
    (*out)->state = s;
    add_storages(*out, s);
    return add_tail(*out, s, offset, err);
}

int pst_image_torch(pst_tensor *tensors, size_t count, const pst_image_options *options, pst_image **out,
                    pst_error *err)
{
    pst_image *image = NULL;
    torch_state *s = pst_heap_calloc(1, sizeof *s);
    if (s == NULL)
        return pst_fail_memory(err, "an image", sizeof *s);
    int status = plan(s, tensors, count, options, err);
    if (status == 0)
        status = build(s, options, &image, err);
    if (status < 0) {
        if (image == NULL || image->state == NULL)
            free_state(s);
        pst_image_destroy(image);
        return status;
    }
    for (size_t i = 0; i < count; i++)
        tensors[i].offset = data_offset(s, s->first_storage + s->storages[i]);
    *out = image;
    return 0;
}
