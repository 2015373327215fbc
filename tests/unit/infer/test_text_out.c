/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stop texts: for random texts and stops, what is shown piece by piece is the decoded text up to the first stop, and never a
 * byte of a stop text or half a character.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "infer/text_out.h"
#include "support/random.h"

#define TOKENIZER PST_TEST_SOURCE_DIR "/tests/reference/tokenizers/llama3"

static const pst_tokenizer *open_tokenizer(pst_tokenizer **tokenizer)
{
    pst_error err;
    if (pst_tokenizer_open(TOKENIZER, tokenizer, &err) < 0)
        fail_msg("%s: %s", err.path, err.message);
    return *tokenizer;
}

/* Pushes the ids; returns the shown text (malloc'ed) and whether it stopped. */
static char *show(const pst_tokenizer *tokenizer, const pst_tokens *ids, const char *const *stops, size_t stop_count,
                  int *stopped)
{
    pst_text_out out;
    assert_int_equal(pst_text_out_open(&out, tokenizer, stops, stop_count, NULL), 0);
    char *shown = calloc(1, 100000);
    const char *fresh;
    size_t bytes;
    *stopped = 0;
    for (size_t i = 0; i < ids->count && !*stopped; i++) {
        *stopped = pst_text_out_push(&out, ids->ids[i], &fresh, &bytes, NULL);
        assert_in_range(*stopped, 0, 1);
        strncat(shown, fresh, bytes);
        assert_true(bytes == 0 || ((unsigned char)fresh[0] & 0xc0) != 0x80); /* starts on a character */
    }
    if (!*stopped) {
        *stopped = pst_text_out_finish(&out, &fresh, &bytes, NULL);
        strncat(shown, fresh, bytes);
    }
    assert_string_equal(shown, out.text);
    pst_text_out_close(&out);
    return shown;
}

static void test_stops(void **state)
{
    (void)state;
    random_start("text_out");
    static const char *const letters[] = {"a", "b", "ab", " ", "ü", "日", "🚰", "\n"};
    pst_tokenizer *tokenizer;
    open_tokenizer(&tokenizer);
    for (int round = 0; round < 3000; round++) {
        char text[1000] = "", stop_text[2][64] = {"", ""};
        for (uint64_t i = random_below(60); i > 0; i--)
            strcat(text, letters[random_below(8)]);
        for (int s = 0; s < 2; s++)
            for (uint64_t i = 1 + random_below(4); i > 0; i--)
                strcat(stop_text[s], letters[random_below(8)]);
        const char *const stops[] = {stop_text[0], stop_text[1]};
        size_t stop_count = random_below(3);
        const char *first = NULL;
        for (size_t s = 0; s < stop_count; s++) {
            const char *found = strstr(text, stops[s]);
            if (found != NULL && (first == NULL || found < first))
                first = found;
        }
        pst_tokens ids;
        assert_int_equal(pst_tokenizer_encode(tokenizer, text, strlen(text), false, &ids, NULL), 0);
        int stopped;
        char *shown = show(tokenizer, &ids, stops, stop_count, &stopped);
        /* A stop is looked for after each token, so of two overlapping stops the one that is complete first counts; the text
         * then ends before it and so at or after the leftmost one's beginning only when that one is complete later. */
        assert_int_equal(stopped, first != NULL);
        if (first == NULL)
            assert_string_equal(shown, text);
        else
            assert_memory_equal(shown, text, strlen(shown));
        for (size_t s = 0; s < stop_count; s++)
            assert_null(strstr(shown, stops[s]));
        free(shown);
        pst_tokens_free(&ids);
    }
    pst_tokenizer_close(tokenizer);
}

static void test_no_tokenizer(void **state)
{
    (void)state;
    pst_text_out out;
    const char *fresh;
    size_t bytes;
    assert_int_equal(pst_text_out_open(&out, NULL, NULL, 0, NULL), 0);
    assert_int_equal(pst_text_out_push(&out, 5, &fresh, &bytes, NULL), 0);
    assert_int_equal(bytes, 0);
    assert_int_equal(pst_text_out_finish(&out, &fresh, &bytes, NULL), 0);
    pst_text_out_close(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stops), cmocka_unit_test(test_no_tokenizer)};
    return cmocka_run_group_tests_name("text_out", tests, NULL, NULL);
}
