"""Whole blocks, all layers, are copied before a shared one is written."""

import pytest
import torch

from quire_kernels.ops import OpsName, load_ops


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_destinations_become_their_sources_and_other_blocks_stay(name: OpsName, dtype: torch.dtype) -> None:
    kv_cache = torch.randn(6, 3, 2, 3, 16, 24).to(dtype)
    before = kv_cache.clone()

    load_ops(name).copy_blocks(kv_cache, torch.tensor([[0, 4], [0, 1], [5, 2]]))

    assert torch.equal(kv_cache, before[[0, 0, 5, 3, 0, 5]])


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_no_pairs_copy_nothing(name: OpsName) -> None:
    kv_cache = torch.randn(2, 1, 2, 1, 16, 8)
    before = kv_cache.clone()

    load_ops(name).copy_blocks(kv_cache, torch.empty(0, 2, dtype=torch.int64))

    assert torch.equal(kv_cache, before)
