/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parsing of option tables. Every value, default or given, goes through store_value, which alone knows the types.
 * The tables are small, so rows are found by walking them.
 */
#include "base/options.h"

#include <string.h>

#include "base/error.h"
#include "base/heap.h"

/* The row of a number counted over all groups, or NULL after the last. */
static const pst_option *row_at(const pst_command *command, size_t number, const pst_option_group **out_group)
{
    for (size_t i = 0; i < command->group_count; i++) {
        const pst_option_group *group = &command->groups[i];
        if (number < group->count) {
            *out_group = group;
            return &group->options[number];
        }
        number -= group->count;
    }
    return NULL;
}

static void *value_of(void *values, const pst_option_group *group, const pst_option *option)
{
    return (char *)values + group->base + option->offset;
}

/* Compares an option's name with [word, word + length); hyphen and underscore are the same letter. */
static bool name_is(const char *name, const char *word, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (name[i] != (word[i] == '_' ? '-' : word[i]))
            return false;
    }
    return name[length] == '\0';
}

static bool choice_is_known(const char *choices, const char *value)
{
    size_t length = strlen(value);
    for (const char *at = choices;; at++) {
        size_t span = strcspn(at, "|");
        if (span == length && memcmp(at, value, length) == 0)
            return true;
        at += span;
        if (*at == '\0')
            return false;
    }
}

static bool has_limits(const pst_option *option)
{
    return option->min != 0 || option->max != 0;
}

/* NaN fails both comparisons and so is outside. */
static int check_limits(const pst_option *option, double value, const char *text, pst_error *err)
{
    bool bounded = option->max != 0 || option->min <= 0;
    if (!has_limits(option) || (value >= option->min && (!bounded || value <= option->max)))
        return 0;
    if (!bounded)
        return pst_fail(err, PST_E_USAGE, NULL, "%.80s is less than %.15g", text, option->min);
    return pst_fail(err, PST_E_USAGE, NULL, "%s is not within %.15g to %.15g", text, option->min, option->max);
}

static int store_number(const pst_option *option, const char *text, uint64_t *to, pst_error *err)
{
    uint64_t number;
    if (option->type == PST_OPTION_SIZE)
        PST_TRY((option->binary ? pst_parse_binary_size : pst_parse_size)(text, &number, err));
    else
        PST_TRY(pst_parse_u64(text, &number, err));
    PST_TRY(check_limits(option, (double)number, text, err));
    if (option->multiple != 0 && number % option->multiple != 0)
        return pst_fail(err, PST_E_USAGE, NULL, "%.80s is not a multiple of %llu", text,
                        (unsigned long long)option->multiple);
    *to = number;
    return 0;
}

static int append_string(pst_option_strings *list, const char *text, pst_error *err)
{
    const char **grown = pst_heap_reallocarray(list->items, list->count + 1, sizeof *grown);
    if (grown == NULL)
        return pst_fail_memory(err, "options", (list->count + 1) * sizeof *grown);
    list->items = grown;
    list->items[list->count++] = text;
    return 0;
}

static int append_ids(pst_option_ids *all, const char *text, pst_error *err)
{
    pst_option_id_list list;
    PST_TRY(pst_parse_ids(text, &list, err));
    pst_option_id_list *grown = pst_heap_reallocarray(all->lists, all->count + 1, sizeof *grown);
    if (grown == NULL) {
        pst_heap_free(list.ids);
        return pst_fail_memory(err, "options", (all->count + 1) * sizeof *grown);
    }
    all->lists = grown;
    all->lists[all->count++] = list;
    return 0;
}

/* Parses `text` into the option's place. The message does not name the option: the caller knows how it was spelt. */
static int store_value(const pst_option *option, const char *text, void *to, pst_error *err)
{
    double number;
    switch (option->type) {
    case PST_OPTION_FLAG: *(bool *)to = true; return 0;
    case PST_OPTION_LEVEL:
    case PST_OPTION_U64:
    case PST_OPTION_SIZE: return store_number(option, text, to, err);
    case PST_OPTION_DOUBLE:
        PST_TRY(pst_parse_double(text, &number, err));
        PST_TRY(check_limits(option, number, text, err));
        *(double *)to = number;
        return 0;
    case PST_OPTION_SHARE: return pst_parse_share(text, to, err);
    case PST_OPTION_CHOICE:
        if (!choice_is_known(option->choices, text))
            return pst_fail(err, PST_E_USAGE, NULL, "\"%.80s\" is none of %s", text, option->choices);
        *(const char **)to = text;
        return 0;
    case PST_OPTION_STRING: *(const char **)to = text; return 0;
    case PST_OPTION_STRINGS: return append_string(to, text, err);
    case PST_OPTION_IDS: return append_ids(to, text, err);
    }
    return pst_fail(err, PST_E_USAGE, NULL, "option of an unknown type");
}

static int unknown_option(const pst_command *command, const char *word, pst_error *err)
{
    const char *names[PST_OPTIONS_MAX];
    size_t count = 0;
    const pst_option_group *group;
    for (const pst_option *row; count < PST_OPTIONS_MAX && (row = row_at(command, count, &group)) != NULL;)
        names[count++] = row->name;
    char bare[64];
    size_t length = 0;
    for (const char *at = word + strspn(word, "-"); *at != '\0' && *at != '=' && length + 1 < sizeof bare; at++)
        bare[length++] = *at == '_' ? '-' : *at;
    bare[length] = '\0';
    const char *nearest = pst_nearest_name(bare, names, count);
    if (nearest == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "unknown option %.80s of 'penstock %s'", word, command->name);
    return pst_fail(err, PST_E_USAGE, NULL, "unknown option %.80s of 'penstock %s' (the nearest is --%s)", word,
                    command->name, nearest);
}

static const pst_option *find_long(const pst_command *command, const char *name, size_t length,
                                   const pst_option_group **group, size_t *number)
{
    const pst_option *row;
    for (*number = 0; (row = row_at(command, *number, group)) != NULL; ++*number) {
        if (name_is(row->name, name, length))
            return row;
    }
    return NULL;
}

/* Splits "--name=value", "-x", "-xvalue" or "-x=value"; *value is NULL when the value is not in the same word. */
static const pst_option *match_row(const pst_command *command, const char *word, const pst_option_group **group,
                                   size_t *number, const char **value)
{
    bool is_long = word[1] == '-';
    const char *name = word + (is_long ? 2 : 1);
    size_t length = strcspn(name, "=");
    const pst_option *row = find_long(command, name, length, group, number);
    if (is_long) {
        *value = name[length] == '=' ? name + length + 1 : NULL;
        return row;
    }
    if (row != NULL) /* "-prompt" is no "-p rompt", but a hyphen too few */
        return NULL;
    for (*number = 0; (row = row_at(command, *number, group)) != NULL; ++*number) {
        if (row->short_name != '\0' && row->short_name == *name) {
            *value = name[1] == '\0' ? NULL : name + (name[1] == '=' ? 2 : 1);
            return row;
        }
    }
    return NULL;
}

static bool is_decimal(const char *text)
{
    return *text != '\0' && text[strspn(text, "0123456789")] == '\0';
}

/* Handles the option at argv[*at], moving *at to the last word that it took. */
static int parse_option(const pst_command *command, int argc, char *const *argv, int *at, void *values,
                        pst_options_found *found, pst_error *err)
{
    const char *word = argv[*at];
    const pst_option_group *group;
    const char *value = NULL;
    size_t number;
    const pst_option *row = match_row(command, word, &group, &number, &value);
    if (row == NULL)
        return unknown_option(command, word, err);
    if (row->type == PST_OPTION_FLAG) {
        if (value != NULL)
            return pst_fail(err, PST_E_USAGE, NULL, "--%s takes no value", row->name);
    } else if (row->type == PST_OPTION_LEVEL && value == NULL) {
        value = *at + 1 < argc && is_decimal(argv[*at + 1]) ? argv[++*at] : "1";
    } else if (value == NULL) {
        if (*at + 1 >= argc)
            return pst_fail(err, PST_E_USAGE, NULL, "--%s needs a value (%s)", row->name, pst_option_metavar(row));
        value = argv[++*at];
    }
    pst_error cause;
    int status = store_value(row, value, value_of(values, group, row), &cause);
    if (status < 0)
        return pst_fail(err, status, NULL, "--%s: %s", row->name, cause.message);
    found->given[number] = true;
    return 0;
}

static int set_defaults(const pst_command *command, void *values, pst_error *err)
{
    const pst_option_group *group;
    const pst_option *row;
    for (size_t number = 0; (row = row_at(command, number, &group)) != NULL; number++) {
        if (number >= PST_OPTIONS_MAX)
            return pst_fail(err, PST_E_USAGE, NULL, "'penstock %s' has too many options", command->name);
        if (row->initial != NULL)
            PST_TRY(store_value(row, row->initial, value_of(values, group, row), err));
    }
    return 0;
}

static int parse_words(const pst_command *command, int argc, char *const *argv, void *values, pst_options_found *found,
                       pst_error *err)
{
    bool options_over = false;
    for (int at = 0; at < argc; at++) {
        const char *word = argv[at];
        if (!options_over && strcmp(word, "--") == 0) {
            options_over = true;
        } else if (!options_over && (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0)) {
            found->help = true;
            return 0;
        } else if (!options_over && word[0] == '-' && word[1] != '\0') {
            PST_TRY(parse_option(command, argc, argv, &at, values, found, err));
        } else if (word[0] == '\0') {
            return pst_fail(err, PST_E_USAGE, NULL, "'penstock %s' needs %s, and one word is empty", command->name,
                            command->operands);
        } else if (found->operand_count < command->max_operands && found->operand_count < PST_OPERANDS_MAX) {
            found->operands[found->operand_count++] = word;
        } else {
            return pst_fail(err, PST_E_USAGE, NULL, "unexpected \"%.80s\" after 'penstock %s %s'", word, command->name,
                            command->operands);
        }
    }
    if (found->operand_count < command->min_operands)
        return pst_fail(err, PST_E_USAGE, NULL, "'penstock %s' needs %s", command->name, command->operands);
    return 0;
}

int pst_options_parse(const pst_command *command, int argc, char *const *argv, void *values, pst_options_found *found,
                      pst_error *err)
{
    memset(values, 0, command->values_bytes);
    memset(found, 0, sizeof *found);
    int status = set_defaults(command, values, err);
    if (status >= 0)
        status = parse_words(command, argc, argv, values, found, err);
    if (status < 0)
        pst_options_free(command, values);
    return status;
}

static void free_value(const pst_option *option, void *value)
{
    if (option->type == PST_OPTION_STRINGS) {
        pst_option_strings *list = value;
        pst_heap_free(list->items);
        *list = (pst_option_strings){0};
    } else if (option->type == PST_OPTION_IDS) {
        pst_option_ids *all = value;
        for (size_t i = 0; i < all->count; i++)
            pst_heap_free(all->lists[i].ids);
        pst_heap_free(all->lists);
        *all = (pst_option_ids){0};
    }
}

void pst_options_free(const pst_command *command, void *values)
{
    const pst_option_group *group;
    const pst_option *row;
    for (size_t number = 0; (row = row_at(command, number, &group)) != NULL; number++)
        free_value(row, value_of(values, group, row));
}

bool pst_options_given(const pst_command *command, const pst_options_found *found, const char *name)
{
    const pst_option_group *group;
    const pst_option *row;
    for (size_t number = 0; (row = row_at(command, number, &group)) != NULL; number++) {
        if (strcmp(row->name, name) == 0)
            return found->given[number];
    }
    return false;
}

enum { NAME_LIMIT = 63 }; /* letters of a name that are compared */

/* Edits that turn one word into the other: insert, delete, replace, or swap neighbours (optimal string alignment). */
static size_t edit_distance(const char *a, const char *b)
{
    size_t rows[3][NAME_LIMIT + 1];
    size_t a_length = strnlen(a, NAME_LIMIT), b_length = strnlen(b, NAME_LIMIT);
    for (size_t j = 0; j <= b_length; j++)
        rows[0][j] = j;
    for (size_t i = 1; i <= a_length; i++) {
        size_t *now = rows[i % 3], *before = rows[(i + 2) % 3], *earlier = rows[(i + 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= b_length; j++) {
            size_t best = before[j - 1] + (a[i - 1] != b[j - 1]);
            best = before[j] + 1 < best ? before[j] + 1 : best;
            best = now[j - 1] + 1 < best ? now[j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && earlier[j - 2] + 1 < best)
                best = earlier[j - 2] + 1;
            now[j] = best;
        }
    }
    return rows[a_length % 3][b_length];
}

const char *pst_nearest_name(const char *word, const char *const *names, size_t count)
{
    const char *nearest = NULL;
    size_t length = strlen(word);
    /* A third of the letters may be wrong; a name that goes on where the word stops is near too (--max-new). */
    size_t best = length / 3 + 2;
    for (size_t i = 0; i < count; i++) {
        size_t distance = edit_distance(word, names[i]);
        if (length >= 3 && strncmp(names[i], word, length) == 0)
            distance = 1;
        if (distance < best) {
            best = distance;
            nearest = names[i];
        }
    }
    return nearest;
}
