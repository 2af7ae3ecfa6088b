"""Scales of one layer's FP8 keys and values: what is meant is the cached number times its head's scale.

    tensor  [2, K] float32   of keys, of values; K kv heads

They are 1 unless the checkpoint has `k_scale` and `v_scale` of the layer's attention, for all heads or for each. Caches of other types have
no use for them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quire_worker.errors import LoadError
from quire_worker.models.weight_slots import WeightSlots

_NAMES = ("k_scale", "v_scale")


class KVScales:
    """Of the layer whose attention is called `prefix` in the checkpoint."""

    def __init__(self, slots: WeightSlots, prefix: str, num_kv_heads: int, device: torch.device) -> None:
        self.tensor = torch.ones(2, num_kv_heads, dtype=torch.float32, device=device)
        shapes = ((), (num_kv_heads,), (num_kv_heads, 1, 1))
        for i, name in enumerate(_NAMES):
            full_name = f"{prefix}.{name}"
            slots.declare(full_name, (1,), self._accept(full_name, i), other_shapes=shapes, is_optional=True)

    def _accept(self, name: str, i: int) -> Callable[[Tensor], None]:
        def accept(tensor: Tensor) -> None:
            scales = tensor.float().reshape(-1)
            if not bool((scales > 0).all() and scales.isfinite().all()):
                raise LoadError(f"the tensor {name} has a scale that is not above 0: download the checkpoint again")
            self.tensor[i] = scales

        return accept
