/* SPDX-License-Identifier: Apache-2.0 */
/* The child process and the scratch folder of the end-to-end tests. */
#include "program.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_ARGUMENTS = 64 };

typedef struct buffer {
    char *data;
    size_t bytes;
} buffer;

static void append(buffer *to, const char *data, size_t bytes)
{
    to->data = realloc(to->data, to->bytes + bytes + 1);
    assert_non_null(to->data);
    memcpy(to->data + to->bytes, data, bytes);
    to->bytes += bytes;
    to->data[to->bytes] = '\0';
}

static void child(const program_setup *setup, const char *const *arguments, const int *in, const int *out,
                  const int *err)
{
    char *argv[MOST_ARGUMENTS + 2] = {(char *)PST_TEST_PROGRAM};
    for (int i = 0; arguments[i] != NULL && i < MOST_ARGUMENTS; i++)
        argv[i + 1] = (char *)arguments[i];
    dup2(in[0], 0);
    dup2(err[1], 2);
    if (setup->output_closed)
        close(1);
    else if (setup->output_to != NULL)
        dup2(open(setup->output_to, O_WRONLY | O_CREAT | O_TRUNC, 0666), 1);
    else
        dup2(out[1], 1);
    for (int fd = 3; fd < 64; fd++)
        close(fd);
    /* Whatever the user of this machine has tuned, it is not to show here. */
    setenv("XDG_CONFIG_HOME", "/nonexistent", 1);
    if (setup->environment != NULL)
        putenv((char *)setup->environment);
    if (setup->homeless) {
        unsetenv("XDG_CONFIG_HOME");
        unsetenv("HOME");
    }
    if (setup->file_limit != 0) {
        struct rlimit limit = {setup->file_limit, setup->file_limit};
        setrlimit(RLIMIT_FSIZE, &limit);
    }
    struct rlimit files;
    if (setup->open_files != 0 && getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = setup->open_files;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGXFSZ, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    execv(PST_TEST_PROGRAM, argv);
    _exit(127);
}

/* Whether the moment to kill has come. */
static bool is_due(const program_setup *setup, int elapsed_ms)
{
    struct stat about;
    if (setup->kill_after_ms != 0 && elapsed_ms >= setup->kill_after_ms)
        return true;
    return setup->kill_path != NULL && stat(setup->kill_path, &about) == 0 &&
           (uint64_t)about.st_size >= setup->kill_bytes;
}

static int now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int)(now.tv_sec * 1000 + now.tv_nsec / 1000000);
}

/* Reads both ends until they close; sends the signal when the first text is there. */
static void collect(const program_setup *setup, pid_t pid, int out, int err, buffer *outs, buffer *errs)
{
    struct pollfd polled[2] = {{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
    buffer *to[2] = {outs, errs};
    bool deadly = setup->kill_path != NULL || setup->kill_after_ms != 0, sent = setup->signal == 0 || deadly;
    int start = now_ms();
    int open_ends = setup->output_broken ? 1 : 2; /* a broken output was closed before the program began */
    if (setup->output_broken)
        polled[0].fd = -1;
    while (open_ends > 0) {
        bool again = sent && setup->signal_repeats;
        int ready = poll(polled, 2, deadly ? 1 : again ? 2 : -1);
        if (ready < 0)
            break;
        if (deadly && is_due(setup, now_ms() - start)) {
            kill(pid, setup->signal != 0 ? setup->signal : SIGKILL);
            deadly = false;
        }
        if (again)
            kill(pid, setup->signal);
        for (int i = 0; i < 2; i++) {
            if (polled[i].fd < 0 || polled[i].revents == 0)
                continue;
            char chunk[65536];
            ssize_t got = read(polled[i].fd, chunk, sizeof chunk);
            if (got <= 0) {
                close(polled[i].fd);
                polled[i].fd = -1;
                open_ends--;
                continue;
            }
            append(to[i], chunk, (size_t)got);
            if (!sent) {
                kill(pid, setup->signal);
                sent = true;
            }
        }
    }
}

/* Inputs of these tests fit in a pipe, or the program reads them all before it writes. */
static void feed(const program_setup *setup, int to)
{
    size_t bytes = setup->input_bytes != 0 ? setup->input_bytes : setup->input != NULL ? strlen(setup->input) : 0;
    for (size_t done = 0; done < bytes;) {
        ssize_t written = write(to, setup->input + done, bytes - done);
        if (written <= 0)
            break; /* the program ended without reading it all */
        done += (size_t)written;
    }
    close(to);
}

program_result program_run(const program_setup *setup, const char *const *arguments)
{
    static const program_setup usual;
    if (setup == NULL)
        setup = &usual;
    signal(SIGPIPE, SIG_IGN);
    int in[2], out[2], err[2];
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    assert_int_equal(pipe(err), 0);
    if (setup->output_broken)
        close(out[0]);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        child(setup, arguments, in, out, err);
    close(in[0]);
    close(out[1]);
    close(err[1]);
    feed(setup, in[1]);
    buffer outs = {0}, errs = {0};
    append(&outs, "", 0);
    append(&errs, "", 0);
    collect(setup, pid, out[0], err[0], &outs, &errs);
    int state;
    assert_int_equal(waitpid(pid, &state, 0), pid);
    return (program_result){.status = WIFEXITED(state) ? WEXITSTATUS(state) : 1000 + WTERMSIG(state),
                            .out = outs.data,
                            .out_bytes = outs.bytes,
                            .err = errs.data};
}

void program_free(program_result *result)
{
    free(result->out);
    free(result->err);
}

void expect_error(program_result result, int status, const char *says)
{
    static const char begin[] = "penstock: error: ";
    const char *end = strchr(result.err, '\n');
    if (result.status != status || strncmp(result.err, begin, sizeof begin - 1) != 0 || end == NULL || end[1] != '\0' ||
        strstr(result.err, says) == NULL)
        fail_msg("wanted status %d and one line that says \"%s\"; got status %d and \"%s\"", status, says,
                 result.status, result.err);
    program_free(&result);
}

json_t *expect_json(program_result result)
{
    if (result.status != 0)
        fail_msg("status %d: %s", result.status, result.err);
    json_error_t detail;
    json_t *document = json_loadb(result.out, result.out_bytes, JSON_ALLOW_NUL, &detail);
    if (document == NULL)
        fail_msg("not JSON: %s in \"%s\"", detail.text, result.out);
    program_free(&result);
    return document;
}

/* ---- scratch folder ---- */

static char folder[256];

static void remove_tree(const char *path)
{
    DIR *list = opendir(path);
    for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        char inside[1024];
        snprintf(inside, sizeof inside, "%s/%s", path, entry->d_name);
        if (unlink(inside) != 0)
            remove_tree(inside);
    }
    if (list != NULL)
        closedir(list);
    rmdir(path);
}

static void remove_scratch(void)
{
    if (folder[0] != '\0')
        remove_tree(folder);
}

const char *scratch(void)
{
    if (folder[0] == '\0') {
        const char *base = getenv("TMPDIR");
        snprintf(folder, sizeof folder, "%s/penstock-cli-XXXXXX", base != NULL ? base : "/tmp");
        assert_non_null(mkdtemp(folder));
        atexit(remove_scratch);
    }
    return folder;
}

const char *scratch_path(const char *name)
{
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", scratch(), name);
    return path;
}

void write_file(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

void write_text(const char *path, const char *text)
{
    write_file(path, text, strlen(text));
}

char *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail_msg("%s: %s", path, strerror(errno));
    buffer content = {0};
    append(&content, "", 0);
    char chunk[65536];
    for (size_t got; (got = fread(chunk, 1, sizeof chunk, file)) > 0;)
        append(&content, chunk, got);
    fclose(file);
    *bytes = content.bytes;
    return content.data;
}

void copy_file(const char *from, const char *to)
{
    size_t bytes;
    char *data = read_file(from, &bytes);
    write_file(to, data, bytes);
    free(data);
}

const char *copy_model(const char *model, const char *name)
{
    const char *target = scratch_path(name);
    assert_int_equal(mkdir(target, 0777), 0);
    DIR *list = opendir(model);
    assert_non_null(list);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        char from[1024], to[1024];
        snprintf(from, sizeof from, "%s/%s", model, entry->d_name);
        snprintf(to, sizeof to, "%s/%s", target, entry->d_name);
        struct stat about;
        if (stat(from, &about) == 0 && S_ISREG(about.st_mode))
            copy_file(from, to);
    }
    closedir(list);
    return target;
}

uint64_t model_config(const char *key)
{
    json_t *config = json_load_file(MODEL "/config.json", 0, NULL);
    assert_non_null(config);
    json_int_t value = json_integer_value(json_object_get(config, key));
    json_decref(config);
    assert_true(value > 0);
    return (uint64_t)value;
}

int count_entries(const char *part)
{
    int count = 0;
    DIR *list = opendir(scratch());
    assert_non_null(list);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;)
        count += strstr(entry->d_name, part) != NULL;
    closedir(list);
    return count;
}

double number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value))
        fail_msg("%s is no number", key);
    return json_number_value(value);
}

const char *text(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value))
        fail_msg("%s is no string", key);
    return json_string_value(value);
}

bool near(double a, double b)
{
    return fabs(a - b) <= 1e-9 * fabs(b) + 1e-12;
}
