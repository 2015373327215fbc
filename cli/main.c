/* SPDX-License-Identifier: Apache-2.0 */
/* penstock: finds the command, parses its options, runs it, and ends with the right status. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/heap.h"
#include "cli.h"
#include "common.h"
#include "interrupt.h"
#include "output.h"

const cli_command *const cli_commands[] = {
    &cli_command_generate, &cli_command_score,      &cli_command_tokenize,   &cli_command_synth,
    &cli_command_convert,  &cli_command_verify,     &cli_command_inspect,    &cli_command_bench_infer,
    &cli_command_bench_io, &cli_command_bench_save, &cli_command_bench_load, &cli_command_bench_kernels,
    &cli_command_tune,     &cli_command_plan,       &cli_command_devices};
const size_t cli_command_count = CLI_COUNT(cli_commands);

/* A standard descriptor that the caller closed would be taken by the first file opened, and text would land in it.
 * The wrong direction makes writing to it fail, as it should. */
static void occupy_standard_descriptors(void)
{
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) >= 0)
            continue;
        if (open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0)
            _exit(1);
    }
}

/* A checkpoint may have more files than the usual soft limit of 1024, which is only that low for programs that use
 * select(). */
static void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* The command that the first words name, and how many words that took. */
static const cli_command *find_command(int argc, char *const *argv, int *words)
{
    for (size_t i = 0; i < cli_command_count; i++) {
        const char *name = cli_commands[i]->spec.name;
        const char *space = strchr(name, ' ');
        if (space == NULL && strcmp(argv[0], name) == 0) {
            *words = 1;
            return cli_commands[i];
        }
        if (space != NULL && argc > 1 && strlen(argv[0]) == (size_t)(space - name) &&
            strncmp(argv[0], name, (size_t)(space - name)) == 0 && strcmp(argv[1], space + 1) == 0) {
            *words = 2;
            return cli_commands[i];
        }
    }
    return NULL;
}

static int unknown_command(int argc, char *const *argv, pst_error *err)
{
    if (strcmp(argv[0], "bench") == 0) {
        if (argc > 1 && argv[1][0] != '-')
            return cli_usage(err,
                             "\"bench %.40s\" is unknown; there are 'penstock bench infer', 'penstock bench io', "
                             "'penstock bench save', 'penstock bench load' and 'penstock bench kernels'",
                             argv[1]);
        return cli_usage(err, "'penstock bench' needs to know what: 'penstock bench infer', 'penstock bench io', "
                              "'penstock bench save', 'penstock bench load' or 'penstock bench kernels'");
    }
    const char *names[24];
    size_t count = 0;
    for (size_t i = 0; i < cli_command_count && count + 1 < CLI_COUNT(names); i++)
        names[count++] = cli_commands[i]->spec.name;
    names[count++] = "help";
    const char *nearest = pst_nearest_name(argv[0], names, count);
    if (nearest != NULL)
        return cli_usage(err, "unknown command \"%.40s\" (the nearest is %s)", argv[0], nearest);
    return cli_usage(err, "unknown command \"%.40s\"; 'penstock help' lists them", argv[0]);
}

static int exit_status(int status, const pst_error *err)
{
    if (status >= 0)
        return 0;
    if (status == CLI_E_READER_GONE)
        return 1;
    if (status == PST_E_CANCELLED && cli_interrupted() != 0) {
        cli_note("interrupted");
        return 128 + cli_interrupted();
    }
    cli_print_error(err);
    return status == CLI_E_USAGE ? 2 : 1;
}

static int run_command(const cli_command *command, int argc, char *const *argv, pst_error *err)
{
    pst_options_found found;
    void *values = pst_heap_alloc(command->spec.values_bytes);
    if (values == NULL)
        return pst_fail_memory(err, "options", command->spec.values_bytes);
    int status = pst_options_parse(&command->spec, argc, argv, values, &found, err);
    if (status == PST_E_USAGE)
        status = CLI_E_USAGE;
    if (status >= 0) {
        if (found.help) {
            pst_options_help("penstock", &command->spec, stdout);
            status = cli_out_flush(err);
        } else {
            status = command->run(values, &found, err);
        }
        pst_options_free(&command->spec, values);
    }
    pst_heap_free(values);
    return status;
}

static int dispatch(int argc, char *const *argv, pst_error *err)
{
    const char *word = argv[0];
    if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) {
        PST_TRY(cli_out_printf(err, "penstock %s\n", pst_version()));
        return cli_out_flush(err);
    }
    if (strcmp(word, "help") == 0 || strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
        return cli_help(argc - 1, argv + 1, err);
    int words = 0;
    const cli_command *command = find_command(argc, argv, &words);
    if (command == NULL)
        return unknown_command(argc, argv, err);
    return run_command(command, argc - words, argv + words, err);
}

int main(int argc, char **argv)
{
    occupy_standard_descriptors();
    raise_file_limit();
    cli_interrupt_install();
    if (argc < 2) {
        cli_help_overview(stderr);
        return 2;
    }
    pst_error err = {.offset = PST_NO_OFFSET};
    int status = dispatch(argc - 1, argv + 1, &err);
    /* What is still in the buffer must not vanish silently. */
    if (status >= 0)
        status = cli_out_flush(&err);
    return exit_status(status, &err);
}
