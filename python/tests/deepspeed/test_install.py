# SPDX-License-Identifier: Apache-2.0
"""install(), uninstall(), the environment variable, the .pth file, and python -m penstock.deepspeed: on a package that
looks like DeepSpeed where it matters, and on DeepSpeed itself where it is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interpreters import PYTHON, run_python

pytest.importorskip("torch")

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")

BUILDER = """
import sys
class OpBuilder:
    _loaded_ops = {}
    def load(self):
        if self.NAME in OpBuilder._loaded_ops:
            return OpBuilder._loaded_ops[self.NAME]
        raise RuntimeError("would compile " + self.NAME)
"""
ASYNC_IO = """
from .builder import OpBuilder
class AsyncIOBuilder(OpBuilder):
    NAME = "async_io"
    def is_compatible(self, verbose=False):
        return False
class GDSBuilder(AsyncIOBuilder):
    NAME = "gds"
"""
COMPATIBLE = {
    "at once": "__compatible_ops__ = {'async_io': False, 'other': False}\n",
    "when asked": """
def _probe_compatible_ops():
    return {'async_io': False, 'other': False}
def __getattr__(name):
    if name == "__compatible_ops__":
        globals()["__compatible_ops__"] = _probe_compatible_ops()
        return globals()["__compatible_ops__"]
    raise AttributeError(name)
""",
}
CHECK = """
def check(ours):
    import sys
    import deepspeed.ops
    from deepspeed.ops.op_builder.async_io import AsyncIOBuilder, GDSBuilder
    assert deepspeed.ops.__compatible_ops__ == {"async_io": ours, "other": False}
    assert AsyncIOBuilder().is_compatible() == ours
    if ours:
        module = AsyncIOBuilder().load()
        import penstock.deepspeed
        assert module.aio_handle is penstock.deepspeed.aio_handle
        assert module.aio_read and module.aio_write and module.deepspeed_memcpy
        assert GDSBuilder().load().gds_handle is penstock.deepspeed.gds_handle
        pin = sys._deepspeed_pin_memory_op_module
        assert not hasattr(pin, "__file__") and pin.pin_handle is penstock.deepspeed.pin_handle
    else:
        try:
            AsyncIOBuilder().load()
        except RuntimeError:
            pass
        else:
            assert False
        assert not hasattr(sys, "_deepspeed_pin_memory_op_module")
"""


@pytest.fixture(params=list(COMPATIBLE))
def imitation(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a package deepspeed, and a module with check()."""
    builders = tmp_path / "deepspeed" / "ops" / "op_builder"
    builders.mkdir(parents=True)
    (tmp_path / "deepspeed" / "__init__.py").write_text("from . import ops\n")
    (builders.parent / "__init__.py").write_text("from . import op_builder\n" + COMPATIBLE[request.param])
    (builders / "__init__.py").write_text("from .async_io import AsyncIOBuilder\n")
    (builders / "builder.py").write_text(BUILDER)
    (builders / "async_io.py").write_text(ASYNC_IO)
    (tmp_path / "checks.py").write_text(CHECK)
    return tmp_path


def run(imitation: Path, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = [str(imitation), *filter(None, [os.environ.get("PYTHONPATH")])]
    return run_python(code, *arguments, PYTHONPATH=os.pathsep.join([str(PYTHON), *paths]), **environment)


def test_before_it_is_imported(imitation: Path) -> None:
    run(
        imitation,
        """
import sys, penstock.deepspeed
penstock.deepspeed.install()
assert "deepspeed" not in sys.modules and "torch" not in sys.modules
from checks import check
check(True)
""",
    )


@pytest.mark.parametrize(
    "first", ["deepspeed", "deepspeed.ops.op_builder.builder", "deepspeed.ops; deepspeed.ops.__compatible_ops__"]
)
def test_after_it_is_imported(imitation: Path, first: str) -> None:
    run(
        imitation,
        f"""
import {first}
import penstock.deepspeed
penstock.deepspeed.install()
from checks import check
check(True)
""",
    )


@pytest.mark.parametrize("first", [True, False])
def test_uninstall(imitation: Path, first: bool) -> None:
    run(
        imitation,
        f"""
from checks import check
import penstock.deepspeed as ours
if {first}:
    check(False)
assert not ours.installed()
for _ in range(2):
    ours.install()
    ours.install()
    assert ours.installed()
    check(True)
    ours.uninstall()
    assert not ours.installed()
    import deepspeed
    deepspeed.ops.__dict__.pop("__compatible_ops__", None) if hasattr(deepspeed.ops, "_probe_compatible_ops") else None
    check(False)
ours.uninstall()
""",
    )


@pytest.mark.parametrize("value", [None, "0", "", "1"])
def test_environment_variable(imitation: Path, value: str | None) -> None:
    """As the .pth file has it. Nothing is imported before DeepSpeed is, and it reaches subprocesses."""
    lines = [line for line in (PYTHON / "penstock_deepspeed.pth").read_text().splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("import ")
    code = f"""
import sys
exec({lines[0]!r})
for name in ("penstock", "deepspeed", "torch", "ctypes", "importlib.util"):
    assert name not in sys.modules, name
from checks import check
check({value == "1"})
"""
    os.environ.pop("PENSTOCK_DEEPSPEED", None)
    run(imitation, code, **({} if value is None else {"PENSTOCK_DEEPSPEED": value}))


def test_pth_file_in_a_site(imitation: Path) -> None:
    """Processed at the start of the interpreter, in a child of forkserver's too."""
    folder = imitation / "site"
    folder.mkdir()
    (folder / "penstock_deepspeed.pth").write_text((PYTHON / "penstock_deepspeed.pth").read_text())
    (imitation / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(folder)!r})\n")
    (imitation / "job.py").write_text(
        """
import multiprocessing
from checks import check
if __name__ == "__main__":
    for method in ("forkserver", "spawn"):
        process = multiprocessing.get_context(method).Process(target=check, args=(True,))
        process.start()
        process.join(100)
        assert process.exitcode == 0
"""
    )
    code = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, sys.argv[1]]).returncode)"
    run(imitation, code, str(imitation / "job.py"), PENSTOCK_DEEPSPEED="1")


def test_pth_line_costs_nothing_when_unset() -> None:
    line = (PYTHON / "penstock_deepspeed.pth").read_text()
    code = compile(line, "pth", "exec")
    os.environ.pop("PENSTOCK_DEEPSPEED", None)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        exec(code)
        times.append(time.perf_counter() - started)
    assert sorted(times)[10] < 0.001


def test_a_broken_library_is_told_and_not_raised(imitation: Path) -> None:
    done = run(
        imitation,
        "import penstock_deepspeed_hook\nfrom checks import check\ncheck(False)\n",
        PENSTOCK_DEEPSPEED="1",
        PENSTOCK_LIBRARY=str(imitation / "missing.so"),
    )
    assert "keeps its own operators" in done.stderr and "missing.so" in done.stderr


def test_run_a_script(imitation: Path) -> None:
    (imitation / "job").mkdir()
    script = imitation / "job" / "script.py"
    script.write_text(
        """
import os, sys
from checks import check
check(True)
import beside
assert __name__ == "__main__" and os.environ["PENSTOCK_DEEPSPEED"] == "1"
print(sys.argv)
"""
    )
    (imitation / "job" / "beside.py").write_text("")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PYTHON), str(imitation), os.environ.get("PYTHONPATH", "")]),
    }

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "penstock.deepspeed", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=script.parent)

    done = start(str(script), "--a", "b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([str(script), "--a", "b"])
    done = start("-m", "script", "--a")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([str(script), "--a"])
    done = start()
    assert done.returncode == 2 and "usage" in done.stderr
    assert start("--help").returncode == 0


@needs_deepspeed
@pytest.mark.parametrize("late", [True, False])
def test_stock_deepspeed(tmp_path: Path, late: bool) -> None:
    code = f"""
import sys
late = {late}
if late:
    import deepspeed
import penstock.deepspeed as ours
ours.install()
import deepspeed, torch
from deepspeed.ops.op_builder import AsyncIOBuilder, GDSBuilder, PinMemoryBuilder
from deepspeed.ops.aio import AsyncIOBuilder as Same
assert AsyncIOBuilder().load().aio_handle is ours.aio_handle
assert Same().load().aio_handle is ours.aio_handle
assert PinMemoryBuilder().load().pin_handle is ours.pin_handle
assert AsyncIOBuilder().is_compatible()
assert deepspeed.ops.__compatible_ops__["async_io"]
handle = AsyncIOBuilder().load().aio_handle(1024, 2, True, True, 2)
data = torch.arange(10_000, dtype=torch.int32)
assert handle.sync_pwrite(data, sys.argv[1]) == 1
assert handle.sync_pread(torch.zeros_like(data), sys.argv[1]) == 1
# Its own owner of pinned memory, on ours.
from deepspeed.utils.pin_memory import get_native_pinned_memory
pins = get_native_pinned_memory()
tensor = pins.pin(data)
assert torch.equal(tensor, data) and handle.is_pinned(tensor) and pins.is_pinned(tensor)
assert pins.unpin(tensor) is True
other = pins.pin(data)
view = other[5:]
del other
import gc; gc.collect()
assert torch.equal(view, data[5:]) and handle.is_pinned(view)
del view
gc.collect()
assert not pins._ranges
"""
    run_python(code, str(tmp_path / "file"), DS_ACCELERATOR="cpu")
