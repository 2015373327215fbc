/* SPDX-License-Identifier: Apache-2.0 */
/* Arithmetic as Python does it, with whole numbers of 64 bits: beyond that it is refused, not rounded. */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja.h"

static int too_large(jinja_run *run)
{
    return pst_jinja_fail(run, "a whole number beyond 64 bits");
}

static int no_operator(jinja_run *run, char op, jinja_value a, jinja_value b)
{
    const char *name = op == 'f' ? "//" : op == 'p' ? "**" : (const char[2]){op, 0};
    if (a.kind == JINJA_UNDEFINED || b.kind == JINJA_UNDEFINED) {
        const jinja_string *what = a.kind == JINJA_UNDEFINED ? a.as.string : b.as.string;
        return pst_jinja_fail(run, "\"%s\" with an undefined value%s%.*s", name, what != NULL ? ", " : "",
                              what != NULL ? (int)(what->bytes < 80 ? what->bytes : 80) : 0,
                              what != NULL ? what->text : "");
    }
    return pst_jinja_fail(run, "no \"%s\" of %s and %s", name, pst_jinja_kind_name(a), pst_jinja_kind_name(b));
}

static int power(jinja_run *run, int64_t base, int64_t exponent, jinja_value *out)
{
    int64_t result = 1;
    if (exponent < 0) {
        if (base == 0)
            return pst_jinja_fail(run, "a division by zero");
        *out = pst_jinja_float(pow((double)base, (double)exponent));
        return 0;
    }
    for (; exponent > 0; exponent >>= 1) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result))
            return too_large(run);
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base))
            return too_large(run);
    }
    *out = pst_jinja_int(result);
    return 0;
}

static int whole(jinja_run *run, char op, int64_t a, int64_t b, jinja_value *out)
{
    int64_t result = 0;
    bool overflow = false;
    if ((op == '/' || op == 'f' || op == '%') && b == 0)
        return pst_jinja_fail(run, "a division by zero");
    switch (op) {
    case '+': overflow = __builtin_add_overflow(a, b, &result); break;
    case '-': overflow = __builtin_sub_overflow(a, b, &result); break;
    case '*': overflow = __builtin_mul_overflow(a, b, &result); break;
    case '/': *out = pst_jinja_float((double)((long double)a / (long double)b)); return 0;
    case 'f': /* rounded down */
        overflow = a == INT64_MIN && b == -1;
        if (!overflow)
            result = a / b - (a % b != 0 && (a < 0) != (b < 0));
        break;
    case '%': /* with the divisor's sign */
        result = b == -1 ? 0 : a % b;
        if (result != 0 && (result < 0) != (b < 0))
            result += b;
        break;
    default: return power(run, a, b, out);
    }
    if (overflow)
        return too_large(run);
    *out = pst_jinja_int(result);
    return 0;
}

static int real(jinja_run *run, char op, double a, double b, jinja_value *out)
{
    double result;
    if ((op == '/' || op == 'f' || op == '%') && b == 0)
        return pst_jinja_fail(run, "a division by zero");
    switch (op) {
    case '+': result = a + b; break;
    case '-': result = a - b; break;
    case '*': result = a * b; break;
    case '/': result = a / b; break;
    case 'p':
        if ((a == 0 && b < 0) || (a < 0 && floor(b) != b))
            return pst_jinja_fail(run, "a power that is no real number");
        result = pow(a, b);
        if (isinf(result) && !isinf(a) && !isinf(b))
            return pst_jinja_fail(run, "a power that is too large");
        break;
    default: {
        double rest = fmod(a, b), quotient = (a - rest) / b;
        if (rest != 0 && (rest < 0) != (b < 0)) {
            rest += b;
            quotient -= 1;
        } else if (rest == 0) {
            rest = copysign(0, b);
        }
        if (op == '%') {
            result = rest;
        } else if (quotient != 0) {
            result = floor(quotient);
            result += quotient - result > 0.5;
        } else {
            result = copysign(0, a / b);
        }
    }
    }
    *out = pst_jinja_float(result);
    return 0;
}

/* list * count, text * count */
static int repeat(jinja_run *run, jinja_value v, int64_t count, jinja_value *out)
{
    size_t item = v.kind == JINJA_STRING ? v.as.string->bytes : v.as.list->count * sizeof(jinja_value);
    if (count > 0 && item > 0 && (uint64_t)count > run->limits.memory_bytes / item)
        return pst_jinja_too_large(run);
    if (v.kind == JINJA_STRING) {
        jinja_buffer *buffer;
        PST_TRY(pst_jinja_buffer(run, &buffer));
        for (int64_t i = 0; i < count && v.as.string->bytes > 0; i++)
            PST_TRY(pst_jinja_write(run, buffer, v.as.string->text, v.as.string->bytes));
        return pst_jinja_take(run, buffer, out);
    }
    jinja_list *made;
    PST_TRY(pst_jinja_list(run, 0, &made));
    for (int64_t i = 0; i < count && v.as.list->count > 0; i++) {
        for (size_t k = 0; k < v.as.list->count; k++)
            PST_TRY(pst_jinja_push(run, made, v.as.list->items[k]));
    }
    *out = pst_jinja_of_list(v.kind, made);
    return 0;
}

static int join_lists(jinja_run *run, jinja_value a, jinja_value b, jinja_value *out)
{
    jinja_list *made;
    const jinja_list *x = a.as.list, *y = b.as.list;
    PST_TRY(pst_jinja_list(run, x->count + y->count, &made));
    if (x->count > 0)
        memcpy(made->items, x->items, x->count * sizeof *x->items);
    if (y->count > 0)
        memcpy(made->items + x->count, y->items, y->count * sizeof *y->items);
    made->count = x->count + y->count;
    *out = pst_jinja_of_list(a.kind, made);
    return 0;
}

static bool is_sequence(jinja_value v)
{
    return v.kind == JINJA_STRING || v.kind == JINJA_LIST || v.kind == JINJA_TUPLE;
}

int pst_jinja_binary(jinja_run *run, char op, jinja_value a, jinja_value b, jinja_value *out)
{
    int64_t i, j;
    double x, y;
    if (pst_jinja_whole(a, &i) && pst_jinja_whole(b, &j))
        return whole(run, op, i, j, out);
    if (pst_jinja_number(a, &x) && pst_jinja_number(b, &y))
        return real(run, op, x, y, out);
    if (op == '+' && a.kind == b.kind && is_sequence(a)) {
        if (a.kind == JINJA_STRING)
            return pst_jinja_join(run, a.as.string, b.as.string, out);
        return join_lists(run, a, b, out);
    }
    if (op == '*' && is_sequence(a) && pst_jinja_whole(b, &j))
        return repeat(run, a, j, out);
    if (op == '*' && is_sequence(b) && pst_jinja_whole(a, &i))
        return repeat(run, b, i, out);
    if (op == '%' && a.kind == JINJA_STRING)
        return pst_jinja_percent(run, a.as.string, b, NULL, out);
    return no_operator(run, op, a, b);
}

int pst_jinja_negate(jinja_run *run, jinja_value a, jinja_value *out)
{
    int64_t number;
    if (a.kind == JINJA_FLOAT) {
        *out = pst_jinja_float(-a.as.real);
        return 0;
    }
    if (!pst_jinja_whole(a, &number))
        return pst_jinja_fail(run, "%s has no negative", pst_jinja_kind_name(a));
    if (number == INT64_MIN)
        return too_large(run);
    *out = pst_jinja_int(-number);
    return 0;
}
