/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Routing that replaces the routers' own, to measure known traffic: a recorded file, or experts drawn at random.
 *
 *   FILE             JSON Lines, a line per token: for each layer with experts, in order, the list of the chosen ones.
 *                    The token at position p of sequence s (from 0, in the order in which sequences began) takes line
 *                    7919 s + p, cyclically, so that a recorded sequence replays and others take other stretches.
 *   zipf:S[:SEED]    the expert of rank r is drawn with a weight of r^-S; each layer ranks its experts in an order of its own
 *   uniform[:SEED]   zipf:0
 *
 * What a token gets depends on sequence, position and layer alone, not on how passes were cut.
 */
#ifndef PST_NN_ROUTING_TRACE_H
#define PST_NN_ROUTING_TRACE_H

#include "nn/family.h"

typedef struct pst_routing_trace pst_routing_trace;

/* PST_E_USAGE: the model has no experts, or the text is none of these. The caller owns *out. */
int pst_routing_trace_open(const char *text, const pst_transformer *transformer, pst_routing_trace **out,
                           pst_error *err);
/* The text of a file; `path` is for messages only. */
int pst_routing_trace_parse(const char *text, size_t bytes, const char *path, const pst_transformer *transformer,
                            pst_routing_trace **out, pst_error *err);
void pst_routing_trace_destroy(pst_routing_trace *trace);

/* The experts of a token in the layer that is number `sparse` of those with experts: distinct, rising. */
void pst_routing_trace_choose(const pst_routing_trace *trace, uint32_t sparse, uint64_t sequence, uint32_t position,
                              uint32_t *chosen);

#endif
