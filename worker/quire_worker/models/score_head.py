"""The heads of cross-encoders: a pair's first token becomes one score.

    BERT        tanh(pooler.dense(x)) -> classifier
    RoBERTa     tanh(classifier.dense(x)) -> classifier.out_proj
    DistilBERT  relu(pre_classifier(x)) -> classifier

They are small and decide everything, so they are never quantised. Shapes: B sequences, E hidden size.
"""

import torch
from torch import Tensor

from quire_worker.models.encoder_config import EncoderConfig, Family, ScoreHead
from quire_worker.models.linear import LinearFactory

_NAMES: dict[Family, tuple[str, str]] = {
    "bert": ("pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "classifier"),
}


class PairScorer:
    """Declared with the encoder, loaded with it."""

    def __init__(self, config: EncoderConfig, head: ScoreHead, linears: LinearFactory) -> None:
        dense, out = _NAMES[config.family]
        size = config.hidden_size
        self._dense = linears.linear(dense, size, size, "replicated", bias=True, is_exact=True)
        self._out = linears.linear(out, size, 1, "replicated", bias=True, is_exact=True)
        self._activation = torch.relu if config.family == "distilbert" else torch.tanh
        self._is_sigmoid = head.is_sigmoid

    def __call__(self, first_BE: Tensor) -> Tensor:
        """[B, 1] float32."""
        logits = self._out(self._activation(self._dense(first_BE))).float()
        return torch.sigmoid(logits) if self._is_sigmoid else logits
