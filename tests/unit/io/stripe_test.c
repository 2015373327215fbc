/* SPDX-License-Identifier: Apache-2.0 */
/* Helpers of the tests of stripe sets. */
#include "unit/io/stripe_test.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os/sys.h"
#include "penstock/log.h"

static char *folder;
char stripe_folders[PST_STRIPE_MAX_MEMBERS + 1][300];
const char *stripe_names[PST_STRIPE_MAX_MEMBERS + 1];

int stripe_set_up(void **unused)
{
    (void)unused;
    folder = test_folder_create(false);
    for (int i = 0; i <= PST_STRIPE_MAX_MEMBERS; i++) {
        snprintf(stripe_folders[i], sizeof stripe_folders[i], "%s/m%d", folder, i);
        stripe_names[i] = stripe_folders[i];
        if (i < STRIPE_FOLDERS)
            mkdir(stripe_folders[i], 0700);
    }
    return 0;
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    return remove(path);
}

int stripe_tear_down(void **unused)
{
    (void)unused;
    pst_sys_replace(NULL);
    pst_log_set_sink(NULL, NULL, PST_LOG_WARNING);
    assert_int_equal(nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
    free(folder);
    return 0;
}

const char *stripe_path(uint32_t index, const char *name)
{
    static char paths[8][400];
    static unsigned turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%.300s/%.90s", stripe_folders[index], name);
    return path;
}

void stripe_remove_manifests(void)
{
    for (uint32_t i = 0; i < STRIPE_FOLDERS; i++)
        unlink(stripe_path(i, "penstock-stripe.json"));
}

pst_stripe_set *stripe_make_set(uint32_t count, uint64_t stripe_bytes)
{
    pst_stripe_set *set = NULL;
    pst_error err = {0};
    stripe_remove_manifests();
    assert_ok(pst_stripe_create(stripe_names, count, stripe_bytes, &err), &err);
    assert_ok(pst_stripe_open(stripe_names, count, &set, &err), &err);
    assert_int_equal(pst_stripe_members(set), count);
    assert_int_equal(pst_stripe_bytes(set), stripe_bytes != 0 ? stripe_bytes : 1 << 20);
    return set;
}

int stripe_transfer(pst_io *io, pst_io_file *file, pst_io_kind kind, uint64_t offset, void *buffer, uint64_t bytes,
                    pst_error *err)
{
    pst_io_op op = {.file = file, .offset = offset, .buffer = buffer, .bytes = bytes, .kind = kind};
    return pst_io_transfer(io, &op, err);
}
