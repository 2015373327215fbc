pst_test(test_io_cut SOURCES ${PST_TEST_DIR}/test_cut.c LABELS unit)
pst_test(test_io_random SOURCES ${PST_TEST_DIR}/test_random.c ${PST_TEST_DIR}/io_test.c LABELS unit TIMEOUT 300)
pst_test(test_io_order SOURCES ${PST_TEST_DIR}/test_order.c ${PST_TEST_DIR}/gate.c ${PST_TEST_DIR}/io_test.c
    LABELS unit)
pst_test(test_io_ops SOURCES ${PST_TEST_DIR}/test_ops.c ${PST_TEST_DIR}/ops_scene.c ${PST_TEST_DIR}/gate.c
    ${PST_TEST_DIR}/io_test.c LABELS unit)
pst_test(test_io_settings SOURCES ${PST_TEST_DIR}/test_settings.c ${PST_TEST_DIR}/ops_scene.c ${PST_TEST_DIR}/gate.c
    ${PST_TEST_DIR}/io_test.c LABELS unit)
pst_test(test_io_stress SOURCES ${PST_TEST_DIR}/test_stress.c ${PST_TEST_DIR}/io_test.c LABELS unit TIMEOUT 300)
pst_test(test_io_files SOURCES ${PST_TEST_DIR}/test_files.c ${PST_TEST_DIR}/io_test.c LABELS unit)
pst_test(test_io_faults SOURCES ${PST_TEST_DIR}/test_faults.c ${PST_TEST_DIR}/io_test.c LABELS fault TIMEOUT 300)
pst_test(test_io_pool SOURCES ${PST_TEST_DIR}/test_pool.c ${PST_TEST_DIR}/io_test.c LABELS unit)
pst_test(test_io_descriptors SOURCES ${PST_TEST_DIR}/test_descriptors.c ${PST_TEST_DIR}/io_test.c LABELS unit)
pst_test(test_io_stripe SOURCES ${PST_TEST_DIR}/test_stripe.c ${PST_TEST_DIR}/stripe_test.c ${PST_TEST_DIR}/io_test.c
    LABELS unit)
pst_test(test_io_stripe_random SOURCES ${PST_TEST_DIR}/test_stripe_random.c ${PST_TEST_DIR}/stripe_test.c
    ${PST_TEST_DIR}/io_test.c LABELS property)
pst_test(test_io_stripe_crash SOURCES ${PST_TEST_DIR}/test_stripe_crash.c ${PST_TEST_DIR}/io_test.c
    ${PROJECT_SOURCE_DIR}/tests/fault/crash_test.c LABELS fault TIMEOUT 300)
pst_test(test_io_engines SOURCES ${PST_TEST_DIR}/test_engines.c ${PST_TEST_DIR}/io_test.c LABELS unit)
pst_test(test_io_engine_list SOURCES ${PST_TEST_DIR}/test_engine_list.c ${PST_TEST_DIR}/io_test.c LABELS unit)
