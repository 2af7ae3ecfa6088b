"""The `quire` command: reads arguments and environment, then runs one command."""

import os
import sys
from pathlib import Path

from quire_cli.app import run_command
from quire_cli.host import Host


def main() -> None:
    """Ends the process with the command's exit code."""
    # The path as it was started, not resolved: beside a virtual environment's interpreter lie its console scripts.
    host = Host(environ=dict(os.environ), python=Path(sys.executable))
    sys.exit(run_command(host, sys.argv[1:]))


if __name__ == "__main__":
    main()
