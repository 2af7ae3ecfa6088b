"""Stop strings: found wherever they fall, never sent, whatever the cut of the stream."""

from hypothesis import given
from hypothesis import strategies as st

from quire_worker.server.stop_matcher import StopMatcher

TEXT = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=4)


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    """All text released for `pieces`, and the stop string that ended it."""
    matcher = StopMatcher(stops)
    released = ""
    for piece in pieces:
        text, stop = matcher.feed(piece)
        released += text
        if stop is not None:
            return released, stop
    return released + matcher.flush(), None


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """The definition: the shortest beginning of `text` that ends in a stop string, cut before the longest such stop."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(TEXT, STOPS, st.data())
def test_every_cut_of_a_text_gives_what_the_definition_gives(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    result = run(stops, pieces)

    assert result == expected(stops, text)


@given(TEXT, STOPS)
def test_held_text_is_always_a_beginning_of_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)

    for character in text:
        _, stop = matcher.feed(character)
        if stop is not None:
            break

        assert matcher.held == "" or any(stop.startswith(matcher.held) for stop in stops)


def test_a_match_that_ends_unarmed_is_passed_over_and_later_ones_count() -> None:
    matcher = StopMatcher(["ab"])

    first = matcher.feed("xab", armed=False)
    second = matcher.feed("yab")

    assert first == ("xab", None)
    assert second == ("y", "ab")


def test_a_match_may_begin_unarmed_and_end_armed() -> None:
    matcher = StopMatcher(["ab"])

    first = matcher.feed("xa", armed=False)
    second = matcher.feed("b")

    assert first == ("x", None)
    assert second == ("", "ab")


def test_without_stop_strings_nothing_is_held() -> None:
    matcher = StopMatcher([])

    assert matcher.feed("anything") == ("anything", None)
    assert matcher.held == ""
