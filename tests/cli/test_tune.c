/* SPDX-License-Identifier: Apache-2.0 */
/* penstock tune from end to end, and the other commands that use what it saved. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

/* A folder on the drive of the scratch folder, the settings' place, and a copy of the model beside them. */
static char folder[512], config[600], profile[600], model[512];
static program_setup with_config;

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "%s", scratch_path("drive"));
    snprintf(config, sizeof config, "XDG_CONFIG_HOME=%s", scratch_path("config"));
    snprintf(profile, sizeof profile, "%s", scratch_path("config/penstock/drives.json"));
    with_config.environment = config;
    snprintf(model, sizeof model, "%s", copy_model(MODEL, "model"));
    return mkdir(folder, 0777);
}

static const json_t *member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (value == NULL)
        fail_msg("no \"%s\"", key);
    return value;
}

static json_int_t integer(const json_t *object, const char *key)
{
    return json_integer_value(member(object, key));
}

static void same_settings(const json_t *a, const json_t *b)
{
    static const char *const keys[] = {"engine", "block_size", "queue_depth", "workers", "single_submit"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (!json_equal(member(a, keys[i]), member(b, keys[i])))
            fail_msg("%s differs", keys[i]);
    }
}

static json_t *stats_io(json_t *document)
{
    json_t *io = json_object_get(json_object_get(document, "stats"), "io");
    assert_non_null(io);
    json_incref(io);
    json_decref(document);
    return io;
}

static void expect_from(json_t *document, const char *from)
{
    json_t *io = stats_io(document);
    assert_string_equal(json_string_value(member(io, "from")), from);
    json_decref(io);
}

#define GENERATE(setup, ...)                                                                                           \
    PENSTOCK_WITH(setup, "generate", model, "--token-ids", "1,2,3", "-n", "2", "--resident", "0", "--json",            \
                  ##__VA_ARGS__)

static void test_tune_and_use(void **state)
{
    (void)state;
    json_t *document = expect_json(PENSTOCK_WITH(&with_config, "tune", folder, "--seconds", "2", "--json"));
    const json_t *choice = member(document, "choice"), *baseline = member(document, "baseline");
    assert_true(json_number_value(member(choice, "read_bytes_per_second")) > 0);
    assert_true(json_number_value(member(choice, "write_bytes_per_second")) > 0);
    assert_true(json_number_value(member(baseline, "read_bytes_per_second")) > 0);
    assert_true(json_number_value(member(member(document, "gain"), "read")) > 0);
    assert_true(json_number_value(member(document, "seconds")) < 20);
    assert_true(integer(document, "io_size") > 0 && integer(document, "measurements") > 0);
    assert_string_equal(json_string_value(json_array_get(member(document, "folders"), 0)), folder);
    const json_t *points = member(document, "points");
    bool chosen = false;
    double last = 1e300;
    for (size_t i = 0; i < json_array_size(points); i++) {
        const json_t *point = json_array_get(points, i);
        double score = json_number_value(member(point, "read_bytes_per_second")) *
                       json_number_value(member(point, "write_bytes_per_second"));
        assert_true(score <= last); /* sorted */
        last = score;
        chosen |= json_equal(point, choice);
    }
    assert_true(chosen);
    const json_t *aio = member(member(document, "deepspeed"), "aio");
    assert_int_equal(integer(aio, "block_size"), integer(choice, "block_size"));
    assert_string_equal(json_string_value(member(document, "profile")), profile);
    struct stat about;
    assert_int_equal(stat(profile, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0600);
    assert_int_equal(rmdir(folder), 0); /* nothing is left in it */
    assert_int_equal(mkdir(folder, 0777), 0);

    json_t *io = stats_io(expect_json(GENERATE(&with_config)));
    same_settings(io, choice);
    assert_string_equal(json_string_value(member(io, "from")), "profile");
    json_decref(io);
    io = stats_io(expect_json(PENSTOCK_WITH(&with_config, "score", model, "--token-ids", "1,2,3", "--json")));
    same_settings(io, choice);
    json_decref(io);
    io = stats_io(expect_json(PENSTOCK_WITH(&with_config, "bench", "infer", model, "--prompt-len", "4", "--gen-len",
                                            "2", "--loops", "1", "--json")));
    same_settings(io, choice);
    json_decref(io);
    io = stats_io(
        expect_json(PENSTOCK_WITH(&with_config, "synth", "tiny", scratch_path("synth"), "--layers", "1", "--json")));
    same_settings(io, choice);
    json_decref(io);
    expect_from(expect_json(GENERATE(&with_config, "--io-profile", "none")), "defaults");
    expect_from(expect_json(GENERATE(NULL)), "defaults");
    expect_from(expect_json(GENERATE(NULL, "--io-profile", profile)), "profile");
    json_decref(document);
}

/* A profile of our own for this drive; the id is asked from the program. */
static void write_profile(const char *path, const char *entry)
{
    static char drive[300];
    if (drive[0] == '\0') {
        json_t *document = expect_json(
            PENSTOCK("tune", folder, "--seconds", "1", "--io-size", "1Mi", "--no-write", "--no-save", "--json"));
        snprintf(drive, sizeof drive, "%s", json_string_value(member(document, "drive")));
        assert_true(json_is_null(member(document, "profile")));
        json_decref(document);
    }
    json_t *drives = json_object(), *parsed = json_loads(entry, JSON_DECODE_ANY, NULL);
    assert_int_equal(json_object_set_new(drives, drive, parsed), 0);
    json_t *document = json_pack("{s:i, s:o}", "version", 1, "drives", drives);
    assert_int_equal(json_dump_file(document, path, 0), 0);
    json_decref(document);
}

static void test_what_is_given_wins(void **state)
{
    (void)state;
    char own[512];
    snprintf(own, sizeof own, "%s", scratch_path("own.json"));
    write_profile(own, "{\"engine\": \"threads\", \"block_size\": 262144, \"queue_depth\": 1, \"workers\": 3}");
    json_t *io = stats_io(expect_json(GENERATE(NULL, "--io-profile", own)));
    assert_string_equal(json_string_value(member(io, "engine")), "threads");
    assert_int_equal(integer(io, "block_size"), 262144);
    assert_int_equal(integer(io, "workers"), 3);
    json_decref(io);
    io = stats_io(expect_json(GENERATE(NULL, "--io-profile", own, "--block-size", "64Ki", "--io-workers", "2")));
    assert_string_equal(json_string_value(member(io, "from")), "profile");
    assert_string_equal(json_string_value(member(io, "engine")), "threads");
    assert_int_equal(integer(io, "block_size"), 65536);
    assert_int_equal(integer(io, "workers"), 2);
    json_decref(io);
    io = stats_io(expect_json(GENERATE(NULL, "--io-profile", own, "--block_size", "1M"))); /* as bench io reads it */
    assert_int_equal(integer(io, "block_size"), 1 << 20);
    json_decref(io);
    write_profile(own, "{\"engine\": \"warp\", \"block_size\": 262144, \"queue_depth\": 1, \"workers\": 3}");
    io = stats_io(expect_json(GENERATE(NULL, "--io-profile", own, "--io-engine", "threads", "--queue-depth", "5")));
    assert_string_equal(json_string_value(member(io, "from")), "options"); /* tuned with another engine */
    assert_int_equal(integer(io, "workers"), 5);
    json_decref(io);
    io = stats_io(expect_json(GENERATE(NULL, "--io-profile", own)));
    assert_string_equal(json_string_value(member(io, "from")), "defaults"); /* with one that is not there */
    json_decref(io);
}

static void test_damaged_profile(void **state)
{
    (void)state;
    struct {
        const char *text, *says;
    } cases[] = {{"{\"version\": 1", "not valid JSON"},
                 {"{\"version\": 9, \"drives\": {}}", "only version 1"},
                 {"[]", "not a JSON object"}};
    char damaged[700], setting[700], damaged_config[620];
    snprintf(damaged_config, sizeof damaged_config, "%s", scratch_path("damaged"));
    snprintf(damaged, sizeof damaged, "%s/penstock/drives.json", damaged_config);
    mkdir(damaged_config, 0700);
    mkdir(scratch_path("damaged/penstock"), 0700);
    snprintf(setting, sizeof setting, "XDG_CONFIG_HOME=%s", damaged_config);
    const program_setup setup = {.environment = setting};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_text(damaged, cases[i].text);
        /* tune will not measure for nothing, and says how to go on. */
        program_result result = PENSTOCK_WITH(&setup, "tune", folder);
        assert_non_null(strstr(result.err, damaged));
        assert_non_null(strstr(result.err, "remove it"));
        assert_non_null(strstr(result.err, "--profile"));
        expect_error(result, 1, cases[i].says);
        /* The others only warn. */
        result = GENERATE(&setup);
        assert_non_null(strstr(result.err, "warning: "));
        assert_non_null(strstr(result.err, damaged));
        expect_from(expect_json(result), "defaults");
        /* Unless the file was named to them. */
        expect_error(GENERATE(NULL, "--io-profile", damaged), 1, cases[i].says);
    }
    expect_error(GENERATE(NULL, "--io-profile", scratch_path("no.json")), 2, "there is no file");
    size_t bytes;
    char *left = read_file(damaged, &bytes);
    assert_string_equal(left, "[]");
    free(left);
}

static void test_no_home(void **state)
{
    (void)state;
    const program_setup homeless = {.homeless = true};
    expect_error(PENSTOCK_WITH(&homeless, "tune", folder), 1, "no place to save");
    expect_from(expect_json(GENERATE(&homeless)), "defaults");
    json_t *document = expect_json(PENSTOCK_WITH(&homeless, "tune", folder, "--seconds", "1", "--io-size", "1Mi",
                                                 "--no-read", "--profile", scratch_path("named/here.json"), "--json"));
    assert_true(json_is_null(member(member(document, "choice"), "read_bytes_per_second")));
    assert_string_equal(json_string_value(member(document, "profile")), scratch_path("named/here.json"));
    json_decref(document);
    assert_int_equal(access(scratch_path("named/here.json"), R_OK), 0);
}

/* What users of ds_nvme_tune paste. */
static void test_ds_nvme_tune(void **state)
{
    (void)state;
    program_result result = PENSTOCK("tune", "--nvme_dir", folder, "--io_size", "4M", "--no_write", "--loops", "1",
                                     "--seconds", "1", "--no-save");
    assert_int_equal(result.status, 0);
    static const char *const says[] = {"<- chosen", "drive: ", "chosen: ", "measured: "};
    for (size_t i = 0; i < sizeof says / sizeof says[0]; i++)
        assert_non_null(strstr(result.out, says[i]));
    assert_null(strstr(result.out, "saved in"));
    assert_non_null(strstr(result.err, "read ")); /* the points as they come */
    program_free(&result);
    EXPECT_ERROR(1, "--gpu: not yet", "tune", folder, "--gpu");
    EXPECT_ERROR(1, "--gds: not yet", "tune", "--nvme_dir", folder, "--gds");
    EXPECT_ERROR(2, "needs a folder", "tune");
    EXPECT_ERROR(2, "nothing to tune", "tune", folder, "--no_read", "--no_write");
    EXPECT_ERROR(2, "--seconds", "tune", folder, "--seconds", "0");
    EXPECT_ERROR(2, "exclude", "tune", folder, "--no-save", "--profile", "x");
    EXPECT_ERROR(1, "not a folder", "tune", scratch_path("missing"), "--no-save");
    /* Before anything is measured: exactly one line on standard error. */
    EXPECT_ERROR(1, "cannot create", "tune", folder, "--no-save", "--deepspeed", scratch_path("missing/aio.json"));
    EXPECT_ERROR(1, "is a folder", "tune", folder, "--no-save", "--deepspeed", folder);
    EXPECT_ERROR(1, "not a regular file", "tune", folder, "--profile", folder);
    EXPECT_ERROR(2, "empty name", "tune", folder, "--profile", "");
    EXPECT_ERROR(2, "empty name", "tune", folder, "--no-save", "--deepspeed", "");
    write_text(scratch_path("flat"), "");
    EXPECT_ERROR(1, "cannot", "tune", folder, "--profile", scratch_path("flat/below/it.json"));
}

static void test_deepspeed(void **state)
{
    (void)state;
    program_result result =
        PENSTOCK("tune", folder, "--io-size", "2Mi", "--seconds", "1", "--no-save", "--no-write", "--deepspeed", "-");
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.err, "chosen: ")); /* the table stands aside */
    json_t *section = json_loads(result.out, 0, NULL);
    assert_non_null(section);
    assert_int_equal(json_object_size(section), 1);
    assert_int_equal(json_object_size(member(section, "aio")), 6);
    json_decref(section);
    program_free(&result);
    result = PENSTOCK("tune", folder, folder, "--io-size", "2Mi", "--seconds", "1", "--no-save", "--no-write",
                      "--deepspeed", scratch_path("aio.json"));
    assert_int_equal(result.status, 0);
    assert_non_null(strstr(result.out, "chosen: "));
    program_free(&result);
    section = json_load_file(scratch_path("aio.json"), 0, NULL);
    assert_true(integer(member(section, "aio"), "queue_depth") > 0);
    json_decref(section);
    result = PENSTOCK("tune", folder, "--io-size", "2Mi", "--seconds", "1", "--no-save", "--deepspeed", "/dev/full");
    assert_non_null(strstr(result.out, "chosen: ")); /* what was found is out before what cannot be written */
    assert_int_equal(result.status, 1);
    assert_non_null(strstr(result.err, "No space left"));
    program_free(&result);
}

static void test_interrupt(void **state)
{
    (void)state;
    const program_setup setup = {.signal = SIGINT};
    program_result result = PENSTOCK_WITH(&setup, "tune", folder, "--seconds", "100", "--no-save");
    assert_int_equal(result.status, 130);
    assert_non_null(strstr(result.err, "interrupted"));
    program_free(&result);
    assert_int_equal(rmdir(folder), 0);
    assert_int_equal(mkdir(folder, 0777), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tune_and_use),    cmocka_unit_test(test_what_is_given_wins),
        cmocka_unit_test(test_damaged_profile), cmocka_unit_test(test_no_home),
        cmocka_unit_test(test_ds_nvme_tune),    cmocka_unit_test(test_deepspeed),
        cmocka_unit_test(test_interrupt),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
