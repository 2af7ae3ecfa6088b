"""How much of an answer is written at once, so that the streams of others go on while a large one is.

Pure. A client that reads slowly, or asks for many choices with log-probabilities, finds a lot waiting for it; made into JSON in one go that
would hold up the event loop for seconds.
"""

from collections.abc import Iterator, Sequence

from quire_worker.server.choice import Piece

PORTION = 1024
"""Pieces and log-probabilities that become JSON at once: some 10 ms."""


def num_logprobs(piece: Piece) -> int:
    """Log-probabilities that a piece shows: of its tokens, and of the likeliest beside each."""
    return sum(1 + len(entry.logprobs.top_ids) for entry in piece.entries)


def portions(arrived: Sequence[tuple[int, Piece]]) -> Iterator[Sequence[tuple[int, Piece]]]:
    """The pieces in order, in runs of PORTION or a single piece."""
    begin = weight = 0
    for end, (_, piece) in enumerate(arrived):
        own = 1 + num_logprobs(piece)
        if weight + own > PORTION and end > begin:
            yield arrived[begin:end]
            begin, weight = end, 0
        weight += own
    yield arrived[begin:]
