/* SPDX-License-Identifier: Apache-2.0 */
/* What checkpoint files are made of: put together from any shares in any order, they are what their formats demand. */
#include "image_sample.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/mman.h>

#include "base/number.h"
#include "store/safetensors.h"
#include "support/zip_check.h"

static pst_image *make(bool torch, pst_tensor *tensors, size_t count, const pst_image_options *options)
{
    pst_image *image;
    pst_error err = {0};
    if ((torch ? pst_image_torch : pst_image_safetensors)(tensors, count, options, &image, &err) < 0)
        fail_msg("%s", err.message);
    return image;
}

/* ---- CRCs ---- */

static void test_crc(void **state)
{
    (void)state;
    random_start("CRC-32");
    assert_int_equal(pst_crc32(0, "123456789", 9), 0xcbf43926); /* the value that every description gives */
    assert_int_equal(pst_crc32(0, NULL, 0), 0);
    unsigned char data[5000];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)random_below(256);
    for (int round = 0; round < 200; round++) {
        size_t bytes = random_below(sizeof data + 1), cut = random_below(bytes + 1);
        uint32_t whole = zip_crc(data, bytes);
        uint32_t a = pst_crc32(0, data, cut), b = pst_crc32(0, data + cut, bytes - cut);
        assert_int_equal(pst_crc32(a, data + cut, bytes - cut), whole);
        assert_int_equal(pst_crc32_join(a, b, bytes - cut), whole);
    }
    /* Lengths that nobody can try: B of zeros, cut anywhere, must give the same. */
    for (int round = 0; round < 100; round++) {
        uint64_t left = pst_random_next(&random_state) >> (1 + random_below(63)), right = random_below(left + 1);
        uint32_t a = (uint32_t)pst_random_next(&random_state), b = (uint32_t)pst_random_next(&random_state),
                 c = (uint32_t)pst_random_next(&random_state);
        left -= right; /* |B| and |C| */
        assert_int_equal(pst_crc32_join(pst_crc32_join(a, b, left), c, right),
                         pst_crc32_join(a, pst_crc32_join(b, c, right), left + right));
    }
}

/* ---- safetensors ---- */

static const char *metadata_of(const pst_safetensors *header, const char *key)
{
    for (size_t i = 0; i < header->metadata_count; i++)
        if (strcmp(header->metadata[i].key, key) == 0)
            return header->metadata[i].value;
    return NULL;
}

/* The offsets where tensors are cut, as text. */
static void expected_cuts(const pst_image *image, char text[2048])
{
    size_t count, at = 0;
    const pst_image_part *parts = pst_image_parts(image, &count);
    text[0] = '\0';
    for (size_t i = 0; i < count; i++)
        if (parts[i].tensor != PST_IMAGE_LITERAL && parts[i].from > 0)
            at += (size_t)sprintf(text + at, "%s%" PRIu64, at ? " " : "", parts[i].offset);
}

static void check_safetensors(const pst_image *image, const image_sample *s, unsigned char *file, bool digests)
{
    pst_safetensors header;
    pst_error err = {0};
    uint64_t n;
    assert_int_equal(pst_safetensors_header_bytes(file, pst_image_file_bytes(image), "test", &n, &err), 0);
    if (pst_safetensors_parse((char *)file + 8, n, pst_image_file_bytes(image), "test", &header, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(header.count, s->count);
    assert_int_equal(header.data_begin % PST_IMAGE_ALIGNMENT, 0);
    assert_string_equal(metadata_of(&header, "format"), "pt");
    for (size_t i = 0; i < s->count; i++) {
        const pst_tensor *want = &s->tensors[i], *got = NULL;
        for (size_t k = 0; k < s->count && got == NULL; k++)
            got = strcmp(header.tensors[k].name, want->name) == 0 ? &header.tensors[k] : NULL;
        assert_non_null(got);
        assert_int_equal(got->dtype, want->dtype);
        assert_int_equal(got->rank, want->rank);
        assert_memory_equal(got->shape, want->shape, want->rank * sizeof *want->shape);
        assert_int_equal(got->offset, want->offset);
        for (uint64_t b = 0; b < got->bytes; b++)
            assert_int_equal(file[got->offset + b], sample_byte(i, b));
    }
    const char *list = metadata_of(&header, PST_DIGESTS_KEY), *own = metadata_of(&header, PST_FILE_DIGEST_KEY);
    char cuts[2048], digits[PST_DIGEST_DIGITS + 1];
    expected_cuts(image, cuts);
    if (!digests) {
        assert_true(list == NULL && own == NULL && pst_image_file_digest(image) == NULL);
        pst_safetensors_free(&header);
        return;
    }
    assert_string_equal(metadata_of(&header, PST_CUTS_KEY) ? metadata_of(&header, PST_CUTS_KEY) : "", cuts);
    assert_memory_equal(list, PST_DIGESTS_KIND, strlen(PST_DIGESTS_KIND));
    list += strlen(PST_DIGESTS_KIND);
    assert_int_equal(strlen(list), s->count * (1 + PST_DIGEST_DIGITS));
    for (size_t k = 0; k < s->count; k++) { /* in the order of the data */
        size_t i = 0;
        while (strcmp(s->tensors[i].name, header.tensors[k].name) != 0)
            i++;
        sample_digest(image, i, digits);
        assert_int_equal(list[0], ' ');
        assert_memory_equal(list + 1, digits, PST_DIGEST_DIGITS);
        list += 1 + PST_DIGEST_DIGITS;
    }
    assert_memory_equal(own, pst_image_file_digest(image), PST_DIGEST_DIGITS);
    unsigned char *at = memmem(file, header.data_begin, own, PST_DIGEST_DIGITS);
    assert_non_null(at);
    memset(at, '0', PST_DIGEST_DIGITS);
    pst_image_sums sums;
    sample_sums(file, header.data_begin, &sums);
    pst_digest_spell(sums.digest, digits);
    assert_memory_equal(own, digits, PST_DIGEST_DIGITS);
    pst_safetensors_free(&header);
}

static void test_safetensors(void **state)
{
    (void)state;
    random_start("safetensors images");
    for (int round = 0; round < 60; round++) {
        image_sample s;
        sample_make(&s, false, 3000);
        const pst_metadata metadata[] = {{"format", "pt"}, {"with \"quotes\"\n", "\x01\x1f\xe2\x82\xac"}};
        uint32_t shares = (uint32_t)(random_below(3) == 0 ? 0 : 1 + random_below(60));
        pst_image_options options = {
            .metadata = metadata, .metadata_count = 2, .digests = random_below(4) > 0, .shares = shares};
        pst_image *image = make(false, s.tensors, s.count, &options);
        sample_check_parts(image, shares ? shares : 1);
        unsigned char *file = sample_assemble(image);
        check_safetensors(image, &s, file, options.digests);
        free(file);
        pst_image_destroy(image);
    }
}

/* ---- torch ---- */

static const zip_record *find_record(const zip_record *records, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(strchr(records[i].name, '/') + 1, name) == 0)
            return &records[i];
    return NULL;
}

static void check_content(const unsigned char *file, const zip_record *r, const char *content)
{
    assert_non_null(r);
    assert_int_equal(r->bytes, strlen(content));
    assert_memory_equal(file + r->offset, content, r->bytes);
}

/* All bytes that are no storage's, with the digest itself and its CRCs as zeros. */
static void check_file_digest(const pst_image *image, unsigned char *file, uint64_t bytes, const zip_record *records,
                              size_t count)
{
    const zip_record *own = find_record(records, count, ".penstock/digests");
    unsigned char *digits = file + own->offset + own->bytes - 1 - PST_DIGEST_DIGITS;
    char expected[PST_DIGEST_DIGITS];
    assert_memory_equal(digits, pst_image_file_digest(image), PST_DIGEST_DIGITS);
    memset(digits, '0', PST_DIGEST_DIGITS);
    for (int i = 0; i < 2; i++)
        memset(file + own->crc_at[i], 0, 4);
    pst_digest *digest;
    assert_int_equal(pst_digest_create(&digest, NULL), 0);
    pst_digest_begin(digest);
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++)
        if (strstr(records[i].name, "/data/") != NULL) {
            pst_digest_add(digest, file + at, records[i].offset - at);
            at = records[i].offset + records[i].bytes;
        }
    pst_digest_add(digest, file + at, bytes - at);
    pst_digest_end(digest, expected);
    pst_digest_destroy(digest);
    assert_memory_equal(expected, pst_image_file_digest(image), PST_DIGEST_DIGITS);
}

static void check_digests(const pst_image *image, const image_sample *s, unsigned char *file, const zip_record *records,
                          size_t count)
{
    char *expected = calloc(1, 8192), *at = expected, cuts[2048];
    assert_non_null(expected);
    at = stpcpy(at, PST_DIGESTS_KEY " " PST_DIGESTS_KIND);
    for (size_t i = 0; i < s->count; i++)
        if (s->same_as[i] == i) {
            *at++ = ' ';
            sample_digest(image, i, at);
            at += PST_DIGEST_DIGITS;
        }
    expected_cuts(image, cuts);
    at +=
        sprintf(at, cuts[0] ? "\n" PST_CUTS_KEY " %s\n" PST_FILE_DIGEST_KEY " " : "\n%s" PST_FILE_DIGEST_KEY " ", cuts);
    memcpy(at, pst_image_file_digest(image), PST_DIGEST_DIGITS);
    strcpy(at + PST_DIGEST_DIGITS, "\n");
    check_content(file, find_record(records, count, ".penstock/digests"), expected);
    free(expected);
    check_file_digest(image, file, pst_image_file_bytes(image), records, count);
}

static void check_torch(const pst_image *image, const image_sample *s, unsigned char *file, const char *folder,
                        bool digests)
{
    size_t count, storage = 0;
    zip_record *records = zip_read(file, pst_image_file_bytes(image), 64, &count);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(zip_crc(file + records[i].offset, records[i].bytes), records[i].crc);
        assert_memory_equal(records[i].name, folder, strlen(folder));
        assert_int_equal(records[i].name[strlen(folder)], '/');
    }
    assert_string_equal(strchr(records[0].name, '/'), "/data.pkl");
    assert_memory_equal(file + records[0].offset, "\x80\x02}", 3);
    assert_int_equal(file[records[0].offset + records[0].bytes - 1], '.');
    check_content(file, find_record(records, count, ".format_version"), "1");
    check_content(file, find_record(records, count, "byteorder"), "little");
    check_content(file, find_record(records, count, "version"), "3\n");
    assert_int_equal(find_record(records, count, ".data/serialization_id")->bytes, 40);
    for (size_t i = 0; i < s->count; i++) {
        if (s->same_as[i] != i) {
            assert_int_equal(s->tensors[i].offset, s->tensors[s->same_as[i]].offset);
            continue;
        }
        char name[32];
        snprintf(name, sizeof name, "data/%zu", storage++);
        const zip_record *r = find_record(records, count, name);
        assert_non_null(r);
        assert_int_equal(r->bytes, s->tensors[i].bytes);
        assert_int_equal(r->offset, s->tensors[i].offset);
        for (uint64_t b = 0; b < r->bytes; b++)
            assert_int_equal(file[r->offset + b], sample_byte(i, b));
    }
    assert_int_equal(count, storage + 6 + digests);
    if (digests)
        check_digests(image, s, file, records, count);
    else
        assert_true(find_record(records, count, ".penstock/digests") == NULL && pst_image_file_digest(image) == NULL);
    free(records);
}

static void test_torch(void **state)
{
    (void)state;
    random_start("torch images");
    for (int round = 0; round < 60; round++) {
        image_sample s;
        sample_make(&s, true, random_below(4) == 0 ? 100000 : 3000);
        uint32_t shares = (uint32_t)(random_below(3) == 0 ? 0 : 1 + random_below(60));
        pst_image_options options = {.digests = random_below(4) > 0,
                                     .shares = shares,
                                     .same_as = s.same_as,
                                     .archive_name = random_below(2) ? "m\xc3\xb6 del" : NULL};
        pst_image *image = make(true, s.tensors, s.count, &options);
        assert_true(pst_image_wants_crc(image));
        sample_check_parts(image, shares ? shares : 1);
        unsigned char *file = sample_assemble(image);
        check_torch(image, &s, file, options.archive_name ? options.archive_name : "archive", options.digests);
        free(file);
        pst_image_destroy(image);
    }
}

/* The caller's pickle and keys. */
static void test_own_pickle(void **state)
{
    (void)state;
    random_start("torch images, own pickle");
    for (int ordered = 0; ordered < 2; ordered++) {
        pst_tensor tensors[] = {
            {.name = ordered ? "0" : "12", .dtype = PST_U8, .rank = 1, .shape = {300001}},
            {.name = "1", .dtype = PST_U8, .rank = 1, .shape = {0}},
            {.name = ordered ? "2" : "other key", .dtype = PST_U8, .rank = 1, .shape = {400000}},
        };
        static const char pickle[] = "\x80\x02N.";
        pst_image_options options = {.pickle = pickle, .pickle_bytes = 4, .digests = true, .shares = 3};
        pst_image *image = make(true, tensors, 3, &options);
        unsigned char *file = sample_assemble(image);
        size_t count;
        zip_record *records = zip_read(file, pst_image_file_bytes(image), 4096, &count); /* large on average */
        check_content(file, find_record(records, count, "data.pkl"), pickle);
        check_content(file, find_record(records, count, ".storage_alignment"), "4096");
        /* Offsets can be computed only from keys in order. */
        assert_true((find_record(records, count, ".format_version") != NULL) == (ordered == 1));
        for (size_t i = 0; i < 3; i++) {
            char name[32];
            snprintf(name, sizeof name, "data/%s", tensors[i].name);
            assert_int_equal(find_record(records, count, name)->offset, tensors[i].offset);
        }
        check_file_digest(image, file, pst_image_file_bytes(image), records, count);
        free(records);
        free(file);
        pst_image_destroy(image);
    }
}

/* ---- large files, whose data is never made ---- */

static void check_far(uint64_t bytes, size_t count, uint32_t shares, bool digests)
{
    pst_tensor *tensors = calloc(count, sizeof *tensors);
    char(*names)[24] = calloc(count, sizeof *names);
    assert_true(tensors != NULL && names != NULL);
    for (size_t i = 0; i < count; i++) {
        snprintf(names[i], sizeof names[i], "t%zu", i);
        tensors[i] = (pst_tensor){.name = names[i], .dtype = PST_U8, .rank = 1, .shape = {i % 3 == 1 ? 7 : bytes}};
    }
    pst_image_options options = {.digests = digests, .shares = shares};
    pst_image *image = make(true, tensors, count, &options);
    sample_check_parts(image, shares);
    size_t part_count, record_count;
    const pst_image_part *parts = pst_image_parts(image, &part_count);
    unsigned char *file = mmap(NULL, pst_image_file_bytes(image), PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(file != MAP_FAILED);
    for (size_t i = 0; i < part_count; i++)
        if (parts[i].tensor != PST_IMAGE_LITERAL)
            pst_image_set_sums(image, i, &(pst_image_sums){.crc = (uint32_t)i * 77777});
    assert_int_equal(pst_image_finish(image, NULL), 0);
    for (size_t i = 0; i < part_count; i++)
        if (parts[i].tensor == PST_IMAGE_LITERAL)
            sample_copy_literal(image, i, &parts[i], file);
    zip_record *records = zip_read(file, pst_image_file_bytes(image), bytes > 1 << 20 ? 4096 : 64, &record_count);
    assert_int_equal(record_count, count + 6 + digests);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(records[4 + i].bytes, tensors[i].bytes);
        assert_int_equal(records[4 + i].offset, tensors[i].offset);
    }
    free(records);
    munmap(file, pst_image_file_bytes(image));
    pst_image_destroy(image);
    free(names);
    free(tensors);
}

static void test_zip64(void **state)
{
    (void)state;
    for (uint64_t bytes = UINT64_C(0xfffffffe); bytes <= UINT64_C(0x100000001); bytes++)
        check_far(bytes, 3, 2, true);
    check_far(UINT64_C(5) << 30, 8, 5, false);
    /* The directory begins just below and above 4 GiB, in steps that cross it. */
    for (uint64_t less = 0; less < 40000; less += 3777)
        check_far(UINT64_C(0x100000000) - less, 1, 1, true);
}

static void test_many_records(void **state)
{
    (void)state;
    for (size_t count = 65527; count <= 65531; count++) /* with 6 or 7 others: 65,533 to 65,538 */
        check_far(5, count, 3, count % 2);
}

/* ---- what is refused ---- */

static void refuse(bool torch, pst_tensor *tensors, size_t count, const pst_image_options *options, int code,
                   const char *word)
{
    pst_image *image = (pst_image *)1;
    pst_error err = {0};
    int64_t live = pst_heap_live_count();
    int status = (torch ? pst_image_torch : pst_image_safetensors)(tensors, count, options, &image, &err);
    if (status != code || strstr(err.message, word) == NULL)
        fail_msg("%d \"%s\" instead of %d \"%s\"", status, err.message, code, word);
    assert_ptr_equal(image, (pst_image *)1);
    assert_int_equal(pst_heap_live_count(), live);
}

static void test_refused(void **state)
{
    (void)state;
    pst_image_options none = {0};
    for (int torch = 0; torch < 2; torch++) {
        pst_tensor same[] = {{.name = "a"}, {.name = "b"}, {.name = "a"}};
        refuse(torch, same, 3, &none, PST_E_USAGE, "\"a\"");
        pst_tensor text = {.name = "a\xff"};
        refuse(torch, &text, 1, &none, PST_E_USAGE, "UTF-8");
        pst_tensor many = {.name = "a"};
        refuse(torch, &many, 1, &(pst_image_options){.shares = UINT32_MAX}, PST_E_USAGE, "writers");
        static const uint64_t absurd[][4] = {
            {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX},
            {UINT64_C(1) << 32, UINT64_C(1) << 32, 1, 1},
            {UINT64_MAX / 2, 1, 1, 1},
            {UINT64_C(1) << 61, 1, 8, 1},
            {UINT64_C(3) << 60, 1, 1, 1},
        };
        for (size_t i = 0; i < sizeof absurd / sizeof absurd[0]; i++) {
            pst_tensor t[2] = {{.name = "x", .dtype = PST_U16, .rank = 4}, {.name = "y", .dtype = PST_U8}};
            memcpy(t[0].shape, absurd[i], sizeof absurd[i]);
            refuse(torch, t, 2, &none, PST_E_USAGE, "\"x\"");
        }
        pst_tensor halves = {.name = "h", .dtype = PST_F4, .rank = 1, .shape = {3}};
        refuse(torch, &halves, 1, &none, PST_E_USAGE, "\"h\"");
        pst_tensor sum[4] = {{.name = "u"}, {.name = "v"}, {.name = "w"}, {.name = "y"}};
        for (int i = 0; i < 4; i++)
            sum[i] = (pst_tensor){
                .name = sum[i].name, .dtype = PST_U8, .rank = 2, .shape = {UINT64_C(1) << 30, UINT64_C(1) << 30}};
        refuse(torch, sum, 4, &none, PST_E_USAGE, "\"y\"");
    }
    pst_tensor f6 = {.name = "six", .dtype = PST_F6_E2M3, .rank = 1, .shape = {4}};
    refuse(true, &f6, 1, &none, PST_E_UNSUPPORTED, "F6_E2M3");
    pst_tensor odd = {.name = "odd", .dtype = PST_F4, .rank = 2, .shape = {2, 3}};
    refuse(true, &odd, 1, &none, PST_E_UNSUPPORTED, "odd");
    pst_tensor empty = {.name = "e", .dtype = PST_U8, .rank = 3, .shape = {0, UINT64_C(1) << 40, UINT64_C(1) << 40}};
    refuse(true, &empty, 1, &none, PST_E_UNSUPPORTED, "shape");
    pst_tensor c128 = {.name = "c", .dtype = PST_C128};
    refuse(false, &c128, 1, &none, PST_E_UNSUPPORTED, "C128");
    pst_tensor reserved = {.name = "__metadata__", .dtype = PST_U8};
    refuse(false, &reserved, 1, &none, PST_E_USAGE, "__metadata__");
    pst_tensor ok = {.name = "a"};
    static const char *const keys[] = {PST_DIGESTS_KEY, PST_CUTS_KEY, PST_FILE_DIGEST_KEY};
    for (int i = 0; i < 3; i++)
        refuse(false, &ok, 1, &(pst_image_options){.metadata = &(pst_metadata){keys[i], ""}, .metadata_count = 1},
               PST_E_USAGE, keys[i]);
    const pst_metadata twice[] = {{"k", "1"}, {"k", "2"}};
    refuse(false, &ok, 1, &(pst_image_options){.metadata = twice, .metadata_count = 2}, PST_E_USAGE, "\"k\"");
    static const char *const folders[] = {"", ".", "..", "a/b", "a\\b", "a\n"};
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        refuse(true, &ok, 1, &(pst_image_options){.archive_name = folders[i]}, PST_E_USAGE, "zip");
        pst_tensor key = {.name = folders[i]};
        refuse(true, &key, 1, &(pst_image_options){.pickle = "N.", .pickle_bytes = 2}, PST_E_USAGE, "zip");
    }
    refuse(true, &ok, 1, &(pst_image_options){.pickle = "", .pickle_bytes = 0}, PST_E_USAGE, "pickle");
    refuse(true, &ok, 1, &(pst_image_options){.same_as = (size_t[]){1}}, PST_E_USAGE, "storage");
}

/* A tensor of another type or size does not share. */
static void test_same_data_other_type(void **state)
{
    (void)state;
    random_start("shared data");
    pst_tensor tensors[] = {{.name = "a", .dtype = PST_F32, .rank = 1, .shape = {10}},
                            {.name = "b", .dtype = PST_I32, .rank = 1, .shape = {10}},
                            {.name = "c", .dtype = PST_F32, .rank = 2, .shape = {5, 2}},
                            {.name = "d", .dtype = PST_F32, .rank = 1, .shape = {9}}};
    pst_image *image = make(true, tensors, 4, &(pst_image_options){.same_as = (size_t[]){0, 0, 0, 0}});
    assert_int_equal(tensors[2].offset, tensors[0].offset);
    assert_true(tensors[1].offset > tensors[0].offset && tensors[3].offset > tensors[1].offset);
    unsigned char *file = sample_assemble(image);
    size_t count;
    free(zip_read(file, pst_image_file_bytes(image), 64, &count));
    assert_int_equal(count, 3 + 6);
    free(file);
    pst_image_destroy(image);
}

/* ---- failures, retries ---- */

static void test_memory_failures(void **state)
{
    (void)state;
    random_start("images without memory");
    image_sample s;
    const pst_metadata metadata = {"k", "v"};
    for (int torch = 0; torch < 2; torch++) {
        sample_make(&s, torch, 3000);
        pst_image_options options = {.digests = true, .shares = 4, .metadata = &metadata, .metadata_count = 1};
        int64_t live = pst_heap_live_count();
        for (int failures = 0;; failures++) {
            pst_image *image = NULL;
            pst_error err = {0};
            pst_heap_fail_after(failures, 0);
            int status = (torch ? pst_image_torch : pst_image_safetensors)(s.tensors, s.count, &options, &image, &err);
            pst_heap_fail_after(-1, 0);
            if (status == 0) {
                pst_image_destroy(image);
                assert_true(failures > 5);
                break;
            }
            assert_int_equal(status, -ENOMEM);
            assert_int_equal(err.code, -ENOMEM);
            assert_null(image);
            assert_int_equal(pst_heap_live_count(), live);
        }
        assert_int_equal(pst_heap_live_count(), live);
    }
}

/* Not before all sums are there; again with other sums, as after a save that is carried out again. */
static void test_again(void **state)
{
    (void)state;
    random_start("images, twice");
    for (int torch = 0; torch < 2; torch++) {
        pst_tensor t = {.name = "a", .dtype = PST_U8, .rank = 1, .shape = {100000}};
        pst_image *image = make(torch, &t, 1, &(pst_image_options){.digests = true, .shares = 3});
        assert_int_equal(pst_image_finish(image, NULL), PST_E_USAGE);
        assert_null(pst_image_file_digest(image));
        unsigned char *first = sample_assemble(image), *second = sample_assemble(image);
        assert_memory_equal(first, second, pst_image_file_bytes(image));
        size_t count;
        const pst_image_part *parts = pst_image_parts(image, &count);
        for (size_t i = 0; i < count; i++)
            if (parts[i].tensor != PST_IMAGE_LITERAL)
                pst_image_set_sums(image, i, &(pst_image_sums){.crc = 1});
        assert_null(pst_image_file_digest(image));
        assert_int_equal(pst_image_finish(image, NULL), 0);
        unsigned char *third = malloc(pst_image_file_bytes(image));
        assert_non_null(third);
        memcpy(third, first, pst_image_file_bytes(image));
        for (size_t i = 0; i < count; i++)
            if (parts[i].tensor == PST_IMAGE_LITERAL)
                sample_copy_literal(image, i, &parts[i], third);
        assert_memory_not_equal(first, third, pst_image_file_bytes(image));
        free(first);
        free(second);
        free(third);
        pst_image_destroy(image);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc),
        cmocka_unit_test(test_safetensors),
        cmocka_unit_test(test_torch),
        cmocka_unit_test(test_own_pickle),
        cmocka_unit_test(test_zip64),
        cmocka_unit_test(test_many_records),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_same_data_other_type),
        cmocka_unit_test(test_memory_failures),
        cmocka_unit_test(test_again),
    };
    return cmocka_run_group_tests_name("store/image", tests, NULL, NULL);
}
