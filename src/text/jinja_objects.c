/* SPDX-License-Identifier: Apache-2.0 */
/* Methods of dicts, lists, loops and floats, and the functions that every template has. */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja.h"

#define METHOD(name)                                                                                                   \
    static int name(jinja_run *run, jinja_value self, const jinja_value *given, const jinja_args *all, jinja_value *out)
#define UNUSED (void)self, (void)given, (void)all

/* ---- dicts ---- */

METHOD(dict_get)
{
    UNUSED;
    int found = pst_jinja_get(run, self.as.dict, given[0], out);
    PST_TRY(found);
    if (!found)
        *out = given[1].kind != JINJA_MISSING ? given[1] : pst_jinja_none();
    return 0;
}

static int dict_view(jinja_run *run, const jinja_dict *dict, jinja_kind kind, jinja_value *out)
{
    jinja_list *list;
    PST_TRY(pst_jinja_list(run, dict->count, &list));
    for (size_t i = 0; i < dict->count; i++) {
        jinja_value item = kind == JINJA_KEYS ? dict->entries[i].key : dict->entries[i].value;
        if (kind == JINJA_ITEMS)
            PST_TRY(pst_jinja_tuple2(run, dict->entries[i].key, item, &item));
        PST_TRY(pst_jinja_push(run, list, item));
    }
    *out = pst_jinja_of_list(kind, list);
    return 0;
}

METHOD(dict_keys)
{
    UNUSED;
    return dict_view(run, self.as.dict, JINJA_KEYS, out);
}

METHOD(dict_values)
{
    UNUSED;
    return dict_view(run, self.as.dict, JINJA_VALUES, out);
}

METHOD(dict_items)
{
    UNUSED;
    return dict_view(run, self.as.dict, JINJA_ITEMS, out);
}

METHOD(object_copy)
{
    UNUSED;
    (void)run;
    *out = self; /* nothing can change it */
    return 0;
}

static const jinja_builtin dict_methods[] = {{"get", "!key,default", dict_get},
                                             {"keys", "", dict_keys},
                                             {"values", "", dict_values},
                                             {"items", "", dict_items},
                                             {"copy", "", object_copy}};

/* ---- lists ---- */

METHOD(list_index)
{
    const jinja_list *list = self.as.list;
    const jinja_value bounds[3] = {given[1], given[2], {0}};
    jinja_value part;
    int64_t first = 0;
    UNUSED;
    PST_TRY(pst_jinja_slice(run, self, bounds, &part));
    if (pst_jinja_whole(given[1], &first) && first < 0)
        first = first + (int64_t)list->count < 0 ? 0 : first + (int64_t)list->count;
    PST_TRY(pst_jinja_charge(run, 16 * part.as.list->count));
    for (size_t i = 0; i < part.as.list->count; i++) {
        int same = pst_jinja_equal(run, part.as.list->items[i], given[0]);
        PST_TRY(same);
        if (same) {
            *out = pst_jinja_int(first + (int64_t)i);
            return 0;
        }
    }
    return pst_jinja_fail(run, "the value is not in the list");
}

METHOD(list_count)
{
    int64_t count = 0;
    UNUSED;
    PST_TRY(pst_jinja_charge(run, 16 * self.as.list->count));
    for (size_t i = 0; i < self.as.list->count; i++) {
        int same = pst_jinja_equal(run, self.as.list->items[i], given[0]);
        PST_TRY(same);
        count += same;
    }
    *out = pst_jinja_int(count);
    return 0;
}

/* Tuples and ranges have no copy(): it is the last one. */
static const jinja_builtin list_methods[] = {
    {"index", "!value,start,stop", list_index}, {"count", "!value", list_count}, {"copy", "", object_copy}};
enum { TUPLE_METHODS = sizeof list_methods / sizeof list_methods[0] - 1 };

/* ---- loops and floats ---- */

METHOD(loop_cycle)
{
    UNUSED;
    if (all->count == 0)
        return pst_jinja_fail(run, "loop.cycle of nothing");
    *out = all->values[self.as.loop->at % all->count];
    return 0;
}

METHOD(loop_changed)
{
    jinja_list *values;
    UNUSED;
    PST_TRY(pst_jinja_list(run, 0, &values));
    values->items = all->values;
    values->count = all->count;
    jinja_value now = pst_jinja_of_list(JINJA_TUPLE, values);
    int same = pst_jinja_equal(run, self.as.loop->changed, now);
    PST_TRY(same);
    self.as.loop->changed = now;
    *out = pst_jinja_bool(!same);
    return 0;
}

METHOD(float_is_integer)
{
    UNUSED;
    (void)run;
    *out = pst_jinja_bool(floor(self.as.real) == self.as.real);
    return 0;
}

static const jinja_builtin loop_methods[] = {{"cycle", "*", loop_cycle}, {"changed", "*", loop_changed}};
static const jinja_builtin float_methods[] = {{"is_integer", "", float_is_integer}};

const jinja_builtin *pst_jinja_find_method(jinja_kind kind, const char *name, size_t bytes)
{
#define TABLE(table) pst_jinja_find(table, sizeof table / sizeof table[0], name, bytes)
    switch (kind) {
    case JINJA_STRING: return pst_jinja_find_string_method(name, bytes);
    case JINJA_DICT: return TABLE(dict_methods);
    case JINJA_LIST: return TABLE(list_methods);
    case JINJA_TUPLE:
    case JINJA_RANGE: return pst_jinja_find(list_methods, TUPLE_METHODS, name, bytes);
    case JINJA_LOOP: return TABLE(loop_methods);
    case JINJA_FLOAT: return TABLE(float_methods);
    default: return NULL;
    }
#undef TABLE
}

bool pst_jinja_is_mutator(jinja_kind kind, const char *name, size_t bytes)
{
    static const char *const of_lists[] = {"append", "clear",   "extend", "insert", "pop",
                                           "remove", "reverse", "sort",   NULL};
    static const char *const of_dicts[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
    const char *const *names = kind == JINJA_LIST ? of_lists : kind == JINJA_DICT ? of_dicts : NULL;
    for (; names != NULL && *names != NULL; names++) {
        if (strlen(*names) == bytes && memcmp(*names, name, bytes) == 0)
            return true;
    }
    return false;
}

/* ---- functions ---- */

METHOD(make_range)
{
    enum { MOST = 100000 };
    int64_t bounds[3] = {0, 0, 1};
    jinja_list *list;
    UNUSED;
    for (int i = 0; i < 3; i++) {
        if (given[i].kind != JINJA_MISSING && !pst_jinja_whole(given[i], &bounds[i]))
            return pst_jinja_fail(run, "a range of %s", pst_jinja_kind_name(given[i]));
    }
    if (given[1].kind == JINJA_MISSING) {
        bounds[1] = bounds[0];
        bounds[0] = 0;
    }
    if (bounds[2] == 0)
        return pst_jinja_fail(run, "a range's step is 0");
    PST_TRY(pst_jinja_list(run, 0, &list));
    int64_t at = bounds[0];
    while (bounds[2] > 0 ? at < bounds[1] : at > bounds[1]) {
        if (list->count == MOST)
            return pst_jinja_fail(run, "a range of more than %d numbers", MOST);
        PST_TRY(pst_jinja_push(run, list, pst_jinja_int(at)));
        if (__builtin_add_overflow(at, bounds[2], &at))
            break;
    }
    *out = pst_jinja_of_list(JINJA_RANGE, list);
    return 0;
}

/* The dict of a dict, or of pairs, and of keyword arguments. */
static int fill_dict(jinja_run *run, const jinja_args *all, jinja_dict **out)
{
    PST_TRY(pst_jinja_dict(run, 0, out));
    if (all->count > 1)
        return pst_jinja_fail(run, "dict takes one argument without a name");
    if (all->count == 1 && all->values[0].kind == JINJA_DICT) {
        const jinja_dict *from = all->values[0].as.dict;
        for (size_t i = 0; i < from->count; i++)
            PST_TRY(pst_jinja_put(run, *out, from->entries[i].key, from->entries[i].value));
    } else if (all->count == 1) {
        jinja_list *pairs, *pair;
        PST_TRY(pst_jinja_items(run, all->values[0], &pairs));
        for (size_t i = 0; i < pairs->count; i++) {
            PST_TRY(pst_jinja_items(run, pairs->items[i], &pair));
            if (pair->count != 2)
                return pst_jinja_fail(run, "a dict of what are not pairs");
            PST_TRY(pst_jinja_put(run, *out, pair->items[0], pair->items[1]));
        }
    }
    for (size_t i = 0; i < all->keyword_count; i++)
        PST_TRY(pst_jinja_put(run, *out, (jinja_value){.kind = JINJA_STRING, .as.string = all->keywords[i].name},
                              all->keywords[i].value));
    return 0;
}

METHOD(make_dict)
{
    jinja_dict *dict;
    UNUSED;
    PST_TRY(fill_dict(run, all, &dict));
    *out = pst_jinja_of_dict(dict);
    return 0;
}

METHOD(make_namespace)
{
    jinja_dict *dict;
    UNUSED;
    PST_TRY(fill_dict(run, all, &dict));
    for (size_t i = 0; i < dict->count; i++) {
        const jinja_value key = dict->entries[i].key;
        if (key.kind == JINJA_STRING && key.as.string->bytes > 0 && key.as.string->text[0] == '_')
            return pst_jinja_fail(run, "a namespace's member whose name begins with \"_\"");
    }
    *out = (jinja_value){.kind = JINJA_NAMESPACE, .as.dict = dict};
    return 0;
}

METHOD(raise_exception)
{
    const jinja_string *text;
    UNUSED;
    PST_TRY(pst_jinja_to_string(run, given[0], &text));
    run->refused = true;
    (void)out;
    return pst_jinja_fail(run, "%.*s", (int)(text->bytes < 300 ? text->bytes : 300), text->text);
}

METHOD(strftime_now)
{
    UNUSED;
    if (given[0].kind != JINJA_STRING)
        return pst_jinja_fail(run, "%s as a format of times", pst_jinja_kind_name(given[0]));
    return pst_jinja_strftime(run, given[0].as.string, out);
}

static const jinja_builtin functions[] = {{"range", "!start,stop,step", make_range},
                                          {"dict", "*", make_dict},
                                          {"namespace", "*", make_namespace},
                                          {"raise_exception", "!message", raise_exception},
                                          {"strftime_now", "!format", strftime_now}};

const jinja_builtin *pst_jinja_find_function(const char *name, size_t bytes)
{
    return pst_jinja_find(functions, sizeof functions / sizeof functions[0], name, bytes);
}
