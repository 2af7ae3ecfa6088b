"""Checkpoints on disk: what is read, in which order, and what a person is told when a folder is not right."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from quire_worker.errors import LoadError
from quire_worker.models.safetensors_files import INDEX_NAME
from quire_worker.models.safetensors_reader import open_checkpoint
from quire_worker.models.weight_slots import WeightSlots

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.arange(6, dtype=torch.bfloat16),
    "c": torch.ones(2, 2, dtype=torch.float16),
    "empty": torch.ones(0, 4),
}


@pytest.fixture
def sharded(tmp_path):
    """Two shards and their index."""
    save_file({name: TENSORS[name] for name in ("a", "empty")}, tmp_path / "model-1.safetensors")
    save_file({name: TENSORS[name] for name in ("b", "c")}, tmp_path / "model-2.safetensors")
    weight_map = {
        "a": "model-1.safetensors",
        "empty": "model-1.safetensors",
        "b": "model-2.safetensors",
        "c": "model-2.safetensors",
    }
    write_index(tmp_path, weight_map)
    return tmp_path


def write_index(folder, weight_map):
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def message_of(folder):
    with pytest.raises(LoadError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def assert_reads_back(checkpoint):
    read = dict(checkpoint.stream(set(TENSORS)))
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_single_file_reads_back(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})

    assert_reads_back(open_checkpoint(tmp_path))


def test_shards_read_back(sharded):
    assert_reads_back(open_checkpoint(sharded))


def test_tensors_come_in_the_order_they_lie_in(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)

    names = [name for name, _ in checkpoint.stream(set(TENSORS))]

    assert names == sorted(names, key=lambda name: checkpoint.entries[name].offset)


def test_the_dtype_is_that_of_most_bytes(sharded):
    assert open_checkpoint(sharded).dtype() == torch.float32


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-2.safetensors").unlink()

    message = message_of(sharded)

    assert "model-2.safetensors" in message
    assert "1 of 2 shards" in message
    assert "download" in message


def test_a_cut_file_is_named_with_both_sizes(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])

    message = message_of(tmp_path)

    assert str(path) in message
    assert str(size) in message
    assert str(size - 5) in message
    assert "download it again" in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 9) + b"not json!",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 51) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}'[:51] + b"\0" * 8,
        struct.pack("<Q", 54) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}' + b"\0" * 8,
        struct.pack("<Q", 56) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[-8,8]}} ' + b"\0" * 8,
    ],
)
def test_a_corrupt_file_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)

    message = message_of(tmp_path)

    assert str(tmp_path / "model.safetensors") in message
    assert "corrupt" in message


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", ".."])
def test_an_index_may_not_point_out_of_the_folder(sharded, name):
    write_index(sharded, {"a": name})

    assert "plain file name" in message_of(sharded)


def test_an_index_that_disagrees_with_its_shards_is_told(sharded):
    write_index(sharded, {"a": "model-1.safetensors", "missing": "model-2.safetensors"})

    message = message_of(sharded)

    assert "missing" in message
    assert "model-2.safetensors" in message


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_named(sharded, text):
    (sharded / INDEX_NAME).write_text(text)

    assert INDEX_NAME in message_of(sharded)


def test_pickled_weights_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")

    message = message_of(tmp_path)

    assert "pytorch_model.bin" in message
    assert "convert them to safetensors" in message


def test_a_shard_without_an_index_and_an_empty_folder_are_told_apart(tmp_path):
    assert "no weights" in message_of(tmp_path)
    save_file(TENSORS, tmp_path / "model-00001-of-00002.safetensors")
    assert "download the index file" in message_of(tmp_path)


@pytest.fixture
def slots():
    """Slots for a and b that remember what they were given."""
    slots, given = WeightSlots(), {}
    slots.declare("a", (3, 4), lambda tensor: given.__setitem__("a", tensor))
    slots.declare("b", (6,), lambda tensor: given.__setitem__("b", tensor))
    slots.ignore("c")
    return slots, given


def load(slots, folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    slots.load(open_checkpoint(folder), str(folder))


def test_slots_get_their_tensors_and_nothing_else(tmp_path, slots):
    slots, given = slots

    load(slots, tmp_path, {name: TENSORS[name] for name in "abc"})

    assert given.keys() == {"a", "b"}
    assert torch.equal(given["a"], TENSORS["a"])


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a": torch.ones(3, 4)}, ["lacks", "b"]),
        ({"a": torch.ones(3, 4), "b": torch.ones(6), "d": torch.ones(1)}, ["has", "d", "no use"]),
        ({"a": torch.ones(4, 3), "b": torch.ones(6)}, ["a", "[4, 3]", "[3, 4]"]),
        ({"a": torch.ones(3, 4, dtype=torch.int8), "b": torch.ones(6)}, ["a", "I8", "bfloat16"]),
    ],
)
def test_missing_unexpected_and_misshapen_tensors_are_named_before_anything_is_read(tmp_path, slots, tensors, words):
    slots, given = slots

    with pytest.raises(LoadError) as caught:
        load(slots, tmp_path, tensors)

    assert all(word in str(caught.value) for word in words)
    assert not given
