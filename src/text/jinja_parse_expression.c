/* SPDX-License-Identifier: Apache-2.0 */
/* Expressions of templates, by descent; what binds tighter is further down. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja_syntax.h"

static int parse_unary(jinja_parser *p, bool filters, const jinja_node **out);

static int two(jinja_parser *p, jinja_node_kind kind, int op, const jinja_node *a, const jinja_node *b,
               const jinja_node **out)
{
    jinja_node *node;
    PST_TRY(pst_jinja_node(p, kind, &node));
    node->op = op;
    node->a = a;
    node->b = b;
    *out = node;
    return 0;
}

static int constant(jinja_parser *p, jinja_value value, const jinja_node **out)
{
    jinja_node *node;
    PST_TRY(pst_jinja_node(p, NODE_CONSTANT, &node));
    node->value = value;
    *out = node;
    return 0;
}

/* ---- primaries ---- */

/* true, True, none, ...: 1 when the name is one. */
static int named_constant(const jinja_token *token, jinja_value *out)
{
    static const struct {
        const char *name;
        jinja_kind kind;
        bool truth;
    } constants[] = {{"true", JINJA_BOOL, true},   {"True", JINJA_BOOL, true},  {"false", JINJA_BOOL, false},
                     {"False", JINJA_BOOL, false}, {"none", JINJA_NONE, false}, {"None", JINJA_NONE, false}};
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++) {
        if (token->bytes == strlen(constants[i].name) && memcmp(token->text, constants[i].name, token->bytes) == 0) {
            *out = (jinja_value){.kind = constants[i].kind, .as.truth = constants[i].truth};
            return 1;
        }
    }
    return 0;
}

static int parse_name(jinja_parser *p, const jinja_node **out)
{
    jinja_value value;
    const jinja_token *token = pst_jinja_peek(p);
    if (named_constant(token, &value)) {
        PST_TRY(constant(p, value, out));
        p->at++;
        return 0;
    }
    jinja_node *node;
    const jinja_template *t = p->template;
    PST_TRY(pst_jinja_node(p, NODE_NAME, &node));
    PST_TRY(pst_jinja_expect_name(p, &node->name));
    p->uses |= (node->name == t->name_caller ? JINJA_USES_CALLER : 0) |
               (node->name == t->name_varargs ? JINJA_USES_VARARGS : 0) |
               (node->name == t->name_kwargs ? JINJA_USES_KWARGS : 0);
    *out = node;
    return 0;
}

/* Texts beside each other are one. */
static int parse_strings(jinja_parser *p, const jinja_node **out)
{
    size_t bytes = 0, points = 0, first = p->at;
    for (; pst_jinja_peek(p)->kind == TOKEN_STRING; p->at++) {
        bytes += pst_jinja_peek(p)->value.as.string->bytes;
        points += pst_jinja_peek(p)->value.as.string->points;
    }
    if (p->at == first + 1)
        return constant(p, p->tokens.data[first].value, out);
    jinja_arena *arena = &p->template->arena;
    char *text = pst_jinja_alloc(arena, bytes + 1, 1, p->err), *to = text;
    jinja_string *string = pst_jinja_alloc(arena, sizeof *string, _Alignof(jinja_string), p->err);
    if (text == NULL || string == NULL)
        return -ENOMEM;
    for (size_t i = first; i < p->at; i++) {
        const jinja_string *piece = p->tokens.data[i].value.as.string;
        memcpy(to, piece->text, piece->bytes);
        to += piece->bytes;
    }
    *string = (jinja_string){.text = text, .bytes = bytes, .points = points};
    return constant(p, (jinja_value){.kind = JINJA_STRING, .as.string = string}, out);
}

/* Items up to a closing bracket; pairs: "key: value". */
static int parse_items(jinja_parser *p, jinja_node_kind kind, int close, bool pairs, const jinja_node **out)
{
    jinja_node *node;
    PST_TRY(pst_jinja_node(p, kind, &node));
    p->at++;
    while (!pst_jinja_peek_op(p, close)) {
        const jinja_node *item;
        if (node->count > 0) {
            PST_TRY(pst_jinja_expect_op(p, ','));
            if (pst_jinja_peek_op(p, close))
                break;
        }
        PST_TRY(pst_jinja_parse_expression(p, true, &item));
        PST_TRY(pst_jinja_add_item(p, node, item));
        if (pairs) {
            PST_TRY(pst_jinja_expect_op(p, ':'));
            PST_TRY(pst_jinja_parse_expression(p, true, &item));
            PST_TRY(pst_jinja_add_item(p, node, item));
        }
    }
    p->at++;
    *out = node;
    return 0;
}

static int parse_parentheses(jinja_parser *p, const jinja_node **out)
{
    p->at++;
    if (pst_jinja_peek_op(p, ')')) {
        jinja_node *node;
        PST_TRY(pst_jinja_node(p, NODE_TUPLE, &node));
        *out = node;
    } else {
        PST_TRY(pst_jinja_parse_tuple(p, true, NULL, out));
    }
    return pst_jinja_expect_op(p, ')');
}

static int parse_primary(jinja_parser *p, const jinja_node **out)
{
    const jinja_token *token = pst_jinja_peek(p);
    switch (token->kind) {
    case TOKEN_NAME: return parse_name(p, out);
    case TOKEN_STRING: return parse_strings(p, out);
    case TOKEN_NUMBER:
        PST_TRY(constant(p, token->value, out));
        p->at++;
        return 0;
    case TOKEN_OPERATOR:
        if (token->op == '(')
            return parse_parentheses(p, out);
        if (token->op == '[')
            return parse_items(p, NODE_LIST, ']', false, out);
        if (token->op == '{')
            return parse_items(p, NODE_DICT, '}', true, out);
        break;
    default: break;
    }
    return pst_jinja_expected(p, "an expression");
}

/* ---- after a primary ---- */

static int parse_argument(jinja_parser *p, jinja_node *call)
{
    jinja_node *node;
    const jinja_node *item;
    const jinja_token *token = pst_jinja_peek(p), *next = token->kind == TOKEN_END ? token : token + 1;
    bool is_keyword = token->kind == TOKEN_NAME && next->kind == TOKEN_OPERATOR && next->op == '=';
    if (is_keyword || pst_jinja_peek_op(p, '*') || pst_jinja_peek_op(p, OP_POWER)) {
        PST_TRY(pst_jinja_node(p, is_keyword ? NODE_KEYWORD : NODE_SPREAD, &node));
        if (is_keyword)
            PST_TRY(pst_jinja_expect_name(p, &node->name));
        else if (token->op == OP_POWER)
            node->kind = NODE_SPREAD_KEYWORDS;
        p->at++;
        PST_TRY(pst_jinja_parse_expression(p, true, &node->a));
        return pst_jinja_add_item(p, call, node);
    }
    for (size_t i = 0; i < call->count; i++) {
        if (call->items[i]->kind == NODE_KEYWORD || call->items[i]->kind == NODE_SPREAD_KEYWORDS)
            return pst_jinja_parse_fail(p, "an argument without a name after one with it");
    }
    PST_TRY(pst_jinja_parse_expression(p, true, &item));
    return pst_jinja_add_item(p, call, item);
}

/* (a, b=c, *d, **e), if it is there */
static int parse_arguments(jinja_parser *p, jinja_node *call)
{
    if (!pst_jinja_skip_op(p, '('))
        return 0;
    while (!pst_jinja_peek_op(p, ')')) {
        if (call->count > 0) {
            PST_TRY(pst_jinja_expect_op(p, ','));
            if (pst_jinja_peek_op(p, ')'))
                break;
        }
        PST_TRY(parse_argument(p, call));
    }
    p->at++;
    return 0;
}

/* What is in square brackets: an index or a slice. */
static int parse_subscript(jinja_parser *p, const jinja_node *base, const jinja_node **out)
{
    jinja_node *node;
    const jinja_node *parts[3] = {NULL, NULL, NULL};
    int colons = 0;
    PST_TRY(pst_jinja_node(p, NODE_SLICE, &node));
    node->a = base;
    while (!pst_jinja_peek_op(p, ']') && colons < 3) {
        if (pst_jinja_skip_op(p, ':'))
            colons++;
        else if (parts[colons] == NULL)
            PST_TRY(pst_jinja_parse_expression(p, true, &parts[colons]));
        else
            break;
    }
    if (colons == 0) {
        node->kind = NODE_ITEM;
        node->b = parts[0];
        if (parts[0] == NULL || pst_jinja_peek_op(p, ',')) { /* nothing at all is an empty tuple, as Jinja has it */
            jinja_node *tuple;
            PST_TRY(pst_jinja_node(p, NODE_TUPLE, &tuple));
            if (parts[0] != NULL)
                PST_TRY(pst_jinja_add_item(p, tuple, parts[0]));
            while (pst_jinja_skip_op(p, ',')) {
                PST_TRY(pst_jinja_parse_expression(p, true, &parts[0]));
                PST_TRY(pst_jinja_add_item(p, tuple, parts[0]));
            }
            node->b = tuple;
        }
    }
    if (colons > 2)
        return pst_jinja_expected(p, "an index or a slice");
    for (int i = 0; i < 3 && colons > 0; i++)
        PST_TRY(pst_jinja_add_item(p, node, parts[i]));
    *out = node;
    return pst_jinja_expect_op(p, ']');
}

static int parse_dot(jinja_parser *p, const jinja_node *base, const jinja_node **out)
{
    const jinja_token *token = pst_jinja_peek(p);
    if (token->kind == TOKEN_NUMBER && token->value.kind == JINJA_INT) {
        const jinja_node *index;
        PST_TRY(constant(p, token->value, &index));
        p->at++;
        return two(p, NODE_ITEM, 0, base, index, out);
    }
    jinja_node *node;
    PST_TRY(pst_jinja_node(p, NODE_ATTRIBUTE, &node));
    node->a = base;
    *out = node;
    return pst_jinja_expect_name(p, &node->name);
}

static int parse_call(jinja_parser *p, const jinja_node *base, const jinja_node **out)
{
    jinja_node *node;
    PST_TRY(pst_jinja_node(p, NODE_CALL, &node));
    node->a = base;
    *out = node;
    return parse_arguments(p, node);
}

/* A long chain is a deep tree for the interpreter: each link counts as a level. */
static int count_link(jinja_parser *p, unsigned *links)
{
    if (p->depth + ++*links > JINJA_PARSE_DEPTH)
        return pst_jinja_parse_fail(p, "more than %d levels of expressions", JINJA_PARSE_DEPTH);
    return 0;
}

int pst_jinja_parse_postfix(jinja_parser *p, const jinja_node *base, const jinja_node **out)
{
    unsigned links = 0;
    for (;;) {
        if (pst_jinja_skip_op(p, '.'))
            PST_TRY(parse_dot(p, base, &base));
        else if (pst_jinja_skip_op(p, '['))
            PST_TRY(parse_subscript(p, base, &base));
        else if (pst_jinja_peek_op(p, '('))
            PST_TRY(parse_call(p, base, &base));
        else
            break;
        PST_TRY(count_link(p, &links));
    }
    *out = base;
    return 0;
}

static int parse_filter(jinja_parser *p, const jinja_node *base, const jinja_node **out)
{
    jinja_node *node;
    PST_TRY(pst_jinja_node(p, NODE_FILTER, &node));
    node->a = base;
    PST_TRY(pst_jinja_expect_name(p, &node->name));
    *out = node;
    return parse_arguments(p, node);
}

/* A test may have one argument without parentheses: "x is divisibleby 3". */
static bool begins_argument(const jinja_parser *p)
{
    const jinja_token *token = pst_jinja_peek(p);
    if (token->kind == TOKEN_NAME)
        return !pst_jinja_peek_name(p, "else") && !pst_jinja_peek_name(p, "or") && !pst_jinja_peek_name(p, "and") &&
               !pst_jinja_peek_name(p, "is");
    return token->kind == TOKEN_STRING || token->kind == TOKEN_NUMBER || pst_jinja_peek_op(p, '[') ||
           pst_jinja_peek_op(p, '{');
}

static int parse_test(jinja_parser *p, const jinja_node *base, const jinja_node **out)
{
    jinja_node *node;
    PST_TRY(pst_jinja_node(p, NODE_TEST, &node));
    node->a = base;
    node->op = pst_jinja_skip_name(p, "not");
    PST_TRY(pst_jinja_expect_name(p, &node->name));
    *out = node;
    if (pst_jinja_peek_op(p, '('))
        return parse_arguments(p, node);
    if (pst_jinja_peek_name(p, "is"))
        return pst_jinja_parse_fail(p, "a test of a test needs parentheses");
    if (!begins_argument(p))
        return 0;
    const jinja_node *argument;
    PST_TRY(parse_primary(p, &argument));
    PST_TRY(pst_jinja_parse_postfix(p, argument, &argument));
    return pst_jinja_add_item(p, node, argument);
}

int pst_jinja_parse_filters(jinja_parser *p, const jinja_node *base, bool first, const jinja_node **out)
{
    unsigned links = 0;
    if (first)
        PST_TRY(parse_filter(p, base, &base));
    for (;;) {
        if (pst_jinja_skip_op(p, '|'))
            PST_TRY(parse_filter(p, base, &base));
        else if (base->kind != NODE_BODY && pst_jinja_skip_name(p, "is"))
            PST_TRY(parse_test(p, base, &base));
        else if (base->kind != NODE_BODY && pst_jinja_peek_op(p, '('))
            PST_TRY(parse_call(p, base, &base));
        else
            break;
        PST_TRY(count_link(p, &links));
    }
    *out = base;
    return 0;
}

/* ---- operators ---- */

static int parse_sign(jinja_parser *p, const jinja_node **out)
{
    jinja_node_kind kind = pst_jinja_peek_op(p, '-') ? NODE_NEGATE : NODE_PLUS;
    const jinja_node *operand;
    p->at++;
    PST_TRY(parse_unary(p, false, &operand));
    return two(p, kind, 0, operand, NULL, out);
}

static int parse_unary(jinja_parser *p, bool filters, const jinja_node **out)
{
    const jinja_node *node;
    if (++p->depth > JINJA_PARSE_DEPTH)
        return pst_jinja_parse_fail(p, "more than %d levels of expressions", JINJA_PARSE_DEPTH);
    if (pst_jinja_peek_op(p, '-') || pst_jinja_peek_op(p, '+'))
        PST_TRY(parse_sign(p, &node));
    else
        PST_TRY(parse_primary(p, &node));
    PST_TRY(pst_jinja_parse_postfix(p, node, &node));
    if (filters)
        PST_TRY(pst_jinja_parse_filters(p, node, false, &node));
    p->depth--;
    *out = node;
    return 0;
}

static int parse_power(jinja_parser *p, const jinja_node **out)
{
    unsigned links = 0;
    PST_TRY(parse_unary(p, true, out));
    while (pst_jinja_skip_op(p, OP_POWER)) {
        const jinja_node *right;
        PST_TRY(count_link(p, &links));
        PST_TRY(parse_unary(p, true, &right));
        PST_TRY(two(p, NODE_BINARY, OP_POWER, *out, right, out));
    }
    return 0;
}

static int parse_product(jinja_parser *p, const jinja_node **out)
{
    unsigned links = 0;
    PST_TRY(parse_power(p, out));
    for (;;) {
        const jinja_token *token = pst_jinja_peek(p);
        const jinja_node *right;
        if (token->kind != TOKEN_OPERATOR ||
            (token->op != '*' && token->op != '/' && token->op != '%' && token->op != OP_FLOOR))
            return 0;
        int op = token->op;
        p->at++;
        PST_TRY(count_link(p, &links));
        PST_TRY(parse_power(p, &right));
        PST_TRY(two(p, NODE_BINARY, op, *out, right, out));
    }
}

static int parse_concat(jinja_parser *p, const jinja_node **out)
{
    jinja_node *node;
    PST_TRY(parse_product(p, out));
    if (!pst_jinja_peek_op(p, '~'))
        return 0;
    PST_TRY(pst_jinja_node(p, NODE_CONCAT, &node));
    PST_TRY(pst_jinja_add_item(p, node, *out));
    while (pst_jinja_skip_op(p, '~')) {
        PST_TRY(parse_product(p, out));
        PST_TRY(pst_jinja_add_item(p, node, *out));
    }
    *out = node;
    return 0;
}

static int parse_sum(jinja_parser *p, const jinja_node **out)
{
    unsigned links = 0;
    PST_TRY(parse_concat(p, out));
    while (pst_jinja_peek_op(p, '+') || pst_jinja_peek_op(p, '-')) {
        int op = pst_jinja_peek(p)->op;
        const jinja_node *right;
        p->at++;
        PST_TRY(count_link(p, &links));
        PST_TRY(parse_concat(p, &right));
        PST_TRY(two(p, NODE_BINARY, op, *out, right, out));
    }
    return 0;
}

/* The comparison that comes next, taken; 0: none. */
static int take_comparison(jinja_parser *p)
{
    static const int ops[] = {OP_EQUAL, OP_UNEQUAL, OP_AT_LEAST, OP_AT_MOST, '<', '>'};
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        if (pst_jinja_skip_op(p, ops[i]))
            return ops[i];
    }
    if (pst_jinja_skip_name(p, "in"))
        return OP_IN;
    if (!pst_jinja_peek_name(p, "not"))
        return 0;
    p->at++;
    if (pst_jinja_skip_name(p, "in"))
        return OP_NOT_IN;
    p->at--;
    return 0;
}

static int parse_comparison(jinja_parser *p, const jinja_node **out)
{
    jinja_node *node = NULL;
    const jinja_node *operand;
    int op;
    PST_TRY(parse_sum(p, out));
    while ((op = take_comparison(p)) != 0) {
        if (node == NULL) {
            PST_TRY(pst_jinja_node(p, NODE_COMPARE, &node));
            node->a = *out;
            *out = node;
        }
        PST_TRY(parse_sum(p, &operand));
        PST_TRY(two(p, NODE_COMPARE, op, operand, NULL, &operand));
        PST_TRY(pst_jinja_add_item(p, node, operand));
    }
    return 0;
}

static int parse_not(jinja_parser *p, const jinja_node **out)
{
    if (!pst_jinja_skip_name(p, "not"))
        return parse_comparison(p, out);
    if (++p->depth > JINJA_PARSE_DEPTH)
        return pst_jinja_parse_fail(p, "more than %d levels of expressions", JINJA_PARSE_DEPTH);
    PST_TRY(parse_not(p, out));
    p->depth--;
    return two(p, NODE_NOT, 0, *out, NULL, out);
}

static int parse_and(jinja_parser *p, const jinja_node **out)
{
    unsigned links = 0;
    PST_TRY(parse_not(p, out));
    while (pst_jinja_skip_name(p, "and")) {
        const jinja_node *right;
        PST_TRY(count_link(p, &links));
        PST_TRY(parse_not(p, &right));
        PST_TRY(two(p, NODE_AND, 0, *out, right, out));
    }
    return 0;
}

static int parse_or(jinja_parser *p, const jinja_node **out)
{
    unsigned links = 0;
    PST_TRY(parse_and(p, out));
    while (pst_jinja_skip_name(p, "or")) {
        const jinja_node *right;
        PST_TRY(count_link(p, &links));
        PST_TRY(parse_and(p, &right));
        PST_TRY(two(p, NODE_OR, 0, *out, right, out));
    }
    return 0;
}

static int parse_choice(jinja_parser *p, const jinja_node **out)
{
    unsigned links = 0;
    PST_TRY(parse_or(p, out));
    while (pst_jinja_skip_name(p, "if")) {
        jinja_node *node;
        PST_TRY(count_link(p, &links));
        PST_TRY(pst_jinja_node(p, NODE_CHOICE, &node));
        node->b = *out;
        PST_TRY(parse_or(p, &node->a));
        if (pst_jinja_skip_name(p, "else"))
            PST_TRY(pst_jinja_parse_expression(p, true, &node->c));
        *out = node;
    }
    return 0;
}

int pst_jinja_parse_expression(jinja_parser *p, bool choice, const jinja_node **out)
{
    if (++p->depth > JINJA_PARSE_DEPTH)
        return pst_jinja_parse_fail(p, "more than %d levels of expressions", JINJA_PARSE_DEPTH);
    PST_TRY(choice ? parse_choice(p, out) : parse_or(p, out));
    p->depth--;
    return 0;
}

static bool is_tuple_end(const jinja_parser *p, const char *stop)
{
    const jinja_token *token = pst_jinja_peek(p);
    return token->kind == TOKEN_OUTPUT_END || token->kind == TOKEN_BLOCK_END || pst_jinja_peek_op(p, ')') ||
           (stop != NULL && pst_jinja_peek_name(p, stop));
}

int pst_jinja_parse_tuple(jinja_parser *p, bool choice, const char *stop, const jinja_node **out)
{
    jinja_node *tuple;
    PST_TRY(pst_jinja_parse_expression(p, choice, out));
    if (!pst_jinja_peek_op(p, ','))
        return 0;
    PST_TRY(pst_jinja_node(p, NODE_TUPLE, &tuple));
    PST_TRY(pst_jinja_add_item(p, tuple, *out));
    while (pst_jinja_skip_op(p, ',') && !is_tuple_end(p, stop)) {
        PST_TRY(pst_jinja_parse_expression(p, choice, out));
        PST_TRY(pst_jinja_add_item(p, tuple, *out));
    }
    *out = tuple;
    return 0;
}

/* ---- targets of assignments ---- */

static int parse_one_target(jinja_parser *p, bool members, const jinja_node **out)
{
    jinja_node *node;
    jinja_value value;
    if (pst_jinja_skip_op(p, '(')) {
        if (++p->depth > JINJA_PARSE_DEPTH)
            return pst_jinja_parse_fail(p, "more than %d levels of expressions", JINJA_PARSE_DEPTH);
        PST_TRY(pst_jinja_parse_target(p, members, out));
        p->depth--;
        return pst_jinja_expect_op(p, ')');
    }
    const jinja_token *token = pst_jinja_peek(p);
    if (token->kind == TOKEN_NAME && named_constant(token, &value))
        return pst_jinja_expected(p, "a variable");
    PST_TRY(pst_jinja_node(p, NODE_NAME, &node));
    PST_TRY(pst_jinja_expect_name(p, &node->name));
    if (members && pst_jinja_skip_op(p, '.')) {
        const jinja_string *member;
        node->kind = NODE_MEMBER;
        PST_TRY(pst_jinja_expect_name(p, &member));
        node->value = (jinja_value){.kind = JINJA_STRING, .as.string = member};
    }
    *out = node;
    return 0;
}

int pst_jinja_parse_target(jinja_parser *p, bool members, const jinja_node **out)
{
    jinja_node *tuple;
    PST_TRY(parse_one_target(p, members, out));
    if (!pst_jinja_peek_op(p, ','))
        return 0;
    PST_TRY(pst_jinja_node(p, NODE_TUPLE, &tuple));
    PST_TRY(pst_jinja_add_item(p, tuple, *out));
    while (pst_jinja_skip_op(p, ',') && pst_jinja_peek(p)->kind == TOKEN_NAME && !pst_jinja_peek_name(p, "in")) {
        PST_TRY(parse_one_target(p, members, out));
        PST_TRY(pst_jinja_add_item(p, tuple, *out));
    }
    *out = tuple;
    return 0;
}
