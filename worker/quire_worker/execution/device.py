"""Which device, dtype, ops and threads a runner uses: `auto` made concrete, and refusals that say what would work."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from quire_kernels.cpu.linear import DTYPES as NATIVE_DTYPES
from quire_kernels.ops import OpsName
from quire_kernels.quantize_fp8 import FP8
from quire_worker.errors import DeviceError, LoadError, StepMemoryError
from quire_worker.models.linear import Quantization

DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
}
FP8_CAPABILITY = (8, 9)
"""Of the first GPUs that multiply and convert E4M3."""


@contextmanager
def sticky_errors() -> Iterator[None]:
    """Raises DeviceError for errors after which the device is of no more use to this process, StepMemoryError where memory ran out."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceError(f"the GPU failed during a step: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise StepMemoryError(f"no memory for a step: {lines[0]}; lower --max-num-batched-tokens") from error


def _is_out_of_memory(error: Exception) -> bool:
    """torch has an error of its own for a GPU's memory, but not for the host's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def resolve_device(name: str) -> torch.device:
    """auto | cpu | cuda. Raises LoadError if there is no such device here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise LoadError(f"--device {name} is unknown: use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise LoadError(
            "--device cuda: torch finds no usable GPU; use --device cpu, or a torch build and driver for it"
        )
    return torch.device(name)


def resolve_dtype(name: str, checkpoint: torch.dtype, device: torch.device) -> torch.dtype:
    """auto takes the checkpoint's, but bfloat16 for float16 on a CPU, which has no fast arithmetic for it. Raises LoadError."""
    if name == "auto":
        if checkpoint == torch.float16 and device.type == "cpu":
            return torch.bfloat16
        return checkpoint if checkpoint in DTYPES.values() else torch.bfloat16
    if name not in DTYPES:
        raise LoadError(f"--dtype {name} is unknown: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def resolve_ops(name: str, device: torch.device) -> OpsName:
    """auto: triton on a GPU, cpu on a CPU. Raises LoadError if the ops cannot run there."""
    if name == "auto":
        name = "triton" if device.type == "cuda" else "cpu"
    if name in ("cpu", "cpu-torch") and device.type != "cpu":
        raise LoadError(f"--ops {name} does not run on a GPU: use --ops triton or --ops reference")
    if name == "triton" and find_spec("triton") is None:
        raise LoadError("--ops triton needs the triton package: pip install 'quire[gpu]', or use --ops reference")
    match name:
        case "reference" | "cpu" | "cpu-torch" | "triton":
            return name
    raise LoadError(f"--ops {name} is unknown: use auto, reference, cpu, cpu-torch or triton")


def resolve_quantization(
    name: str, device: torch.device, dtype: torch.dtype, ops: OpsName, *, has_library: bool, is_stored_fp8: bool = False
) -> Quantization:
    """none | int8 | int8-weight-only | fp8. A checkpoint that is FP8 already is not quantised again: none.

    Raises LoadError where it cannot be computed.
    """
    match name:
        case "none":
            return "none"
        case "fp8":
            obstacle = fp8_obstacle(device, dtype, ops)
            if obstacle is not None and is_stored_fp8 and device.type == "cpu":
                # Which is not quantised to int8 either.
                obstacle = "runs on a GPU only: leave it out, and the checkpoint's FP8 weights are dequantised"
            if obstacle is not None:
                raise LoadError(f"--quantization fp8 {obstacle}")
            return "none" if is_stored_fp8 else "fp8"
        case "int8" | "int8-weight-only":
            obstacle = _int8_obstacle(device, dtype, ops, has_library=has_library, is_stored_fp8=is_stored_fp8)
            if obstacle is not None:
                raise LoadError(f"--quantization {name}{obstacle}")
            return name
    raise LoadError(f"--quantization {name} is unknown: use none, int8, int8-weight-only or fp8")


def _int8_obstacle(
    device: torch.device, dtype: torch.dtype, ops: OpsName, *, has_library: bool, is_stored_fp8: bool
) -> str | None:
    """Why linear layers cannot be computed with int8 weights, to be read after what asks for it, with the fix; None: they can."""
    if is_stored_fp8:
        return ": the checkpoint's weights are FP8 already: leave it out"
    if device.type != "cpu":
        return " runs on a CPU only: use fp8 on a GPU, or leave it out"
    if dtype not in NATIVE_DTYPES:
        return " computes in float32 or bfloat16: use --dtype bfloat16"
    if ops != "cpu":
        return f" needs the C++ ops, which --ops {ops} leaves out: use --ops cpu, or leave --quantization out"
    if not has_library:
        return " needs the C++ ops: install g++ (and a processor with AVX2), or leave it out"
    return None


def fp8_obstacle(device: torch.device, dtype: torch.dtype, ops: OpsName) -> str | None:
    """Why linear layers cannot be computed in FP8, to be read after what asks for it, with the fix; None: they can."""
    if device.type == "cpu":
        # The reference computes the same numbers, slowly, for whoever wants to compare, and Triton's interpreter runs the kernels.
        has_fp8 = ops in ("reference", "triton")
        return None if has_fp8 else "runs on a GPU only: use --quantization int8 on a CPU, or leave it out"
    if dtype != torch.bfloat16:
        return "computes in bfloat16: use --dtype bfloat16"
    if torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return "needs a GPU of compute capability 8.9 or higher (Ada, Hopper, Blackwell): leave it out"
    return None


def resolve_kv_dtype(name: str, device: torch.device, dtype: torch.dtype, ops: OpsName) -> torch.dtype:
    """auto (`dtype`) | fp8. Raises LoadError where there is no such cache."""
    if name == "auto":
        return dtype
    if name != "fp8":
        raise LoadError(f"--kv-cache-dtype {name} is unknown: use auto or fp8")
    if device.type == "cpu" and ops not in ("reference", "triton"):
        raise LoadError("--kv-cache-dtype fp8 runs on a GPU only: leave it out, or use --device cuda")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise LoadError(
            "--kv-cache-dtype fp8 needs a GPU of compute capability 8.9 or higher (Ada, Hopper, Blackwell): leave it out"
        )
    return FP8


def resolve_threads(wanted: int | None, root: Path = Path("/")) -> int:
    """Threads that compute: as asked, or the cores this process may use, by its affinity and its cgroup's quota.

    Not the host's number of cores: threads beyond the quota are stopped for the rest of each period, all of them. `root` is the
    file system's, for tests.
    """
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(root / "sys/fs/cgroup")
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _cgroup_quota(cgroup: Path) -> float | None:
    """Cores that the cgroup may use, v2 or v1; None: no limit."""
    files = ((cgroup / "cpu.max",), (cgroup / "cpu/cpu.cfs_quota_us", cgroup / "cpu/cpu.cfs_period_us"))
    for paths in files:
        try:
            words = " ".join(path.read_text() for path in paths).split()
        except OSError:
            continue
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            return int(words[0]) / int(words[1])
    return None
