"""Whether an output has begun to go in circles. Knows tokens only."""

from quire_worker.request import RepetitionDetection
from quire_worker.scheduling.choice import Choice


def is_repeating(choice: Choice, wanted: RepetitionDetection) -> bool:
    """Whether the output ends in some pattern, of an allowed size, that came min_count times in a row."""
    tokens = choice.token_ids
    num_output = len(tokens) - choice.num_prompt
    most = min(wanted.max_pattern_size, num_output // wanted.min_count)
    return any(
        _ends_in_circles(tokens, size, size * wanted.min_count) for size in range(wanted.min_pattern_size, most + 1)
    )


def _ends_in_circles(tokens: list[int], size: int, length: int) -> bool:
    """Whether each of the last `length` tokens, but the first `size` of them, is what came `size` tokens before."""
    if tokens[-1] != tokens[-1 - size]:  # nearly always
        return False
    return tokens[-length:-size] == tokens[size - length :]
