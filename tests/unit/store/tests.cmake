pst_test(test_safetensors SOURCES ${PST_TEST_DIR}/test_safetensors.c LABELS unit)
pst_test(test_store SOURCES ${PST_TEST_DIR}/test_store.c LABELS unit)
pst_test(test_safetensors_write SOURCES ${PST_TEST_DIR}/test_safetensors_write.c LABELS unit)
pst_test(test_image SOURCES ${PST_TEST_DIR}/test_image.c LABELS unit)
