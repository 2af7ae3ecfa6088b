"""Finds stop strings in text that arrives in pieces, and holds back what may become one.

Knows characters only, no tokens. The result does not depend on how the text is cut into pieces.
"""

from collections.abc import Sequence


class StopMatcher:
    """Incremental search for several stop strings at once.

    The match that ends first wins; of those that end together, the one that begins first. Text is released up to the longest end
    that is a proper beginning of a stop string, so a stop string is never sent, not even in part:

        fed      h e l l o _ E N        stop "END"
        released h e l l o _
        held                 E N        (an unrelated next character releases it, "D" makes it the match)

    A match can begin only inside the held text, because everything before was no beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """With `include` a stop string is part of the text: nothing is held back, and the text ends behind the match."""
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    @property
    def held(self) -> str:
        """The end of the text fed that may become a stop string."""
        return self._held

    def feed(self, text: str, *, armed: bool = True) -> tuple[str, str | None]:
        """The text released by `text`, and the stop string that ended it if there is one.

        After a match nothing must be fed. Unarmed, matches that end within `text` are passed over, as `min_tokens` asks.
        """
        if not self._stops:
            return text, None
        buffer = self._held + text
        match = self._first_match(buffer) if armed else None
        num_released = len(self._held) if self._include else 0
        if match is not None:
            start, stop = match
            self._held = ""
            return buffer[num_released : start + len(stop) if self._include else start], stop
        cut = self._held_from(buffer)
        self._held = buffer[cut:]
        return buffer[num_released : len(buffer) if self._include else cut], None

    def flush(self) -> str:
        """The held text, when no more will come."""
        held, self._held = self._held, ""
        return "" if self._include else held

    def _first_match(self, buffer: str) -> tuple[int, str] | None:
        """Where the winning stop string begins, and which it is. Matches that end in the held text were passed over before."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = buffer.find(stop, max(0, len(self._held) - len(stop) + 1))
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else best[1:]

    def _held_from(self, buffer: str) -> int:
        """Index of the longest end of `buffer` that is a proper beginning of a stop string; len(buffer) if there is none."""
        earliest = len(buffer)
        for stop in self._stops:
            index = buffer.find(stop[0], max(0, len(buffer) - len(stop) + 1))
            while 0 <= index < earliest:
                if stop.startswith(buffer[index:]):
                    earliest = index
                    break
                index = buffer.find(stop[0], index + 1)
        return earliest
