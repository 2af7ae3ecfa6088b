"""Linear layers: fused from several tensors, and the same for a row whatever its company."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from quire_kernels.cpu.native_library import native_library
from quire_worker.models.linear import LinearFactory, PackedLinear, PaddedLinear, Part, pack
from quire_worker.models.safetensors_reader import open_checkpoint
from quire_worker.models.weight_slots import WeightSlots

ROW_COUNTS = (1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 31, 33, 64)
CPU = torch.device("cpu")
LIBRARY = native_library()


def silu_mul(gate_up):
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up


def load(make_layer, tensors, folder, dtype=torch.float32, **settings):
    """The layer that `make_layer` takes from a factory, with these tensors as its checkpoint, and the factory."""
    save_file(tensors, folder / "model.safetensors")
    slots = WeightSlots()
    factory = LinearFactory(slots, CPU, dtype, **settings)
    layer = make_layer(factory)
    slots.load(open_checkpoint(folder), "folder")
    return layer, factory


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


@pytest.mark.parametrize("library", [None, LIBRARY])
def test_a_projection_is_assembled_from_parts_in_any_order_of_arrival(tmp_path, library):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.{kind}": torch.randn(size, 16, generator=generator) if kind == "weight" else torch.randn(size)
        for name, size in (("q", 8), ("k", 4), ("v", 4))
        for kind in ("weight", "bias")
    }
    parts = (Part(name="q", out_features=8), Part(name="k", out_features=4), Part(name="v", out_features=4))

    layer, factory = load(
        lambda factory: factory.linear("qkv", 16, 16, "column", parts=parts, bias=True),
        tensors,
        tmp_path,
        library=library,
    )

    x = torch.randn(5, 16, generator=generator)
    expected = [F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in "qkv"]
    torch.testing.assert_close(layer(x), torch.cat(expected, dim=1))
    assert factory.num_parameters == 16 * 16 + 16
    assert factory.size_bytes == 4 * factory.num_parameters
    assert (layer.native is None) == (library is None)


@pytest.mark.parametrize("library", [None, LIBRARY])
def test_a_gated_projection_gives_the_activation_of_its_parts(tmp_path, library):
    tensors = {"gate.weight": torch.randn(21, 16), "up.weight": torch.randn(21, 16)}
    parts = (Part(name="gate", out_features=21), Part(name="up", out_features=21))

    layer, _ = load(
        lambda factory: factory.gated_linear("gate_up", 16, parts, silu_mul), tensors, tmp_path, library=library
    )

    x = torch.randn(5, 16)
    expected = F.silu(x @ tensors["gate.weight"].T) * (x @ tensors["up.weight"].T)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("quantization", ["int8", "int8-weight-only"])
def test_int8_quantises_projections_but_not_those_that_must_be_exact(tmp_path, quantization):
    weight = torch.randn(32, 64).bfloat16()

    (layer, exact), factory = load(
        lambda factory: (
            factory.linear("layer", 64, 32, "column"),
            factory.linear("exact", 64, 32, "column", is_exact=True),
        ),
        {"layer.weight": weight, "exact.weight": weight.clone()},
        tmp_path,
        dtype=torch.bfloat16,
        library=LIBRARY,
        quantization=quantization,
    )

    x = torch.randn(3, 64).bfloat16()
    expected = F.linear(x.double(), weight.double())
    errors = [float((form(x) - expected).norm() / expected.norm()) for form in (layer, exact)]
    assert 0.003 < errors[0] < 0.03
    assert errors[1] < 0.003
    assert factory.size_bytes == 32 * 64 * (1 + 2)


@pytest.mark.parametrize("library", [None, LIBRARY])
def test_a_copy_multiplies_and_leaves_its_tensor_as_it_is(library):
    weight = torch.randn(40, 16)
    kept = weight.clone()
    factory = LinearFactory(WeightSlots(), CPU, torch.float32, library=library)

    copy = factory.copy(weight)

    x = torch.randn(5, 16)
    torch.testing.assert_close(copy(x), x @ kept.T)
    assert torch.equal(weight, kept)


WITHOUT_AVX512 = """
import torch
from quire_worker.models.linear import PackedLinear, pack
generator = torch.Generator().manual_seed(1)
weight, x = (torch.randn(rows, 64, generator=generator).bfloat16() for rows in (40, 9))
layer, exact = pack(weight, None), pack(weight.float(), None)
assert not isinstance(layer, PackedLinear) and isinstance(exact, PackedLinear)
torch.testing.assert_close(layer(x).float(), exact(x.float()), rtol=2**-7, atol=2**-7)
assert torch.equal(layer(x)[3:4], layer(x[3:4]))
"""


def test_bfloat16_is_computed_on_a_processor_for_which_onednn_packs_none():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_AVX512],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
