# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save: what is found in them is what was saved; what is more than data is refused by its name."""

from __future__ import annotations

import collections
import io
import json
import random
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import penstock_cli
from torch_values import DTYPES, describe


def dump(files: list[Path]) -> list:
    """torch_dump's lines."""
    program = penstock_cli.find_program().parent / "tests" / "reference" / "torch_dump"
    done = subprocess.run([program, *files], capture_output=True, check=True, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines()]


class Maker:
    """Random nested values of all that torch.save writes as data."""

    def __init__(self, seed: int, protocol: int) -> None:
        self.random = random.Random(seed)
        self.protocol = protocol
        self.kept: list = []  # mutable ones, for a second place
        self.tensors: list[torch.Tensor] = []

    def text(self) -> str:
        """Any characters, lone surrogates too."""
        pools = ("abc.xyz_0", "\0\n\"'", "\u00e9\u20ac\U0001f600", "\ud800\udfff")
        count = self.random.choice((0, 1, 2, 5, 20, 300))
        return "".join(self.random.choice(self.random.choice(pools)) for _ in range(count))

    def integer(self) -> int:
        """Of any size, with the limits of each operation among them."""
        edge = 1 << self.random.choice((0, 7, 8, 15, 16, 31, 32, 62, 63, 64, 65, 127, 2040, 2041, 5000))
        return self.random.choice((-1, 1)) * edge + self.random.randint(-2, 2)

    def number(self) -> float:
        """Also those that are none."""
        choice = self.random.choice
        return choice((0.0, -0.0, 1.5, float("inf"), float("-inf"), float("nan"), 5e-324, self.random.random()))

    def raw(self) -> bytes:
        """Any bytes, of lengths around the limits of each operation."""
        return self.random.randbytes(self.random.choice((0, 1, 2, 30, 255, 256, 3000)))

    def scalar(self) -> object:
        """Something that can be a key."""
        make = self.random.choice((self.text, self.integer, self.number, self.raw, self.other))
        return make()

    def other(self) -> object:
        """The rest of what can be a key."""
        return self.random.choice(
            (
                None,
                True,
                False,
                complex(self.number(), self.number()),
                torch.float32,
                torch.bfloat16,
                torch.float8_e4m3fn,
                torch.quint8,
                torch.strided,
                torch.sparse_coo,
                # which torch itself cannot pickle in older protocols
                torch.channels_last if self.protocol >= 4 else None,
                torch.contiguous_format if self.protocol >= 4 else None,
                torch.per_tensor_affine,
                torch.device("cpu"),
                torch.device("cuda:1"),
                torch.device("meta"),
                torch.Size([2, 0, 70000]),
                torch.Size([]),
                (1, "two", (3.0, None)),
                (),
                frozenset([1, 2, "x"]),
                frozenset(),
            )
        )

    def tensor(self) -> torch.Tensor:
        """Of any type, often a view, sometimes of another one's storage."""
        if self.tensors and self.random.random() < 0.3:
            base = self.random.choice(self.tensors).detach()
        else:
            dtype = self.random.choice(list(DTYPES))
            shape = [self.random.choice((0, 1, 2, 3, 5)) for _ in range(self.random.randint(0, 4))]
            if dtype == torch.float4_e2m1fn_x2:
                shape = [*shape, 3]
            width = torch.empty((), dtype=dtype).element_size()
            count = 1
            for size in shape:
                count *= size
            raw = torch.tensor(list(self.random.randbytes(count * width)), dtype=torch.uint8)
            if dtype == torch.bool:
                raw %= 2
            base = raw.view(dtype).reshape(shape) if count > 0 else torch.empty(shape, dtype=dtype)
            self.tensors.append(base)
        for _ in range(self.random.randint(0, 2)):
            base = self.view(base)
        return self.dressed(base)

    def view(self, base: torch.Tensor) -> torch.Tensor:
        """Another view of the same storage."""
        last = 1 if base.dtype == torch.float4_e2m1fn_x2 else 0  # its last dimension stays
        way = self.random.randrange(6)
        if base.dim() > last and way == 0:
            return base[self.random.randint(0, base.shape[0]) :]
        if base.dim() > last and way == 1:
            return base[:: self.random.randint(1, 3)]
        if base.dim() >= 2 + last and way == 2:
            return base.transpose(0, 1)
        if way == 3 and base.dim() < 6:
            return base.unsqueeze(0).expand(self.random.randint(0, 3), *base.shape)
        if base.is_complex() and way == 4 and base.dtype != torch.complex32:
            return base.conj()
        return base

    def dressed(self, tensor: torch.Tensor) -> torch.Tensor:
        """With a gradient wanted, as a Parameter, with attributes: or not."""
        trains = tensor.dtype.is_floating_point or tensor.dtype.is_complex
        trains = trains and torch.empty(0, dtype=tensor.dtype).element_size() > 1
        way = self.random.randrange(6)
        if way == 0 and trains:
            tensor = tensor.detach().requires_grad_()
        if way == 1 and not tensor.is_conj():
            tensor = torch.nn.Parameter(tensor.detach(), requires_grad=trains and self.random.random() < 0.5)
        if self.random.random() < 0.1:
            tensor = tensor if isinstance(tensor, torch.nn.Parameter) else tensor.detach()
            tensor.mark = self.random.choice((1, "text", [1, 2]))
        self.tensors.append(tensor.detach())
        return tensor

    def value(self, depth: int) -> object:
        """Anything, nested at most so deep."""
        way = self.random.randrange(12 if depth > 0 else 4)
        if way < 3:
            return self.scalar()
        if way == 3:
            return self.kept_value(self.tensor())
        if way == 4 and self.kept:
            return self.random.choice(self.kept)
        items = [self.value(depth - 1) for _ in range(self.random.choice((0, 1, 2, 3, 4, 7)))]
        if way == 5:
            return tuple(items)
        if way == 6:
            return self.kept_value(set(self.scalar() for _ in items))
        if way == 7:
            return self.kept_value(bytearray(self.raw()))
        if way == 8:
            return collections.Counter(self.text() for _ in range(9))
        if way == 9:
            return self.kept_value(items)
        keyed = [(self.scalar(), item) for item in items]
        if way == 10:
            mapping = collections.OrderedDict(keyed)
            if self.random.random() < 0.5:
                mapping._metadata = collections.OrderedDict(version=1, of=self.value(0))
            return mapping
        return self.kept_value(dict(keyed))

    def kept_value(self, value: object) -> object:
        """Remembers it for a second place."""
        self.kept.append(value)
        return value


def optimized() -> dict:
    """A model's and an optimizer's state after a step, and a schedule's."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    model[2].weight.data = model[0].weight.data.t()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 8])
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    return {**states, "rng": torch.get_rng_state(), "epoch": 3, "best": float("inf")}


def test_a_training_state(tmp_path: Path) -> None:
    """The usual content of a checkpoint, of every protocol."""
    state = optimized()
    files = [tmp_path / f"{protocol}.pt" for protocol in range(2, 6)]
    for protocol, file in enumerate(files, 2):
        torch.save(state, file, pickle_protocol=protocol)
    for found in dump(files):
        assert found == describe(state)


def test_random_values(tmp_path: Path, seed: int) -> None:
    """600 random values in protocols 2 to 5."""
    files, wanted = [], []
    for i in range(600):
        protocol = 2 + i % 4
        value = Maker(seed + i, protocol).value(5)
        file = tmp_path / f"{seed + i}.pt"
        torch.save(value, file, pickle_protocol=protocol)
        files.append(file)
        wanted.append(describe(value))
    for file, found, value in zip(files, dump(files), wanted, strict=True):
        assert found == value, file


def unordered(found: object) -> object:
    """Sets by their content: one that was built again can have another order."""
    if isinstance(found, dict):
        return {key: unordered(value) for key, value in found.items()}
    if not isinstance(found, list):
        return found
    items = [unordered(item) for item in found]
    if items and items[0] in ("set", "frozenset") and isinstance(items[1], list):
        items[1] = sorted(items[1], key=json.dumps)
    return items


def loaded(file: Path) -> object:
    """What torch makes of a file; "" where it fails, as it does with complex32 that requires a gradient."""
    try:
        return unordered(describe(torch.load(file, weights_only=False)))
    except RuntimeError:
        return ""


def test_the_package_between(tmp_path: Path, seed: int) -> None:
    """Saved by torch and loaded by the package, saved by the package and loaded by torch: 200 random values."""
    ours = pytest.importorskip("penstock.torch")
    files, wanted = [], []
    for i in range(200):
        protocol = 2 + i % 4
        value = Maker(seed + 1000 + i, protocol).value(4)
        file, back = tmp_path / "stock.pt", tmp_path / f"{seed + 1000 + i}.pt"
        torch.save(value, file, pickle_protocol=protocol)
        described = unordered(describe(value))
        assert unordered(describe(ours.load(file))) == described, seed + 1000 + i
        if protocol > 2:  # what only newer protocols can hold
            continue
        ours.save(value, back)
        assert loaded(back) == loaded(file), back
        files.append(back)
        wanted.append(described)
    for file, found, value in zip(files, dump(files), wanted, strict=True):
        assert unordered(found) == value, file


def test_deep_nesting(tmp_path: Path) -> None:
    """Deeper than the C stack would bear, made by hand as Python cannot pickle it; one tensor at the bottom."""
    plain = tmp_path / "plain.pt"
    torch.save(torch.ones(1), plain)
    deep = tmp_path / "deep.pt"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(deep, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                count = 500_000
                content = b"\x80\x02" + b"]" * count + content[2:-1] + b"a" * count + b"."
            target.writestr(entry.filename, content)
    program = penstock_cli.find_program()
    done = subprocess.run([program, "inspect", deep, "--json"], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names = [tensor["name"] for tensor in json.loads(done.stdout)["tensors"]]
    assert names == [".".join("0" * 500_000)]


class Custom:
    """A class that nobody knows."""


def itself() -> list:
    """A list that holds itself."""
    loop: list = []
    loop.append(loop)
    return loop


REFUSED = [
    (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ({"x": Custom()}, "test_torch_files.Custom"),
    (__import__("os").system, ".system"),
    (eval, "builtins.eval"),
    (__import__("numpy").float64(3), "numpy"),
    (__import__("numpy").ones(3), "numpy"),
    (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "torch._utils._rebuild_qtensor"),
    (torch.ones(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    (torch.empty(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
    (collections.defaultdict(list), "collections.defaultdict"),
    (Path("x"), "pathlib"),
    (range(3), "range"),
    (torch.ones(2).untyped_storage(), "a storage that is not in a tensor"),
    (torch.Tensor, "torch.Tensor"),
    (itself(), "holds itself"),
    (torch.ones((1,) * 9), "9 dimensions"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda i: f"{i}-{REFUSED[i][1]}")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_refused_by_name(tmp_path: Path, number: int, protocol: int) -> None:
    """Anything but data."""
    value, name = REFUSED[number]
    file = tmp_path / "x.pt"
    torch.save(value, file, pickle_protocol=protocol)
    (found,) = dump([file])
    shown = name if protocol > 2 else name.replace("builtins", "__builtin__")
    assert isinstance(found, dict) and shown in found["error"] and str(file) in found["error"], found


def test_other_formats_are_named(tmp_path: Path) -> None:
    """The old format, TorchScript, other zip files."""
    old, script, other = tmp_path / "old.pt", tmp_path / "script.pt", tmp_path / "other.zip"
    torch.save({"a": torch.ones(1)}, old, _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(1, 1)).save(script)
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("readme/text", "hello")
    messages = [found["error"] for found in dump([old, script, other])]
    assert "before torch 1.6" in messages[0]
    assert "TorchScript" in messages[1]
    assert "no data.pkl" in messages[2]


def test_repacked(tmp_path: Path) -> None:
    """By Python's zipfile, with a comment: plain headers instead of torch's; compressed: refused."""
    value = optimized()
    buffer = io.BytesIO()
    torch.save(value, buffer)
    files = [tmp_path / "stored.pt", tmp_path / "deflated.pt"]
    for file, method in zip(files, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), strict=True):
        with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(file, "w", method) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
            target.comment = b"packed again"
    stored, deflated = dump(files)
    assert stored == describe(value)
    assert "is compressed, which is refused" in deflated["error"]
