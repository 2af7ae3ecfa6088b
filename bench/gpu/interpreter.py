"""Runs Triton kernels through its interpreter, on a CPU, as tests/kernels does. Call before anything imports quire_kernels.gpu."""

import runpy
import sys

from gpu.device import ROOT


def use_interpreter() -> None:
    """Switch it on, with its known faults mended."""
    assert "quire_kernels.gpu.rms_norm" not in sys.modules, "the interpreter must be chosen before kernels are imported"
    runpy.run_path(str(ROOT / "tests" / "kernels" / "conftest.py"))
