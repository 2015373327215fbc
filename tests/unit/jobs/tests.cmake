pst_test(test_synth SOURCES ${PST_TEST_DIR}/test_synth.c LABELS unit LIBRARIES m)
pst_test(test_inspect SOURCES ${PST_TEST_DIR}/test_inspect.c LABELS unit)
