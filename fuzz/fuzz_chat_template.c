/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A chat template from hostile bytes, over a conversation with tools; what follows a NUL byte is the conversation.
 * The memory that a rendering takes stays below the limit that it was given.
 */
#include <stdlib.h>
#include <string.h>

#include "text/chat_template.h"
#include "text/unicode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char messages[] =
        "[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":[{\"type\":\"text\","
        "\"text\":\"hi\"}]},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":{"
        "\"name\":\"f\",\"arguments\":{\"a\":1.5,\"b\":[true,null]}}}]}]";
    static const char tools[] = "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}]";
    const uint8_t *end = memchr(data, 0, size);
    const size_t template_bytes = end ? (size_t)(end - data) : size;
    const pst_chat_source source = {.chat_template_jinja = {"chat_template.jinja", (const char *)data, template_bytes},
                                    .tokenizer_config_json = {"tokenizer_config.json", "{\"bos_token\":\"<s>\"}", 19}};
    pst_chat_request request = {.messages = messages,
                                .messages_bytes = sizeof messages - 1,
                                .tools = tools,
                                .tools_bytes = sizeof tools - 1,
                                .has_time = true,
                                .time_seconds = 1783900000,
                                .memory_bytes = 4 << 20};
    pst_chat_template *template = NULL;
    pst_chat_text made = {0};
    pst_error err;
    if (end != NULL) {
        request.messages = (const char *)end + 1;
        request.messages_bytes = size - template_bytes - 1;
    }
    if (pst_chat_template_parse(&source, &template, &err) < 0)
        return 0;
    if (pst_chat_render(template, &request, &made, &err) == 0) {
        if (made.memory_bytes > 2 * request.memory_bytes || pst_utf8_valid_prefix(made.text, made.bytes) != made.bytes)
            abort();
        pst_chat_text_free(&made);
    }
    pst_chat_template_close(template);
    return 0;
}
