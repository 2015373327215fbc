/* SPDX-License-Identifier: Apache-2.0 */
/* Conversations on the command line. */
#include "chat.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/heap.h"
#include "base/json.h"
#include "common.h"
#include "input.h"
#include "output.h"

int64_t cli_wall_time(void)
{
    time_t now = time(NULL);
    struct tm here;
    if (localtime_r(&now, &here) == NULL)
        return (int64_t)now;
    return (int64_t)now + here.tm_gmtoff;
}

static pst_chat_request new_request(void)
{
    return (pst_chat_request){.has_time = true, .time_seconds = cli_wall_time()};
}

int cli_chat_render_text(const cli_chat *chat, const char *text, size_t bytes, pst_chat_text *out, pst_error *err)
{
    json_t *messages = json_array();
    int failed = messages == NULL;
    if (chat->system != NULL)
        failed |= json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "system", "content", chat->system));
    if (chat->system != NULL && failed) {
        json_decref(messages);
        return pst_fail(err, PST_E_FORMAT, NULL, "the system message is not valid UTF-8");
    }
    json_t *content = json_stringn(text, bytes); /* NULL when it is no UTF-8 */
    if (content == NULL) {
        json_decref(messages);
        return pst_fail(err, PST_E_FORMAT, NULL, "it is not valid UTF-8");
    }
    failed |= json_array_append_new(messages, json_pack("{s:s, s:o}", "role", "user", "content", content));
    char *dumped = failed ? NULL : json_dumps(messages, JSON_COMPACT);
    json_decref(messages);
    if (dumped == NULL)
        return pst_fail_memory(err, "a conversation", bytes);
    pst_chat_request request = new_request();
    request.messages = dumped;
    request.messages_bytes = strlen(dumped);
    int status = pst_chat_render(chat->chat_template, &request, out, err);
    free(dumped);
    return status;
}

/* A member as JSON text of its own; NULL where it is not there. */
static int dump_member(const json_t *object, const char *key, char **text, size_t *bytes, pst_error *err)
{
    const json_t *value = json_object_get(object, key);
    *text = NULL;
    if (value == NULL || json_is_null(value))
        return 0;
    *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    if (*text == NULL)
        return pst_fail_memory(err, key, 0);
    *bytes = strlen(*text);
    return 0;
}

static int render_object(const pst_chat_template *chat_template, const json_t *object, pst_chat_text *out,
                         pst_error *err)
{
    pst_chat_request request = new_request();
    char *texts[4] = {NULL, NULL, NULL, NULL};
    const json_t *adds = json_object_get(object, "add_generation_prompt");
    request.is_whole = json_is_false(adds);
    int status = dump_member(object, "messages", &texts[0], &request.messages_bytes, err);
    if (status >= 0)
        status = dump_member(object, "tools", &texts[1], &request.tools_bytes, err);
    if (status >= 0)
        status = dump_member(object, "documents", &texts[2], &request.documents_bytes, err);
    if (status >= 0)
        status = dump_member(object, "chat_template_kwargs", &texts[3], &request.variables_bytes, err);
    request.messages = texts[0];
    request.tools = texts[1];
    request.documents = texts[2];
    request.variables = texts[3];
    if (status >= 0)
        status = pst_chat_render(chat_template, &request, out, err);
    for (size_t i = 0; i < 4; i++)
        free(texts[i]);
    return status;
}

int cli_chat_render_file(const pst_chat_template *chat_template, const char *path, pst_chat_text *out, pst_error *err)
{
    const char *name = strcmp(path, "-") == 0 ? "standard input" : path;
    char *text;
    size_t bytes;
    json_t *document;
    PST_TRY(cli_read_file(path, &text, &bytes, err));
    int status = pst_json_parse(text, bytes, name, &document, err);
    pst_heap_free(text);
    PST_TRY(status);
    json_t *object = json_is_array(document) ? json_pack("{s:O}", "messages", document) : json_incref(document);
    json_decref(document);
    if (object == NULL)
        return pst_fail_memory(err, name, bytes);
    pst_error cause = {.offset = PST_NO_OFFSET};
    status = render_object(chat_template, object, out, &cause);
    json_decref(object);
    return status < 0 ? pst_fail(err, status, cause.path[0] != '\0' ? cause.path : name, "%s", cause.message) : 0;
}
