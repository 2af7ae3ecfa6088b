"""Whether an output has begun to go in circles. Knows tokens only."""

from quire_worker.request import RepetitionDetection
from quire_worker.scheduling.choice import Choice


def is_repeating(choice: Choice, wanted: RepetitionDetection) -> bool:
    """Whether the output ends in some pattern, of an allowed size, that came min_count times in a row.

    A pattern's size is how far back the last token came before: `index` finds those places, so that nearly always nothing is compared."""
    tokens, least = choice.token_ids, wanted.min_pattern_size
    most = min(wanted.max_pattern_size, (len(tokens) - choice.num_prompt) // wanted.min_count)
    before = tokens[-1 - least : -2 - most : -1] if least <= most else []
    place = -1
    while tokens[-1] in before[place + 1 :]:
        place = before.index(tokens[-1], place + 1)
        if _ends_in_circles(tokens, least + place, (least + place) * wanted.min_count):
            return True
    return False


def _ends_in_circles(tokens: list[int], size: int, length: int) -> bool:
    """Whether each of the last `length` tokens, but the first `size` of them, is what came `size` tokens before."""
    return tokens[-length:-size] == tokens[size - length :]
