pst_test(test_config SOURCES ${PST_TEST_DIR}/test_config.c LABELS unit)
pst_test(test_quantization SOURCES ${PST_TEST_DIR}/test_quantization.c LABELS unit)
pst_test(unit_nn_route SOURCES ${PST_TEST_DIR}/test_route.c ${PST_TEST_DIR}/../cpu/reference.c LABELS unit)
pst_test(unit_nn_kv SOURCES ${PST_TEST_DIR}/test_kv.c ${PST_TEST_DIR}/../cpu/reference.c LABELS unit)
