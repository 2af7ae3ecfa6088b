"""Compiles the router's C++: for this machine, or into a folder, which is what an image's build does."""

import argparse
import sys
from pathlib import Path

from quire_router.native.build import BuildError, build_library, find_library, library_name


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="quire_router.native",
        description="Compile the router's C++, unless that is done; without --out for this user.",
    )
    parser.add_argument("--out", type=Path, help="a folder for the library")
    out = parser.parse_args().out
    if out is None:
        found = find_library(may_compile=True)
        sys.stdout.write(
            f"router: {found.path} ({found.why})\n" if found.path else f"router: without C++; {found.why}\n"
        )
        return
    path = out / library_name()
    try:
        if not path.is_file():
            build_library(path)
    except BuildError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
