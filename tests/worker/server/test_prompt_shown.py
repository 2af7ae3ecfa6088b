"""A prompt as an answer shows it: its echo joins the output without a seam, and its log-probabilities are unpacked as they were packed."""

from array import array
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from quire_contract.detokenize import Detokenizer
from quire_contract.openai.responses import CompletionLogprobs
from quire_worker.request import PromptLogprobs
from quire_worker.server.logprobs import TokensByNumber
from quire_worker.server.prompt_shown import Echo, Extras, ShownPrompt, echo_of, prompt_fields, with_echo

TOKENIZER = Path(__file__).parents[3] / "examples" / "models" / "quire-demo" / "tokenizer.json"
TEXT = "Wörter, 日本語 and 🙂 faces"


@pytest.fixture(scope="module")
def detokenizer() -> Detokenizer:
    return Detokenizer(Tokenizer.from_file(str(TOKENIZER)), TOKENIZER.read_bytes())


@pytest.fixture(scope="module")
def ids() -> list[int]:
    found: list[int] = Tokenizer.from_file(str(TOKENIZER)).encode(TEXT, add_special_tokens=False).ids
    assert len(found) > len(TEXT.split())
    return found


def test_a_prompt_cut_anywhere_joins_its_output_even_within_a_character(
    detokenizer: Detokenizer, ids: list[int]
) -> None:
    for cut in range(1, len(ids) + 1):
        prompt, output = ids[:cut], ids[cut:]
        echo = echo_of(prompt, None, detokenizer.stream(), ends=False)
        stream = detokenizer.stream(prompt_ids=prompt)

        text = echo.text + "".join(map(stream.push, output)) + stream.finish()

        assert text == TEXT
        assert len(echo.offsets) == cut
        assert list(echo.offsets) == sorted(echo.offsets)


def test_an_echo_alone_shows_a_broken_character_as_such(detokenizer: Detokenizer, ids: list[int]) -> None:
    texts = [echo_of(ids[:cut], None, detokenizer.stream(), ends=True).text for cut in range(1, len(ids) + 1)]

    assert texts == [detokenizer.decode(ids[:cut]) for cut in range(1, len(ids) + 1)]
    assert any(text.endswith("\ufffd") for text in texts)


def test_a_text_comes_back_as_it_was_sent_and_no_token_begins_behind_it(
    detokenizer: Detokenizer, ids: list[int]
) -> None:
    echo = echo_of(ids, "short", detokenizer.stream(), ends=True)

    assert echo.text == "short"
    assert max(echo.offsets) == 5


def scores(num_top: int) -> list[PromptLogprobs]:
    """Of four tokens in two parts; token t has logprob -t/4 and is the third likeliest; the likeliest are t+1, t+2, ..."""

    def part(first: int, tokens: list[int]) -> PromptLogprobs:
        return PromptLogprobs(
            first=first,
            num_top=num_top,
            logprobs=array("f", [-token / 4 for token in tokens]).tobytes(),
            ranks=array("i", [3] * len(tokens)).tobytes(),
            top_ids=array("i", [token + 1 + k for token in tokens for k in range(num_top)]).tobytes(),
            top_logprobs=array("f", [-k / 8 for _ in tokens for k in range(num_top)]).tobytes(),
        )

    return [part(1, [41]), part(2, [42, 43, 44])]


def test_log_probabilities_are_shown_as_many_as_were_asked_for(detokenizer: Detokenizer) -> None:
    extras = Extras(prompts=[ShownPrompt(token_ids=[40, 41, 42, 43, 44])], prompt_logprobs=1)

    shown: list[Any] = prompt_fields(extras, 0, scores(num_top=2), TokensByNumber(detokenizer))["prompt_logprobs"]

    assert shown[0] is None
    assert [list(entries) for entries in shown[1:]] == [["41", "42"], ["42", "43"], ["43", "44"], ["44", "45"]]
    assert [(entries["42"].logprob, entries["42"].rank) for entries in shown[1:3]] == [(0.0, 1), (-10.5, 3)]
    assert shown[1]["42"].decoded_token == "token_id:42"


def test_the_legacy_form_puts_the_prompts_before_the_outputs(detokenizer: Detokenizer) -> None:
    echo = Echo(text="abcde", offsets=[0, 1, 2, 3, 4])
    prompt = ShownPrompt(token_ids=[40, 41, 42, 43, 44], echo=echo)
    output = CompletionLogprobs(tokens=["x"], token_logprobs=[-1.0], top_logprobs=[{"x": -1.0}], text_offset=[5])

    found = with_echo(prompt, scores(num_top=1), 1, output, TokensByNumber(detokenizer))

    assert found.tokens == [*(f"token_id:{token}" for token in range(40, 45)), "x"]
    assert found.token_logprobs == [None, -10.25, -10.5, -10.75, -11.0, -1.0]
    assert found.top_logprobs is not None
    assert found.top_logprobs[:2] == [None, {"token_id:42": 0.0, "token_id:41": -10.25}]
    assert found.text_offset == [0, 1, 2, 3, 4, 5]
