/* SPDX-License-Identifier: Apache-2.0 */
/* penstock help: the overview, one command, or the manual page; all from the command tables. */
#include <string.h>

#include "cli.h"
#include "common.h"
#include "output.h"

void cli_help_overview(FILE *to)
{
    fputs("penstock COMMAND [MODEL|PATH] [OPTIONS]\n\n"
          "Runs language models whose weights need not fit in memory, streamed from the drive.\n\n",
          to);
    for (size_t i = 0; i < cli_command_count; i++) {
        const pst_command *spec = &cli_commands[i]->spec;
        char head[64];
        snprintf(head, sizeof head, "%s %s", spec->name, spec->operands);
        fprintf(to, "  %-22s %s\n", head, spec->summary);
    }
    fputs("  help [COMMAND]         all options of a command; --man prints the manual page\n\n"
          "MODEL is a folder in the Hugging Face layout, or org/name in the local Hugging Face cache.\n"
          "Every command takes --help and --json. Results go to standard output, everything else to\n"
          "standard error. Exit status: 0 done, 1 failed, 2 wrong usage.\n",
          to);
}

/* "bench" alone is every command that begins with this word. Returns how many there were. */
static unsigned help_named(int argc, char *const *argv)
{
    char name[64];
    snprintf(name, sizeof name, argc > 1 ? "%s %s" : "%s", argv[0], argc > 1 ? argv[1] : "");
    size_t length = strlen(name);
    unsigned count = 0;
    for (size_t i = 0; i < cli_command_count; i++) {
        const char *known = cli_commands[i]->spec.name;
        if (strcmp(known, name) != 0 && (argc != 1 || strncmp(known, name, length) != 0 || known[length] != ' '))
            continue;
        if (count++ > 0)
            fputc('\n', stdout);
        pst_options_help("penstock", &cli_commands[i]->spec, stdout);
    }
    return count;
}

int cli_help(int argc, char *const *argv, pst_error *err)
{
    if (argc == 0) {
        cli_help_overview(stdout);
    } else if (strcmp(argv[0], "--man") == 0 && argc == 1) {
        cli_manual(stdout);
    } else if (argc > 2 || help_named(argc, argv) == 0) {
        return cli_usage(err, "no help on \"%.40s\"; 'penstock help' lists the commands", argv[0]);
    }
    return cli_out_flush(err);
}
