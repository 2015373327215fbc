# SPDX-License-Identifier: Apache-2.0
foreach(name error heap json options stats)
    pst_test(unit_base_${name} SOURCES ${PST_TEST_DIR}/test_${name}.c LABELS unit LIBRARIES PkgConfig::JANSSON)
endforeach()
