"""Compiles the C++ ops: for this machine, or for every instruction set, which is what an image's build does."""

import argparse
import sys
from pathlib import Path

from quire_kernels.cpu.build import ISAS, NO_COMPILER, build_library, find_compiler, find_library, library_name


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="quire_kernels.cpu", description="Compile the C++ ops of the CPU path; without --out for this machine."
    )
    parser.add_argument("--out", type=Path, help="a folder for the libraries of all instruction sets")
    out = parser.parse_args().out
    if out is None:
        found = find_library()
        sys.stdout.write(f"cpu ops: {found.path} ({found.why})\n" if found.path else f"cpu ops: torch; {found.why}\n")
        return
    compiler = find_compiler()
    if compiler is None:
        sys.exit(NO_COMPILER)
    for isa in ISAS:
        build_library(compiler, isa, out / library_name(isa))
        sys.stdout.write(f"{out / library_name(isa)}\n")


if __name__ == "__main__":
    main()
