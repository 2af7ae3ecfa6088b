"""FP8 layers through the loader: from FP8 checkpoints as they are, dequantised where FP8 is not computed, and quantised from floats."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from quire_kernels.cpu.native_library import native_library
from quire_kernels.ops import load_ops
from quire_kernels.quantize_fp8 import FP8, quantize_fp8_reference
from quire_worker.errors import LoadError
from quire_worker.models.fp8_weights import dequantise, find_stored_fp8
from quire_worker.models.linear import LinearFactory, Part
from quire_worker.models.quantization_config import Fp8Format
from quire_worker.models.safetensors_files import INDEX_NAME
from quire_worker.models.safetensors_reader import open_checkpoint
from quire_worker.models.weight_slots import WeightSlots

CPU = torch.device("cpu")
REFERENCE = load_ops("reference")
BLOCKS = Fp8Format(scale_name="weight_scale_inv", is_blocks=True)
PLAIN = Fp8Format(scale_name="weight_scale", is_blocks=False)


def random_fp8(out_features, in_features, scale_shape, seed):
    """(values, scales) as a checkpoint has them."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(out_features, in_features, generator=generator) * 100).clamp(-448, 448).to(FP8)
    return values, torch.rand(scale_shape, generator=generator) * 1e-3 + 1e-4


def meant(values, scales):
    """What a checkpoint's numbers mean, in float64, the straightforward way."""
    if scales.dim() == 2 and scales.shape[1] > 1:
        rows = torch.arange(values.shape[0]) // 128
        columns = torch.arange(values.shape[1]) // 128
        return values.double() * scales.double()[rows][:, columns]
    return values.double() * scales.double().reshape(-1, 1)


def load(make_layer, tensors, folder, fp8, dtype=torch.float32, **settings):
    """The layer that `make_layer` takes from a factory, with these tensors as its checkpoint, and the factory."""
    save_file(tensors, folder / "model.safetensors")
    return load_folder(make_layer, folder, fp8, dtype, **settings)


def load_folder(make_layer, folder, fp8, dtype=torch.float32, **settings):
    checkpoint, slots = open_checkpoint(folder), WeightSlots()
    factory = LinearFactory(slots, CPU, dtype, stored_fp8=find_stored_fp8(fp8, checkpoint), **settings)
    layer = make_layer(factory)
    slots.load(checkpoint, "folder")
    return layer, factory


def quantised_input(x, group=None):
    values, scales = quantize_fp8_reference(x, group)
    return (values.double().view(*scales.shape, -1) * scales.double()[..., None]).flatten(1)


@pytest.mark.parametrize("shapes", [((), (1,)), ((256, 1), (128, 1)), ((256,), (128,))])
def test_parts_with_scales_of_their_own_are_one_layer(tmp_path, shapes):
    q, q_scale = random_fp8(256, 64, shapes[0], 1)
    k, k_scale = random_fp8(128, 64, shapes[1], 2)
    bias = torch.randn(384)
    tensors = {"q.weight": q, "q.weight_scale": q_scale, "k.weight": k, "k.weight_scale": k_scale}
    tensors |= {"q.bias": bias[:256].clone(), "k.bias": bias[256:].clone()}
    parts = (Part(name="q", out_features=256), Part(name="k", out_features=128))

    layer, factory = load(
        lambda factory: factory.linear("qk", 64, 384, "column", parts=parts, bias=True),
        tensors,
        tmp_path,
        PLAIN,
        fp8_ops=REFERENCE,
    )

    x = torch.randn(5, 64)
    weight = torch.cat((meant(q, q_scale), meant(k, k_scale)))
    expected = quantised_input(x) @ weight.T + bias
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert factory.size_bytes == 384 * 64 + 384 * 4
    assert factory.dequantised == []


def test_blocks_stay_blocks_and_the_last_may_be_cut(tmp_path):
    gate, gate_scale = random_fp8(256, 384, (2, 3), 1)
    up, up_scale = random_fp8(176, 384, (2, 3), 2)
    tensors = {
        "gate.weight": gate,
        "gate.weight_scale_inv": gate_scale,
        "up.weight": up,
        "up.weight_scale_inv": up_scale,
    }
    parts = (Part(name="gate", out_features=256), Part(name="up", out_features=176))

    layer, factory = load(
        lambda factory: factory.linear("both", 384, 432, "column", parts=parts),
        tensors,
        tmp_path,
        BLOCKS,
        fp8_ops=REFERENCE,
    )

    x = torch.randn(3, 384)
    weight = torch.cat((meant(gate, gate_scale), meant(up, up_scale)))
    torch.testing.assert_close(layer(x).double(), quantised_input(x, 128) @ weight.T, rtol=1e-5, atol=1e-4)
    assert factory.dequantised == []


@pytest.mark.parametrize("order", [("weight", "weight_scale"), ("weight_scale", "weight")])
@pytest.mark.parametrize("fp8_ops", [REFERENCE, None])
def test_numbers_and_scales_may_lie_in_different_files_in_either_order(tmp_path, order, fp8_ops):
    values, scale = random_fp8(32, 48, (32, 1), 3)
    tensors = {"weight": values, "weight_scale": scale}
    for i, name in enumerate(order):
        save_file({f"layer.{name}": tensors[name]}, tmp_path / f"model-{i}.safetensors")
    places = {f"layer.{name}": f"model-{i}.safetensors" for i, name in enumerate(order)}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": places}))

    layer, _ = load_folder(lambda factory: factory.linear("layer", 48, 32, "column"), tmp_path, PLAIN, fp8_ops=fp8_ops)

    x = torch.randn(2, 48)
    seen = x.double() if fp8_ops is None else quantised_input(x)
    torch.testing.assert_close(layer(x).double(), seen @ meant(values, scale).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("library", [None, native_library()])
@pytest.mark.parametrize(("fp8", "scale_shape"), [(BLOCKS, (2, 3)), (PLAIN, ()), (PLAIN, (200, 1))])
def test_where_fp8_is_not_computed_the_layer_is_what_the_checkpoint_means(tmp_path, library, fp8, scale_shape):
    values, scales = random_fp8(200, 300, scale_shape, 4)

    layer, factory = load(
        lambda factory: factory.linear("layer", 300, 200, "column"),
        {"layer.weight": values, f"layer.{fp8.scale_name}": scales},
        tmp_path,
        fp8,
        library=library,
    )

    x = torch.randn(4, 300)
    torch.testing.assert_close(layer(x).double(), x.double() @ meant(values, scales).T, rtol=1e-5, atol=1e-4)
    assert factory.dequantised == ["layer"]
    assert factory.size_bytes == 4 * 200 * 300


def test_experts_that_are_multiplied_together_are_dequantised(tmp_path):
    stored = {name: random_fp8(128, 256, (1, 2), seed) for seed, name in enumerate("ab")}
    tensors = {f"{name}.weight": values for name, (values, _) in stored.items()}
    tensors |= {f"{name}.weight_scale_inv": scales for name, (_, scales) in stored.items()}
    parts = tuple(Part(name=name, out_features=128) for name in "ab")

    stack, factory = load(
        lambda factory: factory.stacked_weight(256, parts), tensors, tmp_path, BLOCKS, fp8_ops=REFERENCE
    )

    expected = torch.cat([meant(*stored[name]) for name in "ab"]).float()
    torch.testing.assert_close(stack.tensor, expected, rtol=1e-6, atol=0)
    assert factory.dequantised == ["a", "b"]


@pytest.mark.parametrize("scale_shape", [(200,), (2, 3)])
def test_a_dequantised_number_is_rounded_once(scale_shape):
    values, scales = random_fp8(200, 300, scale_shape, 5)

    rounded = dequantise(values, scales, torch.bfloat16)

    exact = values.float() * (
        scales[:, None]
        if len(scale_shape) == 1
        else scales.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    )
    assert torch.equal(rounded, exact.bfloat16())


@pytest.mark.parametrize(
    ("sizes", "in_features"),
    [((192, 128), 256), ((128, 128), 192)],
    ids=["a part begins inside a block", "rows end inside one"],
)
def test_blocks_that_do_not_fit_a_fused_layer_are_dequantised(tmp_path, sizes, in_features):
    tensors, weights = {}, []
    for i, (name, size) in enumerate(zip("ab", sizes, strict=True)):
        values, scales = random_fp8(size, in_features, (-(-size // 128), 2), i)
        tensors |= {f"{name}.weight": values, f"{name}.weight_scale_inv": scales}
        weights.append(meant(values, scales))
    parts = tuple(Part(name=name, out_features=size) for name, size in zip("ab", sizes, strict=True))

    layer, factory = load(
        lambda factory: factory.linear("ab", in_features, sum(sizes), "column", parts=parts),
        tensors,
        tmp_path,
        BLOCKS,
        fp8_ops=REFERENCE,
    )

    x = torch.randn(3, in_features)
    torch.testing.assert_close(layer(x).double(), x.double() @ torch.cat(weights).T, rtol=1e-5, atol=1e-4)
    assert factory.dequantised == ["a", "b"]


def test_floats_are_quantised_by_output_but_for_layers_that_must_be_exact(tmp_path):
    generator = torch.Generator().manual_seed(6)
    weight = (torch.randn(32, 64, generator=generator) * torch.logspace(-3, 3, 32)[:, None]).bfloat16()

    (layer, exact), factory = load(
        lambda factory: (
            factory.linear("layer", 64, 32, "column"),
            factory.linear("exact", 64, 32, "column", is_exact=True),
        ),
        {"layer.weight": weight, "exact.weight": weight.clone()},
        tmp_path,
        None,
        dtype=torch.bfloat16,
        quantization="fp8",
        fp8_ops=REFERENCE,
    )

    x = torch.randn(16, 64, generator=generator).bfloat16()
    expected = x.double() @ weight.double().T
    # By output: small ones are as exact as large ones.
    errors = [(form(x) - expected).norm(dim=0) / expected.norm(dim=0) for form in (layer, exact)]
    assert 0.02 < float(errors[0].mean()) < 0.05
    assert float(errors[0].max()) < 0.1
    assert float(errors[1].max()) < 0.004
    assert factory.size_bytes == 32 * 64 * (1 + 2)


def test_what_the_checkpoint_leaves_in_floats_stays_so(tmp_path):
    values, scale = random_fp8(32, 64, (), 7)
    weight = torch.randn(32, 64)

    (stored, left), _ = load(
        lambda factory: (factory.linear("stored", 64, 32, "column"), factory.linear("left", 64, 32, "column")),
        {"stored.weight": values, "stored.weight_scale": scale, "left.weight": weight},
        tmp_path,
        PLAIN,
        fp8_ops=REFERENCE,
    )

    x = torch.randn(3, 64)
    torch.testing.assert_close(left(x), F.linear(x, weight))
    torch.testing.assert_close(stored(x).double(), quantised_input(x) @ meant(values, scale).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fp8", "changes", "words"),
    [
        (PLAIN, {"layer.weight_scale": None}, ["lacks the tensor layer.weight_scale"]),
        (PLAIN, {"layer.weight_scale": torch.ones(31)}, ["layer.weight_scale", "[31]", "[32, 1] or [32]"]),
        (PLAIN, {"layer.weight_scale": torch.ones(32, dtype=torch.int8)}, ["layer.weight_scale is I8"]),
        (PLAIN, {"layer.input_scale": torch.ones(1)}, ["has the tensor layer.input_scale", "no use"]),
        (BLOCKS, {"layer.weight_scale_inv": torch.ones(2, 1)}, ["[2, 1]", "[1, 1]"]),
        (
            PLAIN,
            {"layer.weight": torch.ones(32, 64).to(torch.float8_e5m2), "layer.weight_scale": None},
            ["layer.weight is F8_E5M2"],
        ),
        (None, {"layer.weight_scale": None}, ["layer.weight is F8_E4M3", "quantization_config"]),
    ],
)
def test_a_checkpoint_that_is_not_as_its_config_says_is_an_error_that_names_the_tensor(tmp_path, fp8, changes, words):
    name = "weight_scale" if fp8 is None else fp8.scale_name
    tensors = {"layer.weight": torch.ones(32, 64).to(FP8), f"layer.{name}": torch.ones(1, 1)} | changes

    with pytest.raises(LoadError) as caught:
        load(
            lambda factory: factory.linear("layer", 64, 32, "column"),
            {key: value for key, value in tensors.items() if value is not None},
            tmp_path,
            fp8,
            fp8_ops=REFERENCE,
        )

    assert all(word in str(caught.value) for word in words), caught.value
