"""The long run of bench/soak.py, short: nothing answers otherwise than it should, and every block comes back."""

import subprocess
import sys

import pytest
from client_server import ROOT


@pytest.mark.slow
def test_requests_that_are_left_in_the_middle_leave_nothing_behind() -> None:
    command = [sys.executable, str(ROOT / "bench" / "soak.py"), "--requests", "600", "--concurrency", "16"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "KV in use before 0.0, after 0.0; wrong: 0" in done.stdout
