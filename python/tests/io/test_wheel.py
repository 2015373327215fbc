# SPDX-License-Identifier: Apache-2.0
"""The wheel, as its users get it: built, put into a fresh environment without a compiler, used.

Takes half a minute or more (deselect it with -m "not slow"), and needs a compiler and an index with the build's
requirements.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
BUNDLED = ("uring", "aio", "jansson", "pcre2", "utf8proc", "xxhash")

USE = """
import os, shutil, sys
assert shutil.which("cc") is None and shutil.which("gcc") is None and shutil.which("cmake") is None
from penstock import __version__, _native
from penstock.io import IO, Read, engines
folder = sys.argv[1]
with IO() as io, io.open(os.path.join(folder, "f"), "w") as file:
    assert file.write_from(b"0123456789" * 1000) == 10_000
    buffers = [bytearray(10) for _ in range(100)]
    assert io.submit([Read(file, 100 * i + 3, b) for i, b in enumerate(buffers)]).result() == [10] * 100
    assert all(b == b"3456789012" for b in buffers)
assert any(engine.works for engine in engines())
site = os.path.dirname(os.path.dirname(_native.__file__))
libraries = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
print(_native.lib.path)
for name in sys.argv[2:]:
    used = [path for path in libraries if f"lib{name}" in os.path.basename(path)]
    assert len(used) == 1 and used[0].startswith(site), (name, used)
"""


@pytest.mark.slow
@pytest.mark.skipif(not (REPOSITORY / "pyproject.toml").is_file(), reason="no source checkout to build from")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler to build the wheel with")
def test_a_wheel_works_without_a_compiler(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("PENSTOCK_LIBRARY", "PYTHONPATH")}
    built = subprocess.run(
        [REPOSITORY / "scripts" / "build_wheel.sh", tmp_path / "dist"],
        env={**environment, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.startswith("penstock-") and "-py3-none-manylinux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"penstock/libpenstock.so.0", "penstock/bin/penstock", "penstock/py.typed", "penstock/io.py"} <= set(names)
    for library in BUNDLED:
        assert any(n.startswith(f"penstock.libs/lib{library}") for n in names), library
    assert not any("__pycache__" in n or n.endswith((".c", ".h", ".a")) for n in names)

    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    only = {**environment, "PATH": str(tmp_path / "venv" / "bin")}
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", wheel]
    subprocess.run(pip, check=True, env=only, cwd=tmp_path)
    used = subprocess.run(
        [python, "-c", USE, tmp_path, *BUNDLED], env=only, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert used.returncode == 0, used.stderr
    assert used.stdout.strip().startswith(str(tmp_path / "venv")), "the library beside the package is the one in use"

    program = tmp_path / "venv" / "bin" / "penstock"
    listed = subprocess.run(
        [program, "bench", "io", "--list-engines", "--json"], env=only, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    assert {"io_uring", "threads"} <= {engine["name"] for engine in json.loads(listed.stdout)["results"]}
    refused = subprocess.run([program, "inspect", tmp_path / "missing"], env=only, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.startswith("penstock: error: ")
