#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/reference/torch: small files of torch.save, each with what it holds as JSON (torch_values.py), and the
seeds of the fuzzers that read such files. `--check` makes all of it again and compares."""

from __future__ import annotations

import argparse
import collections
import json
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import torch
from torch_values import DTYPES, describe

HERE = Path(__file__).resolve().parent
SEEDS = HERE.parents[1] / "fuzz" / "seeds"
ZIP_SEEDS = ("tiny", "repacked", "wide")
WALK_SEEDS = ("tiny", "values_2", "values_4", "values_5", "views", "attributes")


def values() -> dict:
    """Every kind of plain value."""
    shared = [1, 2]
    return {
        "none": None,
        "bools": (True, False),
        "ints": [0, 1, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), 2**63, -(2**3000)],
        "floats": [0.0, -0.0, 1.5, 5e-324, float("inf"), float("-inf"), float("nan")],
        "complex": complex(-0.0, 1.5),
        "text": "a\0\u00e9\u20ac\U0001f600\ud800",
        "long": "x" * 300,
        "bytes": [b"", b"a", bytes(range(256)), b"y" * 300],
        "bytearray": [bytearray(), bytearray(b"\0\xff")],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "sets": [set(), {1}, frozenset(), frozenset((2,))],
        "dicts": [{}, {2: "int", None: "none", True: "", 2.5: "float", (1, "t"): "tuple", b"b": "bytes"}],
        "ordered": collections.OrderedDict(b=1, a=2),
        "counter": collections.Counter("abca"),
        "shared": [shared, shared],
        "torch": [
            torch.float32,
            torch.bfloat16,
            torch.float8_e5m2,
            torch.Size([2, 3]),
            torch.device("cuda", 1),
            torch.device("cpu"),
            torch.strided,
            torch.per_tensor_affine,
        ],
        "tensor": torch.arange(3, dtype=torch.int16),
    }


def dtypes() -> dict:
    """A tensor of every type."""
    raw = torch.arange(1, 97, dtype=torch.uint8)
    return {name: raw[: 48 if dtype != torch.bool else 1].view(dtype).clone() for dtype, name in DTYPES.items()}


def tied() -> collections.OrderedDict:
    """A state dict with tensors in one place: one object under two keys, two views of a storage, and one whose only row
    keeps the strides of the column that it was."""
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    return collections.OrderedDict(
        {
            "embed.weight": weight,
            "norm.weight": torch.ones(3),
            "head.weight": weight,
            "view.weight": weight.detach(),
            "row.weight": torch.arange(4, dtype=torch.float32)[:, None].t(),
        }
    )


def views() -> dict:
    """Tensors that share storages, and those with nothing or one thing in them."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    other = torch.arange(6, dtype=torch.int64)
    return {
        "base": base,
        "same object": base,
        "row": base[1],
        "columns": base[:, ::2],
        "transposed": base.t(),
        "expanded": other[2:3].expand(2, 3),
        "scalar": torch.tensor(7.5, dtype=torch.float64),
        "of base": base[3, 5],
        "empty": torch.empty(0),
        "empty of base": base[4:],
        "beyond": torch.empty(3, 0)[2:],
        "nested": [{"deep": (other, [other[1:]])}],
    }


def attributes() -> dict:
    """What tensors and dicts carry along."""
    model = torch.nn.Sequential(collections.OrderedDict(a=torch.nn.Linear(2, 3), b=torch.nn.BatchNorm1d(3)))
    for i, parameter in enumerate(model.parameters()):
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape) + i
    marked = torch.zeros(2)
    marked.mark = ["x", 1]
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.group = {"decay": 0.5}
    complex_ = torch.tensor([1 + 2j, 3 - 4j])
    return {
        "state": model.state_dict(),
        "parameters": list(model.parameters()),
        "frozen": torch.nn.Parameter(torch.zeros(1), requires_grad=False),
        "gradient": torch.zeros(1, requires_grad=True),
        "marked": marked,
        "parameter": parameter,
        "conjugate": complex_.conj(),
        "negative": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
    }


def training() -> dict:
    """A model, an optimizer after a step, a schedule."""
    model = torch.nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter.data = torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape)
        parameter.grad = torch.full(parameter.shape, 0.25)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 8])
    optimizer.step()
    schedule.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    return {**state, "schedule": schedule.state_dict(), "best": float("inf")}


def repack(source: Path, target: Path) -> None:
    """By another writer: plain headers, a comment, and one record with a ZIP64 header."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            entry = zipfile.ZipInfo(name.replace(source.stem, target.stem))
            with new.open(entry, "w", force_zip64=name.endswith("data/0")) as file:
                file.write(old.read(name))
        new.comment = b"packed again"


def widen(source: Path, target: Path) -> None:
    """ZIP64 fields for everything, as if all were larger than 4 GiB."""
    data, directory = b"", b""
    ones = 0xFFFFFFFF
    with zipfile.ZipFile(source) as old:
        for entry in old.namelist():
            name, content = entry.replace(source.stem, target.stem).encode(), old.read(entry)
            crc, count = zlib.crc32(content), len(content)
            wide = struct.pack("<HHQQ", 1, 16, count, count)
            head = struct.pack("<IHHHHHIIIHH", 0x04034B50, 45, 0, 0, 0, 0, crc, ones, ones, len(name), len(wide))
            widest = struct.pack("<HHQQQ", 1, 24, count, count, len(data))
            directory += (
                struct.pack(
                    "<IHHHHHHIIIHHHHHII",
                    0x02014B50,
                    45,
                    45,
                    0,
                    0,
                    0,
                    0,
                    crc,
                    ones,
                    ones,
                    len(name),
                    len(widest),
                    0,
                    0,
                    0,
                    0,
                    ones,
                )
                + name
                + widest
            )
            data += head + name + wide + content
        records = len(old.namelist())
    end = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, records, records, len(directory), len(data))
    end += struct.pack("<IIQI", 0x07064B50, 0, len(data) + len(directory), 1)
    end += struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, ones, ones, 0)
    target.write_bytes(data + directory + end)


def make(folder: Path, seeds: Path) -> None:
    """All files."""
    cases = {f"values_{protocol}": (values(), protocol) for protocol in range(2, 6)}
    cases |= {
        "tiny": ({"w": torch.ones(2), "step": 1}, 2),
        "dtypes": (dtypes(), 2),
        "views": (views(), 2),
        "tied": (tied(), 2),
        "attributes": (attributes(), 2),
        "attributes_4": (attributes(), 4),
        "training": (training(), 2),
        "alone": (torch.tensor([1, 2], dtype=torch.uint8), 2),
        "nothing": (None, 2),
    }
    for name, (value, protocol) in cases.items():
        file = folder / f"{name}.pt"
        torch.save(value, file, pickle_protocol=protocol)
        (folder / f"{name}.json").write_text(json.dumps(describe(value), separators=(",", ":")) + "\n")
    for name, pack in (("repacked", repack), ("wide", widen)):
        pack(folder / "tiny.pt", folder / f"{name}.pt")
        (folder / f"{name}.json").write_bytes((folder / "tiny.json").read_bytes())
        assert torch.load(folder / f"{name}.pt")["step"] == 1  # torch reads them, too
    for name in ZIP_SEEDS:
        target = seeds / "fuzz_torch_zip" / f"{name}.pt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((folder / f"{name}.pt").read_bytes())
    for name in WALK_SEEDS:
        target = seeds / "fuzz_torch_walk" / f"{name}.pkl"
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / f"{name}.pt") as file:
            target.write_bytes(file.read(f"{name}/data.pkl"))


def main() -> int:
    """Makes, or compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    warnings.simplefilter("ignore")
    if not check:
        (HERE / "torch").mkdir(exist_ok=True)
        make(HERE / "torch", SEEDS)
        return 0
    with tempfile.TemporaryDirectory() as temp:
        made, seeds = Path(temp) / "torch", Path(temp) / "seeds"
        made.mkdir()
        make(made, seeds)
        stored = {path.name: path for path in (HERE / "torch").iterdir()}
        for folder in ("fuzz_torch_zip", "fuzz_torch_walk"):
            stored |= {f"{folder}/{path.name}": path for path in (SEEDS / folder).iterdir()}
        again = {path.name: path for path in made.iterdir()}
        again |= {f"{path.parent.name}/{path.name}": path for path in seeds.glob("*/*")}
        different = [
            name
            for name in sorted(stored | again)
            if name not in stored or name not in again or stored[name].read_bytes() != again[name].read_bytes()
        ]
    if different:
        print("differs from what is stored: " + ", ".join(different), file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
