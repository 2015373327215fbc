pst_test(test_os_thread SOURCES ${PST_TEST_DIR}/test_thread.c LABELS unit)
pst_test(test_os_memory SOURCES ${PST_TEST_DIR}/test_memory.c LABELS unit)
pst_test(test_os_file SOURCES ${PST_TEST_DIR}/test_file.c LABELS unit)
pst_test(test_os_arena SOURCES ${PST_TEST_DIR}/test_arena.c LABELS unit)
