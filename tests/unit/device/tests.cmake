pst_test(unit_device_host SOURCES ${PST_TEST_DIR}/host.c ${PST_TEST_DIR}/../cpu/reference.c LABELS unit)
pst_test(unit_device_formats SOURCES ${PST_TEST_DIR}/formats.c ${PST_TEST_DIR}/../cpu/stored.c ${PST_TEST_DIR}/../cpu/reference.c LABELS unit)
pst_test(unit_device_choices SOURCES ${PST_TEST_DIR}/choices.c ${PST_TEST_DIR}/../cpu/reference.c LABELS unit)
