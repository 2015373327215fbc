/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Texts and token ids that a command works on: from the command line, a file, the lines of a file, standard input.
 * All of it is hostile until checked: bounded in size, valid UTF-8.
 */
#ifndef PENSTOCK_CLI_INPUT_H
#define PENSTOCK_CLI_INPUT_H

#include "chat.h"
#include "cli.h"
#include "penstock/model.h"

/* The most that is read from one text file or standard input, and of one line of JSON. */
enum { CLI_TEXT_LIMIT_BYTES = 64 << 20 };

/* One text, or ids alone. There may be a million of them, so that none owns memory of its own. */
typedef struct cli_input {
    const char *text; /* NULL when given as ids */
    size_t text_bytes;
    const uint32_t *ids; /* given, or encoded by cli_inputs_encode */
    size_t id_count;
} cli_input;

typedef struct cli_inputs {
    const char *noun;
    cli_input *items;
    size_t count;
    char *buffer;  /* what texts from a file point into; owned */
    uint32_t *ids; /* what the items' encoded ids point into; owned */
} cli_inputs;
void cli_inputs_free(cli_inputs *inputs);

/* "prompt 3", for messages. Returns name. */
enum { CLI_INPUT_NAME_BYTES = 48 };
char *cli_input_name(const cli_inputs *inputs, size_t index, char *name);

/* Where they may come from; exactly one kind may be used. */
typedef struct cli_source {
    const char *noun;                /* "prompt", "text" */
    const pst_option_strings *texts; /* --prompt, --text */
    const pst_option_ids *ids;       /* --token-ids */
    const char *lines_file;          /* one text per line; "-" is standard input */
    const char *whole_file;          /* one text; "-" is standard input */
    bool stdin_default;              /* with nothing given, standard input is one text */
} cli_source;

/* Fills *out, whose ids given on the command line stay the source's; texts are checked to be UTF-8. An input without
 * any text is an error. */
int cli_inputs_gather(const cli_source *source, cli_inputs *out, pst_error *err);
/* Encodes all that came as text; chat: as messages of a user, else NULL. An empty text is an error, even where the tokenizer begins one with a token of its
 * own. */
int cli_inputs_encode(cli_inputs *inputs, const pst_tokenizer *tokenizer, const cli_chat *chat, pst_error *err);
/* Fails, naming the input, when an id is none of the model's vocabulary. */
int cli_inputs_check_ids(const cli_inputs *inputs, uint32_t vocab, pst_error *err);

/* Reads all of a file, or of standard input ("-"), at most CLI_TEXT_LIMIT_BYTES. *out is NUL-terminated besides and
 * freed with pst_heap_free. */
int cli_read_file(const char *path, char **out, size_t *out_bytes, pst_error *err);
/* One line without its end, of a stream; 0: a line, 1: no more. *line is reused and grows; free with pst_heap_free. */
int cli_read_line(FILE *from, const char *path, char **line, size_t *capacity, size_t *bytes, pst_error *err);
/* Bytes of the well-formed UTF-8 sequence at `text`, of which `left` bytes are there; 0: there is none. */
size_t cli_utf8_sequence_bytes(const char *text, size_t left);
/* The offset of the first byte that is not part of well-formed UTF-8, or `bytes`. */
size_t cli_utf8_valid_bytes(const char *text, size_t bytes);

#endif
