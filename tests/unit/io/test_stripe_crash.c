/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stripe sets with the power failing at each step and each sync. Afterwards a set or a file of it opens, and then holds
 * the old bytes and the new ones each where they may be, or it is refused by name; what was synced is there; and what was
 * refused can be made anew.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "fault/crash_test.h"
#include "os/file.h"
#include "penstock/io_stripe.h"
#include "penstock/log.h"

enum { COUNT = 3, STRIPE = 4096, OLD_BYTES = 5 * STRIPE + 700, KEY_OLD = 1, KEY_NEW = 2, ROOM = 32 * STRIPE };

/* What an act does to a file of OLD_BYTES bytes of KEY_OLD: writes KEY_NEW from `from` to `to`, or sets the length. */
typedef struct change {
    uint64_t from, to;
    uint64_t truncate_to;
    bool truncates, creates; /* creates: there is no file before */
} change;

static pst_io *io; /* on the table that is in place when it is used */
static char paths[COUNT][4300];
static const char *names[COUNT];

static void name_members(const char *folder)
{
    for (int i = 0; i < COUNT; i++) {
        snprintf(paths[i], sizeof paths[i], "%.4000s/m%d", folder, i);
        names[i] = paths[i];
    }
}

static void ignore_line(void *user, pst_log_level level, const char *line)
{
    (void)user, (void)level, (void)line;
}

static int set_up(void **unused)
{
    (void)unused;
    pst_log_set_sink(ignore_line, NULL, PST_LOG_WARNING);
    io = test_open("threads", 0, 4, 2, false);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    pst_crash_forget();
    pst_sys_replace(NULL);
    pst_io_close(io);
    pst_log_set_sink(NULL, NULL, PST_LOG_WARNING);
    return 0;
}

/* ---- the set ---- */

static void prepare_folders(const char *folder, void *context)
{
    (void)context;
    name_members(folder);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(mkdir(names[i], 0700), 0);
}

static int act_create_set(const char *folder, void *context, pst_error *err)
{
    (void)context;
    name_members(folder);
    return pst_stripe_create(names, COUNT, STRIPE, err);
}

static bool check_set(const char *folder, bool done, void *context)
{
    (void)context;
    pst_stripe_set *set = NULL;
    pst_error err = {0};
    name_members(folder);
    int status = pst_stripe_open(names, COUNT, &set, &err);
    pst_stripe_close(set);
    if (status >= 0)
        return true;
    /* Never a torn manifest: the only thing that may be wrong is that one is not there. */
    return !done && status == PST_E_FORMAT && strstr(err.message, "no penstock-stripe.json") != NULL;
}

static void test_create_set(void **unused)
{
    (void)unused;
    const crash_trial trial = {.prepare = prepare_folders, .act = act_create_set, .check = check_set};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.syncs == 2 * COUNT);
}

/* ---- a file ---- */

static void prepare_file(const char *folder, void *context)
{
    const change *c = context;
    pst_error err = {0};
    pst_stripe_set *set;
    pst_io_file *file;
    prepare_folders(folder, NULL);
    assert_ok(pst_stripe_create(names, COUNT, STRIPE, &err), &err);
    if (c->creates)
        return;
    assert_ok(pst_stripe_open(names, COUNT, &set, &err), &err);
    assert_ok(pst_stripe_file_open(set, io, "f", PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE, &file, &err), &err);
    uint8_t *old = malloc(OLD_BYTES);
    test_fill(old, OLD_BYTES, KEY_OLD, 0);
    pst_io_op op = {.file = file, .buffer = old, .bytes = OLD_BYTES, .kind = PST_IO_WRITE};
    assert_ok(pst_io_transfer(io, &op, &err), &err);
    free(old);
    assert_ok(pst_io_file_close(file, &err), &err);
    pst_stripe_close(set);
}

static int change_file(pst_io_file *file, const change *c, pst_error *err)
{
    if (c->truncates)
        return pst_io_file_truncate(file, c->truncate_to, err);
    uint8_t *data = malloc(c->to - c->from);
    test_fill(data, c->to - c->from, KEY_NEW, c->from);
    pst_io_op op = {.file = file, .offset = c->from, .buffer = data, .bytes = c->to - c->from, .kind = PST_IO_WRITE};
    int status = pst_io_transfer(io, &op, err);
    free(data);
    return status;
}

static int act_file(const char *folder, void *context, pst_error *err)
{
    const change *c = context;
    pst_stripe_set *set;
    pst_io_file *file;
    name_members(folder);
    PST_TRY(pst_stripe_open(names, COUNT, &set, err));
    int status =
        pst_stripe_file_open(set, io, "f", PST_IO_OPEN_WRITE | (c->creates ? PST_IO_OPEN_CREATE : 0u), &file, err);
    if (status >= 0) {
        status = change_file(file, c, err);
        if (status >= 0)
            status = pst_io_file_sync(file, err);
        int closed = pst_io_file_close(file, status < 0 ? NULL : err);
        status = status < 0 ? status : closed;
    }
    for (int i = 0; status >= 0 && c->creates && i < COUNT; i++)
        status = pst_folder_sync(names[i], err);
    pst_stripe_close(set);
    return status;
}

/* The bytes that are in the file may be there. */
static bool content_fits(const change *c, const uint8_t *data, uint64_t bytes, bool done)
{
    static uint8_t old[ROOM], new[ROOM];
    uint64_t before = c->creates ? 0 : OLD_BYTES;
    test_fill(old, ROOM, KEY_OLD, 0);
    test_fill(new, ROOM, KEY_NEW, 0);
    for (uint64_t i = 0; i < bytes; i++) {
        uint8_t was = i < before ? old[i] : 0;
        bool written = !c->truncates && i >= c->from && i < c->to;
        bool cut_off = c->truncates && i >= c->truncate_to; /* may be gone without the length being so */
        bool good = written ? data[i] == new[i] || (!done && data[i] == was) : data[i] == was;
        if (!good && !(cut_off && !done && data[i] == 0))
            return false;
    }
    return true;
}

static bool length_fits(const change *c, uint64_t bytes, bool done)
{
    uint64_t before = c->creates ? 0 : OLD_BYTES, after = c->truncates ? c->truncate_to : before;
    if (!c->truncates && c->to > after)
        after = c->to;
    if (done)
        return bytes == after;
    return before < after ? bytes >= before && bytes <= after : bytes >= after && bytes <= before;
}

/* What cannot be opened can be written anew, and removed. */
static bool can_be_replaced(pst_stripe_set *set)
{
    pst_io_file *file;
    unsigned flags = PST_IO_OPEN_WRITE | PST_IO_OPEN_CREATE | PST_IO_OPEN_TRUNCATE;
    if (pst_stripe_file_open(set, io, "f", flags, &file, NULL) < 0)
        return false;
    uint64_t bytes = pst_io_file_bytes(file);
    pst_io_file_close(file, NULL);
    return bytes == 0 && pst_stripe_file_remove(set, "f", NULL) >= 0;
}

static unsigned opened, refused; /* states */

static bool check_file(const char *folder, bool done, void *context)
{
    const change *c = context;
    pst_stripe_set *set;
    pst_io_file *file;
    pst_error err = {0};
    name_members(folder);
    if (pst_stripe_open(names, COUNT, &set, &err) < 0)
        return false;
    bool good;
    int status = pst_stripe_file_open(set, io, "f", PST_IO_OPEN_READ, &file, &err);
    if (status < 0) {
        refused++;
        good = !done && (status == PST_E_FORMAT || (c->creates && status == -ENOENT)) &&
               strstr(err.path, "/m") != NULL && can_be_replaced(set);
    } else {
        opened++;
        uint64_t bytes = pst_io_file_bytes(file);
        uint8_t *data = malloc(bytes + 1);
        pst_io_op op = {.file = file, .buffer = data, .bytes = bytes};
        good = length_fits(c, bytes, done) && pst_io_transfer(io, &op, &err) >= 0 && content_fits(c, data, bytes, done);
        pst_io_file_close(file, NULL);
        free(data);
    }
    pst_stripe_close(set);
    return good;
}

static void test_files(void **unused)
{
    (void)unused;
    change changes[] = {
        {.from = 100, .to = 3 * STRIPE + 5},                    /* in place */
        {.from = OLD_BYTES, .to = OLD_BYTES + 6 * STRIPE},      /* at the end */
        {.from = 2 * STRIPE + 9, .to = 13 * STRIPE + 1},        /* across it */
        {.from = 20 * STRIPE + 100, .to = 21 * STRIPE + 50},    /* far behind it */
        {.truncates = true, .truncate_to = STRIPE + 3},         /* shorter */
        {.truncates = true, .truncate_to = 0},                  /* empty */
        {.truncates = true, .truncate_to = 17 * STRIPE + 4095}, /* longer */
        {.from = 0, .to = 4 * STRIPE + 1, .creates = true},
    };
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        const crash_trial trial = {
            .prepare = prepare_file, .act = act_file, .check = check_file, .context = &changes[i], .seeds = 12};
        opened = refused = 0;
        crash_count count = crash_try_all(&trial, true);
        print_message("change %zu: %u steps, %u states opened, %u refused\n", i, count.steps, opened, refused);
        assert_int_equal(count.bad, 0);
        assert_true(count.steps > COUNT && opened > 0);
    }
}

/* ---- removal ---- */

static int act_remove(const char *folder, void *context, pst_error *err)
{
    (void)context;
    pst_stripe_set *set;
    name_members(folder);
    PST_TRY(pst_stripe_open(names, COUNT, &set, err));
    int status = pst_stripe_file_remove(set, "f", err);
    pst_stripe_close(set);
    return status;
}

static bool check_removed(const char *folder, bool done, void *context)
{
    change nothing = {.from = 0, .to = 0};
    (void)done, (void)context; /* removing promises nothing before the folders are synced */
    pst_stripe_set *set;
    pst_io_file *file;
    name_members(folder);
    if (pst_stripe_open(names, COUNT, &set, NULL) < 0)
        return false;
    int status = pst_stripe_file_open(set, io, "f", PST_IO_OPEN_READ, &file, NULL);
    if (status >= 0)
        pst_io_file_close(file, NULL);
    bool good = status == -ENOENT ? can_be_replaced(set) : check_file(folder, false, &nothing);
    pst_stripe_close(set);
    return good;
}

static void test_remove(void **unused)
{
    (void)unused;
    change nothing = {.from = 0, .to = 0};
    const crash_trial trial = {.prepare = prepare_file, .act = act_remove, .check = check_removed, .context = &nothing};
    crash_count count = crash_try_all(&trial, true);
    assert_int_equal(count.bad, 0);
    assert_true(count.steps == COUNT);
}

int main(void)
{
#define IN_TABLE(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {IN_TABLE(test_create_set), IN_TABLE(test_files), IN_TABLE(test_remove)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
