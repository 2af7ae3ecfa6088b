"""A worker with the demo model behind which other people's clients are tried, and where those clients live.

Python clients that Quire itself does not need, and Node's, are installed by `make test` into folders of their own inside .venv.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client_server import DEMO, Server, serve

CLIENTS = Path(sys.prefix) / "clients"


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Server]]:
    """Starts workers that end with the session."""
    with contextlib.ExitStack() as stack:
        yield lambda model_dir, *flags: stack.enter_context(serve(model_dir, *flags))


@pytest.fixture(scope="session")
def server(start: Callable[..., Server]) -> Server:
    """The demo model in float32, so that its numbers can be compared with transformers' to the last digits."""
    return start(DEMO, "--dtype", "float32", "--num-gpu-blocks-override", "512", "--tool-call-parser", "hermes")


@pytest.fixture(scope="session")
def client_bin() -> Path:
    """Where the Python clients' commands are."""
    found = CLIENTS / "bin"
    assert (found / "python").exists(), f"{found} is missing; `make test` installs it"
    return found


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Where Node's packages are."""
    found = Path(sys.prefix) / "node" / "node_modules"
    assert (found / "openai").exists(), f"{found} is missing; `make test` installs it"
    return found
