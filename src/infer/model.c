/* SPDX-License-Identifier: Apache-2.0 */
/* A model: its folder understood, no weights. */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "infer/internal.h"
#include "os/file.h"
#include "os/memory.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

enum { MAX_CONFIG_BYTES = 16 << 20 };
static const uint64_t MAX_TOKENIZER_BYTES = 512ull << 20;

/* A file of the model's folder into memory. A missing optional one leaves *text NULL. */
static int read_file(const char *folder, const char *name, bool required, uint64_t max_bytes, char **path, char **text,
                     size_t *bytes, pst_error *err)
{
    *path = pst_heap_printf("%s/%s", folder, name);
    if (*path == NULL)
        return pst_fail_memory(err, "a path", strlen(folder));
    int found = pst_file_find(*path, err);
    PST_TRY(found);
    if (found == 0)
        return required ? pst_fail(err, -ENOENT, folder, "is not a model folder: it has no %s", name) : 0;
    return pst_file_read_all(*path, max_bytes, text, bytes, err);
}

static int read_transformer(pst_model *model, pst_error *err)
{
    char *config_path = NULL, *config = NULL, *generation_path = NULL, *generation = NULL;
    size_t config_bytes = 0, generation_bytes = 0;
    int status;
    if (!pst_file_is_folder(model->folder))
        return pst_fail(err, -ENOTDIR, model->folder, "is not a folder with a model");
    PST_TRY_GOTO(done, read_file(model->folder, "config.json", true, MAX_CONFIG_BYTES, &config_path, &config,
                                 &config_bytes, err));
    PST_TRY_GOTO(done, read_file(model->folder, "generation_config.json", false, MAX_CONFIG_BYTES, &generation_path,
                                 &generation, &generation_bytes, err));
    PST_TRY_GOTO(done, pst_transformer_parse(config, config_bytes, config_path, generation, generation_bytes,
                                             generation_path, &model->transformer, err));
done:
    pst_heap_free(config_path);
    pst_heap_free(config);
    pst_heap_free(generation_path);
    pst_heap_free(generation);
    return status;
}

int pst_model_open(const char *model_name, const char *cache, pst_model **out, pst_error *err)
{
    pst_model *model = pst_heap_calloc(1, sizeof *model);
    if (model == NULL)
        return pst_fail_memory(err, "a model", sizeof *model);
    pthread_mutex_init(&model->lock, NULL);
    int status;
    PST_TRY_GOTO(fail, pst_store_locate(model_name, cache, &model->folder, err));
    PST_TRY_GOTO(fail, read_transformer(model, err));
    PST_TRY_GOTO(fail, pst_store_open(model->folder, &model->store, err));
    pst_transformer *t = &model->transformer;
    if (!t->tied_stated && pst_store_find(model->store, "lm_head.weight") == NULL)
        t->tied_head = true; /* config.json does not say, and there is no other head */
    PST_TRY_GOTO(fail, pst_program_create(t, model->store, &model->program, err));
    *out = model;
    return 0;
fail:
    pst_model_close(model);
    return status;
}

void pst_model_close(pst_model *model)
{
    if (model == NULL)
        return;
    pst_tokenizer_close(model->tokenizer);
    pst_chat_template_close(model->chat);
    pst_program_destroy(model->program);
    pst_store_close(model->store);
    pst_transformer_destroy(&model->transformer);
    pst_heap_free(model->folder);
    pthread_mutex_destroy(&model->lock);
    pst_heap_free(model);
}

void pst_model_get_info(const pst_model *model, pst_model_info *out)
{
    const pst_transformer *t = &model->transformer;
    *out = (pst_model_info){.path = model->folder,
                            .family = t->family->name,
                            .parameters = model->program->parameters,
                            .weight_bytes = model->program->weight_bytes,
                            .layers = t->layers,
                            .hidden = t->hidden,
                            .heads = t->heads,
                            .kv_heads = t->kv_heads,
                            .head_dim = t->head_dim,
                            .intermediate = t->intermediate,
                            .vocab = t->vocab,
                            .context = t->context,
                            .weight_type = model->program->weight_type,
                            .end_ids = t->end_ids,
                            .end_count = t->end_count,
                            .do_sample = t->do_sample,
                            .temperature = t->temperature,
                            .top_p = t->top_p,
                            .min_p = t->min_p,
                            .top_k = t->top_k};
}

/* A file that a tokenizer or a chat template may consist of, by its place in a source. */
typedef struct text_file {
    const char *name;
    size_t member;
} text_file;

static const text_file tokenizer_files[] = {
    {"tokenizer.json", offsetof(pst_tokenizer_source, tokenizer_json)},
    {"vocab.json", offsetof(pst_tokenizer_source, vocab_json)},
    {"merges.txt", offsetof(pst_tokenizer_source, merges_txt)},
    {"tokenizer_config.json", offsetof(pst_tokenizer_source, tokenizer_config_json)},
    {"special_tokens_map.json", offsetof(pst_tokenizer_source, special_tokens_map_json)},
    {"added_tokens.json", offsetof(pst_tokenizer_source, added_tokens_json)},
};

static const text_file chat_files[] = {
    {"chat_template.jinja", offsetof(pst_chat_source, chat_template_jinja)},
    {"additional_chat_templates/tool_use.jinja", offsetof(pst_chat_source, tool_use_jinja)},
    {"tokenizer_config.json", offsetof(pst_chat_source, tokenizer_config_json)},
    {"chat_template.json", offsetof(pst_chat_source, chat_template_json)},
    {"special_tokens_map.json", offsetof(pst_chat_source, special_tokens_map_json)},
};
enum {
    TOKENIZER_FILES = sizeof tokenizer_files / sizeof tokenizer_files[0],
    CHAT_FILES = sizeof chat_files / sizeof chat_files[0],
    MOST_FILES = TOKENIZER_FILES
};

/* Paths and contents of the files that are there, which free_files frees. */
typedef struct text_files {
    char *paths[MOST_FILES], *texts[MOST_FILES];
} text_files;

static void free_files(text_files *files)
{
    for (size_t i = 0; i < MOST_FILES; i++) {
        pst_heap_free(files->paths[i]);
        pst_heap_free(files->texts[i]);
    }
    pst_memory_trim(); /* a large vocabulary's JSON is gone: its memory shall not count in a session's plan */
}

/* Reads them and notes them in the source, where their members say. */
static int read_files(const char *folder, const text_file *list, size_t count, text_files *files, void *source,
                      pst_error *err)
{
    for (size_t i = 0; i < count; i++) {
        size_t bytes = 0;
        PST_TRY(read_file(folder, list[i].name, false, MAX_TOKENIZER_BYTES, &files->paths[i], &files->texts[i], &bytes,
                          err));
        if (files->texts[i] == NULL)
            continue;
        pst_text_file *file = (pst_text_file *)((char *)source + list[i].member);
        *file = (pst_text_file){.path = files->paths[i], .bytes = files->texts[i], .count = bytes};
    }
    return 0;
}

int pst_tokenizer_open(const char *folder, pst_tokenizer **out, pst_error *err)
{
    pst_tokenizer_source source = {0};
    text_files files = {0};
    int status = read_files(folder, tokenizer_files, TOKENIZER_FILES, &files, &source, err);
    if (status >= 0 && source.tokenizer_json.bytes == NULL &&
        (source.vocab_json.bytes == NULL || source.merges_txt.bytes == NULL))
        status = pst_fail(err, -ENOENT, folder,
                          "no tokenizer: neither tokenizer.json nor vocab.json with merges.txt is there");
    if (status >= 0)
        status = pst_tokenizer_parse(&source, out, err);
    free_files(&files);
    return status;
}

int pst_chat_template_open(const char *folder, pst_chat_template **out, pst_error *err)
{
    pst_chat_source source = {0};
    pst_chat_template *made = NULL;
    text_files files = {0};
    int status = read_files(folder, chat_files, CHAT_FILES, &files, &source, err);
    if (status >= 0)
        status = pst_chat_template_parse(&source, &made, err);
    if (status >= 0 && made == NULL)
        status = pst_fail(err, -ENOENT, folder,
                          "no chat template: no chat_template.jinja, and none in tokenizer_config.json");
    if (status >= 0)
        *out = made;
    free_files(&files);
    return status;
}

int pst_model_tokenizer(pst_model *model, const pst_tokenizer **out, pst_error *err)
{
    pthread_mutex_lock(&model->lock);
    int status = model->tokenizer ? 0 : pst_tokenizer_open(model->folder, &model->tokenizer, err);
    if (status >= 0)
        *out = model->tokenizer;
    pthread_mutex_unlock(&model->lock);
    return status;
}

int pst_model_chat_template(pst_model *model, const pst_chat_template **out, pst_error *err)
{
    pthread_mutex_lock(&model->lock);
    int status = model->chat ? 0 : pst_chat_template_open(model->folder, &model->chat, err);
    if (status >= 0)
        *out = model->chat;
    pthread_mutex_unlock(&model->lock);
    return status;
}
