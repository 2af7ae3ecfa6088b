"""Linear layers: fused from several tensors, and the same for a row whatever its company."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from quire_worker.models.linear import LinearFactory, PackedLinear, PaddedLinear, Part, pack
from quire_worker.models.safetensors_reader import open_checkpoint
from quire_worker.models.weight_slots import WeightSlots

ROW_COUNTS = (1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 31, 33, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("in_features", "out_features"), [(64, 96), (100, 50), (1100, 100), (2048, 768), (5000, 64)])
def test_a_rows_result_is_bitwise_the_same_whatever_the_number_of_rows(dtype, in_features, out_features):
    generator = torch.Generator().manual_seed(in_features)
    weight = torch.randn(out_features, in_features, generator=generator).to(dtype)
    x = torch.randn(64, in_features, generator=generator).to(dtype)
    layer = pack(weight, torch.randn(out_features, generator=generator).to(dtype))

    whole = layer(x)

    assert all(torch.equal(layer(x[:count]), whole[:count]) for count in ROW_COUNTS)


@pytest.mark.parametrize("form", [PackedLinear, PaddedLinear])
@pytest.mark.parametrize("has_bias", [True, False])
def test_every_form_computes_the_product(form, has_bias):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(40, 48, generator=generator), torch.randn(40, generator=generator)
    wide = torch.randn(20, 100, generator=generator)
    x = wide[:, 30:78]

    out = form(weight, bias if has_bias else None)(x)

    torch.testing.assert_close(out, F.linear(x, weight, bias if has_bias else None))
    assert out.is_contiguous()


def test_a_projection_is_assembled_from_parts_in_any_order_of_arrival(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.{kind}": torch.randn(size, 16, generator=generator) if kind == "weight" else torch.randn(size)
        for name, size in (("q", 8), ("k", 4), ("v", 4))
        for kind in ("weight", "bias")
    }
    save_file(tensors, tmp_path / "model.safetensors")
    slots = WeightSlots()
    factory = LinearFactory(slots, torch.device("cpu"), torch.float32)
    parts = (Part(name="q", out_features=8), Part(name="k", out_features=4), Part(name="v", out_features=4))
    layer = factory.linear("qkv", 16, 16, "column", parts=parts, bias=True)

    slots.load(open_checkpoint(tmp_path), "folder")

    x = torch.randn(5, 16, generator=generator)
    expected = [F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in "qkv"]
    torch.testing.assert_close(layer(x), torch.cat(expected, dim=1))
    assert factory.num_parameters == 16 * 16 + 16
