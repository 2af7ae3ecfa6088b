"""A whole model in FP8: from its checkpoint, and with an FP8 KV cache, against the same model in floats."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from quire_kernels.ops import load_ops
from quire_kernels.quantize_fp8 import FP8
from quire_worker.errors import LoadError
from quire_worker.models.config import load_model_config
from quire_worker.models.decoder import Decoder
from quire_worker.models.fp8_weights import find_stored_fp8
from quire_worker.models.kv_groups import decide_kv_layout
from quire_worker.models.linear import LinearFactory
from quire_worker.models.safetensors_reader import open_checkpoint
from quire_worker.models.step_inputs import AttentionInputs, StepInputs
from quire_worker.models.weight_slots import WeightSlots
from tests.worker.models.fp8_checkpoints import HEAD_DIM, KV_HEADS, LAYERS, VOCAB, make_checkpoints

CPU = torch.device("cpu")
REFERENCE = load_ops("reference")
BLOCK_SIZE, NUM_BLOCKS = 16, 5
TOKENS = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(9), dtype=torch.int32)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return make_checkpoints(tmp_path_factory.mktemp("fp8"))


def load(folder, *, kv_dtype=torch.float32, extra=None, ops=REFERENCE, **settings):
    """A decoder in float32 and its cache; `extra` are more tensors of the checkpoint."""
    config = load_model_config(folder)
    if extra:
        save_file({name: tensor.clone() for name, tensor in extra.items()}, folder / "extra.safetensors")
        names = dict.fromkeys(open_checkpoint(folder).entries, "model.safetensors")
        index = {"weight_map": names | dict.fromkeys(extra, "extra.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint, slots = open_checkpoint(folder), WeightSlots()
    layout = decide_kv_layout(config.windows)
    stored = find_stored_fp8(config.fp8, checkpoint)
    decoder = Decoder(
        config,
        ops=ops,
        slots=slots,
        places=layout.places,
        device=CPU,
        dtype=torch.float32,
        num_positions=256,
        linears=LinearFactory(slots, CPU, torch.float32, stored_fp8=stored, **settings),
    )
    slots.load(checkpoint, str(folder))
    cache = torch.zeros(NUM_BLOCKS, LAYERS, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM).to(kv_dtype)
    decoder.bind_kv_cache(cache)
    return decoder, cache


def step(decoder, start, end, *, samples=True):
    """Logits of the tokens from start to end, whose predecessors are in the cache. Block 0 is left out, as the pool does."""
    positions = torch.arange(start, end)
    attention = AttentionInputs(
        block_tables=(torch.arange(1, NUM_BLOCKS, dtype=torch.int32)[None],),
        query_starts=torch.tensor([0, end - start], dtype=torch.int32),
        seq_lens=torch.tensor([end], dtype=torch.int32),
        max_query_len=end - start,
        max_seq_len=end,
    )
    return decoder(
        StepInputs(
            token_ids=TOKENS[start:end],
            positions=positions,
            slots=(positions + BLOCK_SIZE,),
            attention=attention,
            sampled_tokens=None if samples else torch.zeros(0, dtype=torch.int64),
            sampled_attention=attention,
            num_sampled=end - start if samples else 0,
        )
    )


def logits_of(decoder):
    """Of all TOKENS, the last few one by one."""
    steps = [(0, 20), (20, 37), (37, 38), (38, 39), (39, 40)]
    return torch.cat([step(decoder, start, end) for start, end in steps])


def error(logits, exact):
    return float((logits - exact).norm() / exact.norm())


def test_an_fp8_checkpoint_that_is_dequantised_is_the_model_it_means(checkpoints):
    fp8, plain = (logits_of(load(folder)[0]) for folder in checkpoints)

    assert torch.equal(fp8, plain)


def test_an_fp8_checkpoint_that_is_computed_as_it_is_loses_only_what_its_activations_lose(checkpoints):
    exact = logits_of(load(checkpoints[1])[0])

    logits = logits_of(load(checkpoints[0], fp8_ops=REFERENCE)[0])

    assert 0.005 < error(logits, exact) < 0.04


def counting(counts):
    """Reference ops that count their calls by name."""

    def counted(name):
        operation = getattr(REFERENCE, name)

        def call(*arguments):
            counts[name] += 1
            return operation(*arguments)

        return call

    names = ("rms_norm", "rms_norm_fp8", "silu_mul", "silu_mul_fp8", "quantize_fp8")
    return replace(REFERENCE, **{name: counted(name) for name in names})


def test_what_goes_into_fp8_projections_is_quantised_by_the_operation_before_but_for_what_attention_gives(checkpoints):
    counts = Counter()
    ops = counting(counts)
    decoder, _ = load(checkpoints[0], ops=ops, fp8_ops=ops)

    step(decoder, 0, 20)

    assert counts == {"rms_norm_fp8": 2 * LAYERS, "silu_mul_fp8": LAYERS, "quantize_fp8": LAYERS, "rms_norm": 1}


def test_in_a_model_of_floats_nothing_is_quantised(checkpoints):
    counts = Counter()
    ops = counting(counts)
    decoder, _ = load(checkpoints[1], ops=ops, fp8_ops=ops)

    step(decoder, 0, 20)

    assert counts == {"rms_norm": 2 * LAYERS + 1, "silu_mul": LAYERS}


def test_quantising_in_the_operation_before_changes_no_bit(checkpoints):
    together, apart = (load(checkpoints[0], fp8_ops=REFERENCE)[0] for _ in range(2))
    for layer in apart._layers:
        layer._input_norm._form = layer._mlp_norm._form = None
        layer._mlp.gate_up._silu_mul = REFERENCE.silu_mul

    assert torch.equal(logits_of(together), logits_of(apart))


def test_a_step_that_samples_nothing_stores_keys_all_the_same(checkpoints):
    decoder, cache = load(checkpoints[0], fp8_ops=REFERENCE)
    whole, expected = load(checkpoints[0], fp8_ops=REFERENCE)
    step(whole, 0, 20)

    logits = step(decoder, 0, 20, samples=False)

    assert logits is None
    assert torch.equal(cache, expected)


def test_floats_quantised_while_loading_lose_more_and_not_much_more(checkpoints):
    exact = logits_of(load(checkpoints[1])[0])

    logits = logits_of(load(checkpoints[1], fp8_ops=REFERENCE, quantization="fp8")[0])

    assert 0.005 < error(logits, exact) < 0.06


def test_an_fp8_cache_takes_a_byte_for_each_number_and_costs_little_accuracy(checkpoints):
    exact = logits_of(load(checkpoints[1])[0])

    decoder, cache = load(checkpoints[1], kv_dtype=FP8)
    logits = logits_of(decoder)

    assert cache.dtype == FP8
    assert bool(cache[1:3].float().any(-1).all())
    assert 0.001 < error(logits, exact) < 0.03


def test_a_checkpoints_kv_scales_say_what_is_stored(checkpoints, tmp_path):
    plain = shutil.copytree(checkpoints[1], tmp_path / "plain")
    scale_of = {"k_scale": torch.tensor([0.01]), "v_scale": torch.tensor([0.02, 0.5])}
    extra = {
        f"model.layers.{layer}.self_attn.{name}": scale for layer in range(LAYERS) for name, scale in scale_of.items()
    }
    decoder, exact_cache = load(plain)
    exact = logits_of(decoder)

    decoder, cache = load(plain, kv_dtype=FP8, extra=extra)
    logits = logits_of(decoder)

    # The first layer's keys and values do not depend on the cache.
    stored = cache[1:3, 0].float() * torch.tensor([[0.01, 0.01], [0.02, 0.5]])[:, :, None, None]
    torch.testing.assert_close(stored, exact_cache[1:3, 0], rtol=1 / 16, atol=1e-3)
    assert error(logits, exact) < 0.05


def test_scales_for_a_cache_of_floats_are_read_and_not_used(checkpoints, tmp_path):
    plain = shutil.copytree(checkpoints[1], tmp_path / "plain")
    exact = logits_of(load(plain)[0])

    extra = {f"model.layers.{layer}.self_attn.k_scale": torch.tensor(7.0) for layer in range(LAYERS)}
    logits = logits_of(load(plain, extra=extra)[0])

    assert torch.equal(logits, exact)


def test_a_scale_that_cannot_be_is_an_error_that_names_it(checkpoints, tmp_path):
    plain = shutil.copytree(checkpoints[1], tmp_path / "plain")

    with pytest.raises(LoadError, match=r"model\.layers\.1\.self_attn\.v_scale has a scale that is not above 0"):
        load(plain, kv_dtype=FP8, extra={"model.layers.1.self_attn.v_scale": torch.tensor([0.0])})
