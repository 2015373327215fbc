/* SPDX-License-Identifier: Apache-2.0 */
/* See products.h. */
#include "products.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "os/clock.h"
#include "os/memory.h"

void bench_must(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "%s: %s\n", program_invocation_short_name, what);
    exit(1);
}

void *bench_map(size_t bytes)
{
    void *memory;
    bench_must(pst_memory_map(bytes, "operands", &memory, NULL) == 0, "out of memory");
    return memory;
}

pst_dtype bench_type(const char *text)
{
    bench_must(strcmp(text, "bf16") == 0 || strcmp(text, "f16") == 0 || strcmp(text, "f32") == 0,
               "types are bf16, f16, f32");
    return text[0] == 'b' ? PST_BF16 : text[1] == '1' ? PST_F16 : PST_F32;
}

bool bench_option(bench_settings *s, const char *name, const char *value)
{
    const struct {
        const char *name;
        size_t *value;
    } numbers[] = {{"--columns", &s->columns}, {"--k", &s->k},
                   {"--threads", &s->threads}, {"--repeat", &s->repeat},
                   {"--weights", &s->weights}, {"--milliseconds", &s->milliseconds}};
    for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++) {
        if (strcmp(name, numbers[n].name) == 0) {
            *numbers[n].value = strtoull(value, NULL, 10);
            return true;
        }
    }
    if (strcmp(name, "--kernels") == 0) {
        s->kernels = value;
    } else if (strcmp(name, "--x-type") == 0) {
        s->x_type = bench_type(value);
    } else if (strcmp(name, "--rows") == 0) {
        char *end;
        for (s->row_count = 0; s->row_count < 16 && *value != '\0'; value = *end == ',' ? end + 1 : end)
            s->rows[s->row_count++] = strtoull(value, &end, 10);
    } else {
        return false;
    }
    return true;
}

void bench_check(const bench_settings *s)
{
    bench_must(s->repeat >= 1 && s->repeat <= BENCH_MAX_REPEAT && s->weights >= 1 && s->row_count >= 1,
               "numbers out of range");
}

double bench_time(const bench_settings *s, size_t *turn, void (*product)(void *user, size_t weight), void *user)
{
    product(user, *turn);
    uint64_t start = pst_clock_ns(), now = start, count = 0;
    while (now - start < s->milliseconds * 1000000) {
        *turn = (*turn + 1) % s->weights;
        product(user, *turn);
        count++;
        now = pst_clock_ns();
    }
    return (double)(now - start) * 1e-9 / (double)count;
}

void bench_take_turns(const bench_settings *s, bench_side *mine, void *mine_user, bench_side *others, void *others_user,
                      double *mine_seconds, double *others_seconds, double *ratios)
{
    for (size_t i = 0; i < s->repeat; i++) {
        if (i % 2 == 0)
            mine_seconds[i] = mine(mine_user);
        if (others != NULL)
            others_seconds[i] = others(others_user);
        if (i % 2 == 1)
            mine_seconds[i] = mine(mine_user);
        ratios[i] = others != NULL ? others_seconds[i] / mine_seconds[i] : 0.0;
    }
}

double bench_median(const double *values, size_t count)
{
    double sorted[BENCH_MAX_REPEAT];
    memcpy(sorted, values, count * sizeof *sorted);
    return pst_median(sorted, count);
}

double bench_print_seconds(const char *name, const bench_settings *s, const double *seconds)
{
    const double middle = bench_median(seconds, s->repeat);
    printf(", \"%s\": {\"seconds\": [", name);
    for (size_t i = 0; i < s->repeat; i++)
        printf("%s%.4g", i ? ", " : "", seconds[i]);
    printf("], \"median_seconds\": %.4g", middle);
    return middle;
}
