/* SPDX-License-Identifier: Apache-2.0 */
/* Conversations on the command line: a text as a user's message, or messages from a file. */
#ifndef PENSTOCK_CLI_CHAT_H
#define PENSTOCK_CLI_CHAT_H

#include "cli.h"
#include "penstock/chat.h"

/* How texts become conversations. */
typedef struct cli_chat {
    const pst_chat_template *chat_template;
    const char *system; /* the first message; NULL: none */
} cli_chat;

/* Seconds since 1970 on a clock on the wall of here. */
int64_t cli_wall_time(void);
/* The text as a user's message. *out is freed with pst_chat_text_free. */
int cli_chat_render_text(const cli_chat *chat, const char *text, size_t bytes, pst_chat_text *out, pst_error *err);
/* JSON of a file: an array of messages, or an object with "messages" and what a request may have besides. */
int cli_chat_render_file(const pst_chat_template *chat_template, const char *path, pst_chat_text *out, pst_error *err);

#endif
