pst_test(test_safetensors SOURCES ${PST_TEST_DIR}/test_safetensors.c LABELS unit)
pst_test(test_store SOURCES ${PST_TEST_DIR}/test_store.c LABELS unit)
pst_test(test_safetensors_write SOURCES ${PST_TEST_DIR}/test_safetensors_write.c LABELS unit)
pst_test(test_image SOURCES ${PST_TEST_DIR}/test_image.c LABELS unit)
pst_test(test_manifest SOURCES ${PST_TEST_DIR}/test_manifest.c ${PROJECT_SOURCE_DIR}/tests/unit/io/io_test.c LABELS unit)
pst_test(test_torch_walk SOURCES ${PST_TEST_DIR}/test_torch_walk.c LABELS unit)

# Not a test by itself: tests/peers runs it.
add_executable(image_write ${PST_TEST_DIR}/image_write.c)
target_include_directories(image_write PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
target_compile_definitions(image_write PRIVATE _GNU_SOURCE)
target_compile_options(image_write PRIVATE ${PST_WARNINGS} -Wno-missing-prototypes)
target_link_libraries(image_write PRIVATE penstock_static PkgConfig::CMOCKA PkgConfig::JANSSON)
