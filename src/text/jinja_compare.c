/* SPDX-License-Identifier: Apache-2.0 */
/* Looking at values as Python does: truth, equality, order, length, membership, iteration, items and attributes. */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja.h"
#include "text/unicode.h"

const char *pst_jinja_kind_name(jinja_value value)
{
    static const char *const names[] = {[JINJA_MISSING] = "nothing",
                                        [JINJA_UNDEFINED] = "an undefined value",
                                        [JINJA_NONE] = "none",
                                        [JINJA_BOOL] = "a bool",
                                        [JINJA_INT] = "an int",
                                        [JINJA_FLOAT] = "a float",
                                        [JINJA_STRING] = "a string",
                                        [JINJA_LIST] = "a list",
                                        [JINJA_TUPLE] = "a tuple",
                                        [JINJA_RANGE] = "a range",
                                        [JINJA_KEYS] = "a dict's keys",
                                        [JINJA_VALUES] = "a dict's values",
                                        [JINJA_ITEMS] = "a dict's items",
                                        [JINJA_ITERATOR] = "an iterator",
                                        [JINJA_DICT] = "a dict",
                                        [JINJA_NAMESPACE] = "a namespace",
                                        [JINJA_LOOP] = "a loop",
                                        [JINJA_MACRO] = "a macro",
                                        [JINJA_METHOD] = "a method",
                                        [JINJA_FUNCTION] = "a function"};
    return names[value.kind];
}

bool pst_jinja_truth(jinja_value v)
{
    switch (v.kind) {
    case JINJA_MISSING:
    case JINJA_UNDEFINED:
    case JINJA_NONE: return false;
    case JINJA_BOOL: return v.as.truth;
    case JINJA_INT: return v.as.whole != 0;
    case JINJA_FLOAT: return v.as.real != 0;
    case JINJA_STRING: return v.as.string->bytes > 0;
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
    case JINJA_KEYS:
    case JINJA_VALUES:
    case JINJA_ITEMS: return v.as.list->count > 0;
    case JINJA_DICT: return v.as.dict->count > 0;
    case JINJA_LOOP: return v.as.loop->list->count > 0; /* it has a length */
    default: return true;
    }
}

bool pst_jinja_whole(jinja_value v, int64_t *out)
{
    if (v.kind != JINJA_INT && v.kind != JINJA_BOOL)
        return false;
    *out = v.kind == JINJA_INT ? v.as.whole : v.as.truth;
    return true;
}

bool pst_jinja_number(jinja_value v, double *out)
{
    int64_t whole;
    if (v.kind == JINJA_FLOAT) {
        *out = v.as.real;
        return true;
    }
    if (!pst_jinja_whole(v, &whole))
        return false;
    *out = (double)whole;
    return true;
}

bool pst_jinja_is(jinja_value v, const char *text)
{
    return v.kind == JINJA_STRING && v.as.string->bytes == strlen(text) &&
           memcmp(v.as.string->text, text, v.as.string->bytes) == 0;
}

/* ---- equality and order ---- */

/* -1, 0, 1; 2: one of them is not a number. Whole numbers as they are, others as doubles. */
static int order_numbers(jinja_value a, jinja_value b)
{
    int64_t x, y;
    if (pst_jinja_whole(a, &x) && pst_jinja_whole(b, &y))
        return (x > y) - (x < y);
    long double p = a.kind == JINJA_FLOAT ? (long double)a.as.real : 0,
                q = b.kind == JINJA_FLOAT ? (long double)b.as.real : 0;
    if (pst_jinja_whole(a, &x))
        p = (long double)x;
    if (pst_jinja_whole(b, &y))
        q = (long double)y;
    if (isnan(p) || isnan(q))
        return 2;
    return (p > q) - (p < q);
}

static int order_strings(const jinja_string *a, const jinja_string *b)
{
    size_t shorter = a->bytes < b->bytes ? a->bytes : b->bytes;
    int order = shorter > 0 ? memcmp(a->text, b->text, shorter) : 0; /* UTF-8 sorts as its code points do */
    return order != 0 ? (order > 0) - (order < 0) : (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

static int equal_lists(jinja_run *run, const jinja_list *a, const jinja_list *b)
{
    if (a->count != b->count)
        return 0;
    PST_TRY(pst_jinja_charge(run, 16 * a->count));
    for (size_t i = 0; i < a->count; i++) {
        int same = pst_jinja_equal(run, a->items[i], b->items[i]);
        if (same != 1)
            return same;
    }
    return 1;
}

static int equal_dicts(jinja_run *run, const jinja_dict *a, const jinja_dict *b)
{
    if (a->count != b->count)
        return 0;
    PST_TRY(pst_jinja_charge(run, 16 * a->count));
    for (size_t i = 0; i < a->count; i++) {
        jinja_value other;
        int found = pst_jinja_get(run, b, a->entries[i].key, &other);
        if (found == 1)
            found = pst_jinja_equal(run, a->entries[i].value, other);
        if (found != 1)
            return found;
    }
    return 1;
}

static int equal_deep(jinja_run *run, jinja_value a, jinja_value b)
{
    if (a.kind != b.kind)
        return 0;
    switch (a.kind) {
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE: return equal_lists(run, a.as.list, b.as.list);
    case JINJA_DICT: return equal_dicts(run, a.as.dict, b.as.dict);
    case JINJA_UNDEFINED:
    case JINJA_NONE: return 1;
    default: return a.as.list == b.as.list; /* the same object */
    }
}

int pst_jinja_equal(jinja_run *run, jinja_value a, jinja_value b)
{
    double x;
    if (a.kind == JINJA_STRING && b.kind == JINJA_STRING) {
        PST_TRY(pst_jinja_charge(run, a.as.string->bytes));
        return a.as.string->bytes == b.as.string->bytes &&
               (a.as.string->bytes == 0 || memcmp(a.as.string->text, b.as.string->text, a.as.string->bytes) == 0);
    }
    if (pst_jinja_number(a, &x) && pst_jinja_number(b, &x))
        return order_numbers(a, b) == 0;
    PST_TRY(pst_jinja_deeper(run));
    int same = equal_deep(run, a, b);
    run->depth--;
    return same;
}

int pst_jinja_order(jinja_run *run, jinja_value a, jinja_value b, int *order)
{
    double x;
    if (a.kind == JINJA_STRING && b.kind == JINJA_STRING) {
        PST_TRY(pst_jinja_charge(run, a.as.string->bytes));
        *order = order_strings(a.as.string, b.as.string);
        return 0;
    }
    if (pst_jinja_number(a, &x) && pst_jinja_number(b, &x)) {
        *order = order_numbers(a, b);
        return 0;
    }
    if (a.kind != b.kind || (a.kind != JINJA_LIST && a.kind != JINJA_TUPLE))
        return pst_jinja_fail(run, "%s and %s have no order", pst_jinja_kind_name(a), pst_jinja_kind_name(b));
    PST_TRY(pst_jinja_deeper(run));
    PST_TRY(pst_jinja_charge(run, 16 * (a.as.list->count < b.as.list->count ? a.as.list->count : b.as.list->count)));
    size_t i = 0;
    for (; i < a.as.list->count && i < b.as.list->count; i++) {
        int same = pst_jinja_equal(run, a.as.list->items[i], b.as.list->items[i]);
        PST_TRY(same);
        if (!same) {
            run->depth--;
            return pst_jinja_order(run, a.as.list->items[i], b.as.list->items[i], order);
        }
    }
    run->depth--;
    *order = (a.as.list->count > b.as.list->count) - (a.as.list->count < b.as.list->count);
    return 0;
}

int pst_jinja_contains(jinja_run *run, jinja_value container, jinja_value item)
{
    if (container.kind == JINJA_STRING) {
        if (item.kind != JINJA_STRING)
            return pst_jinja_fail(run, "%s cannot be in a string", pst_jinja_kind_name(item));
        PST_TRY(pst_jinja_charge(run, container.as.string->bytes));
        return item.as.string->bytes == 0 || memmem(container.as.string->text, container.as.string->bytes,
                                                    item.as.string->text, item.as.string->bytes) != NULL;
    }
    if (container.kind == JINJA_DICT) {
        jinja_value found;
        return pst_jinja_get(run, container.as.dict, item, &found);
    }
    if (container.kind != JINJA_UNDEFINED && !pst_jinja_has_list(container))
        return pst_jinja_fail(run, "%s contains nothing", pst_jinja_kind_name(container));
    jinja_list *list;
    PST_TRY(pst_jinja_items(run, container, &list));
    for (size_t i = 0; i < list->count; i++) {
        int same = pst_jinja_equal(run, list->items[i], item);
        if (same != 0)
            return same;
    }
    return 0;
}

int pst_jinja_length(jinja_run *run, jinja_value v, size_t *out)
{
    if (v.kind == JINJA_STRING)
        *out = v.as.string->points;
    else if (v.kind == JINJA_DICT)
        *out = v.as.dict->count;
    else if (v.kind == JINJA_UNDEFINED)
        *out = 0;
    else if (v.kind == JINJA_LOOP)
        *out = v.as.loop->list->count;
    else if (pst_jinja_has_list(v) && v.kind != JINJA_ITERATOR)
        *out = v.as.list->count;
    else
        return pst_jinja_fail(run, "%s has no length", pst_jinja_kind_name(v));
    return 0;
}

/* ---- iteration ---- */

static int points_of(jinja_run *run, const jinja_string *string, jinja_list *list)
{
    for (size_t at = 0; at < string->bytes;) {
        size_t width = pst_utf8_width((unsigned char)string->text[at]);
        jinja_value point;
        PST_TRY(pst_jinja_view(run, string->text + at, width, 1, &point));
        PST_TRY(pst_jinja_push(run, list, point));
        at += width;
    }
    return 0;
}

int pst_jinja_items(jinja_run *run, jinja_value v, jinja_list **out)
{
    if (v.kind == JINJA_ITERATOR) { /* what is left of it */
        jinja_list *rest;
        PST_TRY(pst_jinja_list(run, 0, &rest));
        rest->items = v.as.list->taken > 0 ? v.as.list->items + v.as.list->taken : v.as.list->items;
        rest->count = rest->capacity = v.as.list->count - v.as.list->taken;
        v.as.list->taken = v.as.list->count;
        *out = rest;
        return pst_jinja_charge(run, 16 * rest->count);
    }
    if (pst_jinja_has_list(v)) {
        *out = v.as.list;
        return pst_jinja_charge(run, 16 * v.as.list->count); /* for whoever goes through it */
    }
    jinja_list *list;
    if (v.kind != JINJA_STRING && v.kind != JINJA_DICT && v.kind != JINJA_UNDEFINED)
        return pst_jinja_fail(run, "%s cannot be iterated over", pst_jinja_kind_name(v));
    PST_TRY(pst_jinja_list(run, v.kind == JINJA_DICT ? v.as.dict->count : 0, &list));
    if (v.kind == JINJA_STRING)
        PST_TRY(points_of(run, v.as.string, list));
    for (size_t i = 0; v.kind == JINJA_DICT && i < v.as.dict->count; i++)
        list->items[list->count++] = v.as.dict->entries[i].key;
    *out = list;
    return 0;
}

/* ---- slices and items ---- */

/* A bound as Python clamps it into [low, high]. */
static int bound(jinja_run *run, jinja_value v, int64_t count, int64_t low, int64_t high, int64_t *out)
{
    if (v.kind == JINJA_MISSING || v.kind == JINJA_NONE)
        return 0;
    if (!pst_jinja_whole(v, out))
        return pst_jinja_fail(run, "%s cannot be a slice's bound", pst_jinja_kind_name(v));
    if (*out < 0)
        *out += count;
    *out = *out < low ? low : *out > high ? high : *out;
    return 0;
}

static int slice_list(jinja_run *run, jinja_value v, int64_t start, int64_t stop, int64_t step, jinja_value *out)
{
    jinja_list *made;
    if (step == 1) {
        PST_TRY(pst_jinja_list(run, 0, &made));
        made->items = start > 0 ? v.as.list->items + start : v.as.list->items;
        made->count = made->capacity = stop > start ? (size_t)(stop - start) : 0;
    } else {
        PST_TRY(pst_jinja_list(run, 0, &made));
        for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step)
            PST_TRY(pst_jinja_push(run, made, v.as.list->items[i]));
    }
    *out = pst_jinja_of_list(v.kind, made);
    return 0;
}

static int slice_string(jinja_run *run, const jinja_string *string, int64_t start, int64_t stop, int64_t step,
                        jinja_value *out)
{
    if (step == 1) {
        stop = stop < start ? start : stop;
        PST_TRY(pst_jinja_charge(run, string->points == string->bytes ? 0 : string->bytes));
        size_t from = pst_jinja_offset(string, (size_t)start), to = pst_jinja_offset(string, (size_t)stop);
        return pst_jinja_view(run, string->text + from, to - from, (size_t)(stop - start), out);
    }
    jinja_buffer *buffer;
    jinja_list *points;
    PST_TRY(pst_jinja_list(run, string->points, &points));
    PST_TRY(points_of(run, string, points));
    PST_TRY(pst_jinja_buffer(run, &buffer));
    for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
        const jinja_string *point = points->items[i].as.string;
        PST_TRY(pst_jinja_write(run, buffer, point->text, point->bytes));
    }
    return pst_jinja_take(run, buffer, out);
}

int pst_jinja_slice(jinja_run *run, jinja_value v, const jinja_value bounds[3], jinja_value *out)
{
    int64_t step = 1;
    bool is_list = v.kind == JINJA_LIST || v.kind == JINJA_TUPLE || v.kind == JINJA_RANGE;
    if (!is_list && v.kind != JINJA_STRING)
        return pst_jinja_fail(run, "a slice of %s", pst_jinja_kind_name(v));
    if (bounds[2].kind != JINJA_MISSING && bounds[2].kind != JINJA_NONE && !pst_jinja_whole(bounds[2], &step))
        return pst_jinja_fail(run, "%s cannot be a slice's step", pst_jinja_kind_name(bounds[2]));
    if (step == 0)
        return pst_jinja_fail(run, "a slice's step is 0");
    int64_t count = (int64_t)(is_list ? v.as.list->count : v.as.string->points);
    int64_t low = step > 0 ? 0 : -1, high = step > 0 ? count : count - 1;
    int64_t start = step > 0 ? low : high, stop = step > 0 ? high : low;
    PST_TRY(bound(run, bounds[0], count, low, high, &start));
    PST_TRY(bound(run, bounds[1], count, low, high, &stop));
    if (step > count + 1)
        step = count + 1; /* the first item alone; no overflow */
    if (step < -count - 1)
        step = -count - 1;
    return is_list ? slice_list(run, v, start, stop, step, out)
                   : slice_string(run, v.as.string, start, stop, step, out);
}

/* What Python's getattr finds: 1, 0 not. */
static int find_attribute(jinja_run *run, jinja_value object, const char *name, size_t bytes, jinja_value *out);

static int undefined_of(jinja_run *run, const jinja_string *name, jinja_value *out)
{
    (void)run;
    *out = (jinja_value){.kind = JINJA_UNDEFINED, .as.string = name};
    return 0;
}

/* object[index]: 1, 0 not there. */
static int find_item(jinja_run *run, jinja_value object, jinja_value key, jinja_value *out)
{
    int64_t index;
    if (object.kind == JINJA_DICT) {
        if (key.kind == JINJA_LIST || key.kind == JINJA_DICT) /* not hashable, which counts as not found */
            return 0;
        return pst_jinja_get(run, object.as.dict, key, out);
    }
    bool is_list = object.kind == JINJA_LIST || object.kind == JINJA_TUPLE || object.kind == JINJA_RANGE;
    if ((!is_list && object.kind != JINJA_STRING) || !pst_jinja_whole(key, &index))
        return 0;
    int64_t count = (int64_t)(is_list ? object.as.list->count : object.as.string->points);
    index += index < 0 ? count : 0;
    if (index < 0 || index >= count)
        return 0;
    if (is_list) {
        *out = object.as.list->items[index];
        return 1;
    }
    const jinja_string *string = object.as.string;
    PST_TRY(pst_jinja_charge(run, string->points == string->bytes ? 0 : string->bytes));
    size_t at = pst_jinja_offset(string, (size_t)index);
    PST_TRY(pst_jinja_view(run, string->text + at, pst_utf8_width((unsigned char)string->text[at]), 1, out));
    return 1;
}

int pst_jinja_attribute(jinja_run *run, jinja_value object, const jinja_string *name, jinja_value *out)
{
    if (name->bytes > 2 && memcmp(name->text, "__", 2) == 0 && object.kind != JINJA_DICT) /* Python's own */
        return undefined_of(run, name, out);
    if (object.kind == JINJA_UNDEFINED)
        return pst_jinja_fail(
            run, "\"%.*s\" of an undefined value%s%.*s", (int)(name->bytes < 80 ? name->bytes : 80), name->text,
            object.as.string != NULL ? ", " : "",
            object.as.string != NULL ? (int)(object.as.string->bytes < 80 ? object.as.string->bytes : 80) : 0,
            object.as.string != NULL ? object.as.string->text : "");
    int found = find_attribute(run, object, name->text, name->bytes, out);
    if (found == 0)
        found = find_item(run, object, (jinja_value){.kind = JINJA_STRING, .as.string = name}, out);
    PST_TRY(found);
    return found ? 0 : undefined_of(run, name, out);
}

int pst_jinja_item(jinja_run *run, jinja_value object, jinja_value key, jinja_value *out)
{
    if (object.kind == JINJA_UNDEFINED)
        return pst_jinja_fail(
            run, "an item of an undefined value%s%.*s", object.as.string != NULL ? ", " : "",
            object.as.string != NULL ? (int)(object.as.string->bytes < 80 ? object.as.string->bytes : 80) : 0,
            object.as.string != NULL ? object.as.string->text : "");
    int found = find_item(run, object, key, out);
    if (found == 0 && key.kind == JINJA_STRING)
        found = find_attribute(run, object, key.as.string->text, key.as.string->bytes, out);
    PST_TRY(found);
    return found ? 0 : undefined_of(run, key.kind == JINJA_STRING ? key.as.string : NULL, out);
}

/* ---- attributes ---- */

static jinja_value neighbour(const jinja_loop *loop, size_t at)
{
    return at < loop->list->count ? loop->list->items[at] : (jinja_value){.kind = JINJA_UNDEFINED};
}

/* 1, or 0 when a loop has no such attribute. */
static int loop_attribute(const jinja_loop *loop, const char *name, size_t bytes, jinja_value *out)
{
    int64_t at = (int64_t)loop->at, count = (int64_t)loop->list->count, depth = (int64_t)loop->depth;
    const struct {
        const char *name;
        jinja_value value;
    } attributes[] = {{"index", pst_jinja_int(at + 1)},
                      {"index0", pst_jinja_int(at)},
                      {"first", pst_jinja_bool(at == 0)},
                      {"last", pst_jinja_bool(at + 1 == count)},
                      {"length", pst_jinja_int(count)},
                      {"previtem", neighbour(loop, loop->at - 1)},
                      {"nextitem", neighbour(loop, loop->at + 1)},
                      {"revindex", pst_jinja_int(count - at)},
                      {"revindex0", pst_jinja_int(count - at - 1)},
                      {"depth", pst_jinja_int(depth + 1)},
                      {"depth0", pst_jinja_int(depth)}};
    for (size_t i = 0; i < sizeof attributes / sizeof attributes[0]; i++) {
        if (bytes == strlen(attributes[i].name) && memcmp(name, attributes[i].name, bytes) == 0) {
            *out = attributes[i].value;
            return 1;
        }
    }
    return 0;
}

static int find_attribute(jinja_run *run, jinja_value object, const char *name, size_t bytes, jinja_value *out)
{
    if (object.kind == JINJA_LOOP && loop_attribute(object.as.loop, name, bytes, out))
        return 1;
    if (object.kind == JINJA_NAMESPACE) {
        PST_TRY(pst_jinja_charge(run, bytes));
        const jinja_value *value = pst_jinja_get_text(object.as.dict, name, bytes);
        if (value != NULL)
            *out = *value;
        return value != NULL;
    }
    if (pst_jinja_is_mutator(object.kind, name, bytes)) /* there, but not to be used */
        PST_TRY(pst_jinja_undefined(run, "which would change what was given", out));
    if (pst_jinja_is_mutator(object.kind, name, bytes))
        return 1;
    const jinja_builtin *function = pst_jinja_find_method(object.kind, name, bytes);
    if (function == NULL)
        return 0;
    jinja_method *method = pst_jinja_alloc(&run->values, sizeof *method, 16, run->err);
    if (method == NULL)
        return pst_jinja_no_memory(run);
    *method = (jinja_method){.function = function, .self = object};
    *out = (jinja_value){.kind = JINJA_METHOD, .as.method = method};
    return 1;
}
