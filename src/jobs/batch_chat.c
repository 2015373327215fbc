/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines with a conversation: the model's chat template makes one prompt of it. What the template has against it is an
 * error of the line.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "jobs/batch_fields.h"
#include "penstock/chat.h"

static const char INVALID[] = "invalid_request";

/* What the parsed values of JSON text take at most: an object or array, an item, a byte. */
static uint64_t json_bytes(pst_batch_slice slice)
{
    enum { CONTAINER_BYTES = 256, ITEM_BYTES = 128, BYTE_BYTES = 2 };
    uint64_t bytes = 0;
    for (size_t i = 0; i < slice.bytes; i++) {
        char c = slice.text[i];
        bytes += c == '{' || c == '[' ? CONTAINER_BYTES : c == ',' || c == ':' ? ITEM_BYTES : BYTE_BYTES;
    }
    return bytes;
}

/* What the answer would have to be more than a text for. */
static int check_tools(pst_batch_reader *r, const pst_batch_slice *fields)
{
    const pst_batch_slice choice = fields[PST_FIELD_TOOL_CHOICE];
    if (choice.text != NULL && !pst_batch_equals(choice, "auto") && !pst_batch_equals(choice, "none"))
        return pst_batch_refuse(r, "unsupported", "a \"tool_choice\" other than \"auto\" or \"none\" is not supported");
    if (r->line->echo)
        return pst_batch_refuse(r, INVALID, "\"echo\" is not for conversations");
    return 0;
}

static int render(pst_batch_reader *r, const pst_batch_slice *fields, pst_chat_text *out)
{
    const pst_batch_rules *rules = r->rules;
    const pst_batch_slice messages = fields[PST_FIELD_MESSAGES], documents = fields[PST_FIELD_DOCUMENTS],
                          variables = fields[PST_FIELD_CHAT_TEMPLATE_KWARGS];
    pst_batch_slice tools = fields[PST_FIELD_TOOLS];
    if (pst_batch_equals(fields[PST_FIELD_TOOL_CHOICE], "none") || pst_batch_reads(tools, "[]"))
        tools = (pst_batch_slice){0}; /* an empty list is none */
    const uint64_t json = json_bytes(messages) + json_bytes(tools) + json_bytes(documents) + json_bytes(variables);
    const uint64_t room = PST_BATCH_TEXT_COST * rules->most_text_bytes;
    bool adds = true;
    pst_batch_read_bool(r, "add_generation_prompt", fields[PST_FIELD_ADD_GENERATION_PROMPT], &adds);
    if (r->line->error_code != NULL)
        return 0;
    if (room != 0 && json >= room)
        return pst_batch_refuse_memory(r, json);
    const pst_chat_request request = {.messages = messages.text,
                                      .messages_bytes = messages.bytes,
                                      .tools = tools.text,
                                      .tools_bytes = tools.bytes,
                                      .documents = documents.text,
                                      .documents_bytes = documents.bytes,
                                      .variables = variables.text,
                                      .variables_bytes = variables.bytes,
                                      .is_whole = !adds,
                                      .has_time = rules->has_time,
                                      .time_seconds = rules->time_seconds,
                                      .memory_bytes = room != 0 && room - json < SIZE_MAX ? (size_t)(room - json) : 0};
    pst_error cause = {.offset = PST_NO_OFFSET};
    int status = pst_chat_render(rules->chat, &request, out, &cause);
    r->line->chat_bytes = json + out->memory_bytes; /* a line that fails takes it, too */
    if (status >= 0)
        return 0;
    if (status == PST_E_BUDGET && room != 0 &&
        room - json < PST_CHAT_MOST_MEMORY_BYTES) /* the budget's limit, not its own */
        return pst_batch_refuse_memory(r, json + PST_CHAT_MOST_MEMORY_BYTES);
    if (status != PST_E_FORMAT && status != PST_E_BUDGET) {
        if (r->err != NULL)
            *r->err = cause;
        return status;
    }
    return pst_batch_refuse(r, INVALID, "%s", cause.message);
}

int pst_batch_read_chat(pst_batch_reader *r, const pst_batch_slice *fields)
{
    pst_chat_text made = {0};
    pst_tokens ids = {0};
    if (r->rules->chat == NULL || r->rules->tokenizer == NULL)
        return pst_batch_refuse(r, "unsupported", "a conversation needs a chat template: %s", r->rules->no_chat);
    PST_TRY(check_tools(r, fields));
    if (r->line->error_code == NULL)
        PST_TRY(render(r, fields, &made));
    int status = 0;
    if (r->line->error_code == NULL)
        status = pst_batch_encode(r, made.text, made.bytes, false, made.bytes, &ids);
    pst_chat_text_free(&made);
    if (status >= 0 && r->line->error_code == NULL && ids.count == 0)
        pst_batch_refuse(r, INVALID, "the chat template makes an empty text of the conversation");
    if (status >= 0 && r->line->error_code == NULL)
        status = pst_batch_add_prompt(r, &ids, (pst_batch_slice){0});
    pst_tokens_free(&ids);
    return status;
}
