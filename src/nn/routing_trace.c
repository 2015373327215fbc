/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and drawing routing; see routing_trace.h. */
#include "nn/routing_trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "os/file.h"

static const uint64_t MAX_FILE_BYTES = 1ull << 30;
static const uint64_t SEQUENCE_LINES = 7919; /* a prime, so that few files' lengths are multiples of it */
static const double MAX_SKEW = 16;

struct pst_routing_trace {
    uint32_t experts, per_token, layers; /* layers: those with experts */
    /* Of a file: [line][layer][per_token]. */
    uint16_t *lines;
    uint64_t line_count;
    /* Drawn. */
    double *cumulative;  /* by rank: the share of this and the better ones */
    uint16_t *expert_of; /* [layer][rank] */
    uint64_t seed;
};
_Static_assert(PST_MAX_EXPERTS <= UINT16_MAX, "an expert's number fits 16 bits");

static void sort(uint16_t *items, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++) {
        uint16_t item = items[i];
        uint32_t place = i;
        for (; place > 0 && items[place - 1] > item; place--)
            items[place] = items[place - 1];
        items[place] = item;
    }
}

/* ---- a file ---- */

typedef struct reader {
    const char *next, *end, *path;
    uint64_t line;
    pst_error *err;
} reader;

static void skip_blanks(reader *in)
{
    while (in->next < in->end && (*in->next == ' ' || *in->next == '\t' || *in->next == '\r'))
        in->next++;
}

static bool take(reader *in, char wanted)
{
    skip_blanks(in);
    if (in->next == in->end || *in->next != wanted)
        return false;
    in->next++;
    return true;
}

static int refuse(const reader *in, const char *what)
{
    return pst_fail(in->err, PST_E_FORMAT, in->path, "line %llu %s", (unsigned long long)in->line, what);
}

static int read_expert(reader *in, const pst_routing_trace *trace, uint16_t *out)
{
    skip_blanks(in);
    uint32_t value = 0, digits = 0;
    for (; in->next < in->end && *in->next >= '0' && *in->next <= '9' && digits < 6; in->next++, digits++)
        value = value * 10 + (uint32_t)(*in->next - '0');
    if (digits == 0)
        return refuse(in, "is not a list of lists of experts");
    if (value >= trace->experts)
        return pst_fail(in->err, PST_E_FORMAT, in->path, "line %llu names expert %u of %u",
                        (unsigned long long)in->line, value, trace->experts);
    *out = (uint16_t)value;
    return 0;
}

static int read_line(reader *in, const pst_routing_trace *trace, uint16_t *out)
{
    bool is_good = take(in, '[');
    for (uint32_t layer = 0; is_good && layer < trace->layers; layer++, out += trace->per_token) {
        is_good = (layer == 0 || take(in, ',')) && take(in, '[');
        for (uint32_t i = 0; is_good && i < trace->per_token; i++) {
            is_good = i == 0 || take(in, ',');
            if (is_good)
                PST_TRY(read_expert(in, trace, &out[i]));
        }
        is_good = is_good && take(in, ']');
        sort(out, trace->per_token);
        for (uint32_t i = 1; is_good && i < trace->per_token; i++)
            if (out[i] == out[i - 1])
                return refuse(in, "names an expert twice in a layer");
    }
    is_good = is_good && take(in, ']');
    skip_blanks(in);
    if (is_good && (in->next == in->end || *in->next == '\n'))
        return 0;
    return pst_fail(in->err, PST_E_FORMAT, in->path, "line %llu is not a list of %u lists of %u experts",
                    (unsigned long long)in->line, trace->layers, trace->per_token);
}

static uint64_t count_lines(const char *text, size_t bytes)
{
    uint64_t count = 0;
    for (size_t i = 0; i < bytes; i++)
        count += text[i] == '\n';
    return count + (bytes > 0 && text[bytes - 1] != '\n');
}

static int read_lines(pst_routing_trace *trace, const char *path, const char *text, size_t bytes, pst_error *err)
{
    reader in = {.next = text, .end = text + bytes, .path = path, .err = err};
    uint64_t per_line = (uint64_t)trace->layers * trace->per_token;
    trace->line_count = count_lines(text, bytes);
    /* A list of n experts has 2n characters at least, so that what is made of a file is no larger than it. */
    if (trace->line_count == 0 || per_line > bytes || trace->line_count > bytes / per_line)
        return pst_fail(err, PST_E_FORMAT, path,
                        "has too few numbers for %u layers of %u experts in each of %llu lines", trace->layers,
                        trace->per_token, (unsigned long long)trace->line_count);
    trace->lines = pst_heap_calloc(trace->line_count, per_line * sizeof *trace->lines);
    if (trace->lines == NULL)
        return pst_fail_memory(err, "a routing trace", trace->line_count * per_line * sizeof *trace->lines);
    for (in.line = 1; in.line <= trace->line_count; in.line++) {
        PST_TRY(read_line(&in, trace, trace->lines + (in.line - 1) * per_line));
        in.next += in.next < in.end;
    }
    return 0;
}

/* ---- at random ---- */

static int prepare_draws(pst_routing_trace *trace, double skew, pst_error *err)
{
    size_t places = (size_t)trace->layers * trace->experts;
    trace->cumulative = pst_heap_calloc(trace->experts, sizeof *trace->cumulative);
    trace->expert_of = pst_heap_calloc(places, sizeof *trace->expert_of);
    if (trace->cumulative == NULL || trace->expert_of == NULL)
        return pst_fail_memory(err, "a routing trace", places * sizeof *trace->expert_of);
    double sum = 0;
    for (uint32_t rank = 0; rank < trace->experts; rank++)
        trace->cumulative[rank] = sum += pow(rank + 1.0, -skew);
    for (uint32_t rank = 0; rank < trace->experts; rank++)
        trace->cumulative[rank] /= sum;
    for (uint32_t layer = 0; layer < trace->layers; layer++) { /* Fisher and Yates */
        uint16_t *order = trace->expert_of + (size_t)layer * trace->experts;
        for (uint32_t i = 0; i < trace->experts; i++) {
            uint32_t other = (uint32_t)(pst_mix(trace->seed ^ pst_mix(((uint64_t)layer << 32) + i + 1)) % (i + 1));
            order[i] = order[other];
            order[other] = (uint16_t)i;
        }
    }
    return 0;
}

static uint32_t rank_of(const pst_routing_trace *trace, double share)
{
    uint32_t low = 0, high = trace->experts - 1; /* the first rank whose cumulative share is beyond `share` */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (trace->cumulative[middle] > share)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static bool has(const uint32_t *chosen, uint32_t count, uint32_t expert)
{
    for (uint32_t i = 0; i < count; i++)
        if (chosen[i] == expert)
            return true;
    return false;
}

static void insert(uint32_t *chosen, uint32_t count, uint32_t expert)
{
    for (; count > 0 && chosen[count - 1] > expert; count--)
        chosen[count] = chosen[count - 1];
    chosen[count] = expert;
}

enum { MAX_DRAWS = 64 }; /* for one expert; after so many vain ones, the best rank that is left */

static void draw(const pst_routing_trace *trace, uint32_t layer, uint64_t token, uint32_t *chosen)
{
    const uint16_t *order = trace->expert_of + (size_t)layer * trace->experts;
    uint64_t state = pst_mix(trace->seed ^ pst_mix(token ^ ((uint64_t)layer << 50)));
    for (uint32_t i = 0; i < trace->per_token; i++) {
        uint32_t expert = order[0], tries = 0;
        do {
            expert = order[rank_of(trace, (double)(pst_random_next(&state) >> 11) * 0x1p-53)];
        } while (has(chosen, i, expert) && ++tries < MAX_DRAWS);
        for (uint32_t rank = 0; has(chosen, i, expert); rank++)
            expert = order[rank];
        insert(chosen, i, expert);
    }
}

/* ---- both ---- */

/* "zipf:S[:SEED]" or "uniform[:SEED]". 1: it is one; 0: it is a path. */
static int parse_draws(const char *text, double *skew, uint64_t *seed, pst_error *err)
{
    char *end;
    bool is_zipf = strncmp(text, "zipf:", 5) == 0, is_uniform = strncmp(text, "uniform", 7) == 0;
    const char *rest = text + 7;
    *skew = 0;
    *seed = 0;
    if (is_zipf) {
        *skew = strtod(text + 5, &end);
        rest = end;
    }
    if (!is_zipf && !(is_uniform && (*rest == '\0' || *rest == ':')))
        return 0;
    bool is_good = !is_zipf || (end != text + 5 && *skew >= 0 && *skew <= MAX_SKEW);
    if (is_good && *rest == ':' && rest[1] >= '0' && rest[1] <= '9') {
        *seed = strtoull(rest + 1, &end, 10);
        rest = end;
    }
    if (!is_good || *rest != '\0')
        return pst_fail(err, PST_E_USAGE, NULL,
                        "routing \"%s\" is not zipf:S[:SEED] with S from 0 to %g, nor uniform[:SEED]", text, MAX_SKEW);
    return 1;
}

/* A trace of the model's numbers without experts in it. */
static int make(const pst_transformer *t, pst_routing_trace **out, pst_error *err)
{
    uint32_t layers = 0;
    for (uint32_t i = 0; t->experts > 0 && i < t->layers; i++)
        layers += t->sparse[i];
    if (layers == 0)
        return pst_fail(err, PST_E_USAGE, NULL, "a routing trace for a model without experts");
    pst_routing_trace *trace = pst_heap_calloc(1, sizeof *trace);
    if (trace == NULL)
        return pst_fail_memory(err, "a routing trace", sizeof *trace);
    *trace = (pst_routing_trace){.experts = t->experts, .per_token = t->experts_per_token, .layers = layers};
    *out = trace;
    return 0;
}

int pst_routing_trace_parse(const char *text, size_t bytes, const char *path, const pst_transformer *t,
                            pst_routing_trace **out, pst_error *err)
{
    pst_routing_trace *trace;
    PST_TRY(make(t, &trace, err));
    int status = read_lines(trace, path, text, bytes, err);
    if (status < 0) {
        pst_routing_trace_destroy(trace);
        return status;
    }
    *out = trace;
    return 0;
}

static int open_file(const char *path, const pst_transformer *t, pst_routing_trace **out, pst_error *err)
{
    char *text;
    size_t bytes;
    PST_TRY(pst_file_read_all(path, MAX_FILE_BYTES, &text, &bytes, err));
    int status = pst_routing_trace_parse(text, bytes, path, t, out, err);
    pst_heap_free(text);
    return status;
}

int pst_routing_trace_open(const char *text, const pst_transformer *t, pst_routing_trace **out, pst_error *err)
{
    double skew;
    uint64_t seed;
    int drawn = parse_draws(text, &skew, &seed, err);
    PST_TRY(drawn);
    if (!drawn)
        return open_file(text, t, out, err);
    pst_routing_trace *trace;
    PST_TRY(make(t, &trace, err));
    trace->seed = seed;
    int status = prepare_draws(trace, skew, err);
    if (status < 0) {
        pst_routing_trace_destroy(trace);
        return status;
    }
    *out = trace;
    return 0;
}

void pst_routing_trace_destroy(pst_routing_trace *trace)
{
    if (trace == NULL)
        return;
    pst_heap_free(trace->lines);
    pst_heap_free(trace->cumulative);
    pst_heap_free(trace->expert_of);
    pst_heap_free(trace);
}

void pst_routing_trace_choose(const pst_routing_trace *trace, uint32_t sparse, uint64_t sequence, uint32_t position,
                              uint32_t *chosen)
{
    if (trace->lines == NULL) {
        draw(trace, sparse, pst_mix(sequence) + position, chosen);
        return;
    }
    uint64_t line = (sequence % trace->line_count * SEQUENCE_LINES + position) % trace->line_count;
    const uint16_t *from = trace->lines + (line * trace->layers + sparse) * trace->per_token;
    for (uint32_t i = 0; i < trace->per_token; i++)
        chosen[i] = from[i];
}
