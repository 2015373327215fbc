/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text from a model larger than memory, through the C library.
 *
 *     cc generate.c -o generate $(pkg-config --cflags --libs penstock)
 *     ./generate FOLDER "Once upon a time" [MEMORY_BYTES]
 *
 * A model is opened without its weights. A session is planned once, for a memory budget and the longest text, and then
 * serves any number of requests. Every function returns 0 or more, or a negative code with the error record filled.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <penstock/model.h>

enum { NEW_TOKENS = 64 };

static int print_text(void *user, size_t request, uint32_t id, const char *text, size_t text_bytes)
{
    (void)user, (void)request, (void)id;
    /* Whole characters only, so each piece can be shown at once. Nonzero would stop the run. */
    return fwrite(text, 1, text_bytes, stdout) != text_bytes || fflush(stdout) != 0;
}

static int run(const char *folder, const char *prompt, uint64_t memory_bytes, pst_error *err)
{
    pst_model *model = NULL;
    pst_session *session = NULL;
    const pst_tokenizer *tokenizer;
    pst_tokens tokens = {0};
    pst_result result = {0};
    pst_run_stats stats;

    int status = pst_model_open(folder, NULL, &model, err);
    if (status >= 0)
        status = pst_model_tokenizer(model, &tokenizer, err);
    if (status >= 0)
        status = pst_tokenizer_encode(tokenizer, prompt, strlen(prompt), true, &tokens, err);
    if (status >= 0) {
        pst_session_options options = {.struct_size = sizeof options,
                                       .host_memory_bytes = memory_bytes, /* 0: a share of what is free */
                                       .max_tokens = (uint32_t)tokens.count + NEW_TOKENS,
                                       .measure_bound = true};
        status = pst_session_open(model, &options, &session, err);
    }
    if (status >= 0) {
        pst_request request = {.prompt_ids = tokens.ids,
                               .prompt_count = tokens.count,
                               .max_new_tokens = NEW_TOKENS,
                               .sampling = {.temperature = 0, .top_p = 1}};
        status = pst_generate(session, &request, 1, print_text, NULL, &result, &stats, err);
    }
    if (status >= 0)
        printf("\n[%zu tokens, %.1f tokens/s, %.0f %% of the bound]\n", result.ids.count, stats.tokens_per_second,
               stats.share_of_bound * 100);

    pst_result_free(&result);
    pst_tokens_free(&tokens);
    pst_session_close(session);
    pst_model_close(model);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: %s FOLDER PROMPT [MEMORY_BYTES]\n", argv[0]);
        return 2;
    }
    pst_error err;
    if (run(argv[1], argv[2], argc > 3 ? strtoull(argv[3], NULL, 10) : 0, &err) < 0) {
        fprintf(stderr, "%s%s%s\n", err.path, err.path[0] ? ": " : "", err.message);
        return 1;
    }
    return 0;
}
