# SPDX-License-Identifier: Apache-2.0
# pst_module(NAME SOURCES ... [LIBRARIES ...]) declares one room of src/ as an object library; all of them make up
# libpenstock.so and the static library that the tests link (where hidden symbols are visible).
# pst_test(NAME SOURCES ... [LABELS ...] [TIMEOUT s]) declares one test program.

set(PST_WARNINGS -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef -Wpointer-arith
    -Wwrite-strings -Wno-missing-field-initializers)

function(pst_module name)
    cmake_parse_arguments(M "" "" "SOURCES;LIBRARIES" ${ARGN})
    add_library(pst_${name} OBJECT ${M_SOURCES})
    target_include_directories(pst_${name} PUBLIC ${PROJECT_SOURCE_DIR}/include PRIVATE ${PROJECT_SOURCE_DIR}/src)
    target_compile_definitions(pst_${name} PRIVATE _GNU_SOURCE PST_VERSION="${PROJECT_VERSION}")
    target_compile_options(pst_${name} PRIVATE ${PST_WARNINGS} -fvisibility=hidden)
    set_target_properties(pst_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    target_link_libraries(pst_${name} PUBLIC ${M_LIBRARIES})
    set_property(GLOBAL APPEND PROPERTY PST_MODULES pst_${name})
endfunction()

function(pst_test name)
    cmake_parse_arguments(T "" "TIMEOUT" "SOURCES;LABELS;LIBRARIES" ${ARGN})
    if(NOT T_TIMEOUT)
        set(T_TIMEOUT 120)
    endif()
    add_executable(${name} ${T_SOURCES})
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
    target_compile_definitions(${name} PRIVATE _GNU_SOURCE PST_TEST_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
        PST_TEST_BINARY_DIR="${PROJECT_BINARY_DIR}")
    target_compile_options(${name} PRIVATE ${PST_WARNINGS} -Wno-missing-prototypes)
    target_link_libraries(${name} PRIVATE penstock_static PkgConfig::CMOCKA ${T_LIBRARIES})
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${T_TIMEOUT} LABELS "${T_LABELS}")
endfunction()
