"""Hidden states to one vector for each sequence, and vectors to what a client asked for.

Shapes: T tokens, B sequences, E hidden size. Vectors are float32 whatever the model computes in.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quire_worker.models.embedding_config import Pooling
from quire_worker.models.encoder import Run

_EPS = 1e-12


def pool(hidden_TE: Tensor, runs: tuple[Run, ...], pooling: Pooling) -> Tensor:
    """[B, E] float32, in the order of the sequences."""
    width = hidden_TE.shape[1]
    pooled = [_pool_run(hidden_TE[run.tokens].view(run.num_sequences, run.length, width), pooling) for run in runs]
    return torch.cat(pooled)


def _pool_run(hidden_BLE: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "mean":
        return hidden_BLE.float().mean(1)
    return hidden_BLE[:, 0 if pooling == "cls" else -1].float()


def finish(vectors_BE: Tensor, *, dimensions: int | None, normalises: bool) -> Tensor:
    """Cut first, so that what is left has length 1."""
    cut = vectors_BE if dimensions is None else vectors_BE[:, :dimensions]
    return F.normalize(cut, dim=1, eps=_EPS) if normalises else cut
