"""Masks for the rows of a step whose choices must match a grammar.

A mask is made from committed tokens only: of a plan whose rows still await some, when those are committed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quire_worker.plan import TokenMasks
from quire_worker.request import ChoiceOutput
from quire_worker.scheduling.choice import Choice, Status
from quire_worker.scheduling.scheduler import Scheduler

if TYPE_CHECKING:
    # llguidance is loaded with the first grammar: where there are none, as in checks on a bare machine with a GPU, it need not exist.
    from quire_worker.grammar.masks import MaskFiller


class Constraints:
    """Owned by the engine."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._filler: MaskFiller | None = None
        self._outputs: list[ChoiceOutput] = []

    def are_ready(self, constrained: Sequence[tuple[int, Choice]]) -> bool:
        """Whether all tokens that the masks depend on are committed."""
        return not any(choice.awaits_token for _, choice in constrained if choice.status is not Status.FINISHED)

    def masks(self, constrained: Sequence[tuple[int, Choice]]) -> TokenMasks | None:
        """For the rows whose choices go on. A choice that has no token left ends: see `take_outputs`."""
        from quire_worker.grammar.masks import MaskFiller, MaskWanted

        wanted: list[MaskWanted] = []
        choices: list[Choice] = []
        for row, choice in constrained:
            if choice.status is not Status.FINISHED and choice.matcher is not None:
                wanted.append(MaskWanted(row, choice.matcher, choice.forbidden))
                choices.append(choice)
        if not wanted:
            return None
        if self._filler is None:
            self._filler = MaskFiller()
        masks, verdicts = self._filler.fill(wanted)
        for choice, verdict in zip(choices, verdicts, strict=True):
            ended = None if verdict is None else self._scheduler.end_by_grammar(choice, verdict)
            if ended is not None:
                self._outputs.append(ended)
        return masks

    def take_outputs(self) -> list[ChoiceOutput]:
        """Of choices that ended for lack of a token since the last call."""
        outputs, self._outputs = self._outputs, []
        return outputs
