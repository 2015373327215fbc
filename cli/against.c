/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starts bench/against.py with a Python that has the other library, without a shell. It runs this program and the library
 * alternately, each in a process of its own, and prints the report.
 */
#include "against.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"
#include "interrupt.h"

extern char **environ;

#define AT(member) .offset = offsetof(cli_against, member)

const pst_option cli_against_rows[CLI_AGAINST_ROWS] = {
    {.name = "against",
     .type = PST_OPTION_CHOICE,
     AT(library),
     .choices = "accelerate|deepspeed|llamacpp",
     .help = "compare with Accelerate's disk offload, DeepSpeed's ZeRO-Inference or llama.cpp on the same work, in "
             "interleaved pairs of processes, each within --host-memory (as root enforced by a control group)"},
    CLI_NUMBER_ROW(cli_against, pairs, "pairs", "3", 1, 1000, "with --against: how many pairs"),
    CLI_NUMBER_ROW(cli_against, peer_batch_size, "peer-batch-size", NULL, 1, 65536,
                   "with --against: the other side's prompts computed together, its own best; without it --batch-size"),
    {.name = "python",
     .type = PST_OPTION_STRING,
     AT(python),
     .metavar = "PROGRAM",
     .initial = "python3",
     .help = "with --against: a Python that has the other library"},
    {.name = "drivers",
     .type = PST_OPTION_STRING,
     AT(drivers),
     .metavar = "DIR",
     .help = "with --against: where against.py lies; without it share/penstock/bench beside this program's folder, or "
             "bench of the source tree"},
    {.name = "llama-bench",
     .type = PST_OPTION_STRING,
     AT(llama_bench),
     .metavar = "PROGRAM",
     .help = "with --against llamacpp: its llama-batched-bench; without it the Python module llama_cpp"},
    {.name = "gguf",
     .type = PST_OPTION_STRING,
     AT(gguf),
     .metavar = "FILE",
     .help = "with --against llamacpp: the model as it reads it; without it one is written from the model's weights"},
};

/* The program's own path. */
static int own_path(char *out, size_t bytes, pst_error *err)
{
    ssize_t length = readlink("/proc/self/exe", out, bytes - 1);
    if (length < 0)
        return pst_fail(err, -errno, "/proc/self/exe", "cannot be read: %s", strerror(errno));
    out[length] = '\0';
    return 0;
}

int cli_find_driver(const char *drivers, const char *name, char *out, size_t bytes, pst_error *err)
{
    char folder[PATH_MAX];
    PST_TRY(own_path(folder, sizeof folder, err));
    char *slash = strrchr(folder, '/');
    if (slash != NULL)
        *slash = '\0';
    static const char *const places[] = {"../share/penstock/bench", "../bench"};
    for (size_t i = 0; i < (drivers ? 1 : CLI_COUNT(places)); i++) {
        int length = drivers ? snprintf(out, bytes, "%s/%s", drivers, name)
                             : snprintf(out, bytes, "%s/%s/%s", folder, places[i], name);
        if (length > 0 && (size_t)length < bytes && access(out, R_OK) == 0)
            return 0;
    }
    return pst_fail(err, -ENOENT, drivers, "%s is not there; --drivers says where it lies", name);
}

/* Waits; a signal that ends the command reaches the whole group from a terminal, and is passed on besides. */
static int wait_for(pid_t pid, pst_error *err)
{
    int state = 0;
    while (waitpid(pid, &state, 0) < 0) {
        if (errno != EINTR)
            return pst_fail(err, -errno, NULL, "cannot wait for the comparison: %s", strerror(errno));
        if (cli_interrupted() != 0)
            kill(pid, SIGTERM);
    }
    if (cli_interrupted() != 0)
        return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
    if (WIFEXITED(state) && WEXITSTATUS(state) == 0)
        return 0;
    return pst_fail(err, PST_E_UNSUPPORTED, NULL, "the comparison failed (%s %d); the lines above say why",
                    WIFEXITED(state) ? "status" : "signal", WIFEXITED(state) ? WEXITSTATUS(state) : WTERMSIG(state));
}

typedef struct words {
    const char *items[96];
    size_t count;
} words;

static void add(words *list, const char *word)
{
    if (word != NULL && list->count + 1 < CLI_COUNT(list->items))
        list->items[list->count++] = word;
}

static void add_pair(words *list, const char *name, const char *value)
{
    if (value == NULL || value[0] == '\0')
        return;
    add(list, name);
    add(list, value);
}

int cli_against_run(const cli_against *against, const cli_against_work *work, pst_error *err)
{
    char program[PATH_MAX], script[PATH_MAX + 64];
    PST_TRY(own_path(program, sizeof program, err));
    PST_TRY(cli_find_driver(against->drivers, "against.py", script, sizeof script, err));
    if (work->host_memory == 0)
        return cli_usage(err, "--against needs --host-memory: the limit of both sides");
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {{"--memory", work->host_memory},    {"--batch-size", work->batch_size},
                   {"--prompt-len", work->prompt_len}, {"--gen-len", work->gen_len},
                   {"--loops", work->loops},           {"--pairs", against->pairs},
                   {"--threads", work->threads}};
    char texts[CLI_COUNT(numbers)][24], peer_batch[24];
    words list = {0};
    add(&list, against->python);
    add(&list, script);
    add_pair(&list, "--against", against->library);
    add_pair(&list, "--penstock", program);
    add_pair(&list, "--model", work->model);
    for (size_t i = 0; i < CLI_COUNT(numbers); i++) {
        snprintf(texts[i], sizeof texts[i], "%" PRIu64, numbers[i].value);
        add_pair(&list, numbers[i].name, texts[i]);
    }
    if (against->peer_batch_size != 0) {
        snprintf(peer_batch, sizeof peer_batch, "%" PRIu64, against->peer_batch_size);
        add_pair(&list, "--peer-batch-size", peer_batch);
    }
    add_pair(&list, "--llama-bench", against->llama_bench);
    add_pair(&list, "--gguf", against->gguf);
    add(&list, work->json ? "--json" : NULL);
    add(&list, "--");
    for (const char *const *option = work->options; option != NULL && *option != NULL; option++)
        add(&list, *option);
    pid_t pid;
    cli_interrupt_polled(true);
    int status = -posix_spawnp(&pid, against->python, NULL, NULL, (char **)list.items, environ);
    status = status < 0 ? pst_fail(err, status, NULL, "cannot start %s: %s", against->python, strerror(-status))
                        : wait_for(pid, err);
    cli_interrupt_polled(false);
    return status;
}
