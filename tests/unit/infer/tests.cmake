pst_test(test_sample SOURCES ${PST_TEST_DIR}/test_sample.c LABELS unit)
pst_test(test_text_out SOURCES ${PST_TEST_DIR}/test_text_out.c LABELS unit)
pst_test(test_session SOURCES ${PST_TEST_DIR}/test_session.c LABELS unit TIMEOUT 300)
pst_test(unit_infer_routing SOURCES ${PST_TEST_DIR}/test_routing.c LABELS unit)
