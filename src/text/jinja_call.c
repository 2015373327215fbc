/* SPDX-License-Identifier: Apache-2.0 */
/* Calling macros, functions, methods and loops, and finding filters and tests. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja_syntax.h"

/* ---- builtins ---- */

/* The index of a keyword among the parameters, or -1. */
static int parameter_index(const char *parameters, const jinja_string *name)
{
    int index = 0;
    for (const char *at = parameters; *at != '\0' && *at != '*'; index++) {
        at += *at == '!';
        size_t length = strcspn(at, ",");
        if (length == name->bytes && memcmp(at, name->text, length) == 0)
            return index;
        at += length;
        at += *at == ',';
    }
    return -1;
}

static int check_required(jinja_run *run, const jinja_builtin *function, const jinja_value *given, size_t count,
                          size_t positional)
{
    size_t index = 0;
    const char *at = function->parameters;
    for (; *at != '\0' && *at != '*'; index++) {
        if (*at == '!' && given[index].kind == JINJA_MISSING)
            return pst_jinja_fail(run, "%s lacks the argument \"%.*s\"", function->name, (int)strcspn(at + 1, ","),
                                  at + 1);
        at += strcspn(at, ",");
        at += *at == ',';
    }
    if (*at != '*' && positional > index)
        return pst_jinja_fail(run, "%s has %zu arguments; it takes %zu", function->name, count, index);
    return 0;
}

int pst_jinja_call_builtin(jinja_run *run, const jinja_builtin *function, jinja_value self, const jinja_args *args,
                           jinja_value *out)
{
    jinja_value given[JINJA_MAX_PARAMETERS] = {{0}};
    bool takes_any = strchr(function->parameters, '*') != NULL;
    for (size_t i = 0; i < args->count && i < JINJA_MAX_PARAMETERS; i++)
        given[i] = args->values[i];
    for (size_t i = 0; i < args->keyword_count; i++) {
        const jinja_string *name = args->keywords[i].name;
        int index = parameter_index(function->parameters, name);
        if (index < 0 && takes_any)
            continue;
        if (index < 0 || given[index].kind != JINJA_MISSING)
            return pst_jinja_fail(run, "%s has no argument \"%.*s\", or has it twice", function->name,
                                  (int)(name->bytes < 80 ? name->bytes : 80), name->text);
        given[index] = args->keywords[i].value;
    }
    PST_TRY(check_required(run, function, given, args->count, args->count));
    return function->call(run, self, given, args, out);
}

/* ---- macros ---- */

/* What is left of the arguments: for varargs and kwargs, or too many. */
static int bind_rest(jinja_run *run, const jinja_node *node, jinja_scope *scope, const jinja_args *args,
                     jinja_dict *rest)
{
    const jinja_template *t = run->template;
    if (args->count > node->count && !(node->op & JINJA_USES_VARARGS))
        return pst_jinja_fail(run, "the macro takes %zu arguments and has %zu", node->count, args->count);
    if (rest->count > 0 && !(node->op & JINJA_USES_KWARGS))
        return pst_jinja_fail(
            run, "the macro has no argument \"%.*s\"",
            (int)(rest->entries[0].key.as.string->bytes < 80 ? rest->entries[0].key.as.string->bytes : 80),
            rest->entries[0].key.as.string->text);
    if (node->op & JINJA_USES_VARARGS) {
        jinja_list *list;
        PST_TRY(pst_jinja_list(run, 0, &list));
        for (size_t i = node->count; i < args->count; i++)
            PST_TRY(pst_jinja_push(run, list, args->values[i]));
        PST_TRY(pst_jinja_bind(run, scope, t->name_varargs, pst_jinja_of_list(JINJA_TUPLE, list)));
    }
    if (node->op & JINJA_USES_KWARGS)
        PST_TRY(pst_jinja_bind(run, scope, t->name_kwargs, pst_jinja_of_dict(rest)));
    return 0;
}

/* Takes the keyword arguments: those of parameters into values, caller and the rest apart. */
static int sort_keywords(jinja_run *run, const jinja_node *node, const jinja_args *args, jinja_value *values,
                         jinja_value *caller, jinja_dict *rest)
{
    for (size_t i = 0; i < args->keyword_count; i++) {
        const jinja_keyword *keyword = &args->keywords[i];
        const jinja_string *name = pst_jinja_find_name(run->template, keyword->name->text, keyword->name->bytes);
        size_t k = 0;
        while (k < node->count && node->items[k]->name != name)
            k++;
        PST_TRY(pst_jinja_charge(run, k));
        if (k < node->count && values[k].kind != JINJA_MISSING)
            return pst_jinja_fail(run, "the argument \"%.*s\" is given twice",
                                  (int)(name->bytes < 80 ? name->bytes : 80), name->text);
        if (k < node->count)
            values[k] = keyword->value;
        else if (name == run->template->name_caller && (node->op & JINJA_USES_CALLER))
            *caller = keyword->value;
        else
            PST_TRY(pst_jinja_put(run, rest, (jinja_value){.kind = JINJA_STRING, .as.string = keyword->name},
                                  keyword->value));
    }
    return 0;
}

static int bind_arguments(jinja_run *run, const jinja_node *node, jinja_scope *scope, const jinja_args *args)
{
    jinja_dict *rest;
    jinja_list *given;
    jinja_value caller = {.kind = JINJA_UNDEFINED};
    PST_TRY(pst_jinja_dict(run, 0, &rest));
    PST_TRY(pst_jinja_list(run, node->count, &given));
    for (size_t i = 0; i < node->count; i++)
        given->items[i] = i < args->count ? args->values[i] : (jinja_value){.kind = JINJA_MISSING};
    PST_TRY(sort_keywords(run, node, args, given->items, &caller, rest));
    for (size_t i = 0; i < node->count; i++) {
        jinja_value value = given->items[i];
        if (value.kind == JINJA_MISSING && node->items[i]->a != NULL)
            PST_TRY(pst_jinja_eval(run, node->items[i]->a, &value)); /* sees the parameters before it */
        else if (value.kind == JINJA_MISSING)
            value = (jinja_value){.kind = JINJA_UNDEFINED, .as.string = node->items[i]->name};
        PST_TRY(pst_jinja_bind(run, scope, node->items[i]->name, value));
    }
    if (node->op & JINJA_USES_CALLER)
        PST_TRY(pst_jinja_bind(run, scope, run->template->name_caller, caller));
    return bind_rest(run, node, scope, args, rest);
}

static int call_macro(jinja_run *run, const jinja_macro *macro, const jinja_args *args, jinja_value *out)
{
    jinja_scope *outer = run->scope;
    jinja_flow flow = run->flow;
    jinja_scope *scope = pst_jinja_alloc(&run->values, sizeof *scope, 16, run->err);
    if (scope == NULL)
        return pst_jinja_no_memory(run);
    *scope = (jinja_scope){.parent = macro->scope};
    PST_TRY(pst_jinja_deeper(run));
    run->scope = scope;
    PST_TRY(bind_arguments(run, macro->node, scope, args));
    PST_TRY(pst_jinja_capture(run, scope, macro->node->c, out));
    run->scope = outer;
    run->flow = flow;
    run->depth--;
    return 0;
}

/* loop(items) within a recursive loop. */
static int call_loop(jinja_run *run, const jinja_loop *loop, const jinja_args *args, jinja_value *out)
{
    jinja_buffer *buffer, *outer = run->out;
    jinja_scope *scope = run->scope;
    if (loop->node == NULL)
        return pst_jinja_fail(run, "the loop is not a recursive one");
    if (args->count != 1 || args->keyword_count != 0)
        return pst_jinja_fail(run, "a recursive loop takes one argument");
    PST_TRY(pst_jinja_buffer(run, &buffer));
    PST_TRY(pst_jinja_deeper(run));
    run->out = buffer;
    run->scope = loop->scope;
    PST_TRY(pst_jinja_exec_loop(run, loop->node, args->values[0], loop->depth + 1));
    run->out = outer;
    run->scope = scope;
    run->depth--;
    return pst_jinja_take(run, buffer, out);
}

int pst_jinja_call(jinja_run *run, jinja_value callee, const jinja_args *args, jinja_value *out)
{
    const jinja_string *what = callee.as.string;
    switch (callee.kind) {
    case JINJA_MACRO: return call_macro(run, callee.as.macro, args, out);
    case JINJA_LOOP: return call_loop(run, callee.as.loop, args, out);
    case JINJA_METHOD:
        return pst_jinja_call_builtin(run, callee.as.method->function, callee.as.method->self, args, out);
    case JINJA_FUNCTION:
        return pst_jinja_call_builtin(run, callee.as.function, (jinja_value){.kind = JINJA_MISSING}, args, out);
    case JINJA_UNDEFINED:
        return pst_jinja_fail(run, "a call of an undefined value%s%.*s", what != NULL ? ", " : "",
                              what != NULL ? (int)(what->bytes < 80 ? what->bytes : 80) : 0,
                              what != NULL ? what->text : "");
    default: return pst_jinja_fail(run, "%s cannot be called", pst_jinja_kind_name(callee));
    }
}

/* ---- filters and tests ---- */

const jinja_builtin *pst_jinja_find(const jinja_builtin *table, size_t count, const char *name, size_t bytes)
{
    for (size_t i = 0; i < count; i++) {
        if (strlen(table[i].name) == bytes && memcmp(table[i].name, name, bytes) == 0)
            return &table[i];
    }
    return NULL;
}

int pst_jinja_filter(jinja_run *run, const jinja_string *name, jinja_value value, const jinja_args *args,
                     jinja_value *out)
{
    const jinja_builtin *filter = pst_jinja_find_filter(name->text, name->bytes);
    if (filter == NULL)
        return pst_jinja_fail(run, "there is no filter \"%.*s\"", (int)(name->bytes < 80 ? name->bytes : 80),
                              name->text);
    PST_TRY(pst_jinja_deeper(run)); /* map() calls filters */
    PST_TRY(pst_jinja_call_builtin(run, filter, value, args, out));
    run->depth--;
    return 0;
}

int pst_jinja_test(jinja_run *run, const jinja_string *name, jinja_value value, const jinja_args *args)
{
    jinja_value passed;
    const jinja_builtin *test = pst_jinja_find_test(name->text, name->bytes);
    if (test == NULL)
        return pst_jinja_fail(run, "there is no test \"%.*s\"", (int)(name->bytes < 80 ? name->bytes : 80), name->text);
    PST_TRY(pst_jinja_charge(run, 0));
    PST_TRY(pst_jinja_call_builtin(run, test, value, args, &passed));
    return pst_jinja_truth(passed);
}
