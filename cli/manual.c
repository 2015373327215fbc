/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The manual page penstock(1) in mdoc(7), written from the command tables. Groups that several commands share are
 * described once, in a section of their own.
 */
#include <ctype.h>
#include <string.h>

#include "cli.h"
#include "common.h"

enum { LINE_COLUMNS = 78 };

/* One word with what roff would take as a request or an escape made harmless; returns the columns that it took. */
static size_t print_word(const char *word, size_t length, bool starts_line, FILE *to)
{
    size_t columns = 0;
    if (starts_line && (*word == '.' || *word == '\''))
        columns += (size_t)fprintf(to, "\\&");
    for (size_t i = 0; i < length; i++) {
        if (word[i] == '\\')
            columns += (size_t)fprintf(to, "\\e");
        else if (word[i] == '-')
            columns += (size_t)fprintf(to, "\\-");
        else
            columns += (size_t)fprintf(to, "%c", word[i]);
    }
    return columns;
}

/* Paragraphs of text; every sentence begins a line, as mandoc wants it. */
static void print_text(const char *text, FILE *to)
{
    size_t column = 0;
    bool sentence_over = false;
    for (const char *at = text; *at != '\0';) {
        if (at[0] == '\n' && at[1] == '\n') {
            fputs("\n.Pp\n", to);
            column = 0;
            sentence_over = false;
        }
        at += strspn(at, " \n");
        size_t length = strcspn(at, " \n");
        if (length == 0)
            break;
        /* Twice the length: every letter may be escaped. */
        if (column > 0 && (column + 1 + 2 * length > LINE_COLUMNS || (sentence_over && isupper((unsigned char)*at)))) {
            fputc('\n', to);
            column = 0;
        }
        if (column > 0)
            column += (size_t)fprintf(to, " ");
        column += print_word(at, length, column == 0, to);
        sentence_over = at[length - 1] == '.';
        at += length;
    }
    fputc('\n', to);
}

/* A macro argument: quoted, since it may hold spaces or bars. */
static void print_argument(const char *text, FILE *to)
{
    fputc('"', to);
    for (const char *at = text; *at != '\0'; at++) {
        if (*at == '"')
            fputs("\"\"", to);
        else if (*at == '\\')
            fputs("\\e", to);
        else
            fputc(*at, to);
    }
    fputc('"', to);
}

static void print_option(const pst_option *option, FILE *to)
{
    char limits[160];
    fputs(".It ", to);
    if (option->short_name != '\0')
        fprintf(to, "Fl %c , ", option->short_name);
    fprintf(to, "Fl \\-%s", option->name);
    if (option->type == PST_OPTION_LEVEL)
        fputs(" Op Ar N", to);
    else if (pst_option_metavar(option)[0] != '\0') {
        fputs(" Ar ", to);
        print_argument(pst_option_metavar(option), to);
    }
    fputc('\n', to);
    /* Help is written in small letters without a full stop; on the page it is a sentence. */
    char sentence[2048];
    pst_option_limits(option, limits, sizeof limits);
    snprintf(sentence, sizeof sentence, "%s%s%s%s.", option->help, limits[0] ? " (" : "", limits, limits[0] ? ")" : "");
    sentence[0] = (char)toupper((unsigned char)sentence[0]);
    print_text(sentence, to);
}

static void print_rows(const pst_option_group *group, FILE *to)
{
    fputs(".Bl -tag -width Ds\n", to);
    for (size_t i = 0; i < group->count; i++)
        print_option(&group->options[i], to);
    fputs(".El\n", to);
}

static bool is_shared(const pst_option_group *group)
{
    return group->options == cli_runtime_rows || group->options == cli_io_rows || group->options == cli_lookup_rows ||
           group->options == cli_report_rows;
}

static void print_command(const pst_command *spec, FILE *to)
{
    fprintf(to, ".Ss %s", spec->name);
    if (spec->operands[0] == '[') /* optional */
        fprintf(to, " Op %.*s", (int)strlen(spec->operands) - 2, spec->operands + 1);
    else
        fprintf(to, " %s", spec->operands);
    fputc('\n', to);
    print_text(spec->description, to);
    bool takes_runtime = false, takes_io = false;
    for (size_t i = 0; i < spec->group_count; i++) {
        takes_runtime |= spec->groups[i].options == cli_runtime_rows;
        takes_io |= spec->groups[i].options == cli_io_rows;
        if (is_shared(&spec->groups[i]))
            continue;
        fputs(".Pp\n", to);
        print_text(spec->groups[i].title, to);
        print_rows(&spec->groups[i], to);
    }
    if (takes_runtime || takes_io) {
        fputs(".Pp\n", to);
        print_text(takes_runtime ? "It also takes the options of memory, streaming and compute, and those of drives."
                                 : "It also takes the options of drives.",
                   to);
    }
}

static void print_shared(FILE *to)
{
    static const struct {
        const char *title;
        pst_option_group group;
    } shared[] = {
        {"Memory, streaming and compute", CLI_OWN_GROUP("", cli_runtime_rows)},
        {"Drives", CLI_OWN_GROUP("", cli_io_rows)},
        {"Where models are looked up", CLI_OWN_GROUP("", cli_lookup_rows)},
        {"Output of every command", CLI_OWN_GROUP("", cli_report_rows)},
    };
    fputs(".Sh SHARED OPTIONS\n", to);
    for (size_t i = 0; i < CLI_COUNT(shared); i++) {
        fprintf(to, ".Ss %s\n", shared[i].title);
        print_rows(&shared[i].group, to);
    }
}

static void print_examples(FILE *to)
{
    fputs(".Sh EXAMPLES\n.Bd -literal -offset indent\n", to);
    for (size_t i = 0; i < cli_command_count; i++) {
        const char *at = cli_commands[i]->spec.example;
        while (at != NULL && *at != '\0') {
            at += strspn(at, " ");
            size_t length = strcspn(at, "\n");
            for (size_t j = 0; j < length; j++)
                fputs(at[j] == '-' ? "\\-" : at[j] == '\\' ? "\\e" : (char[]){at[j], '\0'}, to);
            fputc('\n', to);
            at += length + (at[length] == '\n');
        }
    }
    fputs(".Ed\n", to);
}

void cli_manual(FILE *to)
{
    fprintf(to, ".\\\" Written by 'penstock help --man' from the option tables.\n"
                ".Dd November 20, 2026\n.Dt PENSTOCK 1\n.Os\n"
                ".Sh NAME\n.Nm penstock\n.Nd language models larger than memory, streamed from the drive\n"
                ".Sh SYNOPSIS\n");
    for (size_t i = 0; i < cli_command_count; i++) {
        const pst_command *spec = &cli_commands[i]->spec;
        fprintf(to, ".Nm\n.Cm %s\n", spec->name);
        if (spec->operands[0] == '[')
            fprintf(to, ".Op Ar %.*s\n", (int)strlen(spec->operands) - 2, spec->operands + 1);
        else
            fprintf(to, ".Ar %s\n", spec->operands);
        fputs(".Op Ar options\n", to);
    }
    fputs(".Nm\n.Cm help\n.Op Ar command\n.Nm\n.Fl \\-version\n.Sh DESCRIPTION\n", to);
    print_text("Runs language models from their Hugging Face folders, read in place. What does not fit in the memory "
               "budget is streamed from the drive in every pass over the weights, at the speed of the drive.\n\n"
               "MODEL is a folder in the Hugging Face layout, a snapshot of the local Hugging Face cache, or org/name "
               "looked up there. Nothing is downloaded.\n\n"
               "Options may be spelt with hyphens or underscores, their values after a space or an equals sign. Sizes "
               "take the suffixes K, M, G, T (powers of 1000) and Ki, Mi, Gi, Ti (powers of 1024). Results go to "
               "standard output; progress, notes and errors to standard error.",
               to);
    fprintf(to, ".Pp\nThis page is of version %s.\n", pst_version());
    fputs(".Sh COMMANDS\n", to);
    for (size_t i = 0; i < cli_command_count; i++)
        print_command(&cli_commands[i]->spec, to);
    print_shared(to);
    fputs(".Sh ENVIRONMENT\n.Bl -tag -width Ds\n"
          ".It Ev HF_HUB_CACHE , HF_HOME , XDG_CACHE_HOME , HOME\n"
          "Where the local Hugging Face cache lies:\n"
          ".Pa $HF_HUB_CACHE ,\n.Pa $HF_HOME/hub ,\n.Pa $XDG_CACHE_HOME/huggingface/hub\nor\n"
          ".Pa ~/.cache/huggingface/hub ,\nthe first of them whose variable is set.\n"
          ".It Ev XDG_CONFIG_HOME , HOME\n"
          "Where the settings of drives are kept.\n.El\n"
          ".Sh FILES\n.Bl -tag -width Ds\n"
          ".It Pa $XDG_CONFIG_HOME/penstock/drives.json , Pa ~/.config/penstock/drives.json\n"
          "What\n.Cm tune\nfound best for each drive.\n.El\n"
          ".Sh EXIT STATUS\n",
          to);
    print_text("0 when done, 1 when failed (one line on standard error says why), 2 for wrong usage, 130 after an "
               "interrupt.",
               to);
    print_examples(to);
}
