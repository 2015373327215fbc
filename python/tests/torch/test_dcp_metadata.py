# SPDX-License-Identifier: Apache-2.0
"""Metadata of torch.distributed.checkpoint: what stock and we write is read to the same objects, and nothing that a
hostile file names is imported or called."""

from __future__ import annotations

import os
import pickle
import pickletools
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from penstock.errors import FormatError

torch = pytest.importorskip("torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from penstock import _dcp_metadata  # noqa: E402
from penstock.dcp import PenstockReader, PenstockWriter  # noqa: E402
from torch.distributed.checkpoint.metadata import (  # noqa: E402
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def state() -> dict[str, Any]:
    torch.manual_seed(1)
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    images = torch.randn(1, 3, 4, 4).to(memory_format=torch.channels_last)
    more = {"a list": [1, torch.ones(2)], "a tuple": (1, torch.ones(1)), "turned": torch.randn(4, 5).t()}
    small = {"none": torch.empty(0, 4), "half": torch.ones(2).bfloat16(), "step": 3, "é": torch.ones(1).bool()}
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "images": images, **more, **small}


def written(folder: Path, writer: Any, **settings: Any) -> Metadata:
    dcp.save(state(), storage_writer=writer(folder, **settings))
    return pickle.loads((folder / ".metadata").read_bytes())


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_what_is_written_is_read(tmp_path: Path, protocol: int) -> None:
    for number, (writer, settings) in enumerate(
        [(dcp.FileSystemWriter, {}), (PenstockWriter, {}), (PenstockWriter, {"format": "pt"})]
    ):
        expected = written(tmp_path / str(number), writer, **settings)
        expected.storage_meta.checkpoint_id = tmp_path  # stock takes paths of both kinds
        path = tmp_path / f"{number}.metadata"
        path.write_bytes(pickle.dumps(expected, protocol))
        found = _dcp_metadata.read(str(path))
        assert found == expected and found.planner_data == expected.planner_data
        assert all(found.storage_data[index] == where for index, where in expected.storage_data.items())
        assert [index.index for index in found.storage_data] == [index.index for index in expected.storage_data]
        assert type(found.storage_meta.checkpoint_id) is type(tmp_path)


def test_of_other_properties(tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    for format in (torch.contiguous_format, torch.channels_last, torch.preserve_format):
        properties = TensorProperties(torch.float8_e4m3fn, torch.sparse_coo, True, format, True)
        tensor = TensorStorageMetadata(properties, torch.Size([3]), [])
        path.write_bytes(pickle.dumps(Metadata({"x": tensor}, storage_data={})))
        assert _dcp_metadata.read(str(path)).state_dict_metadata == {"x": tensor}


class Calls:
    """Reduced to a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def refused(path: Path, data: bytes, why: str) -> None:
    path.write_bytes(data)
    with pytest.raises(FormatError, match=why) as raised:
        PenstockReader(path.parent).read_metadata()
    assert str(path) in str(raised.value)


def test_names_are_not_followed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ".metadata"
    refused(path, pickle.dumps(Calls(os.system, "echo executed")), r"it names posix\.system")
    refused(path, pickle.dumps(Calls(print, "executed"), 0), r"it names __builtin__\.print|it has the opcode")
    refused(path, pickle.dumps(Calls(getattr, 1, "real"), 2), r"it names \w+\.getattr")
    refused(path, b"\x80\x04\x8c\x05torch\x8c\x06onnx_x\x93.", r"it names torch\.onnx_x")
    refused(path, b"ctorch\nload\n.", r"it names torch\.load")
    refused(path, b"cantigravity\nflying\n(tR.", r"it names antigravity\.flying")
    assert "antigravity" not in sys.modules and "executed" not in capfd.readouterr().out
    # By way of what is allowed.
    size = b"\x80\x04\x8c\x05torch\x8c\x04Size\x93"
    refused(path, size + b".", "it names torch.Size as a value")
    refused(path, size + b"(\x8c\x01xtR.", "torch.Size that cannot be")
    refused(path, size + b"(]" + b"K\x01a" * 65 + b"tR.", "torch.Size that cannot be")
    refused(path, b"\x80\x04K\x01K\x02\x85R.", "it calls int")
    refused(path, b"\x80\x04K\x01}b.", "it sets the state of a int")
    refused(path, b"\x80\x04K\x01Q.", "it names a persistent object")
    refused(path, b"ctorch.serialization\n_get_layout\n(\x8c\x0atorch.loadtR.", "the layout torch.load")
    refused(path, pickle.dumps(MetadataIndex("x")), "it is a MetadataIndex")


def test_what_is_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    for data, why in (
        (b"", "exhausted"),
        (b".", "left over"),
        (b"(.", "left over"),
        (b"a.", "not there"),
        (b"u.", "not there"),
        (b"h\x05.", "not there"),
        (b"NN.", "left over"),
        (b"}]Ns.", "as a key"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.", ""),
        (b"\xff", ""),
        (b"I" + b"9" * 5000 + b"\n.", ""),
    ):
        refused(path, data, why)
    deep = b")" + b"\x85" * 500_000
    refused(path, b"}" + deep + b"Ns.", "tuples in tuples")
    refused(path, b"}K\x01" + deep + b"s.", "it is a dict")
    refused(path, b"}K\x01K\x01" + b"\x86\x94h\x00h\x00" * 40 + b"Ns.", "")


def test_what_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / ".metadata"

    def changed(change: Any, why: str) -> None:
        metadata = written(tmp_path, PenstockWriter)
        change(metadata)
        refused(path, pickle.dumps(metadata), why)

    def first(metadata: Metadata) -> Any:
        return next(iter(metadata.storage_data.values()))

    def tensor(metadata: Metadata) -> Any:
        return metadata.state_dict_metadata["model.weight"]

    for name in ("../elsewhere", "/etc/passwd", "", ".", "..", "a\0b", 7):
        changed(lambda metadata, name=name: setattr(first(metadata), "relative_path", name), "outside")
    changed(lambda metadata: setattr(first(metadata), "offset", -1), "offset")
    changed(lambda metadata: setattr(first(metadata), "length", 1.5), "length")
    changed(lambda metadata: setattr(first(metadata), "transform_descriptors", [1]), "transform_descriptors")
    changed(lambda metadata: setattr(first(metadata), "more", 1), "'more', which this torch does not have")
    changed(lambda metadata: setattr(tensor(metadata), "size", (4, 3)), "whose size")
    changed(lambda metadata: setattr(tensor(metadata), "chunks", [1]), "a int as a part")
    far = ChunkStorageMetadata(torch.Size([4, 0]), torch.Size([1, 3]))
    changed(lambda metadata: tensor(metadata).chunks.append(far), "outside of it")
    flat = ChunkStorageMetadata(torch.Size([0]), torch.Size([4]))
    changed(lambda metadata: tensor(metadata).chunks.append(flat), "other dimensions")
    changed(lambda metadata: setattr(tensor(metadata).properties, "dtype", "float32"), "whose dtype")
    changed(lambda metadata: metadata.state_dict_metadata.update(x=3), "'x' by a int")
    changed(lambda metadata: metadata.storage_data.update(x=first(metadata)), "where things lie")
    changed(lambda metadata: setattr(metadata, "storage_data", None), "whose storage_data")
    changed(lambda metadata: setattr(metadata, "version", 1), "whose version")
    changed(lambda metadata: setattr(metadata.storage_meta, "checkpoint_id", 5), "whose checkpoint_id")


def test_damaged(tmp_path: Path) -> None:
    """Nothing but FormatError, and what is read is whole. PST_TEST_SEED replays."""
    seed = int(os.environ.get("PST_TEST_SEED", random.randrange(2**32)))
    print(f"PST_TEST_SEED={seed}")
    chance = random.Random(seed)
    written(tmp_path, PenstockWriter)
    path = tmp_path / ".metadata"
    good = path.read_bytes()
    opcodes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    read = 0
    for _ in range(600):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(data))
            if chance.random() < 0.5:
                data[at : at + 1] = chance.choice(opcodes)
            else:
                data[at] = chance.randrange(256)
        path.write_bytes(bytes(data[: chance.choice([len(data), chance.randrange(len(data))])]))
        try:
            found = PenstockReader(tmp_path).read_metadata()
        except FormatError:
            continue
        read += 1
        assert type(found) is Metadata and isinstance(found.storage_data, dict)
    assert read < 600
