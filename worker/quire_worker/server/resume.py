"""What a router asks with POST /internal/resume, read and checked: which stream goes on, and where. Pure.

Wrong envelopes are 400 and name the field, like any body; a field of the original body goes by its own name.
"""

from collections.abc import Callable, Mapping, Sequence

from aiohttp import web

from quire_contract import names
from quire_contract.openai.decode import decode_struct
from quire_contract.openai.errors import invalid
from quire_contract.openai.limits import Limits
from quire_contract.resume import HEADER_REPLAY, HEADER_USAGE, ResumedChoice, ResumeEnvelope
from quire_worker.request import SamplingParams
from quire_worker.server.asked import Asked, asked_chat, asked_completion, asked_message, asked_response
from quire_worker.server.middleware import CALLER

_READERS: Mapping[str, Callable[[bytes, Limits], Asked]] = {
    names.PATH_CHAT: asked_chat,
    names.PATH_COMPLETIONS: asked_completion,
    names.PATH_RESPONSES: asked_response,
    names.PATH_MESSAGES: asked_message,
}
_MAX_TOKENS_BYTES = 16 * 1024 * 1024
"""Of all choices' tokens as JSON."""


def max_envelope_bytes(limits: Limits) -> int:
    """In an envelope each quotation mark of a body has a backslash before it."""
    return 2 * limits.max_body_bytes + _MAX_TOKENS_BYTES


def read_envelope(data: bytes, limits: Limits) -> tuple[ResumeEnvelope, Asked]:
    """The envelope, and the request that it holds as its own route would read it. ApiError 400 names what is wrong."""
    envelope = decode_struct(ResumeEnvelope, data)
    read = _READERS.get(envelope.path)
    if read is None:
        raise invalid("path", f"must be one of {', '.join(_READERS)}, whose streams can go on")
    asked = read(envelope.body.encode(), limits)
    if not asked.body.stream:
        raise invalid("body", "asks for no stream; send the request again instead")
    if envelope.num_events < 0:
        raise invalid("num_events", "must not be negative")
    return envelope, asked


def check_choices(
    choices: Sequence[ResumedChoice], sampling: Sequence[SamplingParams], n: int, vocab_size: int
) -> None:
    """ApiError 400 unless they can be those of a request with these prompts' parameters and `n` choices for each."""
    seen: set[int] = set()
    for place, choice in enumerate(choices):
        field = f"choices[{place}]"
        if not 0 <= choice.index < n * len(sampling):
            raise invalid(f"{field}.index", f"must lie in [0, {n * len(sampling)}), the request's choices")
        if choice.index in seen:
            raise invalid(f"{field}.index", f"{choice.index} is there twice")
        seen.add(choice.index)
        ids, most = choice.token_ids, sampling[choice.index // n].max_tokens
        if len(ids) > most:
            raise invalid(f"{field}.token_ids", f"has {len(ids)} tokens, but the choice may have {most}")
        if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
            raise invalid(f"{field}.token_ids", f"token ids must lie in [0, {vocab_size})")


def asks_for_replay(http: web.Request) -> bool:
    """Whether a router of the release wants to be told what it needs to go on elsewhere, and to count."""
    return http[CALLER].trusted and http.headers.get(HEADER_REPLAY) == "1"


def usage_headers(http: web.Request, num_prompt: int, num_cached: int = 0, num_output: int = 0) -> dict[str, str]:
    """Of an answer that is no stream: tokens, if asked for."""
    return {HEADER_USAGE: f"{num_prompt},{num_cached},{num_output}"} if asks_for_replay(http) else {}
