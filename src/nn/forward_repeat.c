/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Passes whose calls of the device are those of others before. A call's job says where operands are (buffers, weights and tables,
 * which stay), how many rows there are, how many of them give logits, and of attention how many segments and positions there are
 * at most: numbers that pst_recorder_key has. A row's id, position, blocks and rotation are in tables that are published before.
 */
#include "base/number.h"
#include "nn/forward_internal.h"

/* Positions that calls speak of when there are so many. A step up means a new recording, and what is too much is work for a
 * few blocks of threads that find nothing to do: beyond a thousand positions up to a quarter. The first step is as far as
 * attention has one chunk. */
static uint32_t round_positions(uint32_t positions, uint32_t most)
{
    enum { FIRST = 128 };
    uint64_t unit = FIRST;
    while (positions > FIRST && unit * 8 <= positions)
        unit *= 2;
    return (uint32_t)pst_min(pst_round_up(positions, positions > FIRST ? pst_max(unit, 2 * FIRST) : unit), most);
}

void pst_forward_round_positions(pst_forward *f)
{
    f->rounded_positions = 0;
    if (!f->rounds_positions || f->generated_rows < f->row_count)
        return;
    const pst_segments all = pst_forward_segments(f, 0, f->segment_count);
    f->rounded_positions = round_positions(all.max_positions, f->max_tokens);
}

bool pst_forward_repeats(const pst_forward *f, pst_recorder_key *out)
{
    if (f->rounded_positions == 0)
        return false;
    const pst_segments all = pst_forward_segments(f, 0, f->segment_count);
    *out = (pst_recorder_key){.rows = f->row_count,
                              .segments = f->segment_count,
                              .logit_rows = f->logit_rows,
                              .max_rows = (uint32_t)all.max_rows,
                              .max_positions = f->rounded_positions};
    return true;
}

void pst_forward_rewind(pst_forward *f)
{
    f->stage = NULL;
    pst_kv_rewind(f->kv);
}
