"""The tensors of a checkpoint folder: `model.safetensors`, or shards with `model.safetensors.index.json`.

Headers are read and checked first, so that a wrong folder fails before gigabytes are read; then tensors are streamed file by file in the
order they lie in, with plain large reads (memory maps are slow on network file systems). The format is a little-endian
uint64 header size, a JSON header, then the tensors' bytes: https://huggingface.co/docs/safetensors. Nothing is ever unpickled.

Must not know models: names and shapes are the caller's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import torch
from torch import Tensor

from quire_worker.errors import LoadError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""
    size_bytes: int


class _Header(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Checkpoint:
    """All tensors of a folder, by name."""

    def __init__(self, entries: dict[str, TensorEntry]) -> None:
        self.entries = entries

    def dtype(self) -> torch.dtype:
        """That of most of the bytes."""
        sizes: dict[torch.dtype, int] = {}
        for entry in self.entries.values():
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.size_bytes
        return max(sizes, key=lambda dtype: sizes[dtype])

    def stream(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Each named tensor in new CPU memory, in the order of the files. Raises LoadError when a file cannot be read to its end."""
        wanted = [entry for entry in self.entries.values() if entry.name in names]
        wanted.sort(key=lambda entry: (entry.path, entry.offset))
        paths = list(dict.fromkeys(entry.path for entry in wanted))
        for path in paths:
            with path.open("rb", buffering=0) as file:
                for entry in wanted:
                    if entry.path == path:
                        yield entry.name, _read_tensor(file, entry)


def open_checkpoint(model_dir: Path) -> Checkpoint:
    """Read all headers. Raises LoadError naming the file that is missing, corrupt or of another format, and the fix."""
    index = model_dir / INDEX_NAME
    if index.is_file():
        return Checkpoint(_entries_of_shards(model_dir, index))
    single = model_dir / SINGLE_NAME
    if single.is_file():
        return Checkpoint(_entries_of_file(single))
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
            raise _corrupt(path, f"its header cannot be {header_size} bytes in a file of {file_size}")
        header = file.read(header_size)
    try:
        raw: dict[str, Any] = msgspec.json.decode(header, type=dict[str, Any])
        raw.pop("__metadata__", None)
        headers = msgspec.convert(raw, dict[str, _Header])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _corrupt(path, f"its header is not readable: {error}") from error
    data_start = 8 + header_size
    entries = {name: _entry(path, name, tensor, data_start) for name, tensor in headers.items()}
    end = max((entry.offset + entry.size_bytes for entry in entries.values()), default=data_start)
    if end != file_size:
        raise _corrupt(path, f"it has {file_size} bytes where its header says {end}")
    return entries


def _entry(path: Path, name: str, tensor: _Header, data_start: int) -> TensorEntry:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise LoadError(f"{path}: the tensor {name} has the type {tensor.dtype}, which is not supported")
    begin, end = tensor.data_offsets
    num_elements = 1
    for size in tensor.shape:
        num_elements *= size
    if begin < 0 or min(tensor.shape, default=0) < 0 or end - begin != num_elements * dtype.itemsize:
        raise _corrupt(path, f"{name} {tensor.shape} of type {tensor.dtype} cannot be {end - begin} bytes")
    return TensorEntry(
        name=name,
        path=path,
        dtype=dtype,
        shape=tuple(tensor.shape),
        offset=data_start + begin,
        size_bytes=end - begin,
    )


def _corrupt(path: Path, why: str) -> LoadError:
    return LoadError(f"{path} is corrupt or cut short ({why}): download it again")


def _read_tensor(file: BinaryIO, entry: TensorEntry) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    if entry.size_bytes == 0:
        return tensor
    target: memoryview = tensor.view(-1).view(torch.uint8).numpy().data
    file.seek(entry.offset)
    done = 0
    while done < entry.size_bytes:
        count = file.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            raise _corrupt(entry.path, f"it ends inside {entry.name}")
        done += count
    return tensor
