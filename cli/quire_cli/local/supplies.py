"""What the machine has to give to pods, one pod at a time: ports, devices and a folder. What ended gives it back.

This module must not know what is done with it.
"""

import itertools
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quire_cli.local.ports import free_ports

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one pod has, until it ends."""

    ports: tuple[int, ...]
    """Free ones of the loopback address."""
    folder: Path
    """For what belongs to this pod alone; made when it is needed. A short path: sockets lie in it, and a socket's path has at most 107
    bytes."""
    devices: tuple[str, ...] = ()
    """Nvidia devices, as CUDA_VISIBLE_DEVICES names them."""


class Supplies:
    """One for the run. What was given is nobody else's until it is given back."""

    def __init__(self, *, folder: Path, devices: Sequence[str], ports_taken: Iterable[int] = ()) -> None:
        """`folder`: below it pods get theirs. `ports_taken`: nobody gets them, though nothing may listen there yet."""
        self._folder = folder
        self._devices = list(devices)
        self._ports: set[int] = set(ports_taken)
        self._numbers: set[int] = set()

    def take(self, *, num_ports: int, num_devices: int = 0) -> Share | None:
        """A share; None, and nothing taken, while fewer devices are free."""
        if num_devices > len(self._devices):
            return None
        devices, self._devices = self._devices[:num_devices], self._devices[num_devices:]
        ports = tuple(self._port() for _ in range(num_ports))
        number = next(number for number in itertools.count() if number not in self._numbers)
        self._numbers.add(number)
        return Share(ports=ports, folder=self._folder / str(number), devices=tuple(devices))

    def give_back(self, share: Share) -> None:
        """The pod has ended; its folder goes."""
        shutil.rmtree(share.folder, ignore_errors=True)
        self._numbers.discard(int(share.folder.name))
        self._ports.difference_update(share.ports)
        self._devices = sorted({*self._devices, *share.devices})

    def _port(self) -> int:
        port = next(port for port in free_ports(LOOPBACK) if port not in self._ports)
        self._ports.add(port)
        return port
