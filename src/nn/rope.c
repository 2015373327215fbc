/* SPDX-License-Identifier: Apache-2.0 */
/* Rotary frequencies and their table; the formulas' sources are in config.h. */
#include <math.h>

#include "nn/config.h"

static double frequency(const pst_rope *rope, uint32_t pair, uint32_t head_dim)
{
    double plain = 1.0 / pow(rope->theta, 2.0 * pair / head_dim);
    if (rope->type == PST_ROPE_DEFAULT)
        return plain;
    if (rope->type == PST_ROPE_LINEAR)
        return plain / rope->factor;
    double wavelength = 2 * M_PI / plain;
    if (wavelength < rope->original_context / rope->high_freq_factor)
        return plain;
    if (wavelength > rope->original_context / rope->low_freq_factor)
        return plain / rope->factor;
    double smooth = (rope->original_context / wavelength - rope->low_freq_factor) /
                    (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - smooth) * plain / rope->factor + smooth * plain;
}

void pst_rope_table(const pst_rope *rope, uint32_t head_dim, uint32_t positions, float *table)
{
    uint32_t pairs = head_dim / 2;
    for (uint32_t pair = 0; pair < pairs; pair++) {
        /* The reference rounds the frequency and the angle to f32 before the cosine; at position 100,000 that is a visible
         * part of the angle, so it is done here, too. */
        float rounded = (float)frequency(rope, pair, head_dim);
        for (uint32_t position = 0; position < positions; position++) {
            float angle = (float)position * rounded;
            table[(size_t)position * head_dim + pair] = (float)cos((double)angle);
            table[(size_t)position * head_dim + pairs + pair] = (float)sin((double)angle);
        }
    }
}
