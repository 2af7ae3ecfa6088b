"""A choice's way from tokens to text: whatever the grouping, the same text, log-probabilities and reason come out."""

from hypothesis import given
from hypothesis import strategies as st

from quire_worker.engine.messages import ChoiceOutput
from quire_worker.request import TokenLogprobs
from quire_worker.server.choice import Choice, Piece, TokenEntry

PIECES = ["", "a", "b", "ab", "abc", "ca"]


class PieceDetokeniser:
    """Token i is the text PIECES[i], and one held character comes at the end."""

    def push(self, token_id: int) -> str:
        return PIECES[token_id]

    def finish(self) -> str:
        return "c"


def logprobs_of(token_ids: list[int]) -> list[TokenLogprobs]:
    return [TokenLogprobs(-float(token_id), 1, (), ()) for token_id in token_ids]


def run(groups: list[list[int]], stops: list[str], min_tokens: int = 0, finish: str = "length") -> Piece:
    """Push `groups`, the last of which finishes; all pieces put together."""
    choice = Choice(PieceDetokeniser(), stops, min_tokens=min_tokens)
    text, ids, entries = "", [], []
    for index, group in enumerate(groups):
        last = index == len(groups) - 1
        piece = choice.push(
            ChoiceOutput(
                request_id="r",
                choice=0,
                token_ids=group,
                logprobs=logprobs_of(group),
                finish_reason=finish if last else None,
            )
        )
        text, ids, entries = text + piece.text, ids + piece.token_ids, entries + piece.entries
        if piece.finish_reason is not None:
            break
    assert choice.num_tokens == len(ids)
    return Piece(
        text=text, token_ids=ids, entries=entries, finish_reason=piece.finish_reason, stop_reason=piece.stop_reason
    )


@given(
    st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=12),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.integers(0, 5),
    st.data(),
)
def test_every_grouping_of_tokens_gives_the_same(
    tokens: list[int], stops: list[str], min_tokens: int, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=6)))
    groups = [tokens[a:b] for a, b in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]

    whole = run([tokens], stops, min_tokens)
    in_groups = run(groups, stops, min_tokens)

    assert in_groups == whole


@given(
    st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=12),
    st.lists(st.sampled_from(["ab", "bca", "cc"]), max_size=2),
)
def test_log_probabilities_cover_exactly_the_tokens_that_begin_in_the_text(tokens: list[int], stops: list[str]) -> None:
    result = run([tokens], stops)

    offsets, length = [], 0
    for token in result.token_ids:
        offsets.append(length)
        length += len(PIECES[token])
    by_stop_string = result.finish_reason == "stop"
    expected = [
        TokenEntry(token, TokenLogprobs(-float(token), 1, (), ()), offset)
        for token, offset in zip(result.token_ids, offsets, strict=True)
        if not by_stop_string or offset < len(result.text)
    ]
    assert result.entries == expected


def test_a_stop_string_wins_over_the_length_that_ends_with_it() -> None:
    result = run([[1], [2]], ["ab"])

    assert (result.text, result.finish_reason, result.stop_reason) == ("", "stop", "ab")


def test_stop_strings_before_min_tokens_stay_in_the_text() -> None:
    result = run([[3], [3], [3]], ["ab"], min_tokens=3)

    assert (result.text, result.token_ids, result.stop_reason) == ("abab", [3, 3, 3], "ab")


def test_held_text_is_let_out_at_the_end() -> None:
    result = run([[1]], ["acb"])

    assert (result.text, result.finish_reason, result.stop_reason) == ("ac", "length", None)


def test_the_ending_token_has_no_text_but_counts_and_keeps_its_log_probability() -> None:
    choice = Choice(PieceDetokeniser(), [], stop_token_ids=[2])

    piece = choice.push(
        ChoiceOutput(
            request_id="r",
            choice=0,
            token_ids=[1, 2],
            logprobs=logprobs_of([1, 2]),
            finish_reason="stop",
            stop_token_id=2,
        )
    )

    assert (piece.text, piece.token_ids, piece.finish_reason, piece.stop_reason) == ("ac", [1, 2], "stop", 2)
    assert [entry.token_id for entry in piece.entries] == [1, 2]


def test_the_models_own_end_token_is_no_stop_reason() -> None:
    choice = Choice(PieceDetokeniser(), [])

    piece = choice.push(ChoiceOutput(request_id="r", choice=0, token_ids=[5], finish_reason="stop", stop_token_id=5))

    assert (piece.finish_reason, piece.stop_reason) == ("stop", None)
