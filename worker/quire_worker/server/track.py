"""A choice that the engine computes, and what of it stands in the answer. Knows no engine and no HTTP."""

from collections.abc import Sequence

from quire_contract.resume import ResumedChoice
from quire_worker.engine.messages import ChoiceOutput
from quire_worker.request import SamplingParams
from quire_worker.server.choice import Choice, Piece
from quire_worker.server.token_pieces import TokenPieces


class Track:
    """One choice, under the name that the engine knows it by."""

    def __init__(
        self,
        request_id: str,
        engine_choice: int,
        prompt: int,
        indices: range,
        choice: Choice,
        pieces: TokenPieces | None,
    ) -> None:
        """`indices`: the choices of the answer that show it. `pieces`: what is told of comes token by token."""
        self.request_id = request_id
        self.engine_choice = engine_choice
        self.prompt = prompt
        """Number of its prompt."""
        self.indices = indices
        self.choice = choice
        self._pieces = pieces
        self.begun_ids: list[int] = []
        """Tokens that another worker made."""
        self.has_begun = False
        """Something of it has been told."""
        self.last_token_s: float | None = None
        self.num_preemptions = 0
        """As far as the engine has told."""

    def push(self, output: ChoiceOutput) -> Sequence[Piece]:
        """What the engine's next tokens let out."""
        return (self.choice.push(output),) if self._pieces is None else self._pieces.push(output)

    def again(self, begun: ResumedChoice, sampling: SamplingParams) -> list[Piece]:
        """What another worker let out of it. The choice ends if its last token ends it, as far as can be told from here, or if the client
        knows that it is finished; else the engine goes on behind these tokens, or finds that it has ended."""
        assert self._pieces is not None, "a choice that goes on is told of token by token"
        self.begun_ids = begun.token_ids
        pieces: list[Piece] = []
        last, stop = len(begun.token_ids) - 1, None
        for index, token_id in enumerate(begun.token_ids):
            if index == last and token_id in sampling.ending_token_ids and index >= sampling.min_tokens:
                stop = token_id
            pieces += self._pieces.again(token_id, ends=stop is not None, is_finished=begun.finished)
            if self.choice.finish_reason is not None:
                return pieces
        if stop is not None or begun.finished:
            is_full = stop is None and len(begun.token_ids) >= sampling.max_tokens
            reason = "length" if is_full else "stop"
            pieces += self._pieces.push(
                ChoiceOutput(request_id="", choice=0, token_ids=[], finish_reason=reason, stop_token_id=stop)
            )
        return pieces
