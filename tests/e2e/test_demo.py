"""The demo ends well by itself."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_the_demo_answers_right_and_leaves_nothing_running() -> None:
    demo = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "demo.py")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=850, check=False,
    )  # fmt: skip

    assert demo.returncode == 0, demo.stdout
    assert "All good." in demo.stdout
    assert "prefixes, again" in demo.stdout
