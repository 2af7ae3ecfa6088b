"""The engine ends when its parent does, whatever happens to the parent and whatever the engine is doing.

The parent holds the write end of our standard input open; the kernel closes it when the parent dies, so reading reaches the end. On Linux
the kernel also kills us when the parent's thread that started us ends, should another process have inherited the pipe.
"""

import ctypes
import os
import signal
import sys
import threading
from typing import BinaryIO

PARENT_GONE_EXIT_CODE = 3
_PR_SET_PDEATHSIG = 1


def exit_with_parent(stdin: BinaryIO) -> None:
    """From now on: end of `stdin` (unbuffered) ends the process within moments, in the middle of a step if need be.

    Signals that a terminal or a container sends to everybody are ignored: the parent decides when we end, after draining."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_wait_for_end, args=(stdin,), name="parent-watch", daemon=True).start()


def _wait_for_end(stdin: BinaryIO) -> None:
    while stdin.read(4096):
        pass
    # Not sys.exit: the main thread may be inside a step that takes seconds, and nothing here needs saving.
    os._exit(PARENT_GONE_EXIT_CODE)
