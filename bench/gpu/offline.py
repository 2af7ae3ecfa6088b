"""Compiles what operations would launch, without launching it and without a GPU: in a `compiling_only` block launches compile.

It goes through the launchers themselves, so arguments, constants and table entries are those of serving. What is compiled lands in Triton's
cache, under the key that a device of that architecture looks up.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

SM_90 = GPUTarget("cuda", 90, 32)
MAX_SHARED_BYTES = 227 * 1024
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel, as the assembler left it."""

    name: str
    shared_bytes: int
    registers: int
    """Of a thread."""
    stack_bytes: int
    """Of a thread: what did not fit into registers, or is indexed at run time. 0 in a kernel without spills."""
    num_warps: int


class _NoDevice:
    """What Triton's launcher asks its driver before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return SM_90


@contextmanager
def compiling_only() -> Iterator[list[Compiled]]:
    """Launches inside the block compile for sm_90 and do nothing; the list receives each kernel once. Not for several threads.

    Tensors may be on the CPU. Outputs stay as they were allocated, so nothing may depend on them.
    """
    found: list[Compiled] = []
    run: Any = JITFunction.run
    seen: set[str] = set()

    def compile_only(self: Any, *args: Any, grid: object, warmup: bool, **kwargs: Any) -> object:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            found.append(_measured(kernel))
        return kernel

    before = driver._active
    driver.set_active(_NoDevice())
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run = run
        driver._active = before


def compiled_by(call: Callable[[], object]) -> list[Compiled]:
    """What one call launches. Raises what Triton raises where a kernel does not compile."""
    with compiling_only() as found:
        call()
    return found


def _measured(kernel: Any) -> Compiled:
    usage = _resource_usage(kernel.asm["cubin"])
    return Compiled(
        name=kernel.metadata.name,
        shared_bytes=kernel.metadata.shared,
        registers=usage.get("REG", 0),
        stack_bytes=max(usage.get("STACK", 0), usage.get("LOCAL", 0)),
        num_warps=kernel.metadata.num_warps,
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK, ... of a cubin's kernel, as cuobjdump prints them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", done.stdout)}
