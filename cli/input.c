/* SPDX-License-Identifier: Apache-2.0 */
/* Reading texts, with bounds. */
#include "input.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/heap.h"
#include "common.h"

static int too_large(const char *name, pst_error *err)
{
    return pst_fail(err, PST_E_FORMAT, name, "larger than the %d MiB that are read at once",
                    CLI_TEXT_LIMIT_BYTES >> 20);
}

static int read_stream(FILE *from, const char *name, char **out, size_t *out_bytes, pst_error *err)
{
    char *text = NULL;
    size_t bytes = 0, capacity = 0;
    for (;;) {
        if (capacity - bytes < 2) {
            if (capacity > CLI_TEXT_LIMIT_BYTES) {
                pst_heap_free(text);
                return too_large(name, err);
            }
            capacity = capacity != 0 ? capacity * 2 : 65536;
            char *grown = pst_heap_realloc(text, capacity);
            if (grown == NULL) {
                pst_heap_free(text);
                return pst_fail_memory(err, name, capacity);
            }
            text = grown;
        }
        size_t got = fread(text + bytes, 1, capacity - bytes - 1, from);
        bytes += got;
        if (got == 0)
            break;
    }
    if (ferror(from)) {
        int cause = errno != 0 ? errno : EIO;
        pst_heap_free(text);
        return pst_fail(err, -cause, name, "cannot read: %s", strerror(cause));
    }
    if (bytes > CLI_TEXT_LIMIT_BYTES) {
        pst_heap_free(text);
        return too_large(name, err);
    }
    text[bytes] = '\0';
    *out = text;
    *out_bytes = bytes;
    return 0;
}

int cli_read_file(const char *path, char **out, size_t *out_bytes, pst_error *err)
{
    errno = 0;
    if (strcmp(path, "-") == 0)
        return read_stream(stdin, "standard input", out, out_bytes, err);
    FILE *file = fopen(path, "rbe");
    if (file == NULL)
        return pst_fail(err, -errno, path, "cannot open: %s", strerror(errno));
    struct stat about;
    int status;
    /* Said before reading, so that a file of a terabyte is refused at once. Pipes and devices have no size. */
    if (fstat(fileno(file), &about) == 0 && S_ISREG(about.st_mode) && about.st_size > CLI_TEXT_LIMIT_BYTES)
        status = too_large(path, err);
    else
        status = read_stream(file, path, out, out_bytes, err);
    fclose(file);
    return status;
}

int cli_read_line(FILE *from, const char *path, char **line, size_t *capacity, size_t *bytes, pst_error *err)
{
    size_t length = 0;
    int letter;
    errno = 0;
    while ((letter = getc_unlocked(from)) != EOF && letter != '\n') {
        if (length + 2 > *capacity) {
            if (length > CLI_TEXT_LIMIT_BYTES)
                return pst_fail(err, PST_E_FORMAT, path, "a line is longer than %d MiB", CLI_TEXT_LIMIT_BYTES >> 20);
            size_t wanted = *capacity != 0 ? *capacity * 2 : 4096;
            char *grown = pst_heap_realloc(*line, wanted);
            if (grown == NULL)
                return pst_fail_memory(err, path, wanted);
            *line = grown;
            *capacity = wanted;
        }
        (*line)[length++] = (char)letter;
    }
    if (ferror(from))
        return pst_fail(err, errno != 0 ? -errno : -EIO, path, "cannot read: %s", strerror(errno != 0 ? errno : EIO));
    if (letter == EOF && length == 0)
        return 1;
    if (length == 0 && *capacity == 0) {
        *line = pst_heap_alloc(1);
        if (*line == NULL)
            return pst_fail_memory(err, path, 1);
        *capacity = 1;
    }
    (*line)[length] = '\0';
    *bytes = length;
    return 0;
}

/* Well-formed sequences as the Unicode standard's table 3-7 lists them: lead bytes and the range of the second. */
size_t cli_utf8_sequence_bytes(const char *text, size_t left)
{
    const unsigned char *at = (const unsigned char *)text;
    static const struct {
        unsigned char lead_first, lead_last, second_first, second_last, bytes;
    } forms[] = {
        {0xC2, 0xDF, 0x80, 0xBF, 2}, {0xE0, 0xE0, 0xA0, 0xBF, 3}, {0xE1, 0xEC, 0x80, 0xBF, 3},
        {0xED, 0xED, 0x80, 0x9F, 3}, {0xEE, 0xEF, 0x80, 0xBF, 3}, {0xF0, 0xF0, 0x90, 0xBF, 4},
        {0xF1, 0xF3, 0x80, 0xBF, 4}, {0xF4, 0xF4, 0x80, 0x8F, 4},
    };
    if (at[0] < 0x80)
        return 1;
    for (size_t i = 0; i < CLI_COUNT(forms); i++) {
        if (at[0] < forms[i].lead_first || at[0] > forms[i].lead_last)
            continue;
        if (left < forms[i].bytes || at[1] < forms[i].second_first || at[1] > forms[i].second_last)
            return 0;
        for (size_t j = 2; j < forms[i].bytes; j++) {
            if ((at[j] & 0xC0) != 0x80)
                return 0;
        }
        return forms[i].bytes;
    }
    return 0;
}

size_t cli_utf8_valid_bytes(const char *text, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        size_t length = cli_utf8_sequence_bytes(text + at, bytes - at);
        if (length == 0)
            return at;
        at += length;
    }
    return bytes;
}

static int check_utf8(const char *name, const char *text, size_t bytes, size_t base, pst_error *err)
{
    size_t valid = cli_utf8_valid_bytes(text, bytes);
    if (valid == bytes)
        return 0;
    return pst_fail_at(err, PST_E_FORMAT, name, base + valid, "not valid UTF-8");
}

char *cli_input_name(const cli_inputs *inputs, size_t index, char *name)
{
    snprintf(name, CLI_INPUT_NAME_BYTES, "%s %zu", inputs->noun, index + 1);
    return name;
}

static int add_item(cli_inputs *inputs, const cli_input *item, pst_error *err)
{
    /* Doubling at powers of two keeps this linear for a file of many lines. */
    if ((inputs->count & (inputs->count - 1)) == 0) {
        size_t capacity = inputs->count != 0 ? inputs->count * 2 : 1;
        cli_input *grown = pst_heap_reallocarray(inputs->items, capacity, sizeof *grown);
        if (grown == NULL)
            return pst_fail_memory(err, "inputs", capacity * sizeof *grown);
        inputs->items = grown;
    }
    inputs->items[inputs->count++] = *item;
    return 0;
}

static int gather_texts(const cli_source *source, cli_inputs *out, pst_error *err)
{
    for (size_t i = 0; i < source->texts->count; i++) {
        const char *text = source->texts->items[i];
        char name[CLI_INPUT_NAME_BYTES];
        PST_TRY(check_utf8(cli_input_name(out, i, name), text, strlen(text), 0, err));
        PST_TRY(add_item(out, &(cli_input){.text = text, .text_bytes = strlen(text)}, err));
    }
    return 0;
}

static int gather_ids(const cli_source *source, cli_inputs *out, pst_error *err)
{
    for (size_t i = 0; i < source->ids->count; i++) {
        const pst_option_id_list *list = &source->ids->lists[i];
        PST_TRY(add_item(out, &(cli_input){.ids = list->ids, .id_count = list->count}, err));
    }
    return 0;
}

/* An empty line is an empty text; the end of the last line does not begin another. */
static int gather_lines(const cli_source *source, cli_inputs *out, pst_error *err)
{
    size_t bytes;
    PST_TRY(cli_read_file(source->lines_file, &out->buffer, &bytes, err));
    PST_TRY(check_utf8(source->lines_file, out->buffer, bytes, 0, err));
    for (size_t at = 0; at < bytes;) {
        const char *end = memchr(out->buffer + at, '\n', bytes - at);
        size_t length = end != NULL ? (size_t)(end - out->buffer) - at : bytes - at;
        size_t kept = length > 0 && out->buffer[at + length - 1] == '\r' ? length - 1 : length;
        PST_TRY(add_item(out, &(cli_input){.text = out->buffer + at, .text_bytes = kept}, err));
        at += length + 1;
    }
    if (out->count == 0)
        return pst_fail(err, PST_E_FORMAT, source->lines_file, "no %s in it", source->noun);
    return 0;
}

static int gather_whole(const char *path, bool drop_newline, cli_inputs *out, pst_error *err)
{
    size_t bytes;
    PST_TRY(cli_read_file(path, &out->buffer, &bytes, err));
    PST_TRY(check_utf8(strcmp(path, "-") == 0 ? "standard input" : path, out->buffer, bytes, 0, err));
    /* What `echo` puts at the end is no part of a prompt. */
    if (drop_newline && bytes > 0 && out->buffer[bytes - 1] == '\n')
        bytes--;
    return add_item(out, &(cli_input){.text = out->buffer, .text_bytes = bytes}, err);
}

static int gather(const cli_source *source, cli_inputs *out, pst_error *err)
{
    size_t kinds = (source->texts->count > 0) + (source->ids->count > 0) + (source->lines_file != NULL) +
                   (source->whole_file != NULL);
    if (kinds > 1)
        return cli_usage(err, "%ss from more than one of the command line, token ids and a file", source->noun);
    if (source->texts->count > 0)
        return gather_texts(source, out, err);
    if (source->ids->count > 0)
        return gather_ids(source, out, err);
    if (source->lines_file != NULL)
        return gather_lines(source, out, err);
    if (source->whole_file != NULL)
        return gather_whole(source->whole_file, false, out, err);
    if (!source->stdin_default)
        return cli_usage(err, "no %s given", source->noun);
    if (isatty(STDIN_FILENO) == 1)
        cli_note("reading the %s from the terminal; Ctrl-D at the start of a line ends it", source->noun);
    return gather_whole("-", true, out, err);
}

int cli_inputs_gather(const cli_source *source, cli_inputs *out, pst_error *err)
{
    *out = (cli_inputs){.noun = source->noun};
    int status = gather(source, out, err);
    if (status < 0)
        cli_inputs_free(out);
    return status;
}

/* Appends to the ids of all inputs; the items keep counts alone as long as the ids may still move. */
static int append_ids(cli_inputs *inputs, size_t *used, size_t *capacity, const pst_tokens *tokens, pst_error *err)
{
    if (tokens->count > *capacity - *used) {
        size_t wanted = *capacity * 2 > *used + tokens->count ? *capacity * 2 : *used + tokens->count;
        uint32_t *grown = pst_heap_reallocarray(inputs->ids, wanted, sizeof *grown);
        if (grown == NULL)
            return pst_fail_memory(err, "token ids", wanted * sizeof *grown);
        inputs->ids = grown;
        *capacity = wanted;
    }
    if (tokens->count > 0)
        memcpy(inputs->ids + *used, tokens->ids, tokens->count * sizeof *tokens->ids);
    *used += tokens->count;
    return 0;
}

static int encode_item(const cli_input *item, const pst_tokenizer *tokenizer, const cli_chat *chat, pst_tokens *out,
                       pst_error *err)
{
    if (chat == NULL)
        return pst_tokenizer_encode(tokenizer, item->text, item->text_bytes, true, out, err);
    pst_chat_text made;
    PST_TRY(cli_chat_render_text(chat, item->text, item->text_bytes, &made, err));
    int status = pst_tokenizer_encode(tokenizer, made.text, made.bytes, false, out, err);
    pst_chat_text_free(&made);
    return status;
}

int cli_inputs_encode(cli_inputs *inputs, const pst_tokenizer *tokenizer, const cli_chat *chat, pst_error *err)
{
    size_t used = 0, capacity = 0;
    char name[CLI_INPUT_NAME_BYTES];
    for (size_t i = 0; i < inputs->count; i++) {
        cli_input *item = &inputs->items[i];
        if (item->text == NULL)
            continue;
        if (item->text_bytes == 0)
            return pst_fail(err, PST_E_FORMAT, cli_input_name(inputs, i, name), "it is empty");
        pst_tokens tokens;
        pst_error cause = {.offset = PST_NO_OFFSET};
        int status = encode_item(item, tokenizer, chat, &tokens, &cause);
        if (status < 0)
            return pst_fail_at(err, status, cli_input_name(inputs, i, name), cause.offset, "%s", cause.message);
        item->id_count = tokens.count;
        status = append_ids(inputs, &used, &capacity, &tokens, err);
        pst_tokens_free(&tokens);
        PST_TRY(status);
        if (item->id_count == 0)
            return pst_fail(err, PST_E_FORMAT, cli_input_name(inputs, i, name), "the tokenizer makes no token of it");
    }
    const uint32_t *at = inputs->ids;
    for (size_t i = 0; i < inputs->count; i++) {
        if (inputs->items[i].text != NULL) {
            inputs->items[i].ids = at;
            at += inputs->items[i].id_count;
        }
    }
    return 0;
}

int cli_inputs_check_ids(const cli_inputs *inputs, uint32_t vocab, pst_error *err)
{
    for (size_t i = 0; i < inputs->count; i++) {
        const cli_input *item = &inputs->items[i];
        for (size_t j = 0; j < item->id_count; j++) {
            char name[CLI_INPUT_NAME_BYTES];
            if (item->ids[j] >= vocab)
                return pst_fail(err, PST_E_USAGE, cli_input_name(inputs, i, name),
                                "%s %u, and the vocabulary of this model has %u tokens",
                                item->text != NULL ? "the tokenizer gives the id" : "it holds the token id",
                                item->ids[j], vocab);
        }
    }
    return 0;
}

void cli_inputs_free(cli_inputs *inputs)
{
    pst_heap_free(inputs->items);
    pst_heap_free(inputs->ids);
    pst_heap_free(inputs->buffer);
    *inputs = (cli_inputs){0};
}
