# SPDX-License-Identifier: Apache-2.0
pst_test(test_text_unicode SOURCES ${PST_TEST_DIR}/test_unicode.c LABELS unit)
pst_test(test_text_regex SOURCES ${PST_TEST_DIR}/test_regex.c LABELS unit)
pst_test(test_text_tokenizer SOURCES ${PST_TEST_DIR}/test_tokenizer.c LABELS unit)
pst_test(test_text_refusals SOURCES ${PST_TEST_DIR}/test_refusals.c LABELS unit)
pst_test(test_text_stream SOURCES ${PST_TEST_DIR}/test_stream.c LABELS "unit;property")
pst_test(test_text_allocation SOURCES ${PST_TEST_DIR}/test_allocation.c LABELS "unit;fault")
pst_test(test_reference_tokenizers SOURCES ${PST_TEST_DIR}/test_reference_tokenizers.c LABELS "unit;reference")
pst_test(test_text_chat_template SOURCES ${PST_TEST_DIR}/test_chat_template.c LABELS "unit;reference;fault")
