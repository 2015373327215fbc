/* SPDX-License-Identifier: Apache-2.0 */
/* "%s" % values and "{}".format(values), as far as templates use them, and times. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "text/jinja.h"
#include "text/unicode.h"

enum { MOST_WIDTH = 1000, MOST_DIGITS = 100 };

/* What stands between '%' or ':' and the type. */
typedef struct spec {
    char fill[5], align, sign, type;
    bool alternate, comma;
    int64_t width, precision; /* precision: -1 none */
} spec;

/* ---- one value ---- */

static int pad_into(jinja_run *run, jinja_buffer *b, const spec *f, char preset, const char *text, size_t bytes)
{
    jinja_value made;
    const char *fill = f->fill[0] != '\0' ? f->fill : " ";
    char align = f->align != 0 ? f->align : preset;
    size_t head = 0;
    PST_TRY(pst_jinja_view(run, text, bytes, SIZE_MAX, &made));
    if (align == '=') { /* between the sign and the digits */
        head = bytes > 0 && (text[0] == '-' || text[0] == '+' || text[0] == ' ');
        PST_TRY(pst_jinja_write(run, b, text, head));
        PST_TRY(pst_jinja_view(run, text + head, bytes - head, SIZE_MAX, &made));
        align = '>';
    }
    PST_TRY(pst_jinja_pad(run, made.as.string, f->width - (int64_t)head, align, fill, strlen(fill), &made));
    return pst_jinja_print(run, b, made);
}

static int format_text(jinja_run *run, jinja_buffer *b, const spec *f, char align, const jinja_string *s)
{
    size_t bytes = s->bytes;
    if (f->precision >= 0 && (size_t)f->precision < s->points)
        bytes = pst_jinja_offset(s, (size_t)f->precision);
    return pad_into(run, b, f, align, s->text, bytes);
}

/* Puts commas between thousands of the whole part. */
static void add_commas(char *text, size_t size)
{
    size_t start = text[0] == '-' || text[0] == '+' || text[0] == ' ', end = start, length = strlen(text);
    while (text[end] >= '0' && text[end] <= '9')
        end++;
    for (size_t at = end; at > start + 3 && length + 2 < size;) {
        at -= 3;
        memmove(text + at + 1, text + at, length - at + 1);
        text[at] = ',';
        length++;
    }
}

static int format_whole(jinja_run *run, jinja_buffer *b, const spec *f, int64_t number)
{
    char text[160], digits[72];
    uint64_t size = number < 0 ? -(uint64_t)number : (uint64_t)number;
    unsigned base = f->type == 'x' || f->type == 'X' ? 16 : f->type == 'o' ? 8 : f->type == 'b' ? 2 : 10;
    const char *names = f->type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
    size_t at = sizeof digits - 1;
    digits[at] = '\0';
    do {
        digits[--at] = names[size % base];
        size /= base;
    } while (size > 0);
    const char *sign = number < 0 ? "-" : f->sign == '+' ? "+" : f->sign == ' ' ? " " : "";
    const char *prefix = !f->alternate || base == 10 ? ""
                         : base == 16                ? (f->type == 'X' ? "0X" : "0x")
                         : base == 8                 ? "0o"
                                                     : "0b";
    snprintf(text, sizeof text, "%s%s%s", sign, prefix, digits + at);
    if (f->comma)
        add_commas(text, sizeof text);
    return pad_into(run, b, f, '>', text, strlen(text));
}

static int format_real(jinja_run *run, jinja_buffer *b, const spec *f, double number)
{
    char text[600], pattern[16];
    int precision = f->precision < 0 ? 6 : (int)f->precision;
    char type = f->type == '%' || f->type == 0 ? 'f' : f->type;
    if (f->type == '%')
        number *= 100;
    snprintf(pattern, sizeof pattern, "%%%s.*%c", f->sign == '+' ? "+" : f->sign == ' ' ? " " : "", type);
    int bytes = snprintf(text, sizeof text - 2, pattern, precision, number);
    if (bytes < 0 || bytes >= (int)sizeof text - 2)
        return pst_jinja_fail(run, "a number with too many digits");
    if (f->comma)
        add_commas(text, sizeof text - 2);
    if (f->type == '%')
        strcat(text, "%");
    return pad_into(run, b, f, '>', text, strlen(text));
}

/* ---- "%" ---- */

typedef struct percent {
    jinja_value values;
    size_t taken;
    const jinja_args *keywords;
} percent;

static int next_value(jinja_run *run, percent *p, jinja_value *out)
{
    if (p->values.kind == JINJA_TUPLE) {
        if (p->taken == p->values.as.list->count)
            return pst_jinja_fail(run, "not enough values for the format");
        *out = p->values.as.list->items[p->taken++];
        return 0;
    }
    if (p->taken++ > 0)
        return pst_jinja_fail(run, "not enough values for the format");
    *out = p->values;
    return 0;
}

/* The keyword argument of that name: 1, or 0. */
static int find_keyword(jinja_run *run, const jinja_args *args, const char *name, size_t bytes, jinja_value *out)
{
    int found = 0;
    PST_TRY(pst_jinja_charge(run, 4 * args->keyword_count));
    for (size_t i = 0; i < args->keyword_count && !found; i++) {
        const jinja_string *key = args->keywords[i].name;
        if (key->bytes != bytes)
            continue;
        PST_TRY(pst_jinja_charge(run, bytes));
        found = memcmp(key->text, name, bytes) == 0;
        if (found)
            *out = args->keywords[i].value;
    }
    return found;
}

/* %(name)s */
static int named_value(jinja_run *run, percent *p, const char *name, size_t bytes, jinja_value *out)
{
    const jinja_value *member =
        p->values.kind == JINJA_DICT ? pst_jinja_get_text(p->values.as.dict, name, bytes) : NULL;
    int found = p->keywords != NULL ? find_keyword(run, p->keywords, name, bytes, out) : 0;
    PST_TRY(found);
    if (!found && member == NULL)
        return pst_jinja_fail(run, "no value \"%.*s\" for the format", (int)(bytes < 80 ? bytes : 80), name);
    if (!found)
        *out = *member;
    return 0;
}

static size_t read_digits(const jinja_string *s, size_t at, int64_t *out)
{
    for (*out = 0; at < s->bytes && isdigit((unsigned char)s->text[at]); at++)
        *out = *out > MOST_WIDTH ? *out : *out * 10 + (s->text[at] - '0');
    return at;
}

static int write_percent(jinja_run *run, jinja_buffer *b, spec *f, jinja_value v)
{
    double number;
    int64_t whole;
    if (f->type == 's') {
        const jinja_string *text;
        PST_TRY(pst_jinja_to_string(run, v, &text));
        return format_text(run, b, f, '>', text);
    }
    if (f->type == 'r' || f->type == 'a') {
        jinja_buffer *made;
        PST_TRY(pst_jinja_buffer(run, &made));
        PST_TRY(pst_jinja_repr(run, made, v));
        PST_TRY(pst_jinja_take(run, made, &v));
        return format_text(run, b, f, '>', v.as.string);
    }
    if (f->type == 'c' && v.kind == JINJA_STRING && v.as.string->points == 1)
        return format_text(run, b, f, '>', v.as.string);
    if (!pst_jinja_number(v, &number))
        return pst_jinja_fail(run, "%s for %%%c", pst_jinja_kind_name(v), f->type);
    if (strchr("eEfFgG", f->type) != NULL)
        return format_real(run, b, f, number);
    if (strchr("diuxXo", f->type) == NULL)
        return pst_jinja_fail(run, "the format %%%c is not supported", f->type);
    if (!pst_jinja_whole(v, &whole)) {
        if (!(fabs(number) < 0x1p63) || strchr("xXo", f->type) != NULL)
            return pst_jinja_fail(run, "%s for %%%c", pst_jinja_kind_name(v), f->type);
        whole = (int64_t)number;
    }
    return format_whole(run, b, f, whole);
}

/* From behind '%' to behind the type. */
static int one_percent(jinja_run *run, jinja_buffer *b, const jinja_string *s, size_t *at, percent *p)
{
    spec f = {.precision = -1};
    jinja_value v = {0};
    if (*at < s->bytes && s->text[*at] == '(') {
        const char *end = memchr(s->text + *at, ')', s->bytes - *at);
        if (end == NULL)
            return pst_jinja_fail(run, "a format without its end");
        PST_TRY(named_value(run, p, s->text + *at + 1, (size_t)(end - s->text) - *at - 1, &v));
        *at = (size_t)(end - s->text) + 1;
    }
    for (; *at < s->bytes && strchr("-+ #0", s->text[*at]) != NULL && s->text[*at] != 0; ++*at) {
        char flag = s->text[*at];
        if (flag == '-')
            f.align = '<';
        else if (flag == '0' && f.align == 0)
            f.align = '=', f.fill[0] = '0';
        else if (flag == '+' || (flag == ' ' && f.sign == 0))
            f.sign = flag;
        f.alternate |= flag == '#';
    }
    if (f.align == '<')
        f.fill[0] = '\0';
    *at = read_digits(s, *at, &f.width);
    if (*at < s->bytes && s->text[*at] == '.')
        *at = read_digits(s, *at + 1, &f.precision);
    if (*at >= s->bytes)
        return pst_jinja_fail(run, "a format without its end");
    f.type = s->text[(*at)++];
    if (f.type == '%')
        return pst_jinja_write(run, b, "%", 1);
    if (f.width > MOST_WIDTH || f.precision > (strchr("sra", f.type) ? MOST_WIDTH : MOST_DIGITS))
        return pst_jinja_fail(run, "a format that is too wide");
    if (v.kind == JINJA_MISSING)
        PST_TRY(next_value(run, p, &v));
    if (strchr("sra", f.type) != NULL && f.align == '=')
        f.align = '>', f.fill[0] = '\0';
    return write_percent(run, b, &f, v);
}

int pst_jinja_percent(jinja_run *run, const jinja_string *s, jinja_value values, const jinja_args *keywords,
                      jinja_value *out)
{
    jinja_buffer *buffer;
    percent p = {.values = values, .keywords = keywords};
    PST_TRY(pst_jinja_charge(run, s->bytes));
    PST_TRY(pst_jinja_buffer(run, &buffer));
    for (size_t at = 0; at < s->bytes;) {
        const char *next = memchr(s->text + at, '%', s->bytes - at);
        size_t end = next != NULL ? (size_t)(next - s->text) : s->bytes;
        PST_TRY(pst_jinja_write(run, buffer, s->text + at, end - at));
        at = end + 1;
        if (next != NULL)
            PST_TRY(one_percent(run, buffer, s, &at, &p));
    }
    bool all_taken = values.kind == JINJA_TUPLE
                         ? p.taken == values.as.list->count
                         : p.taken > 0 || values.kind == JINJA_DICT || values.kind == JINJA_LIST ||
                               values.kind == JINJA_UNDEFINED || values.kind == JINJA_RANGE;
    if (!all_taken)
        return pst_jinja_fail(run, "not all values were used by the format");
    return pst_jinja_take(run, buffer, out);
}

/* ---- braces ---- */

/* [[fill]align][sign][#][0][width][,][.precision][type] */
static int parse_spec(jinja_run *run, const jinja_string *s, size_t at, size_t end, spec *f)
{
    *f = (spec){.precision = -1};
    if (at < end) {
        size_t width = pst_utf8_width((unsigned char)s->text[at]);
        if (at + width < end && strchr("<>=^", s->text[at + width]) != NULL) {
            memcpy(f->fill, s->text + at, width);
            f->align = s->text[at + width];
            at += width + 1;
        } else if (strchr("<>=^", s->text[at]) != NULL) {
            f->align = s->text[at++];
        }
    }
    if (at < end && strchr("+- ", s->text[at]) != NULL)
        f->sign = s->text[at++];
    if (at < end && s->text[at] == '#')
        f->alternate = true, at++;
    if (at < end && s->text[at] == '0') {
        if (f->align == 0)
            f->align = '=', f->fill[0] = '0';
        at++;
    }
    const jinja_string part = {s->text, end, end};
    at = read_digits(&part, at, &f->width);
    if (at < end && s->text[at] == ',')
        f->comma = true, at++;
    if (at < end && s->text[at] == '.')
        at = read_digits(&part, at + 1, &f->precision);
    if (at < end)
        f->type = s->text[at++];
    if (at != end || f->width > MOST_WIDTH || f->precision > MOST_WIDTH ||
        (f->type != 0 && strchr("sdxXobeEfFgG%", f->type) == NULL))
        return pst_jinja_fail(run, "a format that is not supported");
    return 0;
}

static int write_braces(jinja_run *run, jinja_buffer *b, const spec *f, jinja_value v)
{
    int64_t whole;
    double number;
    bool is_real = f->type != 0 && strchr("eEfFgG%", f->type) != NULL;
    if (v.kind == JINJA_BOOL && f->type == 0)
        is_real = false;
    else if (pst_jinja_whole(v, &whole) && !is_real && f->type != 's')
        return f->precision < 0 ? format_whole(run, b, f, whole) : pst_jinja_fail(run, "a precision of a whole number");
    else if (pst_jinja_number(v, &number) && is_real && f->precision <= MOST_DIGITS)
        return format_real(run, b, f, number);
    if (v.kind == JINJA_FLOAT && f->type == 0 && f->precision < 0 && !f->comma && f->sign == 0) {
        char text[32];
        pst_jinja_print_float(v.as.real, text);
        return pad_into(run, b, f, '>', text, strlen(text));
    }
    if (v.kind != JINJA_STRING || (f->type != 0 && f->type != 's') || f->sign != 0 || f->comma || f->align == '=')
        return pst_jinja_fail(run, "a format that %s does not have", pst_jinja_kind_name(v));
    return format_text(run, b, f, '<', v.as.string);
}

/* The value that a field names: "", "0", "name", and members: "0.name", "name[key]". */
static int field_value(jinja_run *run, const jinja_string *s, size_t at, size_t end, const jinja_args *args,
                       size_t *next, jinja_value *out)
{
    size_t start = at;
    while (at < end && s->text[at] != '.' && s->text[at] != '[')
        at++;
    jinja_string name = {s->text + start, at - start, at - start};
    int64_t index;
    int found = 0;
    if (name.bytes == 0 || pst_jinja_parse_int(&name, 10, &index)) {
        index = name.bytes == 0 ? (int64_t)(*next)++ : index;
        found = index >= 0 && (uint64_t)index < args->count;
        if (found)
            *out = args->values[index];
    }
    if (!found)
        PST_TRY(found = find_keyword(run, args, name.text, name.bytes, out));
    if (!found)
        return pst_jinja_fail(run, "the format names a value that is not given");
    if (at < end)
        return pst_jinja_fail(run, "members in a format are not supported");
    return 0;
}

/* From behind '{' to behind '}'. */
static int one_field(jinja_run *run, jinja_buffer *b, const jinja_string *s, size_t *at, const jinja_args *args,
                     size_t *next)
{
    const char *close = memchr(s->text + *at, '}', s->bytes - *at);
    if (close == NULL)
        return pst_jinja_fail(run, "a format without its end");
    size_t end = (size_t)(close - s->text), name_end = *at;
    while (name_end < end && s->text[name_end] != ':' && s->text[name_end] != '!')
        name_end++;
    jinja_value v;
    spec f = {.precision = -1};
    PST_TRY(field_value(run, s, *at, name_end, args, next, &v));
    if (name_end < end && s->text[name_end] == '!') {
        jinja_buffer *made;
        bool repr = name_end + 1 < end && s->text[name_end + 1] == 'r';
        if (!repr && !(name_end + 1 < end && s->text[name_end + 1] == 's'))
            return pst_jinja_fail(run, "a format that is not supported");
        PST_TRY(pst_jinja_buffer(run, &made));
        PST_TRY(repr ? pst_jinja_repr(run, made, v) : pst_jinja_print(run, made, v));
        PST_TRY(pst_jinja_take(run, made, &v));
        name_end += 2;
    }
    if (name_end < end && s->text[name_end] != ':')
        return pst_jinja_fail(run, "a format that is not supported");
    *at = end + 1;
    if (name_end + 1 >= end)
        return pst_jinja_print(run, b, v);
    PST_TRY(parse_spec(run, s, name_end + 1, end, &f));
    return write_braces(run, b, &f, v);
}

int pst_jinja_braces(jinja_run *run, const jinja_string *s, const jinja_args *args, jinja_value *out)
{
    jinja_buffer *buffer;
    size_t next = 0;
    PST_TRY(pst_jinja_charge(run, s->bytes));
    PST_TRY(pst_jinja_buffer(run, &buffer));
    for (size_t at = 0; at < s->bytes;) {
        char c = s->text[at];
        bool doubled = at + 1 < s->bytes && s->text[at + 1] == c;
        if ((c == '{' || c == '}') && doubled) {
            PST_TRY(pst_jinja_write(run, buffer, &c, 1));
            at += 2;
        } else if (c == '{') {
            at++;
            PST_TRY(one_field(run, buffer, s, &at, args, &next));
        } else if (c == '}') {
            return pst_jinja_fail(run, "a single \"}\" in a format");
        } else {
            size_t end = at;
            while (end < s->bytes && s->text[end] != '{' && s->text[end] != '}')
                end++;
            PST_TRY(pst_jinja_write(run, buffer, s->text + at, end - at));
            at = end;
        }
    }
    return pst_jinja_take(run, buffer, out);
}

/* ---- times ---- */

typedef struct when {
    int64_t year;
    int month, day, hour, minute, second, weekday, yearday; /* from 1, 1, 0, 0, 0, Sunday 0, 0 */
} when;

static const char *const days[] = {"Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"};
static const char *const months[] = {"January", "February", "March",     "April",   "May",      "June",
                                     "July",    "August",   "September", "October", "November", "December"};

static bool is_leap(int64_t year)
{
    return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}

/* The Gregorian calendar, in cycles of 400 years. */
static when split_time(int64_t time)
{
    static const int lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const int64_t day_seconds = 86400, cycle_days = 146097;
    int64_t day = time / day_seconds, second = time % day_seconds;
    if (second < 0) {
        second += day_seconds;
        day--;
    }
    when w = {.hour = (int)(second / 3600), .minute = (int)(second / 60 % 60), .second = (int)(second % 60)};
    w.weekday = (int)(((day % 7) + 11) % 7); /* 1970-01-01 was a Thursday */
    int64_t cycle = day / cycle_days;
    day %= cycle_days;
    if (day < 0) {
        day += cycle_days;
        cycle--;
    }
    w.year = 1970 + 400 * cycle;
    while (day >= 365 + is_leap(w.year))
        day -= 365 + is_leap(w.year++);
    w.yearday = (int)day;
    while (day >= lengths[w.month] + (w.month == 1 && is_leap(w.year)))
        day -= lengths[w.month] + (w.month == 1 && is_leap(w.year)), w.month++;
    w.month++;
    w.day = (int)day + 1;
    return w;
}

static int write_time(jinja_run *run, jinja_buffer *b, const when *w, char c, bool plain)
{
    int twelve = w->hour % 12 == 0 ? 12 : w->hour % 12;
    switch (c) {
    case 'Y': return pst_jinja_writef(run, b, "%lld", (long long)w->year);
    case 'y': return pst_jinja_writef(run, b, plain ? "%d" : "%02d", (int)(w->year % 100));
    case 'm': return pst_jinja_writef(run, b, plain ? "%d" : "%02d", w->month);
    case 'd': return pst_jinja_writef(run, b, plain ? "%d" : "%02d", w->day);
    case 'e': return pst_jinja_writef(run, b, plain ? "%d" : "%2d", w->day);
    case 'H': return pst_jinja_writef(run, b, plain ? "%d" : "%02d", w->hour);
    case 'I': return pst_jinja_writef(run, b, plain ? "%d" : "%02d", twelve);
    case 'M': return pst_jinja_writef(run, b, plain ? "%d" : "%02d", w->minute);
    case 'S': return pst_jinja_writef(run, b, plain ? "%d" : "%02d", w->second);
    case 'j': return pst_jinja_writef(run, b, plain ? "%d" : "%03d", w->yearday + 1);
    case 'f': return pst_jinja_write(run, b, "000000", 6);
    case 'p': return pst_jinja_write(run, b, w->hour < 12 ? "AM" : "PM", 2);
    case 'B': return pst_jinja_writef(run, b, "%s", months[w->month - 1]);
    case 'b':
    case 'h': return pst_jinja_writef(run, b, "%.3s", months[w->month - 1]);
    case 'A': return pst_jinja_writef(run, b, "%s", days[w->weekday]);
    case 'a': return pst_jinja_writef(run, b, "%.3s", days[w->weekday]);
    case 'w': return pst_jinja_writef(run, b, "%d", w->weekday);
    case 'u': return pst_jinja_writef(run, b, "%d", w->weekday == 0 ? 7 : w->weekday);
    case 'U': return pst_jinja_writef(run, b, "%02d", (w->yearday + 7 - w->weekday) / 7);
    case 'W': return pst_jinja_writef(run, b, "%02d", (w->yearday + 7 - (w->weekday + 6) % 7) / 7);
    case 'n': return pst_jinja_write(run, b, "\n", 1);
    case 't': return pst_jinja_write(run, b, "\t", 1);
    case '%': return pst_jinja_write(run, b, "%", 1);
    case 'Z': /* the time has no zone */
    case 'z': return 0;
    default: return pst_jinja_fail(run, "the time format %%%c is not supported", c);
    }
}

int pst_jinja_strftime(jinja_run *run, const jinja_string *format, jinja_value *out)
{
    static const char *const composed[][2] = {
        {"F", "%Y-%m-%d"}, {"T", "%H:%M:%S"}, {"X", "%H:%M:%S"},    {"R", "%H:%M"},
        {"D", "%m/%d/%y"}, {"x", "%m/%d/%y"}, {"r", "%I:%M:%S %p"}, {"c", "%a %b %e %H:%M:%S %Y"}};
    jinja_buffer *buffer;
    if (!run->has_time)
        return pst_jinja_fail(run, "it asks for the time, which was not given");
    const when w = split_time(run->time);
    PST_TRY(pst_jinja_buffer(run, &buffer));
    for (size_t i = 0; i < format->bytes; i++) {
        bool plain = false;
        if (format->text[i] != '%' || i + 1 == format->bytes) {
            PST_TRY(pst_jinja_write(run, buffer, format->text + i, 1));
            continue;
        }
        char c = format->text[++i];
        if (c == '-' && i + 1 < format->bytes) {
            plain = true;
            c = format->text[++i];
        }
        const char *parts = NULL;
        for (size_t k = 0; k < sizeof composed / sizeof composed[0]; k++)
            parts = c == composed[k][0][0] ? composed[k][1] : parts;
        if (parts == NULL)
            PST_TRY(write_time(run, buffer, &w, c, plain));
        for (const char *at = parts; at != NULL && *at != '\0'; at++) {
            if (*at == '%')
                PST_TRY(write_time(run, buffer, &w, *++at, false));
            else
                PST_TRY(pst_jinja_write(run, buffer, at, 1));
        }
    }
    return pst_jinja_take(run, buffer, out);
}
