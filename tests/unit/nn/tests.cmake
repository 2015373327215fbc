pst_test(test_config SOURCES ${PST_TEST_DIR}/test_config.c LABELS unit)
pst_test(test_quantization SOURCES ${PST_TEST_DIR}/test_quantization.c LABELS unit)
