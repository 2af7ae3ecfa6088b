"""Which tensors a model wants from its checkpoint, and where each goes.

The model's parts declare slots while it is built; `load` then checks names and shapes against the headers, and streams the tensors
into their slots in the order of the files. So reads are sequential, no part needs to know files, and a wrong checkpoint fails
before anything large is read.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quire_worker.errors import LoadError
from quire_worker.models.safetensors_reader import Checkpoint

FLOAT_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
FP8_TYPES = frozenset({"F8_E4M3"})
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class _Slot:
    shapes: tuple[tuple[int, ...], ...]
    accept: Callable[[Tensor], None]
    types: frozenset[str]
    is_optional: bool


class WeightSlots:
    """Slots by the tensor's name in the checkpoint."""

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}
        self._ignored_suffixes: list[str] = []

    def declare(
        self,
        name: str,
        shape: tuple[int, ...],
        accept: Callable[[Tensor], None],
        *,
        other_shapes: tuple[tuple[int, ...], ...] = (),
        types: frozenset[str] = FLOAT_TYPES,
        is_optional: bool = False,
    ) -> None:
        """`accept` is called once, with a CPU tensor of the checkpoint's dtype that it may keep; not at all if it is optional and absent.

        other_shapes: also right. types: as safetensors name them.
        """
        assert name not in self._slots, f"{name} declared twice"
        self._slots[name] = _Slot(shapes=(shape, *other_shapes), accept=accept, types=types, is_optional=is_optional)

    def ignore(self, suffix: str) -> None:
        """Tensors whose names end so are of no use here and may be present."""
        self._ignored_suffixes.append(suffix)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor that must be there, by name."""
        return {name: slot.shapes[0] for name, slot in self._slots.items() if not slot.is_optional}

    def load(self, checkpoint: Checkpoint, source: str) -> None:
        """Fill every slot. Raises LoadError naming tensors that are missing, unexpected or of the wrong shape; `source` is the folder."""
        self._check_names(checkpoint, source)
        self._check_shapes(checkpoint)
        for name, tensor in checkpoint.stream(self._slots.keys() & checkpoint.entries.keys()):
            self._slots[name].accept(tensor)

    def _check_names(self, checkpoint: Checkpoint, source: str) -> None:
        missing = [
            name for name, slot in self._slots.items() if name not in checkpoint.entries and not slot.is_optional
        ]
        if missing:
            raise LoadError(f"{source} lacks {_listed(missing)} that config.json calls for: are both of one model?")
        unexpected = [
            name
            for name in checkpoint.entries
            if name not in self._slots and not any(name.endswith(suffix) for suffix in self._ignored_suffixes)
        ]
        if unexpected:
            raise LoadError(
                f"{source} has {_listed(unexpected)} that the architecture in config.json has no use for: "
                "are both of one model?"
            )

    def _check_shapes(self, checkpoint: Checkpoint) -> None:
        for name, slot in self._slots.items():
            entry = checkpoint.entries.get(name)
            if entry is None:
                continue
            if entry.shape not in slot.shapes:
                raise LoadError(
                    f"{entry.path}: the tensor {name} has the shape {list(entry.shape)} where config.json calls for "
                    f"{' or '.join(str(list(shape)) for shape in slot.shapes)}"
                )
            if entry.type_name not in slot.types:
                raise LoadError(
                    f"{entry.path}: the tensor {name} is {entry.type_name}, which is not supported: "
                    "serve a checkpoint in float32, bfloat16 or float16, or one in FP8 whose quantization_config says so"
                )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    noun = "the tensor" if len(names) == 1 else f"{len(names)} tensors:"
    return f"{noun} {', '.join(names[:_SHOWN])}{more}"
