"""Log-probabilities in OpenAI's two forms."""

import json
import math

import msgspec
import pytest

from quire_worker.request import TokenLogprobs
from quire_worker.server.choice import TokenEntry
from quire_worker.server.logprobs import chat_logprobs, completion_logprobs


class Letters:
    """A vocabulary in which token i is the i-th letter."""

    def token_text(self, token_id: int) -> str:
        return chr(ord("a") + token_id)

    def token_bytes(self, token_id: int) -> bytes:
        return self.token_text(token_id).encode()


@pytest.mark.parametrize("logprob", [-math.inf, math.nan, -1e30])
def test_what_json_cannot_say_is_a_number_all_the_same(logprob: float) -> None:
    entry = TokenEntry(0, TokenLogprobs(logprob=logprob, rank=1, top_ids=(1,), top_logprobs=(logprob,)), 0)

    chat = json.loads(msgspec.json.encode(chat_logprobs([entry], Letters())))["content"][0]
    completion = json.loads(msgspec.json.encode(completion_logprobs([entry], Letters())))

    assert (chat["logprob"], chat["top_logprobs"][0]["logprob"]) == (-9999.0, -9999.0)
    assert completion["token_logprobs"] == [-9999.0]
    assert completion["top_logprobs"] == [{"b": -9999.0, "a": -9999.0}]
