"""Becomes another program that dies with its parent: `python -I -S launcher/__main__.py PARENT_PID PROGRAM ARGUMENTS...`.

Started by the supervisor for every process, so that a supervisor killed with SIGKILL leaves nothing behind.
It asks the kernel for SIGKILL at the parent's death (Linux; elsewhere it only becomes the program), and that request survives
exec. It imports the standard library only.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Does not return, unless the parent is gone already."""
    parent, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the request was in place
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606  (no shell is wanted)


if __name__ == "__main__":
    main(sys.argv[1:])
