"""Whether a choice's last token ends it, and how. Knows tokens and the grammar's word only."""

from typing import TYPE_CHECKING

from quire_worker.request import FAILED_GRAMMAR, ChoiceOutput
from quire_worker.scheduling.choice import Choice
from quire_worker.scheduling.repetition import is_repeating

if TYPE_CHECKING:
    from quire_worker.grammar.matcher import Matcher


def ending_of(choice: Choice, verdict: str | None) -> tuple[str | None, int | None]:
    """The finish reason, None for a choice that goes on, and the token if it is one that ends. `verdict` is the grammar's."""
    token, total = choice.token_ids[-1], len(choice.token_ids)
    if token in choice.ending and total > choice.min_total:
        return "stop", token
    if verdict is not None:
        return verdict, None
    if total >= choice.max_total:
        return "length", None
    if choice.repetition is not None and total >= choice.min_total and is_repeating(choice, choice.repetition):
        return "repetition", None
    return None, None


def verdict_on(choice: Choice, matcher: "Matcher") -> str | None:
    """What the grammar says of the last token, which it has not seen. A token that ends the choice is none of its business."""
    token = choice.token_ids[-1]
    if token in choice.ending and len(choice.token_ids) > choice.min_total:
        return None
    return matcher.take(token)


def end_of(
    choice: Choice, reason: str, *, error: str | None = None, error_code: str | None = None, stop: int | None = None
) -> ChoiceOutput:
    """What is told of a choice that ends without another token. An "error" without words is its grammar's."""
    if reason == "error" and error is None:
        error, error_code = None if choice.matcher is None else choice.matcher.failure, FAILED_GRAMMAR
    return ChoiceOutput(
        request_id=choice.request_id,
        choice=choice.index,
        token_ids=[],
        finish_reason=reason,
        stop_token_id=stop,
        error=error,
        error_code=error_code,
        num_preemptions=choice.take_preemptions(),
    )
