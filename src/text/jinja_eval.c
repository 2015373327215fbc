/* SPDX-License-Identifier: Apache-2.0 */
/* Evaluating expressions: a walk over the tree. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja_syntax.h"

static int lookup(jinja_run *run, const jinja_string *name, jinja_value *out)
{
    size_t looked = 0;
    for (const jinja_scope *scope = run->scope; scope != NULL; scope = scope->parent) {
        for (const jinja_binding *b = scope->first; b != NULL; b = b->next, looked++) {
            if (b->name == name) {
                *out = b->value;
                return pst_jinja_charge(run, looked);
            }
        }
        looked++;
    }
    PST_TRY(pst_jinja_charge(run, looked));
    const jinja_builtin *function = pst_jinja_find_function(name->text, name->bytes);
    if (function != NULL)
        *out = (jinja_value){.kind = JINJA_FUNCTION, .as.function = function};
    else
        *out = (jinja_value){.kind = JINJA_UNDEFINED, .as.string = name};
    return 0;
}

static int eval_list(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_list *list;
    PST_TRY(pst_jinja_list(run, node->count, &list));
    for (size_t i = 0; i < node->count; i++)
        PST_TRY(pst_jinja_eval(run, node->items[i], &list->items[i]));
    list->count = node->count;
    *out = pst_jinja_of_list(node->kind == NODE_LIST ? JINJA_LIST : JINJA_TUPLE, list);
    return 0;
}

static int eval_dict(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_dict *dict;
    PST_TRY(pst_jinja_dict(run, node->count / 2, &dict));
    for (size_t i = 0; i < node->count; i += 2) {
        jinja_value key, value;
        PST_TRY(pst_jinja_eval(run, node->items[i], &key));
        PST_TRY(pst_jinja_eval(run, node->items[i + 1], &value));
        PST_TRY(pst_jinja_put(run, dict, key, value));
    }
    *out = pst_jinja_of_dict(dict);
    return 0;
}

static int eval_slice(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value object, bounds[3] = {{0}, {0}, {0}};
    PST_TRY(pst_jinja_eval(run, node->a, &object));
    for (size_t i = 0; i < 3; i++) {
        if (node->items[i] != NULL)
            PST_TRY(pst_jinja_eval(run, node->items[i], &bounds[i]));
    }
    return pst_jinja_slice(run, object, bounds, out);
}

/* ---- arguments ---- */

static int add_keyword(jinja_run *run, jinja_args *args, size_t *capacity, const jinja_string *name, jinja_value value)
{
    for (size_t i = 0; i < args->keyword_count; i++) {
        const jinja_string *other = args->keywords[i].name;
        if (other->bytes != name->bytes)
            continue;
        PST_TRY(pst_jinja_charge(run, name->bytes));
        if (memcmp(other->text, name->text, name->bytes) == 0)
            return pst_jinja_fail(run, "the argument \"%.*s\" is given twice",
                                  (int)(name->bytes < 80 ? name->bytes : 80), name->text);
    }
    PST_TRY(pst_jinja_charge(run, args->keyword_count + name->bytes));
    if (args->keyword_count == *capacity) {
        *capacity = *capacity == 0 ? 4 : 2 * *capacity;
        jinja_keyword *grown = pst_jinja_alloc(&run->values, *capacity * sizeof *grown, 16, run->err);
        if (grown == NULL)
            return pst_jinja_no_memory(run);
        if (args->keyword_count > 0)
            memcpy(grown, args->keywords, args->keyword_count * sizeof *grown);
        args->keywords = grown;
    }
    args->keywords[args->keyword_count++] = (jinja_keyword){.name = name, .value = value};
    return 0;
}

static int spread(jinja_run *run, jinja_value v, jinja_list *values)
{
    jinja_list *items;
    PST_TRY(pst_jinja_items(run, v, &items));
    for (size_t i = 0; i < items->count; i++)
        PST_TRY(pst_jinja_push(run, values, items->items[i]));
    return 0;
}

static int spread_keywords(jinja_run *run, jinja_value v, jinja_args *args, size_t *capacity)
{
    if (v.kind != JINJA_DICT)
        return pst_jinja_fail(run, "** of %s", pst_jinja_kind_name(v));
    for (size_t i = 0; i < v.as.dict->count; i++) {
        const jinja_entry *entry = &v.as.dict->entries[i];
        if (entry->key.kind != JINJA_STRING)
            return pst_jinja_fail(run, "** of a dict whose keys are not strings");
        PST_TRY(add_keyword(run, args, capacity, entry->key.as.string, entry->value));
    }
    return 0;
}

static int eval_args(jinja_run *run, const jinja_node *node, jinja_args *out)
{
    jinja_list *values;
    size_t capacity = 0;
    jinja_args args = {0};
    if (node->count == 0) {
        *out = args;
        return 0;
    }
    PST_TRY(pst_jinja_list(run, node->count, &values));
    for (size_t i = 0; i < node->count; i++) {
        const jinja_node *item = node->items[i];
        bool is_special = item->kind == NODE_KEYWORD || item->kind == NODE_SPREAD || item->kind == NODE_SPREAD_KEYWORDS;
        jinja_value value;
        PST_TRY(pst_jinja_eval(run, is_special ? item->a : item, &value));
        if (item->kind == NODE_KEYWORD)
            PST_TRY(add_keyword(run, &args, &capacity, item->name, value));
        else if (item->kind == NODE_SPREAD)
            PST_TRY(spread(run, value, values));
        else if (item->kind == NODE_SPREAD_KEYWORDS)
            PST_TRY(spread_keywords(run, value, &args, &capacity));
        else
            PST_TRY(pst_jinja_push(run, values, value));
    }
    args.values = values->items;
    args.count = values->count;
    *out = args;
    return 0;
}

static int eval_call(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value callee;
    jinja_args args;
    PST_TRY(pst_jinja_eval(run, node->a, &callee));
    PST_TRY(eval_args(run, node, &args));
    run->line = node->line;
    return pst_jinja_call(run, callee, &args, out);
}

static int eval_filter(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value value;
    jinja_args args;
    PST_TRY(pst_jinja_eval(run, node->a, &value));
    PST_TRY(eval_args(run, node, &args));
    run->line = node->line;
    return pst_jinja_filter(run, node->name, value, &args, out);
}

static int eval_test(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value value;
    jinja_args args;
    PST_TRY(pst_jinja_eval(run, node->a, &value));
    PST_TRY(eval_args(run, node, &args));
    run->line = node->line;
    int passed = pst_jinja_test(run, node->name, value, &args);
    PST_TRY(passed);
    *out = pst_jinja_bool((passed != 0) != (node->op != 0));
    return 0;
}

/* ---- operators ---- */

/* 1 or 0. */
static int compare(jinja_run *run, int op, jinja_value a, jinja_value b)
{
    int order = 0;
    if (op == OP_EQUAL || op == OP_UNEQUAL) {
        int same = pst_jinja_equal(run, a, b);
        return same < 0 ? same : same == (op == OP_EQUAL);
    }
    if (op == OP_IN || op == OP_NOT_IN) {
        int in = pst_jinja_contains(run, b, a);
        return in < 0 ? in : in == (op == OP_IN);
    }
    PST_TRY(pst_jinja_order(run, a, b, &order));
    if (order == 2) /* not a number */
        return 0;
    return op == '<' ? order < 0 : op == '>' ? order > 0 : op == OP_AT_LEAST ? order >= 0 : order <= 0;
}

static int eval_compare(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value left, right;
    int holds = 1;
    PST_TRY(pst_jinja_eval(run, node->a, &left));
    for (size_t i = 0; i < node->count && holds; i++) {
        PST_TRY(pst_jinja_eval(run, node->items[i]->a, &right));
        run->line = node->line;
        PST_TRY(holds = compare(run, node->items[i]->op, left, right));
        left = right;
    }
    *out = pst_jinja_bool(holds);
    return 0;
}

static int eval_concat(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    for (size_t i = 0; i < node->count; i++) {
        jinja_value value;
        const jinja_string *text;
        PST_TRY(pst_jinja_eval(run, node->items[i], &value));
        PST_TRY(pst_jinja_to_string(run, value, &text));
        value = (jinja_value){.kind = JINJA_STRING, .as.string = text};
        if (i == 0)
            *out = value;
        else
            PST_TRY(pst_jinja_join(run, out->as.string, text, out));
    }
    return 0;
}

static int eval_binary(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value left, right;
    PST_TRY(pst_jinja_eval(run, node->a, &left));
    PST_TRY(pst_jinja_eval(run, node->b, &right));
    run->line = node->line;
    return pst_jinja_binary(run, (char)node->op, left, right, out);
}

static int eval_unary(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value value;
    double number;
    PST_TRY(pst_jinja_eval(run, node->a, &value));
    if (node->kind == NODE_NOT) {
        *out = pst_jinja_bool(!pst_jinja_truth(value));
        return 0;
    }
    run->line = node->line;
    if (node->kind == NODE_NEGATE)
        return pst_jinja_negate(run, value, out);
    if (!pst_jinja_number(value, &number))
        return pst_jinja_fail(run, "%s is no number", pst_jinja_kind_name(value));
    *out = value.kind == JINJA_BOOL ? pst_jinja_int(value.as.truth) : value;
    return 0;
}

static int eval_logic(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    PST_TRY(pst_jinja_eval(run, node->a, out));
    if (pst_jinja_truth(*out) == (node->kind == NODE_OR))
        return 0;
    return pst_jinja_eval(run, node->b, out);
}

static int eval_choice(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value condition;
    PST_TRY(pst_jinja_eval(run, node->a, &condition));
    if (pst_jinja_truth(condition))
        return pst_jinja_eval(run, node->b, out);
    if (node->c != NULL)
        return pst_jinja_eval(run, node->c, out);
    *out = (jinja_value){.kind = JINJA_UNDEFINED};
    return 0;
}

static int eval_access(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    jinja_value object, key;
    PST_TRY(pst_jinja_eval(run, node->a, &object));
    if (node->kind == NODE_ITEM)
        PST_TRY(pst_jinja_eval(run, node->b, &key));
    run->line = node->line;
    if (node->kind == NODE_ITEM)
        return pst_jinja_item(run, object, key, out);
    return pst_jinja_attribute(run, object, node->name, out);
}

static int eval_node(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    switch (node->kind) {
    case NODE_CONSTANT: *out = node->value; return 0;
    case NODE_BODY: *out = run->body; return 0;
    case NODE_NAME: return lookup(run, node->name, out);
    case NODE_LIST:
    case NODE_TUPLE: return eval_list(run, node, out);
    case NODE_DICT: return eval_dict(run, node, out);
    case NODE_ATTRIBUTE:
    case NODE_ITEM: return eval_access(run, node, out);
    case NODE_SLICE: return eval_slice(run, node, out);
    case NODE_CALL: return eval_call(run, node, out);
    case NODE_FILTER: return eval_filter(run, node, out);
    case NODE_TEST: return eval_test(run, node, out);
    case NODE_COMPARE: return eval_compare(run, node, out);
    case NODE_AND:
    case NODE_OR: return eval_logic(run, node, out);
    case NODE_NOT:
    case NODE_NEGATE:
    case NODE_PLUS: return eval_unary(run, node, out);
    case NODE_BINARY: return eval_binary(run, node, out);
    case NODE_CONCAT: return eval_concat(run, node, out);
    case NODE_CHOICE: return eval_choice(run, node, out);
    default: return pst_jinja_fail(run, "a statement where a value belongs");
    }
}

int pst_jinja_eval(jinja_run *run, const jinja_node *node, jinja_value *out)
{
    PST_TRY(pst_jinja_deeper(run));
    run->line = node->line;
    PST_TRY(eval_node(run, node, out));
    run->depth--;
    return 0;
}
