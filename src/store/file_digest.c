/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Digests of files, found and computed again. What is found is checked for its form only: whether it is right is told
 * by computing it again.
 */
#include "store/file_digest.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "store/image.h"

enum { STRIDE = 1 + PST_DIGEST_DIGITS };

/* Offsets in the tables of a zip file (APPNOTE 4.3.9 and 4.3.12). */
enum { DESCRIPTOR_CRC = 4, ENTRY_CRC = 16, CRC_BYTES = 4 };

/* Text that need not be terminated. */
typedef struct piece {
    const char *text; /* NULL: none */
    size_t bytes;
} piece;

static piece whole(const char *text)
{
    return (piece){text, text != NULL ? strlen(text) : 0};
}

static bool is_digest(const char *text, size_t bytes)
{
    if (bytes != PST_DIGEST_DIGITS)
        return false;
    for (size_t i = 0; i < bytes; i++)
        if (!((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f')))
            return false;
    return true;
}

/* ---- finding ---- */

/* "xxh3-128", then for each range a space and its digits. */
static int find_ranges(piece text, size_t ranges, const char *path, pst_file_digests *out, pst_error *err)
{
    size_t kind = strlen(PST_DIGESTS_KIND);
    if (text.text == NULL)
        return 0;
    if (text.bytes < kind || memcmp(text.text, PST_DIGESTS_KIND, kind) != 0 ||
        (text.bytes > kind && text.text[kind] != ' ')) {
        char start[40], quoted[PST_QUOTE_BYTES];
        size_t kept = text.bytes < sizeof start - 1 ? text.bytes : sizeof start - 1;
        memcpy(start, text.text, kept);
        start[kept] = '\0';
        return pst_fail(err, PST_E_UNSUPPORTED, path, "has digests of another kind (\"%s\") than " PST_DIGESTS_KIND,
                        pst_quote(start, quoted));
    }
    const char *digits = text.text + kind;
    size_t rest = text.bytes - kind;
    bool fits = rest % STRIDE == 0 && rest / STRIDE == ranges;
    for (size_t i = 0; fits && i < ranges; i++)
        fits = digits[i * STRIDE] == ' ' && is_digest(digits + i * STRIDE + 1, PST_DIGEST_DIGITS);
    if (!fits)
        return pst_fail(err, PST_E_FORMAT, path, "its \"" PST_DIGESTS_KEY "\" are not one for each of %zu tensors",
                        ranges);
    out->digits = digits;
    out->count = ranges;
    return 0;
}

/* One more number of the list; false: the text is not of that form. */
static bool next_cut(const char *text, size_t bytes, size_t *at, uint64_t *out)
{
    uint64_t value = 0;
    size_t begin = *at;
    while (*at < bytes && text[*at] >= '0' && text[*at] <= '9') {
        unsigned digit = (unsigned)(text[(*at)++] - '0');
        if (__builtin_mul_overflow(value, (uint64_t)10, &value) || __builtin_add_overflow(value, digit, &value))
            return false;
    }
    size_t digits = *at - begin;
    if (digits == 0 || (digits > 1 && text[begin] == '0'))
        return false;
    if (*at < bytes && (text[(*at)++] != ' ' || *at == bytes))
        return false;
    *out = value;
    return true;
}

static int find_cuts(piece text, const char *path, pst_file_digests *out, pst_error *err)
{
    if (text.bytes == 0)
        return 0;
    size_t most = 1;
    for (size_t i = 0; i < text.bytes; i++)
        most += text.text[i] == ' ';
    uint64_t *cuts = pst_heap_reallocarray(NULL, most, sizeof *cuts);
    if (cuts == NULL)
        return pst_fail_memory(err, "a list of cuts", most * sizeof *cuts);
    size_t count = 0;
    for (size_t at = 0; at < text.bytes; count++)
        if (!next_cut(text.text, text.bytes, &at, &cuts[count]) || (count > 0 && cuts[count] <= cuts[count - 1])) {
            pst_heap_free(cuts);
            return pst_fail(err, PST_E_FORMAT, path, "its \"" PST_CUTS_KEY "\" are not rising offsets");
        }
    out->cuts = cuts;
    out->cut_count = count;
    return 0;
}

static int find_all(piece digests, piece cuts, piece own, size_t ranges, const char *path, pst_file_digests *out,
                    pst_error *err)
{
    pst_file_digests found = {0};
    if (own.text != NULL && !is_digest(own.text, own.bytes))
        return pst_fail(err, PST_E_FORMAT, path, "its \"" PST_FILE_DIGEST_KEY "\" is no digest");
    found.own = own.text;
    PST_TRY(find_ranges(digests, ranges, path, &found, err));
    PST_TRY(find_cuts(cuts, path, &found, err));
    *out = found;
    return 0;
}

/* One byte away from PST_FILE_DIGEST_KEY: another character, or a backslash that swallowed one. */
static bool nearly_own_key(const char *key)
{
    static const char wanted[] = PST_FILE_DIGEST_KEY;
    size_t length = strlen(key), whole_length = sizeof wanted - 1, same = 0, tail = 0;
    if (length > whole_length || length + 1 < whole_length || strcmp(key, wanted) == 0)
        return false;
    while (same < length && key[same] == wanted[same])
        same++;
    while (tail < length - same && key[length - 1 - tail] == wanted[whole_length - 1 - tail])
        tail++;
    return same + tail + 2 >= whole_length;
}

int pst_file_digests_of_store(const pst_store *store, uint32_t file, pst_file_digests *out, pst_error *err)
{
    pst_store_file_info info;
    pst_store_get_file(store, file, &info);
    const char *own = pst_store_metadata(store, file, PST_FILE_DIGEST_KEY);
    for (size_t i = 0; i < info.metadata && own == NULL; i++) {
        const char *key, *value;
        char quoted[PST_QUOTE_BYTES];
        pst_store_metadata_at(store, file, i, &key, &value);
        if (nearly_own_key(key) && is_digest(value, strlen(value)))
            return pst_fail(err, PST_E_FORMAT, info.path,
                            "damaged: it has a digest under the key \"%s\", which must have been \"" PST_FILE_DIGEST_KEY
                            "\"",
                            pst_quote(key, quoted));
    }
    return find_all(whole(pst_store_metadata(store, file, PST_DIGESTS_KEY)),
                    whole(pst_store_metadata(store, file, PST_CUTS_KEY)), whole(own), info.tensors, info.path, out,
                    err);
}

static const pst_zip_record *digests_record(const pst_torch_file *torch)
{
    for (size_t i = 0; i < torch->record_count; i++)
        if (strcmp(torch->records[i].name, PST_TORCH_DIGESTS_RECORD) == 0)
            return &torch->records[i];
    return NULL;
}

/* Lines "key value". */
static int find_lines(const char *text, piece found[3], const char *path, pst_error *err)
{
    static const char *const keys[] = {PST_DIGESTS_KEY, PST_CUTS_KEY, PST_FILE_DIGEST_KEY};
    while (*text != '\0') {
        size_t line = strcspn(text, "\n");
        bool known = false;
        for (int i = 0; i < 3 && text[line] == '\n' && !known; i++) {
            size_t key = strlen(keys[i]);
            known = found[i].text == NULL && line > key && strncmp(text, keys[i], key) == 0 && text[key] == ' ';
            if (known)
                found[i] = (piece){text + key + 1, line - key - 1};
        }
        if (!known)
            return pst_fail(err, PST_E_FORMAT, path,
                            "its record \"" PST_TORCH_DIGESTS_RECORD "\" has a line that is not one of the format's");
        text += line + 1;
    }
    return 0;
}

int pst_file_digests_of_torch(const pst_torch_file *torch, const char *path, pst_file_digests *out, pst_error *err)
{
    const pst_zip_record *record = digests_record(torch);
    size_t storages = 0;
    piece found[3] = {0};
    if (torch->digests == NULL || record == NULL) {
        *out = (pst_file_digests){0};
        return 0;
    }
    if (strlen(torch->digests) != record->bytes)
        return pst_fail_at(err, PST_E_FORMAT, path, record->offset,
                           "its record \"" PST_TORCH_DIGESTS_RECORD "\" is no text");
    for (size_t i = 0; i < torch->record_count; i++)
        storages += pst_zip_record_is_storage(&torch->records[i]);
    PST_TRY(find_lines(torch->digests, found, path, err));
    return find_all(found[0], found[1], found[2], storages, path, out, err);
}

void pst_file_digests_free(pst_file_digests *digests)
{
    if (digests == NULL)
        return;
    pst_heap_free(digests->cuts);
    *digests = (pst_file_digests){0};
}

const char *pst_file_digests_of(const pst_file_digests *digests, size_t range)
{
    return digests->digits + range * STRIDE + 1;
}

/* ---- ranges ---- */

struct pst_range_digest {
    pst_digest *run, *runs; /* of the bytes of a run; of the digests of the runs before it */
    const uint64_t *cuts;   /* those inside of the range */
    size_t cut_count;
    uint64_t at;
    bool is_cut;
};

int pst_range_digest_create(pst_range_digest **out, pst_error *err)
{
    pst_range_digest *digest = pst_heap_calloc(1, sizeof *digest);
    if (digest == NULL)
        return pst_fail_memory(err, "a digest", sizeof *digest);
    int status;
    PST_TRY_GOTO(failed, pst_digest_create(&digest->run, err));
    PST_TRY_GOTO(failed, pst_digest_create(&digest->runs, err));
    *out = digest;
    return 0;
failed:
    pst_range_digest_destroy(digest);
    return status;
}

void pst_range_digest_destroy(pst_range_digest *digest)
{
    if (digest == NULL)
        return;
    pst_digest_destroy(digest->run);
    pst_digest_destroy(digest->runs);
    pst_heap_free(digest);
}

/* How many of the cuts are below `limit`. */
static size_t cuts_below(const pst_file_digests *file, uint64_t limit)
{
    size_t low = 0, high = file->cut_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (file->cuts[middle] < limit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void pst_range_digest_begin(pst_range_digest *digest, const pst_file_digests *file, uint64_t offset, uint64_t bytes)
{
    size_t first = cuts_below(file, offset + 1), end = cuts_below(file, offset + bytes);
    digest->cuts = file->cuts != NULL ? file->cuts + first : NULL;
    digest->cut_count = end > first ? end - first : 0;
    digest->is_cut = digest->cut_count > 0;
    digest->at = offset;
    pst_digest_begin(digest->run);
    if (digest->is_cut)
        pst_digest_begin(digest->runs);
}

/* Ends a run: its digest is part of that of the range. */
static void end_run(pst_range_digest *digest)
{
    unsigned char value[PST_DIGEST_BYTES];
    pst_digest_value(digest->run, value);
    pst_digest_add(digest->runs, value, sizeof value);
}

void pst_range_digest_add(pst_range_digest *digest, const void *data, uint64_t bytes)
{
    const unsigned char *next = data;
    while (digest->cut_count > 0 && digest->cuts[0] - digest->at <= bytes) {
        uint64_t part = digest->cuts[0] - digest->at;
        pst_digest_add(digest->run, next, part);
        end_run(digest);
        pst_digest_begin(digest->run);
        next += part;
        bytes -= part;
        digest->at += part;
        digest->cuts++;
        digest->cut_count--;
    }
    pst_digest_add(digest->run, next, bytes);
    digest->at += bytes;
}

void pst_range_digest_end(pst_range_digest *digest, char *digits)
{
    if (!digest->is_cut) {
        pst_digest_end(digest->run, digits);
        return;
    }
    end_run(digest);
    pst_digest_end(digest->runs, digits);
}

/* ---- files ---- */

/* Where the digits of the file's own digest are in the text of a header: the one place where the key is a whole string
 * with a string after it. Inside of another string its quotes would have backslashes. */
static char *find_own(char *text, size_t bytes)
{
    static const char key[] = "\"" PST_FILE_DIGEST_KEY "\"";
    for (char *at = text; (at = memmem(at, bytes - (size_t)(at - text), key, sizeof key - 1)) != NULL; at++) {
        const char *end = text + bytes;
        char *next = at + sizeof key - 1;
        while (next < end && strchr(" \t\r\n:", *next) != NULL && *next != '\0')
            next++;
        if (end - next > PST_DIGEST_DIGITS + 1 && *next == '"' && (at == text || at[-1] != '\\') &&
            is_digest(next + 1, PST_DIGEST_DIGITS) && next[PST_DIGEST_DIGITS + 1] == '"')
            return next + 1;
    }
    return NULL;
}

int pst_file_own_digest_safetensors(pst_io *io, pst_io_file *file, uint64_t data_begin, char *digits, pst_error *err)
{
    const char *path = pst_io_file_path(file);
    if (data_begin > PST_SAFETENSORS_MAX_HEADER + 8 || data_begin > pst_io_file_bytes(file))
        return pst_fail(err, PST_E_FORMAT, path, "its header is longer than the file");
    char *text = pst_heap_alloc(data_begin);
    pst_digest *digest = NULL;
    int status;
    if (text == NULL)
        PST_TRY_GOTO(done, pst_fail_memory(err, "a header", data_begin));
    PST_TRY_GOTO(done, pst_digest_create(&digest, err));
    pst_io_op op = {.file = file, .buffer = text, .bytes = data_begin, .kind = PST_IO_READ};
    PST_TRY_GOTO(done, pst_io_transfer(io, &op, err));
    char *own = find_own(text, data_begin);
    if (own == NULL)
        PST_TRY_GOTO(done,
                     pst_fail(err, PST_E_FORMAT, path, "its \"" PST_FILE_DIGEST_KEY "\" is not written the plain way"));
    memset(own, '0', PST_DIGEST_DIGITS);
    pst_digest_begin(digest);
    pst_digest_add(digest, text, data_begin);
    pst_digest_end(digest, digits);
done:
    pst_digest_destroy(digest);
    pst_heap_free(text);
    return status < 0 ? status : 0;
}

bool pst_zip_record_is_storage(const pst_zip_record *record)
{
    return strncmp(record->name, "data/", strlen("data/")) == 0;
}

/* Bytes that count as others than they are: those that are filled in last. */
typedef struct patch {
    uint64_t offset, bytes;
    unsigned char as;
} patch;

typedef struct owning {
    pst_io_file *file;
    const pst_zip_record *records;
    size_t count, next; /* `next`: the record before which the bytes at `at` lie */
    uint64_t at, most;
    patch patches[3];
    pst_digest *digest;
} owning;

static int next_outside(void *user, pst_span *out, pst_error *err)
{
    owning *o = user;
    uint64_t file_bytes = pst_io_file_bytes(o->file);
    (void)err;
    for (;;) {
        while (o->next < o->count &&
               (!pst_zip_record_is_storage(&o->records[o->next]) || o->records[o->next].bytes == 0))
            o->next++;
        uint64_t end = o->next < o->count ? o->records[o->next].offset : file_bytes;
        if (o->at < end) {
            *out = (pst_span){.file = o->file, .offset = o->at, .bytes = pst_span_cut(o->at, end - o->at, o->most)};
            o->at += out->bytes;
            return 1;
        }
        if (o->next == o->count)
            return 0;
        o->at = pst_max(o->at, end + o->records[o->next].bytes);
        o->next++;
    }
}

static int take_outside(void *user, const pst_span *span, void *data, pst_error *err)
{
    owning *o = user;
    (void)err;
    for (size_t i = 0; i < sizeof o->patches / sizeof o->patches[0]; i++) {
        const patch *p = &o->patches[i];
        uint64_t begin = pst_max(p->offset, span->offset);
        uint64_t end = pst_min(p->offset + p->bytes, span->offset + span->bytes);
        if (begin < end)
            memset((unsigned char *)data + (begin - span->offset), p->as, end - begin);
    }
    pst_digest_add(o->digest, data, span->bytes);
    return 0;
}

int pst_file_own_digest_torch(pst_span_reader *reader, pst_io_file *file, const pst_torch_file *torch,
                              const pst_file_digests *digests, char *digits, pst_error *err)
{
    const pst_zip_record *home = digests_record(torch);
    if (home == NULL || digests->own == NULL)
        return pst_fail(err, PST_E_FORMAT, pst_io_file_path(file), "it has no digest of its own");
    uint64_t own = home->offset + (uint64_t)(digests->own - torch->digests);
    owning o = {.file = file,
                .records = torch->records,
                .count = torch->record_count,
                .most = pst_span_reader_most(reader),
                .patches = {{own, PST_DIGEST_DIGITS, '0'},
                            {home->offset + home->bytes + DESCRIPTOR_CRC, CRC_BYTES, 0},
                            {home->entry_offset + ENTRY_CRC, CRC_BYTES, 0}}};
    PST_TRY(pst_digest_create(&o.digest, err));
    pst_digest_begin(o.digest);
    const pst_span_user user = {.next = next_outside, .take = take_outside, .user = &o};
    int status = pst_span_reader_run(reader, &user, err);
    if (status >= 0)
        pst_digest_end(o.digest, digits);
    pst_digest_destroy(o.digest);
    return status;
}
