"""The soak of bench/router_soak.py, short: whatever clients leave in the middle, nothing of it stays counted or held."""

import os
import subprocess
import sys

import pytest
from client_server import ROOT


@pytest.mark.slow
def test_clients_that_break_off_leave_nothing_behind_in_the_router_its_workers_and_redis():
    command = [sys.executable, str(ROOT / "bench" / "router_soak.py"), "--disconnects", "300", "--warm-up", "0"]

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}  # has neighbours
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False, env=environment)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "not 0 before: {}, after: {}" in done.stdout
    assert "wrong: 0; errors in the log: 0" in done.stdout
