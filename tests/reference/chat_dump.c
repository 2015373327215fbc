/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests/peers: renders conversations. One JSON object per line in: {"template": "...", "messages": [...]}, with
 * "config" (of the tokenizer), "tools", "documents", "variables", "is_whole", "time" where wanted; {"text": "..."} or
 * {"error": "..."} per line out.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "text/chat_template.h"

static char *dump(const json_t *line, const char *key, size_t *bytes)
{
    const json_t *value = json_object_get(line, key);
    char *text = value != NULL && !json_is_null(value) ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    *bytes = text != NULL ? strlen(text) : 0;
    return text;
}

static int render(const json_t *line, pst_chat_text *out, pst_error *err)
{
    const char *template = json_string_value(json_object_get(line, "template"));
    const json_t *time = json_object_get(line, "time");
    size_t config_bytes;
    pst_chat_request request = {.is_whole = json_is_true(json_object_get(line, "is_whole")),
                                .has_time = time != NULL,
                                .time_seconds = json_integer_value(time)};
    char *config = dump(line, "config", &config_bytes), *messages = dump(line, "messages", &request.messages_bytes),
         *tools = dump(line, "tools", &request.tools_bytes),
         *documents = dump(line, "documents", &request.documents_bytes),
         *variables = dump(line, "variables", &request.variables_bytes);
    const pst_chat_source source = {
        .chat_template_jinja = {"template", template, json_string_length(json_object_get(line, "template"))},
        .tokenizer_config_json = {"config", config, config_bytes}};
    request.messages = messages;
    request.tools = tools;
    request.documents = documents;
    request.variables = variables;
    pst_chat_template *made = NULL;
    int status = pst_chat_template_parse(&source, &made, err);
    if (status >= 0)
        status = pst_chat_render(made, &request, out, err);
    pst_chat_template_close(made);
    free(config);
    free(messages);
    free(tools);
    free(documents);
    free(variables);
    return status;
}

int main(void)
{
    char *text = NULL;
    size_t capacity = 0;
    while (getline(&text, &capacity, stdin) > 0) {
        pst_chat_text made = {0};
        pst_error err;
        char message[1200];
        json_t *line = json_loads(text, JSON_ALLOW_NUL, NULL), *answer;
        if (line == NULL)
            return 1;
        if (render(line, &made, &err) < 0)
            answer = json_pack("{s:s}", "error", pst_error_format(&err, message, sizeof message));
        else
            answer = json_pack("{s:o}", "text", json_stringn(made.text, made.bytes));
        char *dumped = json_dumps(answer, JSON_COMPACT);
        if (dumped == NULL)
            return 1;
        puts(dumped);
        free(dumped);
        json_decref(answer);
        json_decref(line);
        pst_chat_text_free(&made);
    }
    free(text);
    return 0;
}
