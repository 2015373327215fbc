/* SPDX-License-Identifier: Apache-2.0 */
/* Both outputs are read as they come, and a signal to this program ends the other one. */
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/heap.h"
#include "interrupt.h"

extern char **environ;

enum { MOST_OUTPUT = 8 << 20, TICK_MS = 100 };

/* ---- arguments ---- */

static void add_text(cli_words *list, char *text)
{
    char **grown = text != NULL ? pst_heap_reallocarray(list->items, list->count + 2, sizeof *grown) : NULL;
    if (grown == NULL) {
        pst_heap_free(text);
        list->failed = true;
        return;
    }
    list->items = grown;
    grown[list->count++] = text;
    grown[list->count] = NULL;
}

void cli_words_add(cli_words *list, const char *format, ...)
{
    char text[4096 * 2 + 64];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    add_text(list, length >= 0 && (size_t)length < sizeof text ? pst_heap_strdup(text) : NULL);
}

void cli_words_free(cli_words *list)
{
    for (size_t i = 0; i < list->count; i++)
        pst_heap_free(list->items[i]);
    pst_heap_free(list->items);
}

/* ---- the process ---- */

typedef struct stream {
    int fd;
    char *text;
    size_t bytes;
} stream;

static void drain(stream *s)
{
    char chunk[65536];
    ssize_t got = read(s->fd, chunk, sizeof chunk);
    if (got < 0 && errno == EINTR)
        return;
    char *grown = got > 0 && s->bytes < MOST_OUTPUT ? pst_heap_realloc(s->text, s->bytes + (size_t)got + 1) : NULL;
    if (grown == NULL) {
        close(s->fd);
        s->fd = -1;
        return;
    }
    s->text = grown;
    memcpy(grown + s->bytes, chunk, (size_t)got);
    s->bytes += (size_t)got;
    grown[s->bytes] = '\0';
}

/* Until both ends are closed. True when a signal came meanwhile. */
static bool read_both(stream *out, stream *err_text)
{
    while (out->fd >= 0 || err_text->fd >= 0) {
        struct pollfd polled[2] = {{.fd = out->fd, .events = POLLIN}, {.fd = err_text->fd, .events = POLLIN}};
        int ready = poll(polled, 2, TICK_MS);
        if (cli_interrupted() != 0)
            return true;
        if (ready <= 0)
            continue;
        if (polled[0].revents != 0)
            drain(out);
        if (polled[1].revents != 0)
            drain(err_text);
    }
    return false;
}

/* posix_spawn and not fork: fork would copy every page of the buffers that are registered with an engine, and split
 * their huge pages. Returns 0 or -errno. */
static int spawn(const cli_words *list, const char *environment, const int *out, const int *err_ends, pid_t *pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t restored;
    size_t count = 0;
    while (environ[count] != NULL)
        count++;
    char **variables = pst_heap_calloc(count + 2, sizeof *variables);
    if (variables == NULL)
        return -ENOMEM;
    if (environment != NULL)
        variables[0] = (char *)environment;
    memcpy(variables + (environment != NULL), environ, count * sizeof *variables);
    sigfillset(&restored);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigdefault(&attributes, &restored);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err_ends[1], 2);
    int status = -posix_spawnp(pid, list->items[0], &actions, &attributes, list->items, variables);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    pst_heap_free(variables);
    return status;
}

int cli_process_run(const cli_words *list, const char *environment, cli_process *process, pst_error *err)
{
    int out[2], err_ends[2];
    const char *program = list->count > 0 ? list->items[0] : "";
    if (list->failed || list->count == 0)
        return pst_fail_memory(err, "arguments", list->count * sizeof(char *));
    if (pipe2(out, O_CLOEXEC) != 0)
        return pst_fail(err, -errno, NULL, "cannot make a pipe for %s: %s", program, strerror(errno));
    if (pipe2(err_ends, O_CLOEXEC) != 0) {
        int cause = errno;
        close(out[0]);
        close(out[1]);
        return pst_fail(err, -cause, NULL, "cannot make a pipe for %s: %s", program, strerror(cause));
    }
    pid_t pid;
    stream from_out = {.fd = out[0]}, from_err = {.fd = err_ends[0]};
    int status = spawn(list, environment, out, err_ends, &pid);
    close(out[1]);
    close(err_ends[1]);
    if (status < 0) {
        close(out[0]);
        close(err_ends[0]);
        return pst_fail(err, status, NULL, "cannot start %s: %s", program, strerror(-status));
    }
    process->interrupted = read_both(&from_out, &from_err);
    if (process->interrupted)
        kill(pid, SIGKILL);
    while (wait4(pid, &process->state, 0, &process->usage) < 0 && errno == EINTR) {
    }
    if (from_out.fd >= 0)
        close(from_out.fd);
    if (from_err.fd >= 0)
        close(from_err.fd);
    process->out = from_out.text;
    process->err = from_err.text;
    return process->interrupted ? pst_fail(err, PST_E_CANCELLED, NULL, "cancelled") : 0;
}

bool cli_process_succeeded(const cli_process *process)
{
    return WIFEXITED(process->state) && WEXITSTATUS(process->state) == 0;
}

double cli_process_cpu_seconds(const cli_process *process)
{
    const struct timeval *user = &process->usage.ru_utime, *system = &process->usage.ru_stime;
    return (double)(user->tv_sec + system->tv_sec) + 1e-6 * (double)(user->tv_usec + system->tv_usec);
}

int cli_process_fail(const cli_process *process, const char *name, bool last_line, pst_error *err)
{
    const char *text = process->err != NULL ? process->err : process->out != NULL ? process->out : "";
    for (const char *at = text; last_line && (at = strchr(at, '\n')) != NULL && *++at != '\0';)
        text = at;
    int length = (int)strcspn(text, "\n");
    if (WIFSIGNALED(process->state))
        return pst_fail(err, -EIO, NULL, "%s was ended by signal %d: %.*s", name, WTERMSIG(process->state), length,
                        text);
    return pst_fail(err, -EIO, NULL, "%s ended with status %d: %.*s", name, WEXITSTATUS(process->state), length, text);
}

void cli_process_free(cli_process *process)
{
    pst_heap_free(process->out);
    pst_heap_free(process->err);
    process->out = process->err = NULL;
}
