"""TCP ports on this machine: is one free, and which others are.

Between the check and the use a port can be taken; the taker then says so. This module must not know who uses them.
"""

import random
import socket
from collections.abc import Iterator

_FIRST = 20_000
_LAST = 32_000  # below the range from which the kernel takes ports for outgoing connections


def is_free(host: str, port: int) -> bool:
    """Whether something could listen on host:port now. Raises OSError if the machine has no such address."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            if error.errno in _IN_USE:
                return False
            raise
    return True


def free_ports(host: str, seed: int | None = None) -> Iterator[int]:
    """Free ports of `host`, each once, in random order."""
    candidates = list(range(_FIRST, _LAST))
    random.Random(seed).shuffle(candidates)  # noqa: S311  (not a secret)
    return (port for port in candidates if is_free(host, port))


_IN_USE = frozenset({98, 48, 13})
"""EADDRINUSE on Linux and macOS; EACCES below 1024."""
