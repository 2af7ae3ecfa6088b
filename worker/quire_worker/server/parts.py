"""What a message is made of, in the order in which it comes out of a model: the common tongue of parsers and of the APIs' answers.

Pure values. A parser (`MessageParser`) turns released text into parts; an answer turns parts into one API's JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """More of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentText:
    """More of what the model says to the user."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBegin:
    """The model calls a tool. Its arguments follow."""

    index: int
    """Counts the message's calls from 0."""
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """More of a call's arguments: JSON text, to be put together."""

    index: int
    text: str


Part = ReasoningText | ContentText | ToolCallBegin | ToolArguments


class MessageParser(Protocol):
    """One choice's text into parts. What comes out, put together, does not depend on how the text was cut."""

    def push(self, text: str) -> Sequence[Part]:
        """The parts that this text completes; text that may still become a marker is held back."""
        ...

    def finish(self) -> Sequence[Part]:
        """The parts still held, when no more text will come."""
        ...


class PlainText:
    """The parser of models whose text is all content."""

    def push(self, text: str) -> Sequence[Part]:
        return (ContentText(text),) if text else ()

    def finish(self) -> Sequence[Part]:
        return ()
