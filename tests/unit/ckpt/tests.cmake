pst_test(test_steps SOURCES ${PST_TEST_DIR}/test_steps.c ${PROJECT_SOURCE_DIR}/tests/unit/io/io_test.c
    ${PROJECT_SOURCE_DIR}/tests/fault/crash_test.c LABELS unit)
