/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PCRE2 with compiled code where the machine allows it. Every match is bounded in steps and memory, so that no pattern
 * can hang or exhaust the process: it fails with an error instead.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>

#include "base/error.h"
#include "base/heap.h"

enum { MATCH_STEPS = 100 * 1000 * 1000, MATCH_HEAP_KIB = 512 * 1024, DEPTH_LIMIT = 50 * 1000 * 1000 };

struct pst_regex {
    pcre2_general_context *memory;
    pcre2_code *code;
};

struct pst_regex_scratch {
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_match_data *data;
};

static void *allocate(PCRE2_SIZE bytes, void *unused)
{
    (void)unused;
    return pst_heap_alloc(bytes);
}

static void release(void *memory, void *unused)
{
    (void)unused;
    pst_heap_free(memory);
}

void pst_regex_close(pst_regex *regex)
{
    if (regex == NULL)
        return;
    pcre2_code_free(regex->code);
    pcre2_general_context_free(regex->memory);
    pst_heap_free(regex);
}

static int compile(pst_regex *regex, const pst_bytes *pattern, const char *path, pst_error *err)
{
    regex->memory = pcre2_general_context_create(allocate, release, NULL);
    pcre2_compile_context *context = regex->memory ? pcre2_compile_context_create(regex->memory) : NULL;
    if (context == NULL)
        return pst_fail_memory(err, "a pattern", pattern->count);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code;
    PCRE2_SIZE offset;
    regex->code = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->count, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE,
                                &code, &offset, context);
    pcre2_compile_context_free(context);
    if (regex->code == NULL) {
        if (code == PCRE2_ERROR_HEAP_FAILED)
            return pst_fail_memory(err, "a pattern", pattern->count);
        unsigned char reason[128] = "";
        pcre2_get_error_message(code, reason, sizeof reason);
        char quoted[PST_QUOTE_BYTES];
        return pst_fail(err, PST_E_UNSUPPORTED, path, "the pattern \"%s\" cannot be used: %s",
                        pst_text_quote(pattern->data, pattern->count, quoted), (char *)reason);
    }
    /* Where compiling to machine code fails (no memory that is writable and executable), the interpreter does it. */
    pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE);
    return 0;
}

int pst_regex_open(const char *pattern, size_t bytes, pst_regex **out, const char *path, pst_error *err)
{
    pst_bytes translated = {0};
    pst_regex *regex = pst_heap_calloc(1, sizeof *regex);
    int status = regex ? 0 : pst_fail_memory(err, "a pattern", sizeof *regex);
    if (status == 0)
        status = pst_regex_translate(pattern, bytes, &translated, path, err);
    if (status == 0)
        status = compile(regex, &translated, path, err);
    pst_bytes_free(&translated);
    if (status < 0) {
        pst_regex_close(regex);
        return status;
    }
    *out = regex;
    return 0;
}

void pst_regex_scratch_close(pst_regex_scratch *scratch)
{
    if (scratch == NULL)
        return;
    pcre2_match_data_free(scratch->data);
    pcre2_match_context_free(scratch->limits);
    pcre2_general_context_free(scratch->memory);
    pst_heap_free(scratch);
}

int pst_regex_scratch_open(pst_regex_scratch **out, pst_error *err)
{
    pst_regex_scratch *scratch = pst_heap_calloc(1, sizeof *scratch);
    if (scratch == NULL)
        return pst_fail_memory(err, "matching", sizeof *scratch);
    scratch->memory = pcre2_general_context_create(allocate, release, NULL);
    if (scratch->memory != NULL) {
        scratch->limits = pcre2_match_context_create(scratch->memory);
        scratch->data = pcre2_match_data_create(1, scratch->memory);
    }
    if (scratch->limits == NULL || scratch->data == NULL) {
        pst_regex_scratch_close(scratch);
        return pst_fail_memory(err, "matching", sizeof *scratch);
    }
    pcre2_set_match_limit(scratch->limits, MATCH_STEPS);
    pcre2_set_depth_limit(scratch->limits, DEPTH_LIMIT);
    pcre2_set_heap_limit(scratch->limits, MATCH_HEAP_KIB);
    *out = scratch;
    return 0;
}

int pst_regex_find(const pst_regex *regex, pst_regex_scratch *scratch, const char *text, size_t bytes, size_t from,
                   size_t *start, size_t *end, pst_error *err)
{
    int found =
        pcre2_match(regex->code, (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK, scratch->data, scratch->limits);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) /* compiled code has a small stack, the interpreter the heap */
        found = pcre2_match(regex->code, (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                            scratch->data, scratch->limits);
    if (found == PCRE2_ERROR_NOMATCH)
        return 0;
    if (found == PCRE2_ERROR_NOMEMORY)
        return pst_fail_memory(err, "matching", bytes);
    if (found < 0) {
        unsigned char reason[128] = "";
        pcre2_get_error_message(found, reason, sizeof reason);
        return pst_fail(err, PST_E_UNSUPPORTED, NULL, "the tokenizer's pattern is too costly for this text: %s",
                        (char *)reason);
    }
    const PCRE2_SIZE *place = pcre2_get_ovector_pointer(scratch->data);
    *start = place[0];
    *end = place[1];
    return 1;
}
