"""The tensors of a checkpoint folder, as torch tensors.

They are streamed file by file in the order they lie in, with plain large reads (memory maps are slow on network file systems).
Nothing is ever unpickled. Must not know models: names and shapes are the caller's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from quire_worker.models.safetensors_files import TensorEntry, corrupt, read_entries

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


class Checkpoint:
    """All tensors of a folder, by name."""

    def __init__(self, entries: dict[str, TensorEntry]) -> None:
        self.entries = entries

    @property
    def size_bytes(self) -> int:
        """Of all tensors, in the files."""
        return sum(entry.size_bytes for entry in self.entries.values())

    def dtype(self) -> torch.dtype:
        """That of most of the bytes."""
        sizes: dict[torch.dtype, int] = {}
        for entry in self.entries.values():
            dtype = _DTYPES[entry.type_name]
            sizes[dtype] = sizes.get(dtype, 0) + entry.size_bytes
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
    """Read all headers. Raises LoadError as read_entries does."""
    return Checkpoint(read_entries(model_dir))


def _read_tensor(file: BinaryIO, entry: TensorEntry) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=_DTYPES[entry.type_name])
    if entry.size_bytes == 0:
        return tensor
    target: memoryview = tensor.view(-1).view(torch.uint8).numpy().data
    file.seek(entry.offset)
    done = 0
    while done < entry.size_bytes:
        count = file.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            raise corrupt(entry.path, f"it ends inside {entry.name}")
        done += count
    return tensor
