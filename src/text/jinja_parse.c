/* SPDX-License-Identifier: Apache-2.0 */
/* Statements of templates, and the template itself: source, names, tree. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/heap.h"
#include "text/jinja_syntax.h"
#include "text/unicode.h"

/* ---- tokens ---- */

const jinja_token *pst_jinja_peek(const jinja_parser *p)
{
    return &p->tokens.data[p->at];
}

bool pst_jinja_peek_op(const jinja_parser *p, int op)
{
    const jinja_token *token = pst_jinja_peek(p);
    return token->kind == TOKEN_OPERATOR && token->op == op;
}

static bool is_name(const jinja_token *token, const char *name)
{
    return token->kind == TOKEN_NAME && token->bytes == strlen(name) && memcmp(token->text, name, token->bytes) == 0;
}

bool pst_jinja_peek_name(const jinja_parser *p, const char *name)
{
    return is_name(pst_jinja_peek(p), name);
}

bool pst_jinja_skip_op(jinja_parser *p, int op)
{
    bool found = pst_jinja_peek_op(p, op);
    p->at += found;
    return found;
}

bool pst_jinja_skip_name(jinja_parser *p, const char *name)
{
    bool found = pst_jinja_peek_name(p, name);
    p->at += found;
    return found;
}

int pst_jinja_parse_fail(jinja_parser *p, const char *format, ...)
{
    char text[384];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    return pst_fail(p->err, PST_E_FORMAT, p->template->path, "line %u of the chat template: %s",
                    pst_jinja_peek(p)->line, text);
}

int pst_jinja_expected(jinja_parser *p, const char *wanted)
{
    const jinja_token *token = pst_jinja_peek(p);
    char quoted[PST_QUOTE_BYTES];
    static const char *const names[] = {[TOKEN_END] = "the end of the template",
                                        [TOKEN_OUTPUT_END] = "the end of the tag",
                                        [TOKEN_BLOCK_END] = "the end of the tag"};
    if (token->kind == TOKEN_END || token->kind == TOKEN_OUTPUT_END || token->kind == TOKEN_BLOCK_END)
        return pst_jinja_parse_fail(p, "expected %s, found %s", wanted, names[token->kind]);
    return pst_jinja_parse_fail(p, "expected %s, found \"%s\"", wanted,
                                pst_text_quote(token->text, token->bytes, quoted));
}

int pst_jinja_expect_op(jinja_parser *p, int op)
{
    char wanted[4] = {'"', (char)op, '"'};
    return pst_jinja_skip_op(p, op) ? 0 : pst_jinja_expected(p, wanted);
}

/* Where the name is, or where it belongs. */
static const jinja_string **find_slot(const jinja_names *names, const char *text, size_t bytes)
{
    size_t at = pst_hash(PST_HASH_START, text, bytes) & (names->slot_count - 1);
    while (names->slots[at] != NULL &&
           (names->slots[at]->bytes != bytes || memcmp(names->slots[at]->text, text, bytes) != 0))
        at = (at + 1) & (names->slot_count - 1);
    return &names->slots[at];
}

static int grow_names(jinja_names *names, pst_error *err)
{
    jinja_names grown = {.slot_count = names->slot_count == 0 ? 64 : 2 * names->slot_count, .count = names->count};
    grown.slots = pst_heap_calloc(grown.slot_count, sizeof *grown.slots);
    if (grown.slots == NULL)
        return pst_fail_memory(err, "a chat template", grown.slot_count * sizeof *grown.slots);
    for (size_t i = 0; i < names->slot_count; i++) {
        if (names->slots[i] != NULL)
            *find_slot(&grown, names->slots[i]->text, names->slots[i]->bytes) = names->slots[i];
    }
    pst_heap_free(names->slots);
    *names = grown;
    return 0;
}

const jinja_string *pst_jinja_find_name(const jinja_template *t, const char *text, size_t bytes)
{
    return t->names.slot_count > 0 ? *find_slot(&t->names, text, bytes) : NULL;
}

int pst_jinja_intern(jinja_parser *p, const char *text, size_t bytes, const jinja_string **out)
{
    jinja_template *t = p->template;
    *out = pst_jinja_find_name(t, text, bytes);
    if (*out != NULL)
        return 0;
    if (2 * t->names.count >= t->names.slot_count)
        PST_TRY(grow_names(&t->names, p->err));
    jinja_string *string = pst_jinja_alloc(&t->arena, sizeof *string, _Alignof(jinja_string), p->err);
    char *copy = pst_jinja_alloc(&t->arena, bytes + 1, 1, p->err);
    if (string == NULL || copy == NULL)
        return -ENOMEM;
    memcpy(copy, text, bytes);
    *string = (jinja_string){.text = copy, .bytes = bytes};
    for (size_t i = 0; i < bytes; i++)
        string->points += ((unsigned char)text[i] & 0xC0) != 0x80;
    *find_slot(&t->names, text, bytes) = string;
    t->names.count++;
    *out = string;
    return 0;
}

int pst_jinja_expect_name(jinja_parser *p, const jinja_string **out)
{
    const jinja_token *token = pst_jinja_peek(p);
    if (token->kind != TOKEN_NAME)
        return pst_jinja_expected(p, "a name");
    PST_TRY(pst_jinja_intern(p, token->text, token->bytes, out));
    p->at++;
    return 0;
}

int pst_jinja_node(jinja_parser *p, jinja_node_kind kind, jinja_node **out)
{
    jinja_node *node = pst_jinja_alloc(&p->template->arena, sizeof *node, _Alignof(jinja_node), p->err);
    if (node == NULL)
        return -ENOMEM;
    *node = (jinja_node){.kind = kind, .line = pst_jinja_peek(p)->line};
    *out = node;
    return 0;
}

int pst_jinja_add_item(jinja_parser *p, jinja_node *node, const jinja_node *item)
{
    if ((node->count & (node->count - 1)) == 0) { /* full at each power of two */
        size_t capacity = node->count == 0 ? 1 : 2 * node->count;
        const jinja_node **items =
            pst_jinja_alloc(&p->template->arena, capacity * sizeof(jinja_node *), _Alignof(jinja_node *), p->err);
        if (items == NULL)
            return -ENOMEM;
        if (node->count > 0)
            memcpy(items, node->items, node->count * sizeof(jinja_node *));
        node->items = items;
    }
    node->items[node->count++] = item;
    return 0;
}

/* ---- statements ---- */

static int parse_statement(jinja_parser *p, const jinja_node **out);

/* Up to a statement whose name is one of `ends` (separated by spaces), which is not taken; NULL: to the template's
 * end. */
static int parse_sequence(jinja_parser *p, const char *const *ends, const jinja_node **out);

/* After a statement's tag: its body up to one of `ends`, whose name is taken. Which one: the index returned. */
static int parse_body(jinja_parser *p, const char *const *ends, const jinja_node **out)
{
    pst_jinja_skip_op(p, ':'); /* as Python would have it */
    if (pst_jinja_peek(p)->kind != TOKEN_BLOCK_END)
        return pst_jinja_expected(p, "the end of the tag");
    p->at++;
    PST_TRY(parse_sequence(p, ends, out));
    for (int i = 0; ends[i] != NULL; i++) {
        if (pst_jinja_skip_name(p, ends[i]))
            return i;
    }
    return pst_jinja_expected(p, ends[0]); /* not reached: the sequence ends at one of them */
}

static int parse_if(jinja_parser *p, const jinja_node **out)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif", NULL};
    jinja_node *first = NULL, *before = NULL;
    int end = 0;
    while (end == 0) {
        jinja_node *node;
        PST_TRY(pst_jinja_node(p, NODE_IF, &node));
        PST_TRY(pst_jinja_parse_tuple(p, false, NULL, &node->a));
        PST_TRY(end = parse_body(p, ends, &node->b));
        if (before != NULL)
            before->c = node;
        else
            first = node;
        before = node;
    }
    if (end == 1)
        PST_TRY(parse_body(p, last, &before->c));
    *out = first;
    return 0;
}

static int parse_for(jinja_parser *p, const jinja_node **out)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    jinja_node *node;
    PST_TRY(pst_jinja_node(p, NODE_FOR, &node));
    PST_TRY(pst_jinja_parse_target(p, false, &node->a));
    if (!pst_jinja_skip_name(p, "in"))
        return pst_jinja_expected(p, "\"in\"");
    PST_TRY(pst_jinja_parse_tuple(p, false, "recursive", &node->b));
    if (pst_jinja_skip_name(p, "if"))
        PST_TRY(pst_jinja_parse_expression(p, true, &node->e));
    node->op = pst_jinja_skip_name(p, "recursive");
    p->loops++;
    int end = parse_body(p, ends, &node->c);
    p->loops--;
    PST_TRY(end);
    if (end == 1)
        PST_TRY(parse_body(p, ends, &node->d));
    *out = node;
    return 0;
}

static int parse_set(jinja_parser *p, const jinja_node **out)
{
    static const char *const ends[] = {"endset", NULL};
    jinja_node *node;
    PST_TRY(pst_jinja_node(p, NODE_SET, &node));
    PST_TRY(pst_jinja_parse_target(p, true, &node->a));
    *out = node;
    if (pst_jinja_skip_op(p, '='))
        return pst_jinja_parse_tuple(p, true, NULL, &node->b);
    node->kind = NODE_SET_BLOCK;
    jinja_node *body;
    PST_TRY(pst_jinja_node(p, NODE_BODY, &body));
    PST_TRY(pst_jinja_parse_filters(p, body, false, &node->b));
    return parse_body(p, ends, &node->c);
}

/* (a, b=1) */
static int parse_signature(jinja_parser *p, jinja_node *macro)
{
    PST_TRY(pst_jinja_expect_op(p, '('));
    bool had_default = false;
    while (!pst_jinja_peek_op(p, ')')) {
        if (macro->count > 0) {
            PST_TRY(pst_jinja_expect_op(p, ','));
            if (pst_jinja_peek_op(p, ')'))
                break;
        }
        jinja_node *parameter;
        PST_TRY(pst_jinja_node(p, NODE_NAME, &parameter));
        PST_TRY(pst_jinja_expect_name(p, &parameter->name));
        if (pst_jinja_skip_op(p, '='))
            PST_TRY(pst_jinja_parse_expression(p, true, &parameter->a));
        else if (had_default)
            return pst_jinja_parse_fail(p, "a parameter without a default after one with it");
        had_default = parameter->a != NULL;
        PST_TRY(pst_jinja_add_item(p, macro, parameter));
    }
    return pst_jinja_expect_op(p, ')');
}

static int parse_macro_body(jinja_parser *p, jinja_node *macro, const char *end)
{
    const char *const ends[] = {end, NULL};
    int uses = p->uses;
    unsigned loops = p->loops;
    p->uses = 0;
    p->loops = 0;
    PST_TRY(parse_body(p, ends, &macro->c));
    macro->op = p->uses;
    p->uses |= uses;
    p->loops = loops;
    return 0;
}

static int parse_macro(jinja_parser *p, const jinja_node **out)
{
    jinja_node *node;
    PST_TRY(pst_jinja_node(p, NODE_MACRO, &node));
    PST_TRY(pst_jinja_expect_name(p, &node->name));
    PST_TRY(parse_signature(p, node));
    *out = node;
    return parse_macro_body(p, node, "endmacro");
}

static int parse_call(jinja_parser *p, const jinja_node **out)
{
    jinja_node *node, *macro;
    PST_TRY(pst_jinja_node(p, NODE_CALL_BLOCK, &node));
    PST_TRY(pst_jinja_node(p, NODE_MACRO, &macro));
    macro->name = p->template->name_caller;
    if (pst_jinja_peek_op(p, '('))
        PST_TRY(parse_signature(p, macro));
    PST_TRY(pst_jinja_parse_expression(p, true, &node->a));
    if (node->a->kind != NODE_CALL)
        return pst_jinja_parse_fail(p, "{%% call %%} without a call");
    node->b = macro;
    *out = node;
    return parse_macro_body(p, macro, "endcall");
}

static int parse_filter_block(jinja_parser *p, const jinja_node **out)
{
    static const char *const ends[] = {"endfilter", NULL};
    jinja_node *node, *body;
    PST_TRY(pst_jinja_node(p, NODE_PRINT_BLOCK, &node));
    PST_TRY(pst_jinja_node(p, NODE_BODY, &body));
    PST_TRY(pst_jinja_parse_filters(p, body, true, &node->a));
    *out = node;
    return parse_body(p, ends, &node->c);
}

static int parse_with(jinja_parser *p, const jinja_node **out)
{
    static const char *const ends[] = {"endwith", NULL};
    jinja_node *node;
    PST_TRY(pst_jinja_node(p, NODE_WITH, &node));
    while (pst_jinja_peek(p)->kind != TOKEN_BLOCK_END) {
        const jinja_node *target, *value;
        if (node->count > 0)
            PST_TRY(pst_jinja_expect_op(p, ','));
        PST_TRY(pst_jinja_parse_target(p, false, &target));
        PST_TRY(pst_jinja_expect_op(p, '='));
        PST_TRY(pst_jinja_parse_expression(p, true, &value));
        PST_TRY(pst_jinja_add_item(p, node, target));
        PST_TRY(pst_jinja_add_item(p, node, value));
    }
    *out = node;
    return parse_body(p, ends, &node->c);
}

/* {% generation %} marks what training counts; here it only has a scope of its own. */
static int parse_generation(jinja_parser *p, const jinja_node **out)
{
    static const char *const ends[] = {"endgeneration", NULL};
    jinja_node *node;
    unsigned loops = p->loops;
    PST_TRY(pst_jinja_node(p, NODE_SCOPE, &node));
    *out = node;
    p->loops = 0;
    PST_TRY(parse_body(p, ends, &node->c));
    p->loops = loops;
    return 0;
}

static int parse_jump(jinja_parser *p, jinja_node_kind kind, const jinja_node **out)
{
    jinja_node *node;
    if (p->loops == 0)
        return pst_jinja_parse_fail(p, "a jump outside of a loop");
    PST_TRY(pst_jinja_node(p, kind, &node));
    *out = node;
    return 0;
}

static int parse_named(jinja_parser *p, const jinja_node **out)
{
    const jinja_token *token = pst_jinja_peek(p);
    static const struct {
        const char *name;
        int (*parse)(jinja_parser *, const jinja_node **);
    } statements[] = {{"if", parse_if},     {"for", parse_for},
                      {"set", parse_set},   {"macro", parse_macro},
                      {"call", parse_call}, {"filter", parse_filter_block},
                      {"with", parse_with}, {"generation", parse_generation}};
    if (token->kind != TOKEN_NAME)
        return pst_jinja_expected(p, "a statement");
    p->at++;
    for (size_t i = 0; i < sizeof statements / sizeof statements[0]; i++) {
        if (is_name(token, statements[i].name))
            return statements[i].parse(p, out);
    }
    if (is_name(token, "break"))
        return parse_jump(p, NODE_BREAK, out);
    if (is_name(token, "continue"))
        return parse_jump(p, NODE_CONTINUE, out);
    p->at--;
    char quoted[PST_QUOTE_BYTES];
    return pst_jinja_parse_fail(p, "the statement \"%s\" does not belong here or is not supported",
                                pst_text_quote(token->text, token->bytes, quoted));
}

static int parse_statement(jinja_parser *p, const jinja_node **out)
{
    if (++p->depth > JINJA_PARSE_DEPTH)
        return pst_jinja_parse_fail(p, "more than %d statements within each other", JINJA_PARSE_DEPTH);
    PST_TRY(parse_named(p, out));
    p->depth--;
    if (pst_jinja_peek(p)->kind != TOKEN_BLOCK_END)
        return pst_jinja_expected(p, "the end of the tag");
    p->at++;
    return 0;
}

static int parse_output(jinja_parser *p, jinja_node *sequence)
{
    jinja_node *node;
    p->at++;
    PST_TRY(pst_jinja_node(p, NODE_OUTPUT, &node));
    PST_TRY(pst_jinja_parse_tuple(p, true, NULL, &node->a));
    if (pst_jinja_peek(p)->kind != TOKEN_OUTPUT_END)
        return pst_jinja_expected(p, "the end of the tag");
    p->at++;
    return pst_jinja_add_item(p, sequence, node);
}

static int parse_text(jinja_parser *p, jinja_node *sequence)
{
    jinja_node *node;
    const jinja_token *token = pst_jinja_peek(p);
    jinja_string *string = pst_jinja_alloc(&p->template->arena, sizeof *string, _Alignof(jinja_string), p->err);
    if (string == NULL)
        return -ENOMEM;
    *string = (jinja_string){.text = token->text, .bytes = token->bytes};
    PST_TRY(pst_jinja_node(p, NODE_TEXT, &node));
    node->value = (jinja_value){.kind = JINJA_STRING, .as.string = string};
    p->at++;
    return pst_jinja_add_item(p, sequence, node);
}

static int parse_sequence(jinja_parser *p, const char *const *ends, const jinja_node **out)
{
    jinja_node *sequence;
    PST_TRY(pst_jinja_node(p, NODE_SEQUENCE, &sequence));
    *out = sequence;
    for (;;) {
        const jinja_token *token = pst_jinja_peek(p);
        if (token->kind == TOKEN_END) {
            while (ends != NULL && ends[0] != NULL && ends[1] != NULL && strncmp(ends[0], "end", 3) != 0)
                ends++;
            return ends == NULL ? 0 : pst_jinja_expected(p, ends[0]);
        }
        if (token->kind == TOKEN_TEXT) {
            PST_TRY(parse_text(p, sequence));
        } else if (token->kind == TOKEN_OUTPUT_BEGIN) {
            PST_TRY(parse_output(p, sequence));
        } else {
            p->at++; /* a statement's beginning: the lexer has nothing else here */
            for (size_t i = 0; ends != NULL && ends[i] != NULL; i++) {
                if (pst_jinja_peek_name(p, ends[i]))
                    return 0;
            }
            const jinja_node *node;
            PST_TRY(parse_statement(p, &node));
            PST_TRY(pst_jinja_add_item(p, sequence, node));
        }
    }
}

/* ---- the template ---- */

const char *pst_jinja_path(const jinja_template *template)
{
    return template->path;
}

void pst_jinja_close(jinja_template *template)
{
    if (template == NULL)
        return;
    pst_jinja_arena_free(&template->arena);
    pst_heap_free(template->names.slots);
    pst_heap_free(template->source);
    pst_heap_free(template->path);
    pst_heap_free(template);
}

/* Copies the source with '\n' for every newline and without one at its end; returns its length. */
static size_t copy_source(char *to, const char *from, size_t bytes)
{
    size_t count = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (from[i] == '\r' && i + 1 < bytes && from[i + 1] == '\n')
            continue;
        to[count++] = from[i] == '\r' ? '\n' : from[i];
    }
    return count > 0 && to[count - 1] == '\n' ? count - 1 : count;
}

static int parse(jinja_parser *p, size_t bytes)
{
    jinja_template *t = p->template;
    PST_TRY(pst_jinja_lex(t->path, t->source, bytes, &t->arena, &p->tokens, p->err));
    PST_TRY(pst_jinja_intern(p, "loop", 4, &t->name_loop));
    PST_TRY(pst_jinja_intern(p, "caller", 6, &t->name_caller));
    PST_TRY(pst_jinja_intern(p, "varargs", 7, &t->name_varargs));
    PST_TRY(pst_jinja_intern(p, "kwargs", 6, &t->name_kwargs));
    return parse_sequence(p, NULL, &t->root);
}

int pst_jinja_parse(const char *path, const char *source, size_t bytes, jinja_template **out, pst_error *err)
{
    if (bytes > JINJA_SOURCE_BYTES)
        return pst_fail(err, PST_E_UNSUPPORTED, path, "the chat template is longer than %d MiB",
                        JINJA_SOURCE_BYTES >> 20);
    size_t valid = pst_utf8_valid_prefix(source, bytes);
    if (valid < bytes)
        return pst_fail_at(err, PST_E_FORMAT, path, valid, "the chat template is not valid UTF-8");
    jinja_template *t = pst_heap_calloc(1, sizeof *t);
    if (t == NULL)
        return pst_fail_memory(err, "a chat template", sizeof *t);
    t->arena = (jinja_arena){.used_bytes = &t->used_bytes, .max_bytes = SIZE_MAX};
    t->path = pst_heap_strdup(path);
    t->source = pst_heap_alloc(bytes + 1);
    jinja_parser p = {.template = t, .err = err};
    int status = t->path == NULL || t->source == NULL ? pst_fail_memory(err, "a chat template", bytes) : 0;
    if (status == 0)
        status = parse(&p, copy_source(t->source, source, bytes));
    pst_heap_free(p.tokens.data);
    if (status < 0) {
        pst_jinja_close(t);
        return status;
    }
    *out = t;
    return 0;
}
