"""Backends load by name, and only one of them needs Triton."""

import subprocess
import sys

import pytest

from quire_kernels.ops import load_ops

WITHOUT_TRITON = """
import sys

sys.modules["triton"] = None  # as if it were not installed
from quire_kernels.ops import load_ops
assert load_ops("cpu").name == "cpu"
assert load_ops("reference").name == "reference"
assert not [name for name in sys.modules if name.startswith("quire_kernels.gpu")]
try:
    load_ops("triton")
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["reference", "cpu", "cpu-torch", "triton"])
def test_a_backend_bears_its_name(name: str) -> None:
    ops = load_ops(name)

    assert ops.name == name


def test_an_unknown_backend_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="ops='gpu' is unknown; choose reference, cpu, cpu-torch or triton"):
        load_ops("gpu")


def test_references_and_cpu_paths_load_where_triton_is_missing_and_the_error_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "quire[gpu]" in done.stdout
