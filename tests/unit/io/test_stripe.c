/* SPDX-License-Identifier: Apache-2.0 */
/* Stripe sets: manifests that lie, members that are missing or out of place, where the bytes lie, lengths that do not
 * fit, members that fail. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/heap.h"
#include "os/sys_fault.h"
#include "penstock/log.h"
#include "unit/io/stripe_test.h"

enum { CREATE = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE };

static uint64_t state;

static const char *manifest_of(uint32_t index)
{
    return stripe_path(index, "penstock-stripe.json");
}

static void put_text(const char *path, const char *text)
{
    test_write_file(path, text, strlen(text));
}

static bool is_there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* ---- making and opening sets ---- */

#define assert_refused(status, code, where, words)                                                                     \
    do {                                                                                                               \
        assert_int_equal((status), (code));                                                                            \
        assert_string_equal(err.path, (where));                                                                        \
        if (strstr(err.message, (words)) == NULL)                                                                      \
            fail_msg("\"%s\" does not say \"%s\"", err.message, (words));                                              \
    } while (0)

static void test_create(void **unused)
{
    (void)unused;
    pst_error err = {0};
    pst_stripe_set *set = NULL;
    for (uint32_t count = 1; count <= STRIPE_FOLDERS; count++)
        pst_stripe_close(stripe_make_set(count, count * 4096));
    pst_stripe_close(stripe_make_set(2, 0));
    pst_stripe_close(stripe_make_set(2, 1 << 30));
    assert_true(pst_stripe_is_member(stripe_folders[0]));
    assert_true(pst_stripe_is_member(stripe_folders[1]));
    assert_false(pst_stripe_is_member(stripe_folders[2]));
    assert_false(pst_stripe_is_member("/nowhere"));
    const char *again[] = {stripe_folders[2], stripe_folders[1]};
    assert_refused(pst_stripe_create(again, 2, 0, &err), -EEXIST, stripe_folders[1], "belongs to a stripe set already");
    assert_false(is_there(manifest_of(2)));
    stripe_remove_manifests();
    assert_int_equal(pst_stripe_create(stripe_names, 0, 0, &err), PST_E_USAGE);
    assert_int_equal(pst_stripe_create(stripe_names, PST_STRIPE_MAX_MEMBERS + 1, 0, &err), PST_E_USAGE);
    assert_int_equal(pst_stripe_create(stripe_names, 2, 1000, &err), PST_E_USAGE);
    assert_int_equal(pst_stripe_create(stripe_names, 2, 4096 + 512, &err), PST_E_USAGE);
    assert_int_equal(pst_stripe_create(stripe_names, 2, 2ull << 30, &err), PST_E_USAGE);
    char indirect[400];
    snprintf(indirect, sizeof indirect, "%s/../m0/.", stripe_folders[1]);
    const char *twice[] = {stripe_folders[0], stripe_folders[1], indirect};
    assert_refused(pst_stripe_create(twice, 3, 0, &err), PST_E_USAGE, indirect, stripe_folders[0]);
    const char *gone[] = {stripe_folders[0], "/nowhere"};
    assert_refused(pst_stripe_create(gone, 2, 0, &err), -ENOENT, "/nowhere", "striping");
    put_text(stripe_path(0, "file"), "x");
    const char *file[] = {stripe_folders[1], stripe_path(0, "file")};
    assert_int_equal(pst_stripe_create(file, 2, 0, &err), -ENOTDIR);
    for (uint32_t i = 0; i < STRIPE_FOLDERS; i++)
        assert_false(is_there(manifest_of(i)));
    assert_refused(pst_stripe_open(stripe_names, 2, &set, &err), PST_E_FORMAT, stripe_folders[0],
                   "belongs to no stripe set");
    assert_null(set);
    pst_stripe_close(NULL);
}

/* A publication that fails at any step leaves no manifest behind. */
static void test_create_fails(void **unused)
{
    (void)unused;
    static const pst_fault_kind kinds[] = {PST_FAULT_OPEN,   PST_FAULT_WRITE, PST_FAULT_FDATASYNC, PST_FAULT_FSYNC,
                                           PST_FAULT_RENAME, PST_FAULT_STATX, PST_FAULT_GETRANDOM, PST_FAULT_CLOSE};
    pst_sys_replace(&pst_sys_fault);
    unsigned failures = 0;
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        for (int64_t nth = 0; nth < 40; nth++) {
            pst_error err = {0};
            pst_fault_reset();
            pst_fault_fail(kinds[k], nth, 1, EIO);
            int status = pst_stripe_create(stripe_names, 3, 8192, &err);
            if (pst_fault_count(kinds[k]) <= nth) {
                assert_ok(status, &err);
                stripe_remove_manifests();
                break;
            }
            if (status < 0) {
                failures++;
                assert_int_equal(status, -EIO);
                for (uint32_t i = 0; i < 3; i++)
                    assert_false(is_there(manifest_of(i)));
            }
            stripe_remove_manifests(); /* some calls may fail without harm */
        }
    }
    assert_true(failures > 20);
}

static void test_out_of_memory(void **unused)
{
    (void)unused;
    pst_error err = {0};
    pst_stripe_close(stripe_make_set(3, 8192));
    pst_io *io = test_open("threads", 0, 2, 1, false);
    int status;
    int64_t before = pst_heap_live_count(), nth = 0;
    do {
        pst_stripe_set *set = NULL;
        pst_io_file *file = NULL;
        pst_heap_fail_after(nth++, 0);
        status = pst_stripe_open(stripe_names, 3, &set, &err);
        if (status >= 0) {
            status = pst_stripe_file_open(set, io, "f", CREATE, &file, &err);
            if (status < 0)
                assert_false(is_there(stripe_path(0, "f")) || is_there(stripe_path(2, "f")));
        }
        if (status >= 0)
            status = pst_stripe_file_remove(set, "f", &err);
        pst_heap_fail_after(-1, 0);
        assert_true(status == 0 || status == -ENOMEM);
        pst_io_file_close(file, NULL);
        if (set != NULL)
            pst_stripe_file_remove(set, "f", NULL);
        pst_stripe_close(set);
        assert_int_equal(pst_heap_live_count(), before);
    } while (status < 0 && nth < 1000);
    assert_true(nth > 10 && nth < 1000);
    pst_io_close(io);
    stripe_remove_manifests();
    nth = 0;
    do {
        pst_heap_fail_after(nth++, 0);
        status = pst_stripe_create(stripe_names, 3, 8192, &err);
        pst_heap_fail_after(-1, 0);
        if (status < 0)
            assert_false(is_there(manifest_of(0)) || is_there(manifest_of(1)) || is_there(manifest_of(2)));
    } while (status < 0 && nth < 1000);
    assert_true(nth > 5 && nth < 1000);
}

#define ID "\"0123456789abcdef0123456789abcdef\""
#define GOOD                                                                                                           \
    "{\"format\": \"penstock-stripe\", \"version\": 1, \"set\": " ID                                                   \
    ", \"stripe_bytes\": 4096, \"members\": 2, \"index\": 0, \"folders\": [\"/a\", \"/b\"]}"

typedef struct lie {
    const char *text;
    int code;
    const char *words;
} lie;

static void test_hostile_manifests(void **unused)
{
    (void)unused;
    static const lie lies[] = {
        {"", PST_E_FORMAT, ""},
        {"[]", PST_E_FORMAT, "not a JSON object"},
        {"7", PST_E_FORMAT, ""},
        {"{}", PST_E_FORMAT, "format"},
        {"{\"format\": 7}", PST_E_FORMAT, "format"},
        {"{\"format\": \"other\"}", PST_E_FORMAT, "format"},
        {"{\"format\": \"penstock-stripe\"}", PST_E_FORMAT, "version"},
        {"{\"format\": \"penstock-stripe\", \"version\": 2}", PST_E_UNSUPPORTED, "version"},
        {"{\"format\": \"penstock-stripe\", \"version\": 1e30}", PST_E_FORMAT, "version"},
        {"{\"format\": \"penstock-stripe\", \"version\": 1, \"set\": \"xyz\"}", PST_E_FORMAT, "set"},
        {"{\"format\": \"penstock-stripe\", \"version\": 1, \"set\": \"0123456789ABCDEF0123456789ABCDEF\"}",
         PST_E_FORMAT, "set"},
#define UP_TO_SET "{\"format\": \"penstock-stripe\", \"version\": 1, \"set\": " ID
        {UP_TO_SET "}", PST_E_FORMAT, "stripe_bytes"},
        {UP_TO_SET ", \"stripe_bytes\": 0}", PST_E_FORMAT, "stripe_bytes"},
        {UP_TO_SET ", \"stripe_bytes\": -4096}", PST_E_FORMAT, "stripe_bytes"},
        {UP_TO_SET ", \"stripe_bytes\": 4097}", PST_E_FORMAT, "stripe_bytes"},
        {UP_TO_SET ", \"stripe_bytes\": 18446744073709551616}", PST_E_FORMAT, ""},
        {UP_TO_SET ", \"stripe_bytes\": 2147483648}", PST_E_FORMAT, "stripe_bytes"},
        {UP_TO_SET ", \"stripe_bytes\": 4096, \"members\": 0}", PST_E_FORMAT, "members"},
        {UP_TO_SET ", \"stripe_bytes\": 4096, \"members\": 65}", PST_E_FORMAT, "members"},
        {UP_TO_SET ", \"stripe_bytes\": 4096, \"members\": \"2\"}", PST_E_FORMAT, "members"},
#define UP_TO_MEMBERS UP_TO_SET ", \"stripe_bytes\": 4096, \"members\": 2"
        {UP_TO_MEMBERS ", \"index\": 2}", PST_E_FORMAT, "index"},
        {UP_TO_MEMBERS ", \"index\": -1}", PST_E_FORMAT, "index"},
        {UP_TO_MEMBERS ", \"index\": 0.5}", PST_E_FORMAT, "index"},
        {UP_TO_MEMBERS ", \"index\": 0}", PST_E_FORMAT, "folders"},
        {UP_TO_MEMBERS ", \"index\": 0, \"folders\": {}}", PST_E_FORMAT, "folders"},
        {UP_TO_MEMBERS ", \"index\": 0, \"folders\": [\"/a\"]}", PST_E_FORMAT, "folders"},
        {UP_TO_MEMBERS ", \"index\": 0, \"folders\": [\"/a\", 5]}", PST_E_FORMAT, "folders"},
        {GOOD " trailing", PST_E_FORMAT, ""},
    };
    pst_error err = {0};
    pst_stripe_set *set = NULL;
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        pst_stripe_close(stripe_make_set(2, 4096));
        put_text(manifest_of(0), lies[i].text);
        memset(&err, 0, sizeof err);
        assert_refused(pst_stripe_open(stripe_names, 2, &set, &err), lies[i].code, manifest_of(0), lies[i].words);
        assert_null(strchr(err.message, '\n'));
    }
    /* A manifest without end, and a folder, a pipe and a dead link in its place. */
    pst_stripe_close(stripe_make_set(2, 4096));
    assert_int_equal(truncate(manifest_of(1), 1ll << 40), 0);
    assert_refused(pst_stripe_open(stripe_names, 2, &set, &err), PST_E_FORMAT, manifest_of(1), "sensible");
    unlink(manifest_of(1));
    mkdir(manifest_of(1), 0700);
    assert_int_equal(pst_stripe_open(stripe_names, 2, &set, &err), PST_E_FORMAT);
    rmdir(manifest_of(1));
    assert_int_equal(mkfifo(manifest_of(1), 0600), 0);
    assert_int_equal(pst_stripe_open(stripe_names, 2, &set, &err), PST_E_FORMAT);
    unlink(manifest_of(1));
    assert_int_equal(symlink("nowhere", manifest_of(1)), 0);
    assert_refused(pst_stripe_open(stripe_names, 2, &set, &err), PST_E_FORMAT, stripe_folders[1],
                   "penstock-stripe.json");
    assert_null(set);
}

static void copy_manifest(uint32_t from, uint32_t to)
{
    uint64_t bytes;
    uint8_t *text = test_read_file(manifest_of(from), &bytes);
    test_write_file(manifest_of(to), text, bytes);
    free(text);
}

static void test_wrong_members(void **unused)
{
    (void)unused;
    pst_error err = {0};
    pst_stripe_set *set = NULL;
    pst_stripe_close(stripe_make_set(4, 8192));
    /* Missing: by the path that the others remember. */
    const char *three[] = {stripe_folders[0], stripe_folders[1], stripe_folders[3]};
    assert_refused(pst_stripe_open(three, 3, &set, &err), PST_E_FORMAT, stripe_folders[2], "is missing");
    assert_refused(pst_stripe_open(stripe_names, 3, &set, &err), PST_E_FORMAT, stripe_folders[3], "member 3 of the 4");
    /* Out of place: the first that is, with its place. */
    const char *order[] = {stripe_folders[0], stripe_folders[3], stripe_folders[2], stripe_folders[1]};
    assert_refused(pst_stripe_open(order, 4, &set, &err), PST_E_FORMAT, stripe_folders[3],
                   "in place 1 and is member 3");
    /* Twice. */
    const char *twice[] = {stripe_folders[0], stripe_folders[1], stripe_folders[2], stripe_folders[1]};
    assert_refused(pst_stripe_open(twice, 4, &set, &err), PST_E_USAGE, stripe_folders[1], "same folder");
    /* Without a manifest. */
    const char *strange[] = {stripe_folders[0], stripe_folders[1], stripe_folders[5], stripe_folders[3]};
    assert_refused(pst_stripe_open(strange, 4, &set, &err), PST_E_FORMAT, stripe_folders[5], stripe_folders[2]);
    assert_int_equal(pst_stripe_open(stripe_names, 5, &set, &err), PST_E_FORMAT);
    assert_string_equal(err.path, stripe_folders[4]);
    /* A copy of a member. */
    copy_manifest(1, 5);
    assert_refused(pst_stripe_open(strange, 4, &set, &err), PST_E_FORMAT, stripe_folders[5], stripe_folders[1]);
    unlink(manifest_of(5));
    /* Of another set, in any place: it is the odd one out who is named. */
    const char *foreign[] = {stripe_folders[5], stripe_folders[6], stripe_folders[7], stripe_folders[8]};
    assert_ok(pst_stripe_create(foreign, 4, 8192, &err), &err);
    for (uint32_t i = 0; i < 4; i++) {
        const char *mixed[] = {stripe_folders[0], stripe_folders[1], stripe_folders[2], stripe_folders[3]};
        mixed[i] = foreign[i];
        assert_refused(pst_stripe_open(mixed, 4, &set, &err), PST_E_FORMAT, foreign[i], "another stripe set");
    }
    /* Of this set, but told otherwise. */
    char text[600];
    snprintf(text, sizeof text, GOOD);
    put_text(manifest_of(0), text);
    for (int variant = 0; variant < 2; variant++) {
        char *other = strdup(GOOD), *index = strstr(other, "\"index\": 0");
        index[9] = '1';
        memcpy(strstr(other, "4096"), variant == 0 ? "8192" : "4096", 4);
        put_text(manifest_of(1), other);
        free(other);
        int status = pst_stripe_open(stripe_names, 2, &set, &err);
        if (variant == 0) {
            assert_refused(status, PST_E_FORMAT, stripe_folders[1], "8192");
        } else {
            assert_ok(status, &err);
            pst_stripe_close(set);
            set = NULL;
        }
    }
    assert_null(set);
}

/* ---- files ---- */

static uint64_t bytes_of(const char *path)
{
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    return (uint64_t)info.st_size;
}

/* The bytes lie where the header says. */
static void test_layout(void **unused)
{
    (void)unused;
    enum { STRIPE = 8192, COUNT = 3, BYTES = 7 * STRIPE + 1234 };
    static const uint64_t expected[] = {3 * STRIPE, 2 * STRIPE + 1234, 2 * STRIPE};
    uint8_t *data = malloc(BYTES), *back = malloc(BYTES);
    pst_error err = {0};
    pst_io_file *file;
    test_fill(data, BYTES, 11, 0);
    pst_stripe_set *set = stripe_make_set(COUNT, STRIPE);
    pst_io *io = test_open("threads", 0, 4, 2, false);
    assert_ok(pst_stripe_file_open(set, io, "f", CREATE, &file, &err), &err);
    assert_ok(stripe_transfer(io, file, PST_IO_WRITE, 0, data, BYTES, &err), &err);
    assert_ok(pst_io_file_sync(file, &err), &err);
    assert_ok(pst_io_file_close(file, &err), &err);
    for (uint32_t m = 0; m < COUNT; m++) {
        uint64_t bytes;
        uint8_t *part = test_read_file(stripe_path(m, "f"), &bytes);
        assert_int_equal(bytes, expected[m]);
        for (uint64_t o = 0; o < BYTES; o++) {
            if (o / STRIPE % COUNT == m)
                assert_int_equal(part[o / STRIPE / COUNT * STRIPE + o % STRIPE], data[o]);
        }
        free(part);
    }
    assert_ok(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_READ, &file, &err), &err);
    assert_int_equal(pst_io_file_bytes(file), BYTES);
    assert_ok(stripe_transfer(io, file, PST_IO_READ, 0, back, BYTES, &err), &err);
    assert_memory_equal(back, data, BYTES);
    assert_int_equal(stripe_transfer(io, file, PST_IO_READ, 1, back, BYTES, &err), PST_E_SHORT);
    assert_int_equal(stripe_transfer(io, file, PST_IO_WRITE, 0, data, 1, &err), -EBADF);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_stripe_close(set);
    pst_io_close(io);
    free(back);
    free(data);
}

static void test_names_and_flags(void **unused)
{
    (void)unused;
    static const char *const bad[] = {"",     "/f", "..", "../f", "a/../f",
                                      "a//f", "a/", ".",  "./f",  "penstock-stripe.json"};
    pst_error err = {0};
    pst_io_file *file = NULL;
    pst_stripe_set *set = stripe_make_set(3, 4096);
    pst_io *io = test_open("threads", 0, 2, 1, false);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(pst_stripe_file_open(set, io, bad[i], CREATE, &file, &err), PST_E_USAGE);
        assert_int_equal(pst_stripe_file_remove(set, bad[i], &err), PST_E_USAGE);
    }
    assert_int_equal(pst_stripe_file_open(set, io, NULL, CREATE, &file, &err), PST_E_USAGE);
    assert_int_equal(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_CREATE, &file, &err), PST_E_USAGE);
    assert_refused(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_READ, &file, &err), -ENOENT, stripe_path(0, "f"),
                   "member 0");
    assert_refused(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_WRITE, &file, &err), -ENOENT, stripe_path(0, "f"),
                   "member 0");
    assert_refused(pst_stripe_file_open(set, io, "no/f", CREATE, &file, &err), -ENOENT, stripe_path(0, "no/f"), "");
    assert_ok(pst_stripe_file_open(set, io, "f", CREATE | PST_IO_OPEN_EXCLUSIVE, &file, &err), &err);
    uint8_t byte = 7;
    assert_ok(stripe_transfer(io, file, PST_IO_WRITE, 9000, &byte, 1, &err), &err); /* all of 0, 1 and a part of 2 */
    assert_ok(pst_io_file_close(file, &err), &err);
    assert_int_equal(bytes_of(stripe_path(1, "f")), 4096);
    assert_refused(pst_stripe_file_open(set, io, "f", CREATE | PST_IO_OPEN_EXCLUSIVE, &file, &err), -EEXIST,
                   stripe_path(0, "f"), "create");
    /* A lost part does not come back as an empty one, unless all content goes. */
    unlink(stripe_path(1, "f"));
    assert_refused(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_READ, &file, &err), -ENOENT, stripe_path(1, "f"),
                   "member 1");
    assert_refused(pst_stripe_file_open(set, io, "f", CREATE, &file, &err), -ENOENT, stripe_path(1, "f"), "member 1");
    assert_refused(pst_stripe_file_open(set, io, "f", CREATE | PST_IO_OPEN_EXCLUSIVE, &file, &err), -EEXIST,
                   stripe_path(0, "f"), "create");
    assert_false(is_there(stripe_path(1, "f")));
    assert_ok(pst_stripe_file_open(set, io, "f", CREATE | PST_IO_OPEN_TRUNCATE, &file, &err), &err);
    assert_int_equal(pst_io_file_bytes(file), 0);
    assert_ok(pst_io_file_close(file, &err), &err);
    /* A creation that was interrupted may be repeated. */
    unlink(stripe_path(1, "f"));
    assert_ok(pst_stripe_file_open(set, io, "f", CREATE, &file, &err), &err);
    assert_ok(pst_io_file_close(file, &err), &err);
    /* Parts that are other things. */
    unlink(stripe_path(2, "f"));
    assert_int_equal(symlink(stripe_path(0, "f"), stripe_path(2, "f")), 0);
    assert_refused(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_WRITE, &file, &err), PST_E_FORMAT,
                   stripe_path(2, "f"), "same file");
    unlink(stripe_path(2, "f"));
    mkdir(stripe_path(2, "f"), 0700);
    assert_refused(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_WRITE, &file, &err), -EISDIR, stripe_path(2, "f"),
                   "");
    rmdir(stripe_path(2, "f"));
    assert_ok(pst_stripe_file_remove(set, "f", &err), &err);
    assert_false(is_there(stripe_path(0, "f")) || is_there(stripe_path(1, "f")));
    assert_ok(pst_stripe_file_remove(set, "f", &err), &err);
    /* In a folder of every member. */
    for (uint32_t i = 0; i < 3; i++)
        mkdir(stripe_path(i, "sub"), 0700);
    assert_ok(pst_stripe_file_open(set, io, "sub/f", CREATE, &file, &err), &err);
    assert_ok(pst_io_file_close(file, &err), &err);
    assert_ok(pst_stripe_file_remove(set, "sub/f", &err), &err);
    pst_stripe_close(set);
    pst_io_close(io);
}

/* Every length of a file of a few rows is accepted, and each part that is made longer or shorter is named. */
static void test_lengths(void **unused)
{
    (void)unused;
    enum { STRIPE = 4096, COUNT = 4 };
    pst_error err = {0};
    pst_io_file *file = NULL;
    pst_stripe_set *set = stripe_make_set(COUNT, STRIPE);
    pst_io *io = test_open("threads", 0, 2, 1, false);
    for (int n = 0; n < 60; n++) {
        uint64_t length = n < 10 ? (uint64_t)n * STRIPE : test_below(&state, 4 * COUNT * STRIPE), sum = 0;
        assert_ok(pst_stripe_file_open(set, io, "f", CREATE | PST_IO_OPEN_TRUNCATE, &file, &err), &err);
        assert_ok(pst_io_file_truncate(file, length, &err), &err);
        assert_ok(pst_io_file_get_bytes(file, &sum, &err), &err);
        assert_int_equal(sum, length);
        assert_ok(pst_io_file_close(file, &err), &err);
        assert_ok(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_READ, &file, &err), &err);
        assert_int_equal(pst_io_file_bytes(file), length);
        assert_ok(pst_io_file_close(file, &err), &err);
        file = NULL;
        uint32_t victim = (uint32_t)test_below(&state, COUNT);
        uint64_t before = bytes_of(stripe_path(victim, "f"));
        /* By so much that no other length explains it. */
        uint64_t after = n % 2 == 0 && before >= 2 * STRIPE ? 0 : before + 2 * STRIPE + 1;
        assert_int_equal(truncate(stripe_path(victim, "f"), (off_t)after), 0);
        assert_refused(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_READ, &file, &err), PST_E_FORMAT,
                       stripe_path(victim, "f"), "does not fit");
    }
    /* Lengths near the end of what numbers hold. */
    for (uint32_t i = 0; i < COUNT; i++)
        assert_int_equal(truncate(stripe_path(i, "f"), 0), 0);
    if (truncate(stripe_path(2, "f"), (1ll << 44) - 4096) == 0)
        assert_int_equal(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_READ, &file, &err), PST_E_FORMAT);
    assert_null(file);
    pst_stripe_close(set);
    pst_io_close(io);
}

static void ignore_line(void *user, pst_log_level level, const char *line)
{
    (void)user, (void)level, (void)line;
}

/* What fails at one member names it, and an extension that fails leaves the old length. */
static void test_member_fails(void **unused)
{
    (void)unused;
    enum { STRIPE = 4096, COUNT = 3 };
    pst_error err = {0};
    pst_io_file *file;
    uint8_t data[STRIPE] = {1};
    pst_stripe_set *set = stripe_make_set(COUNT, STRIPE);
    pst_log_set_sink(ignore_line, NULL, PST_LOG_WARNING);
    pst_sys_replace(&pst_sys_fault);
    pst_fault_reset();
    pst_io *io = test_open("threads", 0, 2, 1, false);
    assert_ok(pst_stripe_file_open(set, io, "f", CREATE, &file, &err), &err);
    assert_ok(stripe_transfer(io, file, PST_IO_WRITE, 0, data, STRIPE, &err), &err);
    for (int nth = 0; nth < COUNT; nth++) {
        uint64_t bytes;
        pst_fault_fail(PST_FAULT_FTRUNCATE, nth, 1, ENOSPC);
        assert_int_equal(stripe_transfer(io, file, PST_IO_WRITE, 10 * STRIPE, data, STRIPE, &err), -ENOSPC);
        assert_ok(pst_io_file_get_bytes(file, &bytes, &err), &err);
        assert_int_equal(bytes, STRIPE);
        pst_fault_fail(PST_FAULT_FTRUNCATE, nth, 1, ENOSPC);
        assert_refused(pst_io_file_truncate(file, 20 * STRIPE, &err), -ENOSPC, stripe_path((uint32_t)nth, "f"),
                       "length");
        pst_fault_fail(PST_FAULT_FDATASYNC, nth, 1, EIO);
        assert_int_equal(pst_io_file_sync(file, &err), -EIO);
        assert_non_null(strstr(err.path, "/m"));
        pst_fault_fail(PST_FAULT_FALLOCATE, nth, 1, ENOSPC);
        assert_refused(pst_io_file_preallocate(file, 20 * STRIPE, &err), -ENOSPC, stripe_path((uint32_t)nth, "f"),
                       "reserve");
        assert_ok(pst_io_file_get_bytes(file, &bytes, &err), &err);
        assert_int_equal(bytes, STRIPE);
    }
    /* Further than any file system goes. */
    assert_int_equal(stripe_transfer(io, file, PST_IO_WRITE, INT64_MAX - STRIPE, data, STRIPE, &err), -EFBIG);
    assert_int_equal(pst_io_file_truncate(file, UINT64_MAX, &err), -EFBIG);
    assert_int_equal(pst_io_file_preallocate(file, UINT64_MAX, &err), -EFBIG);
    assert_int_equal(bytes_of(stripe_path(0, "f")), STRIPE);
    assert_int_equal(bytes_of(stripe_path(1, "f")), 0);
    /* A transfer's error names the member as well. */
    assert_ok(pst_io_file_truncate(file, 20 * STRIPE, &err), &err);
    pst_fault_fail(PST_FAULT_WRITE, 0, 1, EIO);
    assert_int_equal(stripe_transfer(io, file, PST_IO_WRITE, 5 * STRIPE, data, STRIPE, &err), -EIO);
    assert_non_null(strstr(err.message, stripe_path(2, "f")));
    /* Where the file system cannot reserve, nothing happens; where one member's can, the length is set. */
    pst_fault_fail(PST_FAULT_FALLOCATE, 0, 3, EOPNOTSUPP);
    assert_ok(pst_io_file_preallocate(file, 30 * STRIPE, &err), &err);
    uint64_t bytes;
    assert_ok(pst_io_file_get_bytes(file, &bytes, &err), &err);
    assert_int_equal(bytes, 20 * STRIPE);
    pst_fault_fail(PST_FAULT_FALLOCATE, 0, 1, EOPNOTSUPP);
    assert_ok(pst_io_file_preallocate(file, 30 * STRIPE, &err), &err);
    assert_ok(pst_io_file_get_bytes(file, &bytes, &err), &err);
    assert_int_equal(bytes, 30 * STRIPE);
    pst_fault_fail(PST_FAULT_CLOSE, 0, 1, EIO);
    assert_int_equal(pst_io_file_close(file, &err), -EIO);
    assert_string_equal(err.path, stripe_path(0, "f"));
    pst_fault_reset();
    pst_stripe_close(set);
    pst_io_close(io);
}

/* Each extends the file that the other has made longer than it knows. */
static void test_two_openings(void **unused)
{
    (void)unused;
    enum { BYTES = 3000, PLACES = 20 };
    pst_error err = {0};
    pst_io_file *files[2];
    uint8_t data[BYTES], back[BYTES];
    uint64_t bytes;
    pst_stripe_set *set = stripe_make_set(3, 4096);
    pst_io *io = test_open("threads", 0, 2, 1, false);
    for (int i = 0; i < 2; i++)
        assert_ok(pst_stripe_file_open(set, io, "f", CREATE, &files[i], &err), &err);
    for (uint64_t n = 0; n < PLACES; n++) { /* the last place first, then the others by turns */
        uint64_t place = n == 0 ? PLACES - 1 : n - 1;
        test_fill(data, BYTES, place, 0);
        assert_ok(stripe_transfer(io, files[n % 2], PST_IO_WRITE, place * 7000, data, BYTES, &err), &err);
        assert_ok(pst_io_file_get_bytes(files[0], &bytes, &err), &err);
        assert_int_equal(bytes, (PLACES - 1) * 7000 + BYTES);
    }
    for (uint64_t place = 0; place < PLACES; place++) {
        test_fill(data, BYTES, place, 0);
        assert_ok(stripe_transfer(io, files[place % 2], PST_IO_READ, place * 7000, back, BYTES, &err), &err);
        assert_memory_equal(back, data, BYTES);
    }
    for (int i = 0; i < 2; i++)
        assert_ok(pst_io_file_close(files[i], &err), &err);
    pst_stripe_close(set);
    pst_io_close(io);
}

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *list = opendir("/proc/self/fd");
    assert_non_null(list);
    while (readdir(list) != NULL)
        count++;
    closedir(list);
    return count;
}

/* Every system call of opening fails in turn: no descriptor is left, no part of a file that was to be new, and no
 * content is gone. */
static void test_opening_fails(void **unused)
{
    (void)unused;
    static const pst_fault_kind kinds[] = {PST_FAULT_OPEN, PST_FAULT_STATX, PST_FAULT_FTRUNCATE};
    static const unsigned ways[] = {PST_IO_OPEN_READ, CREATE, CREATE | PST_IO_OPEN_EXCLUSIVE,
                                    CREATE | PST_IO_OPEN_TRUNCATE};
    enum { BYTES = 40000 };
    pst_stripe_set *set = stripe_make_set(3, 4096);
    pst_io *io = test_open("threads", 0, 2, 1, false);
    uint8_t *data = malloc(BYTES);
    pst_log_set_sink(ignore_line, NULL, PST_LOG_WARNING);
    pst_sys_replace(&pst_sys_fault);
    test_fill(data, BYTES, 3, 0);
    unsigned before = open_descriptors(), failures = 0;
    for (size_t n = 0; n < sizeof ways / sizeof ways[0] * sizeof kinds / sizeof kinds[0]; n++) {
        unsigned flags = ways[n % 4];
        pst_fault_kind kind = kinds[n / 4];
        bool there = flags == PST_IO_OPEN_READ || (flags & PST_IO_OPEN_TRUNCATE) != 0;
        for (int64_t nth = 0; nth < 40; nth++) {
            pst_error err = {0};
            pst_io_file *file = NULL;
            pst_fault_reset();
            if (there) {
                assert_ok(pst_stripe_file_open(set, io, "f", CREATE, &file, &err), &err);
                assert_ok(stripe_transfer(io, file, PST_IO_WRITE, 0, data, BYTES, &err), &err);
                assert_ok(pst_io_file_close(file, &err), &err);
                file = NULL;
            }
            pst_fault_reset();
            pst_fault_fail(kind, nth, 1, EIO);
            int status = pst_stripe_file_open(set, io, "f", flags, &file, &err);
            bool struck = pst_fault_count(kind) > nth;
            pst_fault_reset();
            failures += status < 0;
            assert_true(status >= 0 || (struck && file == NULL && err.path[0] != '\0'));
            assert_ok(pst_io_file_close(file, &err), &err);
            for (uint32_t i = 0; status < 0 && i < 3; i++) {
                bool found = is_there(stripe_path(i, "f"));
                /* One that was created and then not examined is not known to be ours. */
                if (flags == CREATE && found)
                    assert_int_equal(bytes_of(stripe_path(i, "f")), 0);
                else
                    assert_int_equal(found, there);
            }
            if (status < 0 && there && kind != PST_FAULT_FTRUNCATE) {
                assert_ok(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_READ, &file, &err), &err);
                assert_int_equal(pst_io_file_bytes(file), BYTES);
                assert_ok(pst_io_file_close(file, &err), &err);
            }
            assert_ok(pst_stripe_file_remove(set, "f", &err), &err);
            assert_int_equal(open_descriptors(), before);
            if (!struck)
                break;
        }
    }
    assert_true(failures > 40);
    free(data);
    pst_stripe_close(set);
    pst_io_close(io);
}

int main(void)
{
    state = test_seed();
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, stripe_set_up, stripe_tear_down)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_create),          IN_FOLDER(test_create_fails),
        IN_FOLDER(test_out_of_memory),   IN_FOLDER(test_hostile_manifests),
        IN_FOLDER(test_wrong_members),   IN_FOLDER(test_layout),
        IN_FOLDER(test_names_and_flags), IN_FOLDER(test_lengths),
        IN_FOLDER(test_member_fails),    IN_FOLDER(test_opening_fails),
        IN_FOLDER(test_two_openings),

    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
