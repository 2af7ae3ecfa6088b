"""The import contracts of pyproject.toml hold, and processes that must not load torch do not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_import_contracts_are_kept() -> None:
    lint = Path(sys.executable).with_name("lint-imports")

    found = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    "module",
    [
        "quire_worker.__main__",
        "quire_router.__main__",
        "quire_cli.__main__",
        "quire_operator.desired_state",
        "quire_contract.prompt",
    ],
)
def test_importing_a_process_that_computes_nothing_does_not_load_torch(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules or 'triton' in sys.modules)"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stderr or f"{module} imports torch"
