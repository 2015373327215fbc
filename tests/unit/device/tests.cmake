pst_test(unit_device_host SOURCES ${PST_TEST_DIR}/host.c ${PST_TEST_DIR}/../cpu/reference.c LABELS unit)
pst_test(unit_device_formats SOURCES ${PST_TEST_DIR}/formats.c ${PST_TEST_DIR}/../cpu/stored.c ${PST_TEST_DIR}/../cpu/reference.c LABELS unit)
pst_test(unit_device_choices SOURCES ${PST_TEST_DIR}/choices.c ${PST_TEST_DIR}/../cpu/reference.c LABELS unit)

# Plugins for the tests of the loader: one that is what the environment says, one that is none.
foreach(plugin fake no_symbol)
    add_library(test_plugin_${plugin} MODULE ${PST_TEST_DIR}/plugins/fake.c)
    target_include_directories(test_plugin_${plugin} PRIVATE ${PROJECT_SOURCE_DIR}/include)
    target_compile_options(test_plugin_${plugin} PRIVATE ${PST_WARNINGS})
endforeach()
target_compile_definitions(test_plugin_no_symbol PRIVATE FAKE_NO_SYMBOL)
# A folder of its own: plugins are looked for beside the program.
pst_test(unit_device_plugin SOURCES ${PST_TEST_DIR}/plugin.c LABELS unit)
set_target_properties(unit_device_plugin PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/device_plugin)
target_compile_definitions(unit_device_plugin PRIVATE PST_FAKE_PLUGIN="$<TARGET_FILE:test_plugin_fake>"
    PST_NO_SYMBOL_PLUGIN="$<TARGET_FILE:test_plugin_no_symbol>")
add_dependencies(unit_device_plugin test_plugin_fake test_plugin_no_symbol)
pst_test(unit_device_fault SOURCES ${PST_TEST_DIR}/fault.c ${PST_TEST_DIR}/../cpu/reference.c LABELS unit)
