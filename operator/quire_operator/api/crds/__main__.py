"""Writes the CustomResourceDefinitions: `python -m quire_operator.api.crds [FOLDER]`, into `crds` without a folder."""

import sys
from pathlib import Path

from quire_operator.api.crds.definitions import write_crds


def main(arguments: list[str]) -> int:
    """The exit code."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print("usage: python -m quire_operator.api.crds [FOLDER]", file=sys.stderr)
        return 2
    for path in write_crds(Path(arguments[0] if arguments else "crds")):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
