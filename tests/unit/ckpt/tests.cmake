pst_test(test_steps SOURCES ${PST_TEST_DIR}/test_steps.c ${PROJECT_SOURCE_DIR}/tests/unit/io/io_test.c
    ${PROJECT_SOURCE_DIR}/tests/fault/crash_test.c LABELS unit)
set(PST_CKPT_SCENE ${PROJECT_SOURCE_DIR}/tests/support/ckpt_scene.c ${PROJECT_SOURCE_DIR}/tests/unit/io/io_test.c)
pst_test(test_ckpt_save SOURCES ${PST_TEST_DIR}/test_save.c ${PST_CKPT_SCENE} LABELS unit TIMEOUT 300)
pst_test(test_background SOURCES ${PST_TEST_DIR}/test_background.c ${PROJECT_SOURCE_DIR}/tests/unit/io/io_test.c
    LABELS unit) # with jobs of its own in place of the library's
pst_test(test_slice SOURCES ${PST_TEST_DIR}/test_slice.c LABELS unit)
pst_test(test_load SOURCES ${PST_TEST_DIR}/test_load.c ${PROJECT_SOURCE_DIR}/tests/unit/io/io_test.c LABELS unit)
