"""What an answer shows of its prompts, besides what the model made of them: echo, token ids, log-probabilities.

Pure values and their JSON forms; knows no engine and no HTTP.
"""

import dataclasses
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from quire_contract.openai.responses import CompletionLogprobs, PromptLogprob
from quire_contract.openai.responses import PromptLogprobs as ShownPromptLogprobs
from quire_contract.prompt import TokenStream
from quire_worker.request import PromptLogprobs, TokenLogprobs
from quire_worker.server.logprobs import Vocabulary, finite, top_by_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Echo:
    """A prompt as text."""

    text: str
    offsets: Sequence[int]
    """Where each of its tokens begins, in characters; empty if nobody asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownPrompt:
    """One prompt."""

    token_ids: list[int]
    echo: Echo | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extras:
    """What a request asked to be shown of its prompts and tokens."""

    prompts: Sequence[ShownPrompt] = ()
    """In the order of the choices; needed if anything below is asked for."""
    n: int = 1
    """Choices for each prompt."""
    token_ids: bool = False
    prompt_logprobs: int | None = None
    echoed_logprobs: int | None = None
    """How many of the likeliest an echo shows beside each token."""

    def prompt_of(self, index: int) -> ShownPrompt:
        """That of the answer's choice `index`."""
        return self.prompts[index // self.n]

    def echo_of(self, index: int) -> Echo | None:
        """What stands before the text of choice `index`."""
        return self.prompt_of(index).echo if self.prompts else None


NOTHING_MORE = Extras()


def echo_of(token_ids: Sequence[int], text: str | None, stream: TokenStream, *, ends: bool) -> Echo:
    """A prompt as the client sent it (`text`), or else as its tokens read; `ends`: no output follows that could complete a character."""
    offsets: list[int] = []
    parts: list[str] = []
    length = 0
    for token_id in token_ids:
        offsets.append(length)
        parts.append(stream.push(token_id))
        length += len(parts[-1])
    if ends:
        parts.append(stream.finish())
    shown = "".join(parts) if text is None else text
    return Echo(text=shown, offsets=[min(offset, len(shown)) for offset in offsets])


def prompt_logprobs(
    prompt: ShownPrompt, scores: Sequence[PromptLogprobs], num_top: int, vocabulary: Vocabulary
) -> ShownPromptLogprobs:
    """vLLM's form."""
    shown: ShownPromptLogprobs = [None]
    for token_id, found in zip(prompt.token_ids[1:], _unpacked(scores, num_top), strict=True):
        entries = {token_id: (found.logprob, found.rank)}
        for rank, (top_id, logprob) in enumerate(zip(found.top_ids, found.top_logprobs, strict=True), 1):
            entries.setdefault(top_id, (logprob, rank))
        shown.append(
            {
                str(key): PromptLogprob(logprob=finite(logprob), rank=rank, decoded_token=vocabulary.token_text(key))
                for key, (logprob, rank) in entries.items()
            }
        )
    return shown


def with_echo(
    prompt: ShownPrompt,
    scores: Sequence[PromptLogprobs],
    num_top: int,
    output: CompletionLogprobs,
    vocabulary: Vocabulary,
) -> CompletionLogprobs:
    """A prompt's log-probabilities and the output's, whose offsets count the echo, in the legacy form. The first token has none."""
    assert prompt.echo is not None
    found = list(_unpacked(scores, num_top))
    pairs = list(zip(prompt.token_ids[1:], found, strict=True))
    top: list[dict[str, float] | None] = [None]
    top += [top_by_text(token_id, logprobs, vocabulary) for token_id, logprobs in pairs]
    return CompletionLogprobs(
        tokens=[*map(vocabulary.token_text, prompt.token_ids), *output.tokens],
        token_logprobs=[None, *(finite(entry.logprob) for entry in found), *output.token_logprobs],
        top_logprobs=[*top, *(output.top_logprobs or [])],
        text_offset=[*prompt.echo.offsets, *output.text_offset],
    )


def no_scores(num_tokens: int) -> list[PromptLogprobs]:
    """In place of a prompt's log-probabilities where they have gone out already, and nobody will see these."""
    blank = bytes(4 * (num_tokens - 1))
    return [PromptLogprobs(first=1, num_top=0, logprobs=blank, ranks=blank, top_ids=b"", top_logprobs=b"")]


def prompt_fields(
    extras: Extras, index: int, scores: Sequence[PromptLogprobs], vocabulary: Vocabulary
) -> dict[str, Any]:
    """Fields of an answer, or of its choice `index`, that tell of the prompt."""
    fields: dict[str, Any] = {}
    if extras.token_ids:
        fields["prompt_token_ids"] = extras.prompt_of(index).token_ids
    if extras.prompt_logprobs is not None:
        fields["prompt_logprobs"] = prompt_logprobs(extras.prompt_of(index), scores, extras.prompt_logprobs, vocabulary)
    return fields


def _unpacked(scores: Sequence[PromptLogprobs], num_top: int) -> Iterator[TokenLogprobs]:
    """Of each prompt token but the first; with at most num_top of the likeliest."""
    for part in scores:
        logprobs, ranks = array("f", part.logprobs), array("i", part.ranks)
        ids, values = array("i", part.top_ids), array("f", part.top_logprobs)
        count = min(num_top, part.num_top)
        for i, (logprob, rank) in enumerate(zip(logprobs, ranks, strict=True)):
            first = i * part.num_top
            yield TokenLogprobs(logprob, rank, tuple(ids[first : first + count]), tuple(values[first : first + count]))
