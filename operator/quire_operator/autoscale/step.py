"""A number of replicas on its way through the rules, with what each rule said of it."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Step:
    """Each rule takes one and answers with one."""

    replicas: int
    reason: str
    """Of the last rule that changed the number, or of what asked for it."""
    said: tuple[str, ...]
    """In order; joined they are the verdict's message."""
    is_limited: bool = False

    def then(self, replicas: int, reason: str, words: str, *, is_limited: bool = False) -> Self:
        """After a rule that makes it `replicas`."""
        limited = self.is_limited or is_limited
        return type(self)(replicas=replicas, reason=reason, said=(*self.said, words), is_limited=limited)


def count(replicas: int) -> str:
    """ "1 replica", "2 replicas"."""
    return f"{replicas} replica" if replicas == 1 else f"{replicas} replicas"
