"""What the user sees while pods come and go: a live table on a terminal until all are ready, plain lines otherwise.

This module must not decide anything.
"""

import contextlib
import time
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from quire_cli.local.pod import Pod, PodState

_STYLES = {
    PodState.STARTING: "yellow",
    PodState.READY: "green",
    PodState.ASLEEP: "cyan",
    PodState.NOT_READY: "red",
    PodState.RESTARTING: "red",
    PodState.STOPPING: "yellow",
    PodState.STOPPED: "dim",
}


class Progress(Protocol):
    """Shows pods."""

    def begin(self, num_workers: int) -> None:
        """The router and so many workers will be started."""

    def pod_changed(self, pod: Pod, state: PodState, detail: str) -> None:
        """One changed."""

    def note(self, text: str) -> None:
        """Something that concerns no single pod."""

    def all_ready(self) -> None:
        """The first start is over; from now on only changes are told."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


def say(console: Console, line: str) -> None:
    """One line as it is. A terminal or a pipe that is gone takes nothing down: the pods are ended in order all the same."""
    with contextlib.suppress(OSError):
        print(line, file=console.file, flush=True)  # rich would end the process on a broken pipe


def plural(num_workers: int) -> str:
    """Such as "1 worker"."""
    return f"{num_workers} worker{'s' if num_workers != 1 else ''}"


class PlainProgress:
    """One line per change, with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()

    def begin(self, num_workers: int) -> None:
        """Says how many."""
        workers = f"{plural(num_workers)} and " if num_workers else ""
        self.note(f"starting {workers}the router")

    def pod_changed(self, pod: Pod, state: PodState, detail: str) -> None:
        """One line."""
        self.note(f"{pod.plan.name}: {state}{f' ({detail})' if detail else ''}")

    def all_ready(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def note(self, text: str) -> None:
        """One line."""
        elapsed_s = time.monotonic() - self._start
        say(self._console, f"[{elapsed_s:6.1f} s] {text}")


class LiveProgress:
    """A table that is drawn anew at each change, then plain lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plain = PlainProgress(console)
        self._pods: dict[str, Pod] = {}
        self._details: dict[str, str] = {}
        self._live: Live | None = None

    def begin(self, num_workers: int) -> None:
        """Opens the table."""
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=4)
        self._live.start()

    def pod_changed(self, pod: Pod, state: PodState, detail: str) -> None:
        """The table follows by itself."""
        self._pods[pod.plan.name], self._details[pod.plan.name] = pod, detail
        if self._live is None:
            self._plain.pod_changed(pod, state, detail)

    def note(self, text: str) -> None:
        """Above the table while there is one."""
        if self._live is None:
            self._plain.note(text)
        else:
            with contextlib.suppress(OSError):
                self._live.console.print(text, markup=False, highlight=False)

    def all_ready(self) -> None:
        """The table stays as it is, above."""
        self.close()

    def close(self) -> None:
        """Stops drawing."""
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live, self._pods = None, {}

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("POD", "STATE", "RESTARTS", ""):
            table.add_column(title, overflow="fold")
        for pod in self._pods.values():
            style = _STYLES[pod.state]
            detail = escape(self._details.get(pod.plan.name, ""))
            table.add_row(pod.plan.name, f"[{style}]{pod.state}[/]", str(pod.num_restarts), detail)
        return table


def progress_for(console: Console) -> Progress:
    """The live table on a terminal, lines elsewhere."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)
