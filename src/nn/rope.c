/* SPDX-License-Identifier: Apache-2.0 */
/* How attention knows positions: rotary frequencies and their table, slopes; the formulas' sources are in config.h. */
#include <math.h>

#include "nn/config.h"

static double llama3(const pst_rope *rope, double plain)
{
    double wavelength = 2 * M_PI / plain;
    if (wavelength < rope->original_context / rope->high_freq_factor)
        return plain;
    if (wavelength > rope->original_context / rope->low_freq_factor)
        return plain / rope->factor;
    double smooth = (rope->original_context / wavelength - rope->low_freq_factor) /
                    (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - smooth) * plain / rope->factor + smooth * plain;
}

/* The pair, as a fraction, that turns `rotations` times within the original context. */
static double pair_of(const pst_rope *rope, double rotations)
{
    return rope->rotary * log(rope->original_context / (rotations * 2 * M_PI)) / (2 * log(rope->theta));
}

/* Pairs before `low` turn often and are kept, those after `high` are slowed down, between them is a ramp. */
static double yarn(const pst_rope *rope, double plain, uint32_t pair)
{
    double low = pair_of(rope, rope->beta_fast), high = pair_of(rope, rope->beta_slow);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, rope->rotary - 1.0);
    if (low == high)
        high += 0.001; /* as the reference has it */
    double slowed = fmin(fmax((pair - low) / (high - low), 0), 1);
    return plain / rope->factor * slowed + plain * (1 - slowed);
}

/* The base of a sequence longer than the original context. */
static double raised_theta(const pst_rope *rope, uint64_t length)
{
    if (rope->type != PST_ROPE_DYNAMIC || !((double)length > rope->original_context) || rope->rotary <= 2)
        return rope->theta;
    double stretch = rope->factor * (double)length / rope->original_context - (rope->factor - 1);
    return rope->theta * pow(stretch, rope->rotary / (rope->rotary - 2.0));
}

void pst_rope_frequencies(const pst_rope *rope, uint64_t length, float *out)
{
    double theta = raised_theta(rope, length);
    bool is_long = (double)length > rope->original_context;
    for (uint32_t pair = 0; pair < rope->rotary / 2; pair++) {
        double plain = 1.0 / pow(theta, 2.0 * pair / rope->rotary);
        switch (rope->type) {
        case PST_ROPE_LINEAR: plain /= rope->factor; break;
        case PST_ROPE_LLAMA3: plain = llama3(rope, plain); break;
        case PST_ROPE_YARN: plain = yarn(rope, plain, pair); break;
        case PST_ROPE_LONGROPE: plain /= (is_long ? rope->long_factors : rope->short_factors)[pair]; break;
        case PST_ROPE_DEFAULT:
        case PST_ROPE_DYNAMIC: break;
        }
        out[pair] = (float)plain;
    }
}

bool pst_rope_depends_on_length(const pst_rope *rope)
{
    return rope->type == PST_ROPE_DYNAMIC || rope->type == PST_ROPE_LONGROPE;
}

void pst_rope_row(const pst_rope *rope, const float *frequencies, uint32_t position, float *row)
{
    uint32_t pairs = rope->rotary / 2;
    float factor = (float)rope->attention_factor;
    for (uint32_t pair = 0; pair < pairs; pair++) {
        /* The reference rounds the frequency and the angle to f32 before the cosine; at position 100,000 that is a visible
         * part of the angle, so it is done here, too. */
        float angle = (float)position * frequencies[pair];
        row[pair] = (float)cos((double)angle) * factor;
        row[pairs + pair] = (float)sin((double)angle) * factor;
    }
}

void pst_rope_table(const pst_rope *rope, uint32_t positions, float *frequencies, float *table)
{
    pst_rope_frequencies(rope, positions, frequencies);
    for (uint32_t position = 0; position < positions; position++)
        pst_rope_row(rope, frequencies, position, table + (size_t)position * rope->rotary);
}

void pst_alibi_slopes(uint32_t heads, float *slopes)
{
    uint32_t even = 1;
    while (even <= heads / 2)
        even *= 2;
    for (uint32_t head = 0; head < heads; head++) {
        bool is_even = head < even;
        double place = is_even ? head + 1.0 : (2.0 * (head - even) + 1.0) / 2.0;
        slopes[head] = (float)exp2(-8.0 * place / even);
    }
}
