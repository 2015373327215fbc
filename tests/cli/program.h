/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the program as a user would: arguments, standard input, standard output and error caught apart.
 */
#ifndef PST_TESTS_CLI_PROGRAM_H
#define PST_TESTS_CLI_PROGRAM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>
#include <stdbool.h>

#include <cmocka.h>

#define MODEL PST_TEST_SOURCE_DIR "/models/penstock-tales"
#define CASES PST_TEST_SOURCE_DIR "/tests/reference/cases"

typedef struct program_result {
    int status; /* exit status, or 1000 + the signal that ended it */
    char *out, *err;
    size_t out_bytes;
} program_result;

/* How to run it, where it differs from the usual. */
typedef struct program_setup {
    const char *input;       /* standard input; NULL: nothing */
    size_t input_bytes;      /* 0: strlen(input) */
    const char *output_to;   /* standard output goes to this file instead, e.g. /dev/full */
    bool output_closed;      /* standard output is not open */
    bool output_broken;      /* standard output is a pipe that nobody reads */
    int signal;              /* sent once the first text came out */
    bool signal_repeats;     /* and again every few milliseconds until the program has ended */
    uint64_t file_limit;     /* RLIMIT_FSIZE; 0: none */
    uint64_t open_files;     /* RLIMIT_NOFILE, its soft limit; 0: as it is */
    const char *environment; /* "NAME=value" added */
    const char *kill_path;   /* SIGKILL, or `signal`, as soon as this file has kill_bytes */
    uint64_t kill_bytes;
    int kill_after_ms; /* SIGKILL after so long; 0: never */
    bool homeless;     /* neither HOME nor XDG_CONFIG_HOME */
} program_setup;

program_result program_run(const program_setup *setup, const char *const *arguments);
void program_free(program_result *result);

/* PENSTOCK("generate", MODEL, "--prompt", "x") */
#define PENSTOCK(...)             program_run(NULL, (const char *const[]){__VA_ARGS__, NULL})
#define PENSTOCK_WITH(setup, ...) program_run((setup), (const char *const[]){__VA_ARGS__, NULL})

/* Fails the test unless the program ended with `status` and, for 1 and 2, its standard error is exactly one line that
 * begins with "penstock: error: " and holds `says`. Frees the result. */
void expect_error(program_result result, int status, const char *says);
#define EXPECT_ERROR(status, says, ...) expect_error(PENSTOCK(__VA_ARGS__), status, says)

/* Standard output as JSON after status 0; frees the result; the caller drops the reference. */
json_t *expect_json(program_result result);

/* Members of an object, which must be there. */
double number(const json_t *object, const char *key);
const char *text(const json_t *object, const char *key);
/* Equal but for rounding. */
bool near(double a, double b);

/* A folder of this test program's own, made at the first call, removed at exit. */
const char *scratch(void);
/* "<scratch>/name", static storage in rotation of eight. */
const char *scratch_path(const char *name);
void write_file(const char *path, const void *data, size_t bytes);
void write_text(const char *path, const char *text);
/* The whole file; free() it. */
char *read_file(const char *path, size_t *bytes);
void copy_file(const char *from, const char *to);
/* All files of a model's folder into a new one in the scratch folder. */
const char *copy_model(const char *model, const char *name);
/* A whole number of the model's config.json. */
uint64_t model_config(const char *key);
/* Entries of the scratch folder whose name holds `part`. */
int count_entries(const char *part);

#endif
