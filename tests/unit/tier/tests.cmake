pst_test(test_layout SOURCES ${PST_TEST_DIR}/test_layout.c ${PST_TEST_DIR}/random_stages.c LABELS unit)
pst_test(test_plan SOURCES ${PST_TEST_DIR}/test_plan.c ${PST_TEST_DIR}/random_stages.c LABELS unit)
pst_test(test_ring SOURCES ${PST_TEST_DIR}/test_ring.c ${PST_TEST_DIR}/random_stages.c LABELS unit)
pst_test(test_units SOURCES ${PST_TEST_DIR}/test_units.c ${PST_TEST_DIR}/random_stages.c LABELS unit)
