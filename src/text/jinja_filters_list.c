/* SPDX-License-Identifier: Apache-2.0 */
/* Filters of lists. What Python computes lazily is computed at once here, and is an iterator to what looks at it. */
#include <string.h>

#include "base/error.h"
#include "text/jinja.h"
#include "text/unicode.h"

#define FILTER(name)                                                                                                   \
    static int name(jinja_run *run, jinja_value self, const jinja_value *given, const jinja_args *all, jinja_value *out)
#define UNUSED (void)given, (void)all

/* ---- attributes by a path: "function.name", "0" ---- */

static int follow(jinja_run *run, jinja_value object, jinja_value path, jinja_value *out)
{
    if (path.kind == JINJA_INT)
        return pst_jinja_item(run, object, path, out);
    const jinja_string *text;
    PST_TRY(pst_jinja_to_string(run, path, &text));
    *out = object;
    for (size_t at = 0; at <= text->bytes;) {
        const char *dot = memchr(text->text + at, '.', text->bytes - at);
        size_t end = dot != NULL ? (size_t)(dot - text->text) : text->bytes;
        jinja_value key;
        int64_t index;
        PST_TRY(pst_jinja_view(run, text->text + at, end - at, SIZE_MAX, &key));
        bool digits = end > at;
        for (size_t i = at; i < end; i++)
            digits &= text->text[i] >= '0' && text->text[i] <= '9';
        if (digits && pst_jinja_parse_int(key.as.string, 10, &index))
            key = pst_jinja_int(index);
        PST_TRY(pst_jinja_item(run, *out, key, out));
        at = end + 1;
    }
    return 0;
}

/* What is compared: the value or its attribute, in lower case unless case counts. */
static int sort_key(jinja_run *run, jinja_value v, jinja_value attribute, bool case_sensitive, jinja_value *out)
{
    *out = v;
    if (attribute.kind != JINJA_MISSING && attribute.kind != JINJA_NONE)
        PST_TRY(follow(run, v, attribute, out));
    if (!case_sensitive && out->kind == JINJA_STRING)
        return pst_jinja_recase(run, JINJA_LOWER, out->as.string, out);
    return 0;
}

/* ---- order ---- */

typedef struct keyed {
    jinja_value key, value;
} keyed;

/* Sorts stably; down: the greatest first, equal ones in their order all the same. */
static int merge_sort(jinja_run *run, keyed *items, size_t count, bool down, keyed **out)
{
    keyed *from = items, *to = items + count;
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t start = 0; start < count; start += 2 * width) {
            size_t middle = start + width < count ? start + width : count;
            size_t end = middle + width < count ? middle + width : count;
            for (size_t a = start, b = middle, k = start; k < end; k++) {
                int order = 0;
                if (a < middle && b < end)
                    PST_TRY(pst_jinja_order(run, from[a].key, from[b].key, &order));
                to[k] = b == end || (a < middle && (down ? order >= 0 : order <= 0)) ? from[a++] : from[b++];
            }
        }
        keyed *swap = from;
        from = to;
        to = swap;
        PST_TRY(pst_jinja_charge(run, count));
    }
    *out = from;
    return 0;
}

/* Room for twice the items: merging goes to and fro. */
static int keyed_room(jinja_run *run, size_t count, keyed **out)
{
    PST_TRY(pst_jinja_charge(run, count));
    *out = pst_jinja_alloc(&run->values, (2 * count + 1) * sizeof **out, 16, run->err);
    return *out != NULL ? 0 : pst_jinja_no_memory(run);
}

/* in_lists: keys are compared as items of lists are, where equal ones need no order. */
static int sorted(jinja_run *run, const jinja_list *list, jinja_value attribute, bool case_sensitive, bool down,
                  bool in_lists, jinja_value *out)
{
    keyed *items;
    jinja_list *made;
    PST_TRY(keyed_room(run, list->count, &items));
    for (size_t i = 0; i < list->count; i++) {
        items[i].value = list->items[i];
        PST_TRY(sort_key(run, list->items[i], attribute, case_sensitive, &items[i].key));
        if (in_lists) {
            jinja_list *key;
            PST_TRY(pst_jinja_list(run, 1, &key));
            PST_TRY(pst_jinja_push(run, key, items[i].key));
            items[i].key = pst_jinja_of_list(JINJA_LIST, key);
        }
    }
    PST_TRY(merge_sort(run, items, list->count, down, &items));
    PST_TRY(pst_jinja_list(run, list->count, &made));
    for (size_t i = 0; i < list->count; i++)
        PST_TRY(pst_jinja_push(run, made, items[i].value));
    *out = pst_jinja_of_list(JINJA_LIST, made);
    return 0;
}

FILTER(filter_sort)
{
    jinja_list *list;
    UNUSED;
    PST_TRY(pst_jinja_items(run, self, &list));
    return sorted(run, list, given[2], pst_jinja_truth(given[1]), pst_jinja_truth(given[0]), true, out);
}

FILTER(filter_dictsort)
{
    keyed *items;
    jinja_list *made;
    bool by_value = pst_jinja_is(given[1], "value");
    UNUSED;
    if (self.kind != JINJA_DICT)
        return pst_jinja_fail(run, "dictsort of %s", pst_jinja_kind_name(self));
    if (!by_value && given[1].kind != JINJA_MISSING && !pst_jinja_is(given[1], "key"))
        return pst_jinja_fail(run, "dictsort sorts by \"key\" or \"value\"");
    const jinja_dict *dict = self.as.dict;
    PST_TRY(keyed_room(run, dict->count, &items));
    for (size_t i = 0; i < dict->count; i++) {
        const jinja_entry *entry = &dict->entries[i];
        PST_TRY(pst_jinja_tuple2(run, entry->key, entry->value, &items[i].value));
        PST_TRY(sort_key(run, by_value ? entry->value : entry->key, (jinja_value){0}, pst_jinja_truth(given[0]),
                         &items[i].key));
    }
    PST_TRY(merge_sort(run, items, dict->count, pst_jinja_truth(given[2]), &items));
    PST_TRY(pst_jinja_list(run, dict->count, &made));
    for (size_t i = 0; i < dict->count; i++)
        PST_TRY(pst_jinja_push(run, made, items[i].value));
    *out = pst_jinja_of_list(JINJA_LIST, made);
    return 0;
}

static int extreme(jinja_run *run, jinja_value self, const jinja_value *given, int sign, jinja_value *out)
{
    jinja_list *list;
    jinja_value best_key = {0};
    PST_TRY(pst_jinja_items(run, self, &list));
    if (list->count == 0)
        return pst_jinja_undefined(run, "of an empty sequence", out);
    for (size_t i = 0; i < list->count; i++) {
        jinja_value key;
        int order = 1;
        PST_TRY(sort_key(run, list->items[i], given[1], pst_jinja_truth(given[0]), &key));
        if (i > 0)
            PST_TRY(pst_jinja_order(run, key, best_key, &order));
        if (i > 0 && (order == 2 || order * sign <= 0))
            continue;
        best_key = key;
        *out = list->items[i];
    }
    return 0;
}

FILTER(filter_min)
{
    UNUSED;
    return extreme(run, self, given, -1, out);
}

FILTER(filter_max)
{
    UNUSED;
    return extreme(run, self, given, 1, out);
}

FILTER(filter_unique)
{
    jinja_list *list, *made;
    jinja_dict *seen;
    UNUSED;
    PST_TRY(pst_jinja_items(run, self, &list));
    PST_TRY(pst_jinja_list(run, 0, &made));
    PST_TRY(pst_jinja_dict(run, 0, &seen));
    for (size_t i = 0; i < list->count; i++) {
        jinja_value key, before;
        PST_TRY(sort_key(run, list->items[i], given[1], pst_jinja_truth(given[0]), &key));
        int found = pst_jinja_get(run, seen, key, &before);
        PST_TRY(found);
        if (found)
            continue;
        PST_TRY(pst_jinja_put(run, seen, key, pst_jinja_none()));
        PST_TRY(pst_jinja_push(run, made, list->items[i]));
    }
    *out = pst_jinja_of_list(JINJA_ITERATOR, made);
    return 0;
}

FILTER(filter_reverse)
{
    jinja_list *list, *made;
    UNUSED;
    if (self.kind == JINJA_STRING) {
        const jinja_value bounds[3] = {{0}, {0}, pst_jinja_int(-1)};
        return pst_jinja_slice(run, self, bounds, out);
    }
    PST_TRY(pst_jinja_items(run, self, &list));
    PST_TRY(pst_jinja_list(run, list->count, &made));
    for (size_t i = list->count; i-- > 0;)
        PST_TRY(pst_jinja_push(run, made, list->items[i]));
    /* Of an iterator a list is made first, and that is turned round. */
    *out = pst_jinja_of_list(self.kind == JINJA_ITERATOR ? JINJA_LIST : JINJA_ITERATOR, made);
    return 0;
}

/* ---- parts ---- */

FILTER(filter_first)
{
    UNUSED;
    if (self.kind == JINJA_ITERATOR) { /* takes one */
        jinja_list *list = self.as.list;
        if (list->taken == list->count)
            return pst_jinja_undefined(run, "the first of an empty sequence", out);
        *out = list->items[list->taken++];
        return 0;
    }
    jinja_list *list;
    PST_TRY(pst_jinja_items(run, self, &list));
    if (list->count == 0)
        return pst_jinja_undefined(run, "the first of an empty sequence", out);
    *out = list->items[0];
    return 0;
}

FILTER(filter_last)
{
    jinja_list *list;
    UNUSED;
    if (self.kind == JINJA_ITERATOR)
        return pst_jinja_fail(run, "the last of %s", pst_jinja_kind_name(self));
    PST_TRY(pst_jinja_items(run, self, &list));
    if (list->count == 0)
        return pst_jinja_undefined(run, "the last of an empty sequence", out);
    *out = list->items[list->count - 1];
    return 0;
}

FILTER(filter_list)
{
    jinja_list *list;
    UNUSED;
    PST_TRY(pst_jinja_items(run, self, &list));
    *out = pst_jinja_of_list(JINJA_LIST, list);
    return 0;
}

FILTER(filter_items)
{
    jinja_list *made;
    UNUSED;
    if (self.kind != JINJA_DICT && self.kind != JINJA_UNDEFINED)
        return pst_jinja_fail(run, "items of %s", pst_jinja_kind_name(self));
    PST_TRY(pst_jinja_list(run, 0, &made));
    for (size_t i = 0; self.kind == JINJA_DICT && i < self.as.dict->count; i++) {
        jinja_value pair;
        PST_TRY(pst_jinja_tuple2(run, self.as.dict->entries[i].key, self.as.dict->entries[i].value, &pair));
        PST_TRY(pst_jinja_push(run, made, pair));
    }
    *out = pst_jinja_of_list(JINJA_ITERATOR, made);
    return 0;
}

static int attributes_of(jinja_run *run, const jinja_list *list, jinja_value attribute, jinja_value preset,
                         jinja_list **out)
{
    PST_TRY(pst_jinja_list(run, list->count, out));
    for (size_t i = 0; i < list->count; i++) {
        jinja_value value;
        PST_TRY(follow(run, list->items[i], attribute, &value));
        if (value.kind == JINJA_UNDEFINED && preset.kind != JINJA_MISSING)
            value = preset;
        PST_TRY(pst_jinja_push(run, *out, value));
    }
    return 0;
}

FILTER(filter_join)
{
    jinja_list *list;
    jinja_value between = given[0];
    const jinja_string *text;
    UNUSED;
    PST_TRY(pst_jinja_items(run, self, &list));
    if (given[1].kind != JINJA_MISSING && given[1].kind != JINJA_NONE)
        PST_TRY(attributes_of(run, list, given[1], (jinja_value){0}, &list));
    PST_TRY(pst_jinja_to_string(run, between, &text)); /* missing: empty */
    return pst_jinja_join_list(run, text, list, true, out);
}

FILTER(filter_sum)
{
    jinja_list *list;
    UNUSED;
    PST_TRY(pst_jinja_items(run, self, &list));
    if (given[0].kind != JINJA_MISSING && given[0].kind != JINJA_NONE)
        PST_TRY(attributes_of(run, list, given[0], (jinja_value){0}, &list));
    *out = given[1].kind != JINJA_MISSING ? given[1] : pst_jinja_int(0);
    if (out->kind == JINJA_STRING)
        return pst_jinja_fail(run, "a sum of strings");
    for (size_t i = 0; i < list->count; i++)
        PST_TRY(pst_jinja_binary(run, '+', *out, list->items[i], out));
    return 0;
}

FILTER(filter_batch)
{
    jinja_list *list, *made, *row = NULL;
    int64_t width;
    UNUSED;
    PST_TRY(pst_jinja_items(run, self, &list));
    if (!pst_jinja_whole(given[0], &width) || width < 1)
        return pst_jinja_fail(run, "batch takes a number from 1");
    PST_TRY(pst_jinja_list(run, 0, &made));
    for (size_t i = 0; i < list->count; i++) {
        if (i % (uint64_t)width == 0) {
            PST_TRY(pst_jinja_list(run, 0, &row));
            PST_TRY(pst_jinja_push(run, made, pst_jinja_of_list(JINJA_LIST, row)));
        }
        PST_TRY(pst_jinja_push(run, row, list->items[i]));
    }
    bool fills = given[1].kind != JINJA_MISSING && given[1].kind != JINJA_NONE;
    while (row != NULL && fills && row->count < (uint64_t)width)
        PST_TRY(pst_jinja_push(run, row, given[1]));
    *out = pst_jinja_of_list(JINJA_ITERATOR, made);
    return 0;
}

/* ---- map, select, reject ---- */

/* What is gone through: nothing at all of what is false. */
static int items_if_any(jinja_run *run, jinja_value v, jinja_list **out)
{
    return pst_jinja_truth(v) ? pst_jinja_items(run, v, out) : pst_jinja_list(run, 0, out);
}

/* A name among the arguments, and the arguments after it. */
static int name_and_rest(jinja_run *run, const jinja_args *all, size_t skip, const jinja_string **name,
                         jinja_args *rest)
{
    if (all->count <= skip || all->values[skip].kind != JINJA_STRING)
        return pst_jinja_fail(run, "the name of a filter or a test is missing");
    *name = all->values[skip].as.string;
    *rest = *all;
    rest->values += skip + 1;
    rest->count -= skip + 1;
    return 0;
}

FILTER(filter_map)
{
    jinja_list *list, *made;
    const jinja_string *name = NULL;
    jinja_args rest = {0};
    UNUSED;
    PST_TRY(items_if_any(run, self, &list));
    if (all->count == 0 && given[0].kind != JINJA_MISSING) { /* attribute= */
        PST_TRY(attributes_of(run, list, given[0], given[1], &made));
    } else {
        PST_TRY(name_and_rest(run, all, 0, &name, &rest));
        PST_TRY(pst_jinja_list(run, list->count, &made));
        for (size_t i = 0; i < list->count; i++) {
            jinja_value value;
            PST_TRY(pst_jinja_filter(run, name, list->items[i], &rest, &value));
            PST_TRY(pst_jinja_push(run, made, value));
        }
    }
    *out = pst_jinja_of_list(JINJA_ITERATOR, made);
    return 0;
}

/* Those of the items for which the test (none: truth) of the item or its attribute gives `wanted`. */
static int choose(jinja_run *run, jinja_value self, const jinja_args *all, bool by_attribute, bool wanted,
                  jinja_value *out)
{
    jinja_list *list, *made;
    const jinja_string *test = NULL;
    jinja_args rest;
    size_t skip = by_attribute ? 1 : 0;
    PST_TRY(items_if_any(run, self, &list));
    if (all->count < skip)
        return pst_jinja_fail(run, "the attribute is missing");
    if (all->count > skip)
        PST_TRY(name_and_rest(run, all, skip, &test, &rest));
    PST_TRY(pst_jinja_list(run, 0, &made));
    for (size_t i = 0; i < list->count; i++) {
        jinja_value value = list->items[i];
        if (by_attribute)
            PST_TRY(follow(run, value, all->values[0], &value));
        int passed = test != NULL ? pst_jinja_test(run, test, value, &rest) : pst_jinja_truth(value);
        PST_TRY(passed);
        if ((passed != 0) == wanted)
            PST_TRY(pst_jinja_push(run, made, list->items[i]));
    }
    *out = pst_jinja_of_list(JINJA_ITERATOR, made);
    return 0;
}

FILTER(filter_select)
{
    UNUSED;
    return choose(run, self, all, false, true, out);
}

FILTER(filter_reject)
{
    UNUSED;
    return choose(run, self, all, false, false, out);
}

FILTER(filter_selectattr)
{
    UNUSED;
    return choose(run, self, all, true, true, out);
}

FILTER(filter_rejectattr)
{
    UNUSED;
    return choose(run, self, all, true, false, out);
}

/* Pairs of a value of the attribute and the list of those that have it, sorted by it. */
FILTER(filter_groupby)
{
    jinja_list *list, *made, *row = NULL;
    jinja_value ordered, before = {0};
    UNUSED;
    PST_TRY(pst_jinja_items(run, self, &list));
    PST_TRY(sorted(run, list, given[0], pst_jinja_truth(given[2]), false, false, &ordered));
    PST_TRY(pst_jinja_list(run, 0, &made));
    for (size_t i = 0; i < ordered.as.list->count; i++) {
        jinja_value item = ordered.as.list->items[i], key, group, shown;
        PST_TRY(sort_key(run, item, given[0], pst_jinja_truth(given[2]), &key));
        int same = row == NULL ? 0 : pst_jinja_equal(run, key, before);
        PST_TRY(same);
        if (!same) {
            PST_TRY(follow(run, item, given[0], &shown));
            PST_TRY(pst_jinja_list(run, 0, &row));
            PST_TRY(pst_jinja_tuple2(run, shown, pst_jinja_of_list(JINJA_LIST, row), &group));
            PST_TRY(pst_jinja_push(run, made, group));
        }
        PST_TRY(pst_jinja_push(run, row, item));
        before = key;
    }
    *out = pst_jinja_of_list(JINJA_LIST, made);
    return 0;
}

static const jinja_builtin filters[] = {{"sort", "reverse,case_sensitive,attribute", filter_sort},
                                        {"dictsort", "case_sensitive,by,reverse", filter_dictsort},
                                        {"min", "case_sensitive,attribute", filter_min},
                                        {"max", "case_sensitive,attribute", filter_max},
                                        {"unique", "case_sensitive,attribute", filter_unique},
                                        {"reverse", "", filter_reverse},
                                        {"first", "", filter_first},
                                        {"last", "", filter_last},
                                        {"list", "", filter_list},
                                        {"items", "", filter_items},
                                        {"join", "d,attribute", filter_join},
                                        {"sum", "attribute,start", filter_sum},
                                        {"batch", "!linecount,fill_with", filter_batch},
                                        {"map", "attribute,default,*", filter_map},
                                        {"select", "*", filter_select},
                                        {"reject", "*", filter_reject},
                                        {"selectattr", "*", filter_selectattr},
                                        {"rejectattr", "*", filter_rejectattr},
                                        {"groupby", "!attribute,default,case_sensitive", filter_groupby}};

const jinja_builtin *pst_jinja_find_list_filter(const char *name, size_t bytes)
{
    return pst_jinja_find(filters, sizeof filters / sizeof filters[0], name, bytes);
}
