/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The template language of chat templates: the part of Jinja that published templates use, as `transformers` sets it
 * up (trim_blocks, lstrip_blocks, no escaping, a sandbox in which nothing that was given can be changed).
 *
 * A template is a file that nobody vouches for. So: no template can do anything but compute a text; its nesting, its
 * steps, its memory and its output are bounded; each failure is one line that names the file and the template's line.
 *
 * A template is immutable once it is parsed: any number of threads may render it at once, each with a run of its own.
 * All values of a run lie in the run's arena and are freed with it. Private to src/text.
 */
#ifndef PST_TEXT_JINJA_H
#define PST_TEXT_JINJA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text/bytes.h"

enum {
    JINJA_SOURCE_BYTES = 1 << 20, /* of a template */
    JINJA_PARSE_DEPTH = 200,      /* of expressions and statements within each other */
    JINJA_RUN_DEPTH = 2000        /* the same while running: macros may call themselves */
};

typedef enum jinja_kind {
    JINJA_MISSING, /* an argument that was not given; no template sees it */
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    /* These have a jinja_list. */
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_RANGE,
    JINJA_KEYS,
    JINJA_VALUES,
    JINJA_ITEMS,
    JINJA_ITERATOR, /* what Python computes lazily: always true, without length or index, gone through once */
    JINJA_DICT,
    JINJA_NAMESPACE,
    JINJA_LOOP,
    JINJA_MACRO,
    JINJA_METHOD,
    JINJA_FUNCTION
} jinja_kind;

/* Valid UTF-8, not terminated. The text may be shared with other strings. */
typedef struct jinja_string {
    const char *text;
    size_t bytes, points; /* code points */
} jinja_string;

typedef struct jinja_value {
    jinja_kind kind;
    union {
        bool truth;
        int64_t whole;
        double real;
        const jinja_string *string; /* of UNDEFINED: what is not there, or NULL */
        struct jinja_list *list;
        struct jinja_dict *dict;
        struct jinja_loop *loop;
        const struct jinja_macro *macro;
        const struct jinja_method *method;
        const struct jinja_builtin *function;
    } as;
} jinja_value;

/* Never changed once a template has it, but for `taken`; so slices share items. */
typedef struct jinja_list {
    jinja_value *items;
    size_t count, capacity, taken; /* taken: of an iterator */
} jinja_list;

typedef struct jinja_entry {
    jinja_value key, value;
    uint64_t hash;
} jinja_entry;

/* In the order of insertion. slots: entry numbers + 1 by hash, open addressing; only from 9 entries on. */
typedef struct jinja_dict {
    jinja_entry *entries;
    size_t count, capacity;
    uint32_t *slots;
    size_t slot_count;
} jinja_dict;

typedef struct jinja_keyword {
    const jinja_string *name;
    jinja_value value;
} jinja_keyword;

typedef struct jinja_args {
    jinja_value *values;
    size_t count;
    jinja_keyword *keywords;
    size_t keyword_count;
} jinja_args;

struct jinja_run;

enum { JINJA_MAX_PARAMETERS = 8 };
/* A filter, a test, a method or a function. parameters: names with commas between, '!' before those that must be
 * given; a '*' at the end: any further positional arguments. call gets one value per name, MISSING where none was
 * given. */
typedef struct jinja_builtin {
    const char *name, *parameters;
    int (*call)(struct jinja_run *run, jinja_value self, const jinja_value *given, const jinja_args *all,
                jinja_value *out);
} jinja_builtin;

typedef struct jinja_method {
    const jinja_builtin *function;
    jinja_value self;
} jinja_method;

typedef struct jinja_binding {
    const jinja_string *name; /* one per name of the template: compared as a pointer */
    jinja_value value;
    struct jinja_binding *next;
} jinja_binding;

typedef struct jinja_scope {
    struct jinja_scope *parent;
    jinja_binding *first;
} jinja_scope;

typedef struct jinja_macro {
    const struct jinja_node *node;
    jinja_scope *scope; /* where it was defined */
} jinja_macro;

typedef struct jinja_loop {
    const jinja_list *list;
    size_t at, depth;
    const struct jinja_node *node; /* of a recursive loop */
    jinja_scope *scope;            /* around it */
    jinja_value changed;           /* what loop.changed was called with */
} jinja_loop;

/* Memory that is freed all at once. */
typedef struct jinja_arena {
    struct jinja_chunk *chunks;
    char *at, *end;
    size_t *used_bytes; /* counted there, up to max_bytes */
    size_t max_bytes;
    bool over; /* the limit was met */
} jinja_arena;

/* A text that is being put together. */
typedef struct jinja_buffer {
    pst_bytes bytes;
    struct jinja_buffer *next_free, *next;
} jinja_buffer;

typedef struct jinja_template jinja_template;

typedef struct jinja_limits {
    uint64_t steps;
    size_t memory_bytes, output_bytes;
} jinja_limits;

typedef enum jinja_flow { JINJA_ON, JINJA_BREAK, JINJA_CONTINUE } jinja_flow;

typedef struct jinja_run {
    const jinja_template *template;
    jinja_limits limits;
    uint64_t steps;
    size_t used_bytes;
    unsigned depth, line;
    bool has_time, refused; /* refused: raise_exception */
    int64_t time;           /* seconds since 1970 on the clock on the wall */
    jinja_arena values, texts;
    jinja_buffer *buffers, *free_buffers, *out;
    jinja_scope globals, *scope;
    jinja_flow flow;
    jinja_value body; /* what a filter block or a block assignment filters */
    pst_error *err;
} jinja_run;

/* ---- templates: jinja_parse.c ---- */

/* Parses bytes [source, source + bytes), which are copied. path: for messages, copied. The caller owns *out. */
int pst_jinja_parse(const char *path, const char *source, size_t bytes, jinja_template **out, pst_error *err);
void pst_jinja_close(jinja_template *template);
const char *pst_jinja_path(const jinja_template *template);
/* The template's own string for a name; NULL: the template does not have it. */
const jinja_string *pst_jinja_find_name(const jinja_template *template, const char *text, size_t bytes);

/* ---- runs: jinja_run.c ---- */

/* Borrows the template. err is kept for all that happens in the run. */
void pst_jinja_open(jinja_run *run, const jinja_template *template, const jinja_limits *limits, pst_error *err);
/* Gives the template a variable; name and value must outlive the run or be its own. */
int pst_jinja_set_global(jinja_run *run, const char *name, size_t bytes, jinja_value value);
/* Renders: afterwards run->out has the text. */
int pst_jinja_render(jinja_run *run);
void pst_jinja_finish(jinja_run *run);

/* ---- what the rooms of the interpreter share ---- */

/* Fails with the line that is being run: PST_E_FORMAT. */
int pst_jinja_fail(jinja_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Fails because of the memory limit: PST_E_BUDGET. */
int pst_jinja_too_large(jinja_run *run);
/* Counts work: one step, and one for each 64 bytes or values that are gone through. */
int pst_jinja_charge(jinja_run *run, size_t size);
/* One level deeper; the caller takes it back with run->depth--, on failure it need not. */
int pst_jinja_deeper(jinja_run *run);

void *pst_jinja_alloc(jinja_arena *arena, size_t bytes, size_t alignment, pst_error *err);
void pst_jinja_arena_free(jinja_arena *arena);
/* After pst_jinja_alloc gave NULL: the code that it recorded. */
int pst_jinja_no_memory(jinja_run *run);

/* Buffers. One that is not closed after a failure is freed with the run. */
int pst_jinja_buffer(jinja_run *run, jinja_buffer **out);
int pst_jinja_write(jinja_run *run, jinja_buffer *buffer, const char *text, size_t bytes);
int pst_jinja_writef(jinja_run *run, jinja_buffer *buffer, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Its content as a string; the buffer is closed. */
int pst_jinja_take(jinja_run *run, jinja_buffer *buffer, jinja_value *out);

/* Making values: jinja_value.c. view: text that lives as long as the run. points: SIZE_MAX when not known. */
int pst_jinja_string(jinja_run *run, const char *text, size_t bytes, jinja_value *out);
int pst_jinja_view(jinja_run *run, const char *text, size_t bytes, size_t points, jinja_value *out);
int pst_jinja_join(jinja_run *run, const jinja_string *left, const jinja_string *right, jinja_value *out);
int pst_jinja_undefined(jinja_run *run, const char *what, jinja_value *out);
int pst_jinja_list(jinja_run *run, size_t capacity, jinja_list **out);
int pst_jinja_push(jinja_run *run, jinja_list *list, jinja_value value);
int pst_jinja_tuple2(jinja_run *run, jinja_value first, jinja_value second, jinja_value *out);
int pst_jinja_dict(jinja_run *run, size_t capacity, jinja_dict **out);
/* Inserts or replaces. */
int pst_jinja_put(jinja_run *run, jinja_dict *dict, jinja_value key, jinja_value value);
/* 1 found, 0 not. */
int pst_jinja_get(jinja_run *run, const jinja_dict *dict, jinja_value key, jinja_value *out);
const jinja_value *pst_jinja_get_text(const jinja_dict *dict, const char *key, size_t bytes);

static inline jinja_value pst_jinja_none(void)
{
    return (jinja_value){.kind = JINJA_NONE};
}
static inline jinja_value pst_jinja_bool(bool truth)
{
    return (jinja_value){.kind = JINJA_BOOL, .as.truth = truth};
}
static inline jinja_value pst_jinja_int(int64_t whole)
{
    return (jinja_value){.kind = JINJA_INT, .as.whole = whole};
}
static inline jinja_value pst_jinja_float(double real)
{
    return (jinja_value){.kind = JINJA_FLOAT, .as.real = real};
}
static inline jinja_value pst_jinja_of_list(jinja_kind kind, jinja_list *list)
{
    return (jinja_value){.kind = kind, .as.list = list};
}
static inline jinja_value pst_jinja_of_dict(jinja_dict *dict)
{
    return (jinja_value){.kind = JINJA_DICT, .as.dict = dict};
}
static inline bool pst_jinja_has_list(jinja_value value)
{
    return value.kind >= JINJA_LIST && value.kind <= JINJA_ITERATOR;
}

/* Looking at values: jinja_compare.c. */
bool pst_jinja_truth(jinja_value value);
/* Whether it is an int or a bool; as an int. */
bool pst_jinja_whole(jinja_value value, int64_t *out);
/* Whether it is a number; as a double. */
bool pst_jinja_number(jinja_value value, double *out);
bool pst_jinja_is(jinja_value value, const char *text); /* a string equal to text */
/* 1 equal, 0 not. */
int pst_jinja_equal(jinja_run *run, jinja_value a, jinja_value b);
/* *order < 0, 0, > 0; fails for what has no order. */
int pst_jinja_order(jinja_run *run, jinja_value a, jinja_value b, int *order);
int pst_jinja_contains(jinja_run *run, jinja_value container, jinja_value item); /* 1 or 0 */
const char *pst_jinja_kind_name(jinja_value value);
/* len(); fails for what has none. */
int pst_jinja_length(jinja_run *run, jinja_value value, size_t *out);
/* What iterating over it gives. An iterator is used up. */
int pst_jinja_items(jinja_run *run, jinja_value value, jinja_list **out);
/* x[i:j:k] of a list or string; MISSING or none where nothing is given. */
int pst_jinja_slice(jinja_run *run, jinja_value value, const jinja_value bounds[3], jinja_value *out);
/* object.name and object[key]. */
int pst_jinja_attribute(jinja_run *run, jinja_value object, const jinja_string *name, jinja_value *out);
int pst_jinja_item(jinja_run *run, jinja_value object, jinja_value key, jinja_value *out);

/* As text: jinja_print.c. */
int pst_jinja_print(jinja_run *run, jinja_buffer *buffer, jinja_value value); /* str() */
int pst_jinja_repr(jinja_run *run, jinja_buffer *buffer, jinja_value value);
int pst_jinja_to_string(jinja_run *run, jinja_value value, const jinja_string **out); /* str() */
void pst_jinja_print_float(double number, char out[32]);

typedef struct jinja_json_style {
    bool ascii, sort, multiline;
    const jinja_string *indent, *item_separator, *key_separator; /* NULL: the default */
} jinja_json_style;
int pst_jinja_json(jinja_run *run, jinja_buffer *buffer, const jinja_json_style *style, jinja_value value);

/* Strings: jinja_strings.c. */
typedef enum jinja_case { JINJA_LOWER, JINJA_UPPER, JINJA_TITLE, JINJA_CAPITALIZE, JINJA_SWAPCASE } jinja_case;
int pst_jinja_recase(jinja_run *run, jinja_case how, const jinja_string *text, jinja_value *out);
/* Where point `index` begins; index up to the count of points. */
size_t pst_jinja_offset(const jinja_string *string, size_t index);
int pst_jinja_strip(jinja_run *run, const jinja_string *text, jinja_value chars, bool left, bool right,
                    jinja_value *out);
int pst_jinja_replace(jinja_run *run, const jinja_string *text, const jinja_string *old, const jinja_string *new,
                      int64_t most, jinja_value *out);
int pst_jinja_join_list(jinja_run *run, const jinja_string *between, const jinja_list *list, bool convert,
                        jinja_value *out);
int pst_jinja_split_lines(jinja_run *run, const jinja_string *text, bool keep_ends, jinja_list **out);
/* Pads to `width` points: '<' to the right, '>' to the left, '^' to both sides. */
int pst_jinja_pad(jinja_run *run, const jinja_string *text, int64_t width, char how, const char *fill,
                  size_t fill_bytes, jinja_value *out);
/* Python's int() and float() of a text: 1, or 0 when it is none. */
int pst_jinja_parse_int(const jinja_string *text, int base, int64_t *out);
int pst_jinja_parse_float(const jinja_string *text, double *out);

/* "..." % values, and str.format: jinja_format.c. */
int pst_jinja_percent(jinja_run *run, const jinja_string *format, jinja_value values, const jinja_args *keywords,
                      jinja_value *out);
int pst_jinja_braces(jinja_run *run, const jinja_string *format, const jinja_args *args, jinja_value *out);
int pst_jinja_strftime(jinja_run *run, const jinja_string *format, jinja_value *out);

/* Operators: jinja_operators.c. op: '+' '-' '*' '/' '%', 'f' for //, 'p' for **. */
int pst_jinja_binary(jinja_run *run, char op, jinja_value a, jinja_value b, jinja_value *out);
int pst_jinja_negate(jinja_run *run, jinja_value a, jinja_value *out);

/* Calls: jinja_call.c. */
int pst_jinja_call(jinja_run *run, jinja_value callee, const jinja_args *args, jinja_value *out);
int pst_jinja_call_builtin(jinja_run *run, const jinja_builtin *function, jinja_value self, const jinja_args *args,
                           jinja_value *out);
int pst_jinja_filter(jinja_run *run, const jinja_string *name, jinja_value value, const jinja_args *args,
                     jinja_value *out);
int pst_jinja_test(jinja_run *run, const jinja_string *name, jinja_value value, const jinja_args *args);

/* Tables of what there is; NULL: none of that name. */
const jinja_builtin *pst_jinja_find(const jinja_builtin *table, size_t count, const char *name, size_t bytes);
const jinja_builtin *pst_jinja_find_filter(const char *name, size_t bytes);
const jinja_builtin *pst_jinja_find_list_filter(const char *name, size_t bytes);
const jinja_builtin *pst_jinja_find_test(const char *name, size_t bytes);
const jinja_builtin *pst_jinja_find_function(const char *name, size_t bytes);
const jinja_builtin *pst_jinja_find_method(jinja_kind kind, const char *name, size_t bytes);
const jinja_builtin *pst_jinja_find_string_method(const char *name, size_t bytes);
/* Whether Python has a method of that name which would change the object: there, and refused when it is called. */
bool pst_jinja_is_mutator(jinja_kind kind, const char *name, size_t bytes);

/* Running: jinja_run.c and jinja_eval.c. */
int pst_jinja_eval(jinja_run *run, const struct jinja_node *node, jinja_value *out);
int pst_jinja_exec(jinja_run *run, const struct jinja_node *node);
int pst_jinja_exec_loop(jinja_run *run, const struct jinja_node *node, jinja_value iterable, size_t depth);
/* Runs the body in a scope of its own and takes what it writes. */
int pst_jinja_capture(jinja_run *run, jinja_scope *scope, const struct jinja_node *body, jinja_value *out);
int pst_jinja_bind(jinja_run *run, jinja_scope *scope, const jinja_string *name, jinja_value value);

#endif
