"""What each API's body asks for, in the one form that `Generate` takes: the request, and how its answer looks.

Knows every API's bodies and answers, and nothing of engine or HTTP.
"""

from collections.abc import Callable
from typing import NamedTuple

from quire_contract.anthropic import chat as anthropic_chat
from quire_contract.openai import responses_chat
from quire_contract.openai.chat_shaped import OwnNames, under_own_names
from quire_contract.openai.decode import decode_request
from quire_contract.openai.errors import ApiError
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest, stop_strings
from quire_worker.server.answers import Answer, ChatAnswer, CompletionAnswer, Head
from quire_worker.server.logprobs import Vocabulary
from quire_worker.server.message_reader import MessageReader
from quire_worker.server.messages_answer import MessagesAnswer
from quire_worker.server.parsing.dialect import Reading
from quire_worker.server.prompt_shown import Extras
from quire_worker.server.reader import PlainReader, Reader
from quire_worker.server.responses_answer import ResponsesAnswer


class Showing(NamedTuple):
    """What an answer is made with besides the model's tokens."""

    extras: Extras
    reading: Reading | None
    """How messages are read; None: all text is content."""
    token_text: Callable[[int], str]
    """A token alone as text."""

    def new_reader(self, answer_id: str) -> Reader:
        """For the one choice of an answer."""
        return PlainReader() if self.reading is None else MessageReader(self.reading, self.token_text, answer_id)


class Asked(NamedTuple):
    """One decoded body."""

    body: GenerationRequest
    id_prefix: str
    make_answer: Callable[[Head, Vocabulary, Showing], Answer]
    names: OwnNames | None = None
    """What the client calls the fields of `body`, if that is not the body it sent."""

    def own_error(self, error: ApiError) -> ApiError:
        """The error in the words of the body that the client sent."""
        return error if self.names is None else under_own_names(error, self.names)


def asked_chat(data: bytes, limits: Limits) -> Asked:
    """POST /v1/chat/completions."""
    body = decode_request(ChatCompletionRequest, data, limits)

    def make_answer(head: Head, vocabulary: Vocabulary, showing: Showing) -> Answer:
        return ChatAnswer(
            head,
            vocabulary,
            logprobs=body.num_logprobs is not None,
            extras=showing.extras,
            reading=showing.reading,
            token_text=showing.token_text,
        )

    return Asked(body, "chatcmpl-", make_answer)


def asked_completion(data: bytes, limits: Limits) -> Asked:
    """POST /v1/completions."""
    body = decode_request(CompletionRequest, data, limits)

    def make_answer(head: Head, vocabulary: Vocabulary, showing: Showing) -> Answer:
        return CompletionAnswer(head, vocabulary, logprobs=body.num_logprobs is not None, extras=showing.extras)

    return Asked(body, "cmpl-", make_answer)


def asked_response(data: bytes, limits: Limits) -> Asked:
    """POST /v1/responses."""
    request, body = responses_chat.decode_responses(data, limits)

    def make_answer(head: Head, vocabulary: Vocabulary, showing: Showing) -> Answer:
        return ResponsesAnswer(head, vocabulary, request=request, reader=showing.new_reader(head.id))

    return Asked(body, "resp_", make_answer, responses_chat.NAMES)


def asked_message(data: bytes, limits: Limits) -> Asked:
    """POST /v1/messages."""
    _, body = anthropic_chat.decode_messages(data, limits)

    def make_answer(head: Head, vocabulary: Vocabulary, showing: Showing) -> Answer:
        del vocabulary
        return MessagesAnswer(head, stops=stop_strings(body), reader=showing.new_reader(head.id))

    return Asked(body, "msg_", make_answer, anthropic_chat.NAMES)
