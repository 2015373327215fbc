/* SPDX-License-Identifier: Apache-2.0 */
/* The help text of a command, from the same rows that its options are parsed with. */
#include <string.h>

#include "base/options.h"

enum { HELP_COLUMNS = 100, HELP_INDENT = 28 };

const char *pst_option_metavar(const pst_option *option)
{
    if (option->type == PST_OPTION_FLAG)
        return "";
    if (option->type == PST_OPTION_CHOICE && option->metavar == NULL)
        return option->choices;
    return option->metavar != NULL ? option->metavar : "VALUE";
}

void pst_option_limits(const pst_option *option, char *text, size_t text_bytes)
{
    char range[64] = "", initial[96] = "";
    /* A maximum that nobody comes near says nothing to a reader. */
    if (option->max != 0 && option->max < 65536)
        snprintf(range, sizeof range, "%.15g to %.15g", option->min, option->max);
    if (option->initial != NULL && option->type != PST_OPTION_FLAG && option->type != PST_OPTION_LEVEL)
        snprintf(initial, sizeof initial, "default %s", option->initial);
    snprintf(text, text_bytes, "%s%s%s", range, range[0] != '\0' && initial[0] != '\0' ? "; " : "", initial);
}

void pst_options_wrap(const char *text, size_t column, size_t indent, FILE *to)
{
    if (column < indent)
        fprintf(to, "%*s", (int)(indent - column), "");
    column = indent > column ? indent : column;
    bool first = true;
    for (const char *at = text; *at != '\0';) {
        if (at[0] == '\n' && at[1] == '\n') { /* a new paragraph */
            fprintf(to, "\n\n%*s", (int)indent, "");
            column = indent;
            first = true;
            at += 2;
            continue;
        }
        if (*at == ' ' || *at == '\n') {
            at++;
            continue;
        }
        size_t length = strcspn(at, " \n");
        if (!first && column + 1 + length > HELP_COLUMNS) {
            fprintf(to, "\n%*s", (int)indent, "");
            column = indent;
            first = true;
        }
        fprintf(to, "%s%.*s", first ? "" : " ", (int)length, at);
        column += length + (first ? 0 : 1);
        first = false;
        at += length;
    }
    fputc('\n', to);
}

static void print_option(const pst_option *option, FILE *to)
{
    char head[128], limits[160], text[2048];
    char shorts[8] = "    ";
    if (option->short_name != '\0')
        snprintf(shorts, sizeof shorts, "-%c, ", option->short_name);
    const char *metavar = pst_option_metavar(option);
    bool optional = option->type == PST_OPTION_LEVEL;
    snprintf(head, sizeof head, "  %s--%s%s%s%s", shorts, option->name, metavar[0] ? (optional ? " [" : " ") : "",
             metavar, optional ? "]" : "");
    pst_option_limits(option, limits, sizeof limits);
    snprintf(text, sizeof text, "%s%s%s%s", option->help, limits[0] ? " (" : "", limits, limits[0] ? ")" : "");
    size_t width = strlen(head);
    fputs(head, to);
    if (width + 2 > HELP_INDENT) {
        fputc('\n', to);
        width = 0;
    }
    pst_options_wrap(text, width, HELP_INDENT, to);
}

void pst_options_help(const char *program, const pst_command *command, FILE *to)
{
    fprintf(to, "%s %s%s%s [OPTIONS]\n\n", program, command->name, command->operands[0] ? " " : "", command->operands);
    pst_options_wrap(command->description, 0, 0, to);
    for (size_t i = 0; i < command->group_count; i++) {
        const pst_option_group *group = &command->groups[i];
        fprintf(to, "\n%s:\n", group->title);
        for (size_t j = 0; j < group->count; j++) {
            if (!group->options[j].hidden)
                print_option(&group->options[j], to);
        }
    }
    if (command->example != NULL)
        fprintf(to, "\nExample:\n%s", command->example);
}
