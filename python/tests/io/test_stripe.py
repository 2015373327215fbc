# SPDX-License-Identifier: Apache-2.0
"""Stripe sets from Python."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from penstock.io import IO, Error, Read, StripeSet, UsageError


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"drive{i}" for i in range(3)]
    for folder in found:
        folder.mkdir()
    return found


def test_a_set(io: IO, folders: list[Path], rng: random.Random) -> None:
    data = rng.randbytes(1_000_003)
    with StripeSet.create(folders, stripe_bytes=65536) as stripes:
        assert stripes.members == 3 and stripes.stripe_bytes == 65536
        with stripes.open(io, "weights", "w") as file:
            assert file.write_from(data) == len(data)
            file.sync()
            assert file.size == len(data)
    assert sum((f / "weights").stat().st_size for f in folders) == len(data)
    assert (folders[1] / "weights").read_bytes()[:65536] == data[65536:131072]
    assert all(StripeSet.is_member(f) for f in folders) and not StripeSet.is_member(folders[0].parent)
    with StripeSet(folders) as stripes:
        file = stripes.open(io, "weights")
    buffers = [bytearray(70_000) for _ in range(10)]
    io.submit([Read(file, i * 90_001, b) for i, b in enumerate(buffers)]).result()
    assert buffers == [data[i * 90_001 : i * 90_001 + 70_000] for i in range(10)]
    assert file.read() == data
    file.close()


def test_members_that_do_not_fit_are_named(folders: list[Path], tmp_path: Path) -> None:
    StripeSet.create(folders).close()
    with pytest.raises(FileExistsError) as again:
        StripeSet.create(folders)
    assert any(str(f) in str(again.value) for f in folders)
    for wrong in (folders[::-1], folders[:2], [*folders[:2], tmp_path]):
        with pytest.raises(Error) as caught:
            StripeSet(wrong)
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(UsageError):
        StripeSet(str(folders[0]))
    with pytest.raises(ValueError):
        StripeSet.create([tmp_path], stripe_bytes=5)


def test_a_missing_part_and_removal(io: IO, folders: list[Path]) -> None:
    with StripeSet.create(folders) as stripes:
        stripes.open(io, "f", "w").close()
        (folders[2] / "f").unlink()
        with pytest.raises(FileNotFoundError) as caught:
            stripes.open(io, "f")
        assert str(folders[2]) in str(caught.value)
        stripes.remove("f")
        assert not any((f / "f").exists() for f in folders)
        with pytest.raises(UsageError, match="mode"):
            stripes.open(io, "f", "a")
    with pytest.raises(UsageError, match="closed"):
        stripes.open(io, "f")
