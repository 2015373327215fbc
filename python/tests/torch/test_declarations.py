# SPDX-License-Identifier: Apache-2.0
"""The ctypes declarations of checkpoints against the C header; what the modules need to be imported."""

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
from penstock import _ckpt, _native
from penstock._torch_save import TORCH_NAMES

HEADERS = Path(__file__).resolve().parents[3] / "include" / "penstock"

STRUCTURES = {
    "pst_ckpt_tensor": _ckpt.TensorRecord,
    "pst_ckpt_pair": _ckpt.Pair,
    "pst_ckpt_ranks": _ckpt.Ranks,
    "pst_ckpt_options": _ckpt.Options,
    "pst_ckpt_report": _ckpt.ReportRecord,
    "pst_ckpt_open_options": _ckpt.OpenOptions,
    "pst_ckpt_tensor_info": _ckpt.TensorInfoRecord,
    "pst_ckpt_storage_info": _ckpt.StorageInfoRecord,
    "pst_ckpt_read_op": _ckpt.ReadOp,
    "pst_ckpt_value": _ckpt.ValueRecord,
    "pst_ckpt_commit_options": _ckpt.CommitOptions,
}
ENUMS = {
    "PST_CKPT": (_ckpt, "AUTO SAFETENSORS TORCH COPIED DURABLE NONE BOOL INT FLOAT COMPLEX TEXT BYTES BYTEARRAY LIST "
                 "TUPLE SET DICT TENSOR NAMED"),
}  # fmt: skip


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to ask for the layout")
@pytest.mark.skipif(not HEADERS.is_dir(), reason="no source checkout")
def test_structures_and_constants_are_those_of_the_header(tmp_path: Path) -> None:
    expected = []
    lines = ["#include <stdio.h>", "#include <stddef.h>", '#include "penstock/ckpt.h"', "int main(void) {"]
    for name, kind in STRUCTURES.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(kind)}")
        for field, *_ in kind._fields_:
            place = f"offsetof({name}, {field}), sizeof((({name} *)0)->{field})"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", {place});')
            expected.append(f"{name}.{field} {getattr(kind, field).offset} {getattr(kind, field).size}")
    for prefix, (module, names) in ENUMS.items():
        for name in names.split():
            lines.append(f'printf("{name} %d\\n", (int){prefix}_{name});')
            expected.append(f"{name} {getattr(module, name)}")
    for number, name in enumerate([*_ckpt.DTYPES, "DTYPE_COUNT"]):
        lines.append(f'printf("{name} %d\\n", (int)PST_{name});')
        expected.append(f"{name} {number}")
    source = tmp_path / "layout.c"
    source.write_text("\n".join([*lines, "return 0; }"]))
    program = tmp_path / "layout"
    subprocess.run(["cc", "-I", HEADERS.parent, source, "-o", program], check=True)
    found = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    assert found == expected


@pytest.mark.skipif(not HEADERS.is_dir(), reason="no source checkout")
def test_every_function_of_the_header_is_declared_with_as_many_arguments() -> None:
    text = re.sub(r"/\*.*?\*/", "", (HEADERS / "ckpt.h").read_text(), flags=re.S)
    declared = {
        function: arguments.count(",") + 1
        for function, arguments in re.findall(r"PST_API[^;()]*?\b(pst_\w+)\(([^;]*)\);", text)
    }
    assert len(declared) > 20
    assert {name: len(arguments) for name, (_, arguments) in _ckpt.FUNCTIONS.items()} == declared


def test_every_declared_function_is_in_the_library() -> None:
    missing = [name for name in _ckpt.FUNCTIONS if not _native.lib.has(name)]
    assert missing == []


def test_names_of_dtypes_are_the_library_s() -> None:
    for number, name in enumerate(_ckpt.DTYPES):
        assert _native.lib.pst_dtype_name(number).decode() == name
    assert set(TORCH_NAMES) <= set(_ckpt.DTYPES)


def test_importing_needs_neither_torch_nor_the_library(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch here')")
    variables = {**os.environ, "PENSTOCK_LIBRARY": str(tmp_path / "none")}
    variables["PYTHONPATH"] = f"{tmp_path}:{Path(penstock.__file__).parents[1]}"
    code = """
import penstock.torch
try:
    penstock.torch.save([1], "x.pt")
except ImportError as problem:
    print(problem)
"""
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, cwd=tmp_path)
    assert "penstock.torch needs PyTorch: there is no torch here" in done.stdout, done.stderr
