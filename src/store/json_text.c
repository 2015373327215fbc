/* SPDX-License-Identifier: Apache-2.0 */
/* Grows by doubling, so that an index of 100,000 tensors is written in linear time. */
#include "store/json_text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/heap.h"

/* Room for that many more bytes and a NUL. */
static bool reserve(pst_json_text *out, size_t bytes)
{
    if (out->failed)
        return false;
    if (out->capacity - out->bytes > bytes)
        return true;
    size_t wanted = (out->bytes + bytes + 1) * 2;
    char *text = pst_heap_realloc(out->text, wanted);
    if (text == NULL) {
        out->failed = true;
        return false;
    }
    out->text = text;
    out->capacity = wanted;
    return true;
}

void pst_json_text_add(pst_json_text *out, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0 || !reserve(out, (size_t)length))
        return;
    va_start(arguments, format);
    vsnprintf(out->text + out->bytes, (size_t)length + 1, format, arguments);
    va_end(arguments);
    out->bytes += (size_t)length;
}

void pst_json_text_bytes(pst_json_text *out, const char *text, size_t bytes)
{
    if (bytes == 0 || !reserve(out, bytes))
        return;
    memcpy(out->text + out->bytes, text, bytes);
    out->bytes += bytes;
    out->text[out->bytes] = '\0';
}

void pst_json_text_escaped(pst_json_text *out, const char *text, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        size_t plain = at;
        while (at < bytes && (unsigned char)text[at] >= 0x20 && text[at] != '"' && text[at] != '\\')
            at++;
        pst_json_text_bytes(out, text + plain, at - plain);
        if (at == bytes)
            return;
        char letter = text[at++];
        if (letter == '"' || letter == '\\')
            pst_json_text_add(out, "\\%c", letter);
        else if (letter == '\n')
            pst_json_text_add(out, "\\n");
        else
            pst_json_text_add(out, "\\u%04x", (unsigned char)letter);
    }
}

void pst_json_text_string(pst_json_text *out, const char *string)
{
    pst_json_text_add(out, "\"");
    pst_json_text_escaped(out, string, strlen(string));
    pst_json_text_add(out, "\"");
}

void pst_json_text_free(pst_json_text *out)
{
    pst_heap_free(out->text);
    *out = (pst_json_text){0};
}
