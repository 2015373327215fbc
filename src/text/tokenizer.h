/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making a tokenizer from the bytes of its files: src/text reads no files itself. Everything else about tokenizers is
 * in include/penstock/tokenizer.h.
 */
#ifndef PST_TEXT_TOKENIZER_H
#define PST_TEXT_TOKENIZER_H

#include "penstock/tokenizer.h"

/* The content of a file, and its path for messages. bytes may be NULL: no such file. */
typedef struct pst_text_file {
    const char *path;
    const char *bytes;
    size_t count;
} pst_text_file;

/* Borrowed for the call. Either tokenizer.json, which then is all that counts, or vocab.json and merges.txt with the
 * others where they are present. */
typedef struct pst_tokenizer_source {
    pst_text_file tokenizer_json;
    pst_text_file vocab_json;
    pst_text_file merges_txt;
    pst_text_file tokenizer_config_json;
    pst_text_file special_tokens_map_json;
    pst_text_file added_tokens_json;
} pst_tokenizer_source;

/* Makes a tokenizer. What the files ask for and this version does not know is PST_E_UNSUPPORTED, with its name. The
 * caller owns *out (pst_tokenizer_close). */
int pst_tokenizer_parse(const pst_tokenizer_source *source, pst_tokenizer **out, pst_error *err);

#endif
