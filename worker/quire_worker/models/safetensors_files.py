"""The files of a checkpoint folder: `model.safetensors`, or shards with `model.safetensors.index.json`. No torch.

Headers are read and checked first, so that a wrong folder fails within a moment, before torch is imported or gigabytes are read.
The format is a little-endian uint64 header size, a JSON header, then the tensors' bytes: https://huggingface.co/docs/safetensors.

Must not know models: names and shapes are the caller's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from quire_worker.errors import LoadError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000
ITEM_SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
"""Bytes of one element, by the format's name of its type."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies."""

    name: str
    path: Path
    type_name: str
    """A key of ITEM_SIZES."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""
    size_bytes: int


class _Header(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_entries(model_dir: Path) -> dict[str, TensorEntry]:
    """All tensors of a folder, by name. Raises LoadError naming the file that is missing, corrupt or of another format, and the fix."""
    index = model_dir / INDEX_NAME
    if index.is_file():
        return _entries_of_shards(model_dir, index)
    single = model_dir / SINGLE_NAME
    if single.is_file():
        return _entries_of_file(single)
    raise _no_weights(model_dir)


def _no_weights(model_dir: Path) -> LoadError:
    others = sorted(path.name for path in model_dir.glob("*.safetensors"))
    if others:
        return LoadError(
            f"{model_dir} has {', '.join(others[:3])} but neither {SINGLE_NAME} nor {INDEX_NAME}: "
            "download the index file, or rename a single file to model.safetensors"
        )
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in model_dir.glob(pattern))
    if pickled:
        return LoadError(
            f"{model_dir} has weights only as {', '.join(pickled[:3])}, which can run code when read: convert them to safetensors "
            "(transformers: model.save_pretrained(folder))"
        )
    return LoadError(f"{model_dir} has no weights: neither {SINGLE_NAME} nor {INDEX_NAME} is there")


def _entries_of_shards(model_dir: Path, index: Path) -> dict[str, TensorEntry]:
    weight_map = _weight_map(index)
    file_names = sorted(set(weight_map.values()))
    for file_name in file_names:
        # The index comes with the checkpoint and is not trusted: a shard is a file of that folder.
        if Path(file_name).name != file_name or file_name in (".", ".."):
            raise LoadError(f"{index} names the shard {file_name!r}, which is not a plain file name in {model_dir}")
    missing = [name for name in file_names if not (model_dir / name).is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise LoadError(
            f"{model_dir} lacks {len(missing)} of {len(file_names)} shards that {INDEX_NAME} lists: "
            f"{', '.join(missing[:5])}{more}; download them again"
        )
    found: dict[str, TensorEntry] = {}
    for file_name in file_names:
        found |= _entries_of_file(model_dir / file_name)
    entries = {}
    for name, file_name in weight_map.items():
        entry = found.get(name)
        if entry is None or entry.path.name != file_name:
            raise LoadError(
                f"{model_dir / file_name} lacks the tensor {name} that {INDEX_NAME} places there: "
                "index and shards are of different downloads; download the folder again"
            )
        entries[name] = entry
    return entries


def _weight_map(index: Path) -> dict[str, str]:
    class Index(msgspec.Struct):
        weight_map: dict[str, str]

    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=Index).weight_map
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LoadError(f"{index} is corrupt ({error}): download it again") from error
    if not weight_map:
        raise LoadError(f"{index} lists no tensors: download it again")
    return weight_map


def _entries_of_file(path: Path) -> dict[str, TensorEntry]:
    file_size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_size = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= header_size <= min(_MAX_HEADER_BYTES, file_size - 8):
            raise corrupt(path, f"its header cannot be {header_size} bytes in a file of {file_size}")
        header = file.read(header_size)
    try:
        raw: dict[str, Any] = msgspec.json.decode(header, type=dict[str, Any])
        raw.pop("__metadata__", None)
        headers = msgspec.convert(raw, dict[str, _Header])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise corrupt(path, f"its header is not readable: {error}") from error
    data_start = 8 + header_size
    entries = {name: _entry(path, name, tensor, data_start) for name, tensor in headers.items()}
    end = max((entry.offset + entry.size_bytes for entry in entries.values()), default=data_start)
    if end != file_size:
        raise corrupt(path, f"it has {file_size} bytes where its header says {end}")
    return entries


def _entry(path: Path, name: str, tensor: _Header, data_start: int) -> TensorEntry:
    item_size = ITEM_SIZES.get(tensor.dtype)
    if item_size is None:
        raise LoadError(f"{path}: the tensor {name} has the type {tensor.dtype}, which is not supported")
    begin, end = tensor.data_offsets
    num_elements = 1
    for size in tensor.shape:
        num_elements *= size
    if begin < 0 or min(tensor.shape, default=0) < 0 or end - begin != num_elements * item_size:
        raise corrupt(path, f"{name} {tensor.shape} of type {tensor.dtype} cannot be {end - begin} bytes")
    return TensorEntry(
        name=name,
        path=path,
        type_name=tensor.dtype,
        shape=tuple(tensor.shape),
        offset=data_start + begin,
        size_bytes=end - begin,
    )


def corrupt(path: Path, why: str) -> LoadError:
    return LoadError(f"{path} is corrupt or cut short ({why}): download it again")
