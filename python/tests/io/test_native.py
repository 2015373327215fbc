# SPDX-License-Identifier: Apache-2.0
"""The ctypes declarations against the C headers; how the library is found and checked."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import penstock
import pytest
from penstock import _native as native
from penstock import errors

REPOSITORY = Path(__file__).resolve().parents[3]
HEADERS = REPOSITORY / "include" / "penstock"

STRUCTURES = {
    "pst_error": native.ErrorRecord,
    "pst_io_options": native.IoOptions,
    "pst_io_engine_info": native.EngineInfo,
    "pst_io_segment": native.Segment,
    "pst_io_op": native.Op,
    "pst_io_stats": native.IoStats,
    "pst_io_latency": native.IoLatency,
    "pst_io_pool_options": native.PoolOptions,
    "pst_io_pool_stats": native.PoolStats,
    "pst_io_fault_options": native.FaultOptions,
    "pst_io_fault_counts": native.FaultCounts,
}
CONSTANTS = {
    "PST_IO_OPEN_WRITE": native.OPEN_WRITE,
    "PST_IO_OPEN_CREATE": native.OPEN_CREATE,
    "PST_IO_OPEN_TRUNCATE": native.OPEN_TRUNCATE,
    "PST_IO_OPEN_EXCLUSIVE": native.OPEN_EXCLUSIVE,
    "PST_IO_READ": native.READ,
    "PST_IO_WRITE": native.WRITE,
    "PST_IO_SYNC": native.SYNC,
    "PST_IO_TRUNCATE": native.TRUNCATE,
    "PST_IO_PREALLOCATE": native.PREALLOCATE,
    "PST_IO_ON": native.SWITCH_ON,
    "PST_IO_OFF": native.SWITCH_OFF,
    "PST_IO_FAULT_ERROR": native.FAULT_ERROR,
    "PST_IO_FAULT_SHORT": native.FAULT_SHORT,
    "PST_IO_FAULT_DELAY": native.FAULT_DELAY,
    "PST_IO_FAULT_REORDER": native.FAULT_REORDER,
    "PST_IO_FAULT_TORN": native.FAULT_TORN,
    "PST_LOG_WARNING": native.LOG_WARNING,
    "PST_LOG_DEBUG": native.LOG_DEBUG,
    "PST_E_FORMAT": errors.E_FORMAT,
    "PST_E_UNSUPPORTED": errors.E_UNSUPPORTED,
    "PST_E_BUDGET": errors.E_BUDGET,
    "PST_E_USAGE": errors.E_USAGE,
    "PST_E_SHORT": errors.E_SHORT,
    "PST_E_CANCELLED": errors.E_CANCELLED,
}


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to ask for the layout")
@pytest.mark.skipif(not HEADERS.is_dir(), reason="no source checkout")
def test_structures_and_constants_are_those_of_the_headers(tmp_path: Path) -> None:
    expected = []
    lines = ["#include <stdio.h>", "#include <stddef.h>"]
    lines += [f'#include "penstock/{name}.h"' for name in ("io", "io_fault", "io_pool", "io_stripe", "log")]
    lines.append("int main(void) {")
    for name, kind in STRUCTURES.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(kind)}")
        for field, *_ in kind._fields_:
            place = f"offsetof({name}, {field}), sizeof((({name} *)0)->{field})"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", {place});')
            expected.append(f"{name}.{field} {getattr(kind, field).offset} {getattr(kind, field).size}")
    for name, value in CONSTANTS.items():
        lines.append(f'printf("{name} %d\\n", (int){name});')
        expected.append(f"{name} {value}")
    source = tmp_path / "layout.c"
    source.write_text("\n".join([*lines, "return 0; }"]))
    program = tmp_path / "layout"
    subprocess.run(["cc", "-I", HEADERS.parent, source, "-o", program], check=True)
    found = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    assert found == expected


@pytest.mark.skipif(not HEADERS.is_dir(), reason="no source checkout")
def test_every_function_of_the_headers_is_declared_with_as_many_arguments() -> None:
    declared = {}
    for name in ("io", "io_pool", "io_stripe", "io_fault"):
        text = re.sub(r"/\*.*?\*/", "", (HEADERS / f"{name}.h").read_text(), flags=re.S)
        for function, arguments in re.findall(r"PST_API[^;()]*?\b(pst_\w+)\(([^;]*)\);", text):
            declared[function] = 0 if arguments.strip() == "void" else arguments.count(",") + 1
    assert len(declared) > 40
    for function, count in declared.items():
        assert function in native.FUNCTIONS, f"{function} is not declared"
        assert len(native.FUNCTIONS[function][1]) == count, function


def test_every_declared_function_is_in_the_library() -> None:
    missing = [name for name in native.FUNCTIONS if not native.lib.has(name)]
    assert missing == []


def test_version_is_the_library_s() -> None:
    assert native.lib.pst_version().decode() == penstock.__version__


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(Path(penstock.__file__).parents[1]), **environment}
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60)


OPEN = "import penstock.io; print(penstock.io.IO().engine)"


def test_the_environment_names_the_library(tmp_path: Path) -> None:
    there = run_python(OPEN, PENSTOCK_LIBRARY=native.lib.path)
    assert there.returncode == 0 and there.stdout.strip(), there.stderr
    missing = run_python(OPEN, PENSTOCK_LIBRARY=str(tmp_path / "libnone.so"))
    assert missing.returncode != 0
    assert "LibraryError" in missing.stderr and "libnone.so" in missing.stderr


def test_importing_needs_no_library(tmp_path: Path) -> None:
    result = run_python("import penstock.io; print(penstock.__version__)", PENSTOCK_LIBRARY=str(tmp_path / "none"))
    assert result.stdout.strip() == penstock.__version__, result.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a wrong library")
@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ('const char *pst_version(void) { return "0.0.7"; }', "is version 0.0.7, the Python package is version"),
        ("int nothing;", "is not the library of penstock"),
    ],
)
def test_a_library_of_another_version_is_refused(tmp_path: Path, source: str, complaint: str) -> None:
    (tmp_path / "other.c").write_text(source)
    library = tmp_path / "libother.so"
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "other.c", "-o", library], check=True)
    result = run_python(OPEN, PENSTOCK_LIBRARY=str(library))
    assert result.returncode != 0 and complaint in result.stderr, result.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make an old library")
def test_a_missing_function_is_named_when_it_is_used(tmp_path: Path) -> None:
    version = f'const char *pst_version(void) {{ return "{penstock.__version__}"; }}'
    (tmp_path / "old.c").write_text(version)
    library = tmp_path / "libold.so"
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "old.c", "-o", library], check=True)
    result = run_python("from penstock._native import lib; lib.load(); lib.pst_io_open", PENSTOCK_LIBRARY=str(library))
    assert result.returncode != 0 and "libold.so is too old: it has no pst_io_open" in result.stderr


@pytest.mark.skipif(not HEADERS.is_dir(), reason="no source checkout")
def test_versions_of_the_package_and_of_the_project_agree() -> None:
    project = re.search(r"project\(penstock VERSION ([0-9.]+)", (REPOSITORY / "CMakeLists.txt").read_text())
    assert project is not None and project[1] == penstock.__version__
