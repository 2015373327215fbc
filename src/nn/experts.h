/* SPDX-License-Identifier: Apache-2.0 */
/* What a stage of experts tells the ring; its context is a pst_nn_stage. */
#ifndef PST_NN_EXPERTS_H
#define PST_NN_EXPERTS_H

#include "nn/program.h"

/* A pst_stage_choose: the experts that rows of this pass chose. */
uint32_t pst_experts_choose(void *context, const pst_stage *stage, bool *wanted);
/* The same as a guess before the router ran. */
uint32_t pst_experts_guess(void *context, const pst_stage *stage, bool *wanted);

#endif
