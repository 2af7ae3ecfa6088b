"""Where scripts put what they find. Joins pieces of one kind, drops white space around calls, and knows how the message stands.

Knows no format.
"""

from collections.abc import Callable
from typing import Literal

from quire_worker.server.parts import ContentText, Part, ReasoningText, ToolArguments, ToolCallBegin

_Kind = Literal["reasoning", "content", "arguments"]


class PartsSink:
    """One message's parts, taken piece by piece."""

    def __init__(
        self,
        new_id: Callable[[], str],
        *,
        max_calls: int | None = None,
        calls_tools: bool = True,
        shows_reasoning: bool = True,
    ) -> None:
        """Calls beyond `max_calls` are dropped. Without `calls_tools` white space need not wait for what follows it."""
        self._new_id = new_id
        self._max_calls = max_calls
        self._waits = calls_tools
        self._shows_reasoning = shows_reasoning
        self._parts: list[Part] = []
        self._kind: _Kind | None = None
        self._texts: list[str] = []
        """Of the part that is growing."""
        self._gap: list[str] = []
        """White space that the text goes on with, if it goes on."""
        self._bare = False
        """Nothing said yet where white space would only be a margin."""
        self._num_begun = 0
        self._says = False
        self.is_reasoning = False
        """The text read so far ends inside reasoning."""
        self.num_unfinished = 0
        """Calls shown whose arguments are not complete."""

    @property
    def num_calls(self) -> int:
        """Calls shown."""
        return self._num_begun if self._max_calls is None else min(self._num_begun, self._max_calls)

    def take(self) -> list[Part]:
        """What was found since the last time."""
        self._close()
        parts, self._parts = self._parts, []
        return parts

    def finish(self) -> None:
        """The text is over: white space at its end belongs to it, unless the message ends with calls or reasoning."""
        if self._num_begun == 0 and not self.is_reasoning and not self._bare:
            self._grow("content", "".join(self._gap))
        self._gap.clear()

    def begin_reasoning(self) -> None:
        self.is_reasoning = self._bare = True

    def end_reasoning(self) -> None:
        self._gap.clear()
        self.is_reasoning, self._bare = False, True

    def reasoning(self, text: str) -> None:
        self._say("reasoning", text, waits=True)

    def content(self, text: str) -> None:
        self._say("content", text, waits=self._waits)

    def _say(self, kind: _Kind, text: str, *, waits: bool) -> None:
        """White space at the end of `text` waits for what follows; at a margin it is dropped."""
        if self._bare:
            text = text.lstrip()
        if not text:
            return
        said = text.rstrip() if waits else text
        if said:
            self._grow(kind, "".join((*self._gap, said)))
            self._gap.clear()
            self._bare = False
            self._says = self._says or kind == "content"
        if len(said) < len(text):
            self._gap.append(text[len(said) :])

    def begin(self, name: str) -> None:
        """A call of the function `name`; its arguments follow."""
        self._gap.clear()
        self._close()
        self._num_begun += 1
        if self._is_shown:
            self.num_unfinished += 1
            self._parts.append(ToolCallBegin(index=self._num_begun - 1, id=self._new_id(), name=name))

    def arguments(self, text: str) -> None:
        """More of the call's arguments."""
        if self._is_shown:
            self._grow("arguments", text)

    def end(self) -> None:
        """The call is complete. Text behind it has a margin to what was said before the call only if something was."""
        self.num_unfinished -= self._is_shown
        self._bare = not self._says

    @property
    def _is_shown(self) -> bool:
        return self._max_calls is None or self._num_begun <= self._max_calls

    def _grow(self, kind: _Kind, text: str) -> None:
        if not text or (kind == "reasoning" and not self._shows_reasoning):
            return
        if kind != self._kind:
            self._close()
            self._kind = kind
        self._texts.append(text)

    def _close(self) -> None:
        text = "".join(self._texts)
        if self._kind == "reasoning":
            self._parts.append(ReasoningText(text))
        elif self._kind == "content":
            self._parts.append(ContentText(text))
        elif self._kind == "arguments":
            self._parts.append(ToolArguments(index=self._num_begun - 1, text=text))
        self._kind = None
        self._texts.clear()
