/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A line of a batch job from hostile bytes: the first byte chooses the kind of job. Whatever the line is, its answer must be
 * one line of valid JSON; what is accepted must be requests that a session of the promised length holds.
 */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "jobs/batch_internal.h"
#include "store/json_scan.h"

enum { LIMIT = 64, VOCAB = 100 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_requests(const pst_batch *b, pst_batch_line *line)
{
    for (size_t i = 0; i < line->choices; i++) {
        if (b->options.kind == PST_BATCH_SCORE) {
            pst_score_request request;
            pst_batch_line_window(&b->rules, line, i, &request);
            if (request.count < 2 || request.count > LIMIT)
                abort();
            continue;
        }
        pst_request request;
        pst_batch_line_request(&b->rules, line, i, &request);
        if (request.prompt_count == 0 || request.prompt_count + request.max_new_tokens > LIMIT)
            abort();
        for (size_t j = 0; j < request.prompt_count; j++)
            if (request.prompt_ids[j] >= VOCAB)
                abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || memchr(data, '\n', size) != NULL) /* lines have none */
        return 0;
    static pst_result results[PST_BATCH_MAX_CHOICES];
    pst_batch b = {.model_name = "model"};
    b.options = (pst_batch_options){.kind = data[0] % 2 ? PST_BATCH_SCORE : PST_BATCH_GENERATE, .max_new_tokens = 16};
    b.rules = (pst_batch_rules){.options = &b.options, .info.vocab = VOCAB, .limit = LIMIT};
    pst_batch_raw raw = {
        .text = (const char *)data + 1, .bytes = size - 1, .hash = pst_hash(PST_HASH_START, data, size)};
    pst_batch_line line;
    pst_json_text answer = {0};
    pst_error err;
    if (pst_batch_line_read(&b.rules, &raw, &line, &err) >= 0) {
        if (line.error_code == NULL)
            check_requests(&b, &line);
        if (pst_batch_answer(&b, &line, results, &answer, &err) < 0)
            abort();
        if (memchr(answer.text, '\n', answer.bytes) != answer.text + answer.bytes - 1)
            abort();
        pst_scan scan = {.text = answer.text, .bytes = answer.bytes, .err = &err};
        if (pst_scan_utf8(&scan) < 0 || pst_scan_skip(&scan) < 0 || pst_scan_end(&scan) < 0)
            abort();
    }
    pst_json_text_free(&answer);
    pst_batch_line_free(&line);
    return 0;
}
