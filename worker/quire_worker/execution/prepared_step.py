"""What a step is once its inputs are derived."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire_worker.execution.prompt_scores import PromptScores, WantedQueries
from quire_worker.execution.rows import Ints
from quire_worker.models.step_inputs import StepInputs


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledRows:
    """The rows that get a token from this step."""

    rows: Ints
    """[S], in the plan's order."""
    rows_on_device: Tensor


NO_ROWS = SampledRows(rows=np.zeros(0, np.int64), rows_on_device=torch.zeros(0, dtype=torch.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What a step chose by itself, and has appended to the rows on the device."""

    token_ids: Tensor
    """[S] int64."""
    broken: Tensor
    """[S] bool; see quire_kernels.sampling."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Computed:
    """What came of a step before sampling."""

    logits: Tensor | None
    """[S, V] of the sampled rows; None if there are none, or if they are chosen."""
    sampled: SampledRows
    scores: PromptScores | None = None
    """Of prompt tokens, in steps that compute any that were asked for."""
    chosen: Chosen | None = None
    """The tokens of the sampled rows, where the step chose them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedStep:
    """A step ready to run."""

    inputs: StepInputs
    sampled: SampledRows
    queries: WantedQueries | None = None
    """In steps that score prompts: `inputs` sample these, more than the sampled rows' last tokens."""
