/* SPDX-License-Identifier: Apache-2.0 */
/* The registry of run figures, and what is made of any such table. */
#include "base/stats.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "penstock/model.h"

#define ROW(field, unit_text, kind_name, help_text)                                                                    \
    {                                                                                                                  \
        .name = #field, .unit = unit_text, .kind = kind_name, .offset = offsetof(pst_run_stats, field),                \
        .help = help_text                                                                                              \
    }

const pst_stat pst_run_stat_table[] = {
    ROW(prompt_tokens, "tokens", PST_STAT_COUNT, "tokens of all prompts"),
    ROW(generated_tokens, "tokens", PST_STAT_COUNT, "tokens made"),
    ROW(passes, "", PST_STAT_COUNT, "times that the weights were gone through"),
    ROW(prefill_seconds, "seconds", PST_STAT_REAL, "until every first token of the first batch was there"),
    ROW(decode_seconds, "seconds", PST_STAT_REAL, "the rest"),
    ROW(total_seconds, "seconds", PST_STAT_REAL, "wall time of the whole run"),
    ROW(prefill_tokens_per_second, "tokens/s", PST_STAT_REAL, "prompt tokens over the prefill time"),
    ROW(decode_tokens_per_second, "tokens/s", PST_STAT_REAL, "tokens after the first ones over the decode time"),
    ROW(tokens_per_second, "tokens/s", PST_STAT_REAL, "tokens made over the total time"),
    ROW(weight_bytes_read, "bytes", PST_STAT_COUNT, "weights that came from the drive, in all passes"),
    ROW(read_bytes_per_second, "bytes/s", PST_STAT_REAL, "those over the wall time of the passes"),
    ROW(io_wait_seconds, "seconds", PST_STAT_REAL, "compute waited for the drive"),
    ROW(compute_seconds, "seconds", PST_STAT_REAL, "compute had its weights"),
    ROW(bound_seconds, "seconds", PST_STAT_REAL, "what drive, link and processor allow"),
    ROW(share_of_bound, "share", PST_STAT_REAL, "the bound over the time taken"),
    ROW(limited_by, "", PST_STAT_TEXT, "which of these sets the bound"),
    ROW(disk_bytes_per_second, "bytes/s", PST_STAT_REAL, "drive bandwidth measured beforehand"),
    ROW(compute_flops, "flop/s", PST_STAT_REAL, "compute rate measured beforehand"),
    ROW(resident_bytes, "bytes", PST_STAT_COUNT, "weights kept in memory"),
    ROW(streamed_bytes, "bytes", PST_STAT_COUNT, "weights not kept, of experts all"),
    ROW(peak_rss_bytes, "bytes", PST_STAT_COUNT, "largest resident set of the process"),
    ROW(host_memory_bytes, "bytes", PST_STAT_COUNT, "the budget in force"),
    ROW(shared_tokens, "tokens", PST_STAT_COUNT,
        "prompt tokens not computed, as another request had begun with the same ones"),
    ROW(expert_hits, "", PST_STAT_COUNT, "parts of experts that were found in the cache"),
    ROW(expert_misses, "", PST_STAT_COUNT, "parts of experts that had to be read"),
    ROW(expert_bytes_found, "bytes", PST_STAT_COUNT, "weights of the former"),
    ROW(expert_bytes_read, "bytes", PST_STAT_COUNT, "weights of the latter"),
    ROW(guesses_right, "", PST_STAT_COUNT, "parts of experts read before the router had chosen, and needed"),
    ROW(guesses_wrong, "", PST_STAT_COUNT, "parts read likewise, in vain"),
    ROW(wasted_bytes, "bytes", PST_STAT_COUNT, "weights read in vain"),
    ROW(expert_cache_bytes, "bytes", PST_STAT_COUNT, "memory of the cache of experts"),
    ROW(kv_bytes_read, "bytes", PST_STAT_COUNT, "keys and values that came from the drive"),
    ROW(kv_bytes_written, "bytes", PST_STAT_COUNT, "keys and values that went there"),
    ROW(computed_tokens, "tokens", PST_STAT_COUNT, "rows of all passes"),
    ROW(expert_bytes_per_token, "bytes", PST_STAT_REAL, "experts' weights read, also in vain, over those"),
    ROW(link_bytes, "bytes", PST_STAT_COUNT, "weights copied to the accelerator, in all passes"),
    ROW(link_wait_seconds, "seconds", PST_STAT_REAL, "waiting for these copies"),
    ROW(link_bytes_per_second, "bytes/s", PST_STAT_REAL, "link bandwidth measured beforehand"),
    ROW(device_resident_bytes, "bytes", PST_STAT_COUNT, "weights kept on the accelerator"),
    ROW(device_memory_bytes, "bytes", PST_STAT_COUNT, "memory in use there"),
    ROW(replayed_passes, "", PST_STAT_COUNT, "of the passes, those that it got as one recording"),
};
const size_t pst_run_stat_count = sizeof pst_run_stat_table / sizeof pst_run_stat_table[0];

static const void *field_of(const pst_stat *row, const void *record)
{
    return (const char *)record + row->offset;
}

static double number_of(const pst_stat *row, const void *record)
{
    if (row->kind == PST_STAT_COUNT)
        return (double)*(const uint64_t *)field_of(row, record);
    return *(const double *)field_of(row, record);
}

static json_t *value_json(const pst_stat *row, const void *record)
{
    if (row->kind == PST_STAT_TEXT) {
        const char *text = *(const char *const *)field_of(row, record);
        return text != NULL ? json_string(text) : json_null();
    }
    if (row->kind == PST_STAT_COUNT)
        return json_integer((json_int_t) * (const uint64_t *)field_of(row, record));
    double value = *(const double *)field_of(row, record);
    return isfinite(value) ? json_real(value) : json_null();
}

int pst_stats_to_json(const pst_stat *table, size_t count, const void *record, json_t **out, pst_error *err)
{
    json_t *object = json_object();
    if (object == NULL)
        return pst_fail_memory(err, "stats", 0);
    for (size_t i = 0; i < count; i++) {
        if (json_object_set_new(object, table[i].name, value_json(&table[i], record)) != 0) {
            json_decref(object);
            return pst_fail_memory(err, "stats", 0);
        }
    }
    *out = object;
    return 0;
}

void pst_stats_print(const pst_stat *table, size_t count, const void *record, FILE *to)
{
    for (size_t i = 0; i < count; i++) {
        char text[64];
        if (table[i].kind == PST_STAT_TEXT) {
            const char *value = *(const char *const *)field_of(&table[i], record);
            snprintf(text, sizeof text, "%s", value != NULL ? value : "-");
        } else {
            pst_format_value(number_of(&table[i], record), table[i].unit, text, sizeof text);
        }
        fprintf(to, "%-26s %-18s %s\n", table[i].name, text, table[i].help);
    }
}

size_t pst_stats_median(const pst_stat *table, size_t count, const char *key, const void *records, size_t record_bytes,
                        size_t repetitions)
{
    const pst_stat *row = table;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(table[i].name, key) == 0)
            row = &table[i];
    }
    /* The element of the middle rank by counting: repetitions are few and no copy is needed. */
    size_t rank = (repetitions - 1) / 2;
    for (size_t i = 0; i < repetitions; i++) {
        double candidate = number_of(row, (const char *)records + i * record_bytes);
        size_t below = 0, equal = 0;
        for (size_t j = 0; j < repetitions; j++) {
            double other = number_of(row, (const char *)records + j * record_bytes);
            below += other < candidate;
            equal += other == candidate;
        }
        if (below <= rank && rank < below + equal)
            return i;
    }
    return 0; /* only when NaNs are among them */
}

char *pst_format_bytes(double bytes, char *text, size_t text_bytes)
{
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB", "PB"};
    size_t unit = 0;
    /* 999.5 would round to 1000 in three digits. */
    while (bytes >= 999.5 && unit + 1 < sizeof units / sizeof units[0]) {
        bytes /= 1000;
        unit++;
    }
    int decimals = unit == 0 || bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : 2;
    snprintf(text, text_bytes, "%.*f %s", decimals, bytes, units[unit]);
    return text;
}

char *pst_format_seconds(double seconds, char *text, size_t text_bytes)
{
    static const double year = 365.25 * 24 * 3600;
    if (!(seconds >= 0) || !isfinite(seconds))
        snprintf(text, text_bytes, "?");
    else if (seconds > 1e9)
        snprintf(text, text_bytes, "%.3g years", seconds / year);
    else if (seconds < 0.9995)
        snprintf(text, text_bytes, "%.3g ms", seconds * 1000);
    else if (seconds < 99.5)
        snprintf(text, text_bytes, "%.2f s", seconds);
    else if (seconds < 3600)
        snprintf(text, text_bytes, "%d min %02d s", (int)seconds / 60, (int)seconds % 60);
    else
        snprintf(text, text_bytes, "%d h %02d min", (int)seconds / 3600, (int)seconds / 60 % 60);
    return text;
}

char *pst_format_value(double value, const char *unit, char *text, size_t text_bytes)
{
    char part[32];
    if (!isfinite(value))
        snprintf(text, text_bytes, "-");
    else if (strcmp(unit, "bytes") == 0)
        pst_format_bytes(value, text, text_bytes);
    else if (strcmp(unit, "bytes/s") == 0)
        snprintf(text, text_bytes, "%s/s", pst_format_bytes(value, part, sizeof part));
    else if (strcmp(unit, "seconds") == 0)
        pst_format_seconds(value, text, text_bytes);
    else if (strcmp(unit, "share") == 0)
        snprintf(text, text_bytes, "%.3g %%", value * 100);
    else if (strcmp(unit, "flop/s") == 0)
        snprintf(text, text_bytes, "%.3g Gflop/s", value / 1e9);
    else if (strcmp(unit, "tokens/s") == 0)
        snprintf(text, text_bytes, "%.*f tokens/s", value < 9.995 ? 3 : 1, value);
    else
        snprintf(text, text_bytes, "%.15g%s%s", value, unit[0] != '\0' ? " " : "", unit);
    return text;
}
