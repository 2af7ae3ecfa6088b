"""Launch parameters of the Triton kernels: a committed table (launch_configs.json), so nothing is tuned while serving. Knows no tensors.

    kernel -> shape class -> device kind -> parameters

A shape class is what the best parameters depend on and a launcher knows without looking at the device: head dim and element size for
attention (`d128_e2`), `all` for kernels that stream over rows. A device kind is `h100`, `h200`, ..., or `any`, which every class has and
which serves where a kind has no entry of its own. `make gpu-tune` measures and writes the table.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

AttentionOp = Literal["prefill", "decode"]
Params = Mapping[str, int]
Table = dict[str, dict[str, dict[str, dict[str, int]]]]

TABLE_PATH = Path(__file__).with_suffix(".json")
ANY_DEVICE = "any"
ALL_SHAPES = "all"
DECODE_SPLIT_LEN = 256
"""Keys of one split of the decode kernel. The same whatever the batch, so a row's sums are always in the same order."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Of one attention kernel, for one head dim and element size."""

    block_m: int
    """Packed rows (queries times heads of a group) of one program; the decode kernel raises it to the group's size."""
    block_n: int
    """Keys of one tile at most: whole blocks, or part of one."""
    num_warps: int
    num_stages: int


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """Of a kernel that streams over rows of numbers."""

    block: int
    num_warps: int


@cache
def attention_config(op: AttentionOp, head_dim: int, element_bytes: int) -> AttentionConfig:
    """The entry for a head dim of at most 256. Raises ValueError where the table has none."""
    return AttentionConfig(**launch_params(op, attention_class(head_dim, element_bytes)))


@cache
def row_config(op: str) -> RowConfig:
    """The entry of a streaming kernel."""
    return RowConfig(**launch_params(op))


@cache
def launch_params(kernel: str, shape_class: str = ALL_SHAPES, device_kind: str | None = None) -> Params:
    """The entry of any kernel; its keys are the kernel's own. None: for this machine's device.

    Raises ValueError where the table has no such kernel or class.
    """
    by_device = _table.get(kernel, {}).get(shape_class)
    if by_device is None:
        raise ValueError(
            f"no launch parameters for {kernel} of class {shape_class}: add an entry to {TABLE_PATH.name}, then `make gpu-tune`"
        )
    kind = this_device_kind() if device_kind is None else device_kind
    return by_device.get(kind) or by_device[ANY_DEVICE]


def attention_class(head_dim: int, element_bytes: int) -> str:
    """The shape class of an attention kernel: the head dim rounded up to a power of two, and the size of a cached element."""
    return f"d{max(32, 1 << (head_dim - 1).bit_length())}_e{element_bytes}"


def attention_configs(device_kind: str = ANY_DEVICE) -> dict[tuple[AttentionOp, int, int], AttentionConfig]:
    """Every entry (op, padded head dim, bytes per element), as a device of that kind gets it; for tests and tuning."""
    ops: tuple[AttentionOp, ...] = ("prefill", "decode")
    found = {}
    for op in ops:
        for shape_class in _table[op]:
            head_dim, element_bytes = (int(part[1:]) for part in shape_class.split("_"))
            found[op, head_dim, element_bytes] = AttentionConfig(**launch_params(op, shape_class, device_kind))
    return found


def warps_for(block: int) -> int:
    """Warps of a kernel whose program holds `block` numbers at once: about 8 numbers a thread, 1 to 16 warps."""
    return max(1, min(16, block // 256))


# ---- devices


def device_kind_of(device_name: str) -> str:
    """`NVIDIA H100 80GB HBM3` and `NVIDIA H100 PCIe` are h100, `NVIDIA A100-SXM4-80GB` is a100."""
    words = device_name.lower().removeprefix("nvidia").replace("-", " ").split()
    return next((word for word in words if word not in ("geforce", "rtx", "tesla", "graphics", "device")), ANY_DEVICE)


@cache
def this_device_kind() -> str:
    """The kind of this process's GPU; `any` where torch sees none. A process uses devices of one kind."""
    import torch

    return device_kind_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else ANY_DEVICE


# ---- the table


def read_table(path: Path = TABLE_PATH) -> Table:
    """Raises ValueError naming the entry that is malformed."""
    table: Table = json.loads(path.read_text())
    for kernel, classes in table.items():
        for shape_class, by_device in classes.items():
            if ANY_DEVICE not in by_device:
                raise ValueError(f"{path.name}: {kernel} {shape_class} lacks an entry for device `{ANY_DEVICE}`")
            for kind, params in by_device.items():
                wrong = [name for name, value in params.items() if type(value) is not int or value < 1]
                if wrong:
                    raise ValueError(
                        f"{path.name}: {kernel} {shape_class} {kind}: {wrong[0]} must be a positive integer"
                    )
    return table


def write_table(table: Table, path: Path = TABLE_PATH) -> None:
    """One line an entry, in a fixed order, so that a change of one parameter is a change of one line."""
    kernels = []
    for kernel, classes in sorted(table.items()):
        bodies = []
        for shape_class, by_device in sorted(classes.items()):
            lines = [f"      {json.dumps(kind)}: {json.dumps(params)}" for kind, params in sorted(by_device.items())]
            bodies.append(f"    {json.dumps(shape_class)}: {{\n" + ",\n".join(lines) + "\n    }")
        kernels.append(f"  {json.dumps(kernel)}: {{\n" + ",\n".join(bodies) + "\n  }")
    path.write_text("{\n" + ",\n".join(kernels) + "\n}\n")


@contextmanager
def trying(kernel: str, shape_class: str, params: Params) -> Iterator[None]:
    """Launches inside the block use these parameters, whatever the device. For tuning and tests of the table only."""
    classes = _table.setdefault(kernel, {})
    before = classes.get(shape_class)
    classes[shape_class] = {ANY_DEVICE: dict(params)}
    _forget_lookups()
    try:
        yield
    finally:
        if before is None:
            del classes[shape_class]
        else:
            classes[shape_class] = before
        _forget_lookups()


def _forget_lookups() -> None:
    for lookup in (attention_config, row_config, launch_params):
        lookup.cache_clear()


_table = read_table()
