/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Conversations to text, as a model was trained to see them: the chat template of a Hugging Face folder. It is a
 * small program in the Jinja language, from a file that nobody vouches for: it can compute a text and nothing else,
 * within bounds of depth, steps and memory (docs/chat.md).
 * A template is immutable after it is made: any number of threads may render it at once.
 */
#ifndef PENSTOCK_CHAT_H
#define PENSTOCK_CHAT_H

#include <stdbool.h>

#include "penstock/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pst_chat_template pst_chat_template;

/* Opens the chat template of a model folder: chat_template.jinja, else "chat_template" of tokenizer_config.json, else
 * that of chat_template.json; -ENOENT when there is none. The caller owns *out. */
PST_API int pst_chat_template_open(const char *folder, pst_chat_template **out, pst_error *err);
PST_API void pst_chat_template_close(pst_chat_template *chat_template);

enum { PST_CHAT_MOST_MEMORY_BYTES = 256 << 20 };
/* JSON texts, borrowed for the call; NULL: not given. */
typedef struct pst_chat_request {
    const char *messages; /* an array of {"role": "user", "content": "..."} */
    size_t messages_bytes;
    const char *tools; /* an array, as OpenAI's API has it */
    size_t tools_bytes;
    const char *documents; /* an array of objects */
    size_t documents_bytes;
    const char *variables; /* an object: more of what the template is to see, "enable_thinking" for example */
    size_t variables_bytes;
    bool is_whole;        /* without the beginning of an answer after the last message */
    bool has_time;        /* else a template that asks for the time fails */
    int64_t time_seconds; /* since 1970, of a clock on the wall: with the time zone's distance in it */
    size_t memory_bytes;  /* what rendering may take; 0: the most, PST_CHAT_MOST_MEMORY_BYTES */
} pst_chat_request;

/* A text that the library allocated; freed with pst_chat_text_free. */
typedef struct pst_chat_text {
    char *text; /* terminated besides its length */
    size_t bytes;
    size_t memory_bytes; /* that rendering took, also where it failed */
} pst_chat_text;

/* Renders a conversation. Encode the text with pst_tokenizer_encode without its add_special: what belongs before and
 * after is in it. PST_E_FORMAT: JSON that is none, a conversation that the template refuses, a template that fails.
 * PST_E_BUDGET: it takes more than memory_bytes. */
PST_API int pst_chat_render(const pst_chat_template *chat_template, const pst_chat_request *request, pst_chat_text *out,
                            pst_error *err);
PST_API void pst_chat_text_free(pst_chat_text *text);

#ifdef __cplusplus
}
#endif
#endif
