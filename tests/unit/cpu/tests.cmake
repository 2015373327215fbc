pst_test(unit_cpu_rows SOURCES ${PST_TEST_DIR}/rows.c ${PST_TEST_DIR}/reference.c LABELS unit)
pst_test(unit_cpu_matmul SOURCES ${PST_TEST_DIR}/matmul.c ${PST_TEST_DIR}/reference.c LABELS unit)
pst_test(unit_cpu_attention SOURCES ${PST_TEST_DIR}/attention.c ${PST_TEST_DIR}/reference.c LABELS unit)
pst_test(unit_cpu_quantize SOURCES ${PST_TEST_DIR}/quantize.c ${PST_TEST_DIR}/stored.c ${PST_TEST_DIR}/reference.c LABELS unit)
