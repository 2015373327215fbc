/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Running statements. Scopes are those of Jinja: a loop's pass, a macro, a captured block have one of their own,
 * "if" has none; what is set in a scope ends with it. A macro sees the scope in which it was defined, as it is when
 * it is called.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja_syntax.h"

void pst_jinja_open(jinja_run *run, const jinja_template *template, const jinja_limits *limits, pst_error *err)
{
    *run = (jinja_run){.template = template, .limits = *limits, .line = 1, .err = err};
    run->values = run->texts = (jinja_arena){.used_bytes = &run->used_bytes, .max_bytes = limits->memory_bytes};
    run->scope = &run->globals;
}

void pst_jinja_finish(jinja_run *run)
{
    for (jinja_buffer *buffer = run->buffers; buffer != NULL; buffer = buffer->next)
        pst_bytes_free(&buffer->bytes);
    pst_jinja_arena_free(&run->values);
    pst_jinja_arena_free(&run->texts);
    run->buffers = run->free_buffers = run->out = NULL;
}

int pst_jinja_bind(jinja_run *run, jinja_scope *scope, const jinja_string *name, jinja_value value)
{
    size_t looked = 0;
    for (jinja_binding *b = scope->first; b != NULL; b = b->next, looked++) {
        if (b->name == name) {
            b->value = value;
            return pst_jinja_charge(run, looked);
        }
    }
    PST_TRY(pst_jinja_charge(run, looked));
    jinja_binding *made = pst_jinja_alloc(&run->values, sizeof *made, 16, run->err);
    if (made == NULL)
        return pst_jinja_no_memory(run);
    *made = (jinja_binding){.name = name, .value = value, .next = scope->first};
    scope->first = made;
    return 0;
}

int pst_jinja_set_global(jinja_run *run, const char *name, size_t bytes, jinja_value value)
{
    const jinja_string *found = pst_jinja_find_name(run->template, name, bytes);
    return found != NULL ? pst_jinja_bind(run, &run->globals, found, value) : 0;
}

static int new_scope(jinja_run *run, jinja_scope *parent, jinja_scope **out)
{
    jinja_scope *scope = pst_jinja_alloc(&run->values, sizeof *scope, 16, run->err);
    if (scope == NULL)
        return pst_jinja_no_memory(run);
    *scope = (jinja_scope){.parent = parent};
    *out = scope;
    return 0;
}

int pst_jinja_capture(jinja_run *run, jinja_scope *scope, const jinja_node *body, jinja_value *out)
{
    jinja_buffer *buffer, *outer = run->out;
    jinja_scope *outer_scope = run->scope;
    PST_TRY(pst_jinja_buffer(run, &buffer));
    run->out = buffer;
    run->scope = scope;
    PST_TRY(pst_jinja_exec(run, body));
    run->out = outer;
    run->scope = outer_scope;
    return pst_jinja_take(run, buffer, out);
}

/* ---- assignments ---- */

static int assign_member(jinja_run *run, const jinja_node *target, jinja_value value)
{
    const jinja_node name = {.kind = NODE_NAME, .line = target->line, .name = target->name};
    const jinja_string *member = target->value.as.string;
    jinja_value object;
    PST_TRY(pst_jinja_eval(run, &name, &object));
    if (object.kind != JINJA_NAMESPACE)
        return pst_jinja_fail(run, "a member of %s cannot be set; only those of a namespace can",
                              pst_jinja_kind_name(object));
    if (member->bytes > 0 && member->text[0] == '_')
        return pst_jinja_fail(run, "a namespace's member whose name begins with \"_\"");
    return pst_jinja_put(run, object.as.dict, target->value, value);
}

static int assign(jinja_run *run, jinja_scope *scope, const jinja_node *target, jinja_value value)
{
    if (target->kind == NODE_NAME)
        return pst_jinja_bind(run, scope, target->name, value);
    if (target->kind == NODE_MEMBER)
        return assign_member(run, target, value);
    jinja_list *items;
    PST_TRY(pst_jinja_items(run, value, &items));
    if (items->count != target->count)
        return pst_jinja_fail(run, "%zu values for %zu variables", items->count, target->count);
    PST_TRY(pst_jinja_deeper(run));
    for (size_t i = 0; i < items->count; i++)
        PST_TRY(assign(run, scope, target->items[i], items->items[i]));
    run->depth--;
    return 0;
}

static int exec_set(jinja_run *run, const jinja_node *node)
{
    jinja_value value;
    PST_TRY(pst_jinja_eval(run, node->b, &value));
    run->line = node->line;
    return assign(run, run->scope, node->a, value);
}

/* What a block writes, filtered. */
static int filtered(jinja_run *run, const jinja_node *filters, const jinja_node *body, jinja_value *out)
{
    jinja_scope *scope = NULL;
    jinja_value outer = run->body;
    PST_TRY(new_scope(run, run->scope, &scope));
    PST_TRY(pst_jinja_capture(run, scope, body, &run->body));
    PST_TRY(pst_jinja_eval(run, filters, out));
    run->body = outer;
    return 0;
}

static int exec_set_block(jinja_run *run, const jinja_node *node)
{
    jinja_value value;
    PST_TRY(filtered(run, node->b, node->c, &value));
    return run->flow == JINJA_ON ? assign(run, run->scope, node->a, value) : 0;
}

static int exec_print_block(jinja_run *run, const jinja_node *node)
{
    jinja_value value;
    PST_TRY(filtered(run, node->a, node->c, &value));
    return run->flow == JINJA_ON ? pst_jinja_print(run, run->out, value) : 0;
}

/* ---- loops ---- */

/* The items for which the condition holds; it sees the target but no loop. */
static int filter_items(jinja_run *run, const jinja_node *node, jinja_list **items)
{
    jinja_list *kept;
    jinja_scope *outer = run->scope;
    PST_TRY(pst_jinja_list(run, 0, &kept));
    for (size_t i = 0; i < (*items)->count; i++) {
        jinja_value holds;
        PST_TRY(new_scope(run, outer, &run->scope));
        PST_TRY(assign(run, run->scope, node->a, (*items)->items[i]));
        PST_TRY(pst_jinja_eval(run, node->e, &holds));
        if (pst_jinja_truth(holds))
            PST_TRY(pst_jinja_push(run, kept, (*items)->items[i]));
    }
    run->scope = outer;
    *items = kept;
    return 0;
}

static int run_loop(jinja_run *run, const jinja_node *node, jinja_loop *loop)
{
    const jinja_value loop_value = {.kind = JINJA_LOOP, .as.loop = loop};
    for (loop->at = 0; loop->at < loop->list->count; loop->at++) {
        PST_TRY(pst_jinja_charge(run, 0));
        PST_TRY(new_scope(run, loop->scope, &run->scope));
        PST_TRY(pst_jinja_bind(run, run->scope, run->template->name_loop, loop_value));
        PST_TRY(assign(run, run->scope, node->a, loop->list->items[loop->at]));
        PST_TRY(pst_jinja_exec(run, node->c));
        bool ends = run->flow == JINJA_BREAK;
        run->flow = JINJA_ON;
        if (ends)
            break;
    }
    run->scope = loop->scope;
    return 0;
}

int pst_jinja_exec_loop(jinja_run *run, const jinja_node *node, jinja_value iterable, size_t depth)
{
    jinja_list *items;
    run->line = node->line;
    PST_TRY(pst_jinja_items(run, iterable, &items));
    if (node->e != NULL)
        PST_TRY(filter_items(run, node, &items));
    if (items->count == 0) {
        jinja_scope *outer = run->scope;
        if (node->d == NULL)
            return 0;
        PST_TRY(new_scope(run, outer, &run->scope));
        PST_TRY(pst_jinja_exec(run, node->d));
        run->scope = outer;
        return 0;
    }
    jinja_loop *loop = pst_jinja_alloc(&run->values, sizeof *loop, 16, run->err);
    if (loop == NULL)
        return pst_jinja_no_memory(run);
    *loop = (jinja_loop){.list = items, .depth = depth, .scope = run->scope, .node = node->op ? node : NULL};
    return run_loop(run, node, loop);
}

static int exec_for(jinja_run *run, const jinja_node *node)
{
    jinja_value iterable;
    PST_TRY(pst_jinja_eval(run, node->b, &iterable));
    return pst_jinja_exec_loop(run, node, iterable, 0);
}

/* ---- macros and blocks ---- */

static int make_macro(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_macro *macro = pst_jinja_alloc(&run->values, sizeof *macro, 16, run->err);
    if (macro == NULL)
        return pst_jinja_no_memory(run);
    *macro = (jinja_macro){.node = node, .scope = run->scope};
    *out = (jinja_value){.kind = JINJA_MACRO, .as.macro = macro};
    return 0;
}

static int exec_macro(jinja_run *run, const jinja_node *node)
{
    jinja_value macro;
    PST_TRY(make_macro(run, node, &macro));
    return pst_jinja_bind(run, run->scope, node->name, macro);
}

/* The block is given to the call as the argument "caller". */
static int exec_call_block(jinja_run *run, const jinja_node *node)
{
    jinja_value caller, value;
    jinja_scope *outer = run->scope;
    PST_TRY(make_macro(run, node->b, &caller));
    PST_TRY(new_scope(run, outer, &run->scope));
    const jinja_node body = {.kind = NODE_CONSTANT, .line = node->line, .value = caller};
    const jinja_node keyword = {
        .kind = NODE_KEYWORD, .line = node->line, .name = run->template->name_caller, .a = &body};
    const jinja_node **items = pst_jinja_alloc(&run->values, (node->a->count + 1) * sizeof(jinja_node *), 16, run->err);
    if (items == NULL)
        return pst_jinja_no_memory(run);
    if (node->a->count > 0)
        memcpy(items, node->a->items, node->a->count * sizeof(jinja_node *));
    items[node->a->count] = &keyword;
    jinja_node call = *node->a;
    call.items = items;
    call.count = node->a->count + 1;
    PST_TRY(pst_jinja_eval(run, &call, &value));
    run->scope = outer;
    return pst_jinja_print(run, run->out, value);
}

static int exec_with(jinja_run *run, const jinja_node *node)
{
    jinja_scope *outer = run->scope, *scope = NULL;
    PST_TRY(new_scope(run, outer, &scope));
    for (size_t i = 0; i < node->count; i += 2) {
        jinja_value value;
        PST_TRY(pst_jinja_eval(run, node->items[i + 1], &value));
        PST_TRY(assign(run, scope, node->items[i], value));
    }
    run->scope = scope;
    PST_TRY(pst_jinja_exec(run, node->c));
    run->scope = outer;
    return 0;
}

static int exec_if(jinja_run *run, const jinja_node *node)
{
    for (; node != NULL; node = node->c) {
        jinja_value condition;
        if (node->kind != NODE_IF)
            return pst_jinja_exec(run, node);
        PST_TRY(pst_jinja_charge(run, 0));
        PST_TRY(pst_jinja_eval(run, node->a, &condition));
        if (pst_jinja_truth(condition))
            return pst_jinja_exec(run, node->b);
    }
    return 0;
}

static int exec_output(jinja_run *run, const jinja_node *node)
{
    jinja_value value;
    PST_TRY(pst_jinja_eval(run, node->a, &value));
    run->line = node->line;
    return pst_jinja_print(run, run->out, value);
}

static int exec_node(jinja_run *run, const jinja_node *node)
{
    switch (node->kind) {
    case NODE_TEXT: return pst_jinja_write(run, run->out, node->value.as.string->text, node->value.as.string->bytes);
    case NODE_OUTPUT: return exec_output(run, node);
    case NODE_SEQUENCE:
        for (size_t i = 0; i < node->count && run->flow == JINJA_ON; i++)
            PST_TRY(pst_jinja_exec(run, node->items[i]));
        return 0;
    case NODE_IF: return exec_if(run, node);
    case NODE_FOR: return exec_for(run, node);
    case NODE_SET: return exec_set(run, node);
    case NODE_SET_BLOCK: return exec_set_block(run, node);
    case NODE_MACRO: return exec_macro(run, node);
    case NODE_CALL_BLOCK: return exec_call_block(run, node);
    case NODE_PRINT_BLOCK: return exec_print_block(run, node);
    case NODE_WITH:
    case NODE_SCOPE: return exec_with(run, node);
    case NODE_BREAK: run->flow = JINJA_BREAK; return 0;
    case NODE_CONTINUE: run->flow = JINJA_CONTINUE; return 0;
    default: return pst_jinja_fail(run, "an expression where a statement belongs");
    }
}

int pst_jinja_exec(jinja_run *run, const jinja_node *node)
{
    PST_TRY(pst_jinja_deeper(run));
    run->line = node->line;
    PST_TRY(exec_node(run, node));
    run->depth--;
    return 0;
}

int pst_jinja_render(jinja_run *run)
{
    PST_TRY(pst_jinja_buffer(run, &run->out));
    return pst_jinja_exec(run, run->template->root);
}
