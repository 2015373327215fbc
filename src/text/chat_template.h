/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making a chat template from the bytes of its files: src/text reads no files itself. Everything else about them is
 * in include/penstock/chat.h.
 */
#ifndef PST_TEXT_CHAT_TEMPLATE_H
#define PST_TEXT_CHAT_TEMPLATE_H

#include "penstock/chat.h"
#include "text/tokenizer.h"

/* What one rendering may take. */
#define PST_CHAT_STEPS        (UINT64_C(1) << 26)
#define PST_CHAT_OUTPUT_BYTES ((size_t)64 << 20)

/* Borrowed for the call; any may be absent. */
typedef struct pst_chat_source {
    pst_text_file chat_template_jinja;
    pst_text_file tool_use_jinja; /* additional_chat_templates/tool_use.jinja */
    pst_text_file tokenizer_config_json;
    pst_text_file chat_template_json;
    pst_text_file special_tokens_map_json;
} pst_chat_source;

/* *out is NULL when no file has a template. */
int pst_chat_template_parse(const pst_chat_source *source, pst_chat_template **out, pst_error *err);

#endif
