/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens and trees of templates: what the lexer gives the parser and the parser the interpreter. Private to
 * src/text. */
#ifndef PST_TEXT_JINJA_SYNTAX_H
#define PST_TEXT_JINJA_SYNTAX_H

#include "text/jinja.h"

typedef enum jinja_token_kind {
    TOKEN_END,
    TOKEN_TEXT,
    TOKEN_OUTPUT_BEGIN,
    TOKEN_OUTPUT_END,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_STRING,
    TOKEN_NUMBER,
    TOKEN_OPERATOR
} jinja_token_kind;

/* Operators of two characters; those of one are that character. */
enum { OP_FLOOR = 'f', OP_POWER = 'p', OP_EQUAL = 'e', OP_UNEQUAL = 'u', OP_AT_LEAST = 'g', OP_AT_MOST = 'l' };
/* More of comparisons. */
enum { OP_IN = 'i', OP_NOT_IN = 'n' };

typedef struct jinja_token {
    jinja_token_kind kind;
    unsigned line;
    int op;
    const char *text; /* TEXT, NAME */
    size_t bytes;
    jinja_value value; /* STRING, NUMBER */
} jinja_token;

typedef struct jinja_tokens {
    jinja_token *data;
    size_t count, capacity;
} jinja_tokens;

/* Cuts a source (newlines are '\n' alone) into tokens, an END last; strings are made in the arena. */
int pst_jinja_lex(const char *path, const char *source, size_t bytes, jinja_arena *arena, jinja_tokens *out,
                  pst_error *err);

typedef enum jinja_node_kind {
    /* expressions */
    NODE_CONSTANT,  /* value */
    NODE_NAME,      /* name */
    NODE_LIST,      /* items */
    NODE_TUPLE,     /* items */
    NODE_DICT,      /* items: key, value, key, value, ... */
    NODE_ATTRIBUTE, /* a.name */
    NODE_ITEM,      /* a[b] */
    NODE_SLICE,     /* a[items[0]:items[1]:items[2]], each may be NULL */
    NODE_CALL,      /* a(items) */
    NODE_FILTER,    /* a|name(items) */
    NODE_TEST,      /* a is name(items); op: negated */
    NODE_COMPARE,   /* a op b, b op c, ...: items are COMPARE with op and a */
    NODE_AND,
    NODE_OR,
    NODE_NOT,
    NODE_NEGATE,
    NODE_PLUS,
    NODE_BINARY,          /* a op b */
    NODE_CONCAT,          /* items */
    NODE_CHOICE,          /* a if b else c; c may be NULL */
    NODE_BODY,            /* the text that is filtered */
    NODE_KEYWORD,         /* of arguments: name = a */
    NODE_SPREAD,          /* *a */
    NODE_SPREAD_KEYWORDS, /* **a */
    /* statements */
    NODE_TEXT,        /* value */
    NODE_OUTPUT,      /* a */
    NODE_SEQUENCE,    /* items */
    NODE_IF,          /* a: condition, b: body, c: else or NULL */
    NODE_FOR,         /* a: target, b: iterable, c: body, d: else, e: filter; op: recursive */
    NODE_SET,         /* a: target, b: value */
    NODE_SET_BLOCK,   /* a: target, b: filters or NULL, c: body */
    NODE_MACRO,       /* name, items: NAME with a = default or NULL, c: body; op: JINJA_USES_* */
    NODE_CALL_BLOCK,  /* a: call, b: MACRO without a name */
    NODE_PRINT_BLOCK, /* a: filters, c: body */
    NODE_WITH,        /* items: target, value, ...; c: body */
    NODE_SCOPE,       /* c: body */
    NODE_BREAK,
    NODE_CONTINUE,
    NODE_MEMBER /* of targets: name.value */
} jinja_node_kind;

enum { JINJA_USES_CALLER = 1, JINJA_USES_VARARGS = 2, JINJA_USES_KWARGS = 4 };

typedef struct jinja_node {
    jinja_node_kind kind;
    unsigned line;
    int op;
    const jinja_string *name;
    jinja_value value;
    const struct jinja_node *a, *b, *c, *d, *e;
    const struct jinja_node **items;
    size_t count;
} jinja_node;

typedef struct jinja_names {
    const jinja_string **slots; /* by hash, open addressing */
    size_t count, slot_count;
} jinja_names;

struct jinja_template {
    char *path, *source;
    size_t used_bytes;
    jinja_arena arena;
    jinja_names names;
    const jinja_string *name_loop, *name_caller, *name_varargs, *name_kwargs;
    const jinja_node *root;
};

/* What the files of the parser share. */
typedef struct jinja_parser {
    jinja_template *template;
    jinja_tokens tokens;
    size_t at;
    unsigned depth, loops; /* loops: around the statement, within its macro */
    int uses;              /* JINJA_USES_* of the macro being parsed */
    pst_error *err;
} jinja_parser;

const jinja_token *pst_jinja_peek(const jinja_parser *parser);
bool pst_jinja_peek_op(const jinja_parser *parser, int op);
bool pst_jinja_peek_name(const jinja_parser *parser, const char *name);
bool pst_jinja_skip_op(jinja_parser *parser, int op);
bool pst_jinja_skip_name(jinja_parser *parser, const char *name);
int pst_jinja_expect_op(jinja_parser *parser, int op);
/* The next token's own string; fails when it is no name. */
int pst_jinja_expect_name(jinja_parser *parser, const jinja_string **out);
/* Fails with the line of the next token. */
int pst_jinja_parse_fail(jinja_parser *parser, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* "expected X, found Y" */
int pst_jinja_expected(jinja_parser *parser, const char *wanted);
int pst_jinja_node(jinja_parser *parser, jinja_node_kind kind, jinja_node **out);
int pst_jinja_add_item(jinja_parser *parser, jinja_node *node, const jinja_node *item);
int pst_jinja_intern(jinja_parser *parser, const char *text, size_t bytes, const jinja_string **out);

/* Expressions: jinja_parse_expression.c. tuple: commas make one; choice: "a if b else c" allowed; stop: a name that
 * ends it, or NULL. */
int pst_jinja_parse_expression(jinja_parser *parser, bool choice, const jinja_node **out);
int pst_jinja_parse_tuple(jinja_parser *parser, bool choice, const char *stop, const jinja_node **out);
int pst_jinja_parse_target(jinja_parser *parser, bool members, const jinja_node **out);
/* A chain of filters over `base`; first: the first one's name comes without a '|'. */
int pst_jinja_parse_filters(jinja_parser *parser, const jinja_node *base, bool first, const jinja_node **out);
int pst_jinja_parse_postfix(jinja_parser *parser, const jinja_node *base, const jinja_node **out);

#endif
