"""The configuration line of the engine process."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quire_worker.engine.config import decode_engine_config
from quire_worker.engine.fake_model import build_fake_runner
from quire_worker.engine.process import depth_of
from quire_worker.errors import ConfigError

REQUIRED = {
    "model_dir": "/models/m",
    "served_model_names": ["m"],
    "inbound_endpoint": "ipc:///run/in",
    "outbound_endpoint": "ipc:///run/out",
}


def decode(**fields: Any) -> Any:
    return decode_engine_config(json.dumps({**REQUIRED, **fields}).encode() + b"\n")


def test_defaults_are_those_of_a_small_worker() -> None:
    config = decode()

    assert (config.depth, config.block_size, config.enable_prefix_caching) == (None, 16, True)


@pytest.mark.parametrize(("device", "fields", "depth"), [("cuda", {}, 2), ("cpu", {}, 1), ("cuda", {"depth": 1}, 1)])
def test_a_gpu_has_two_plans_in_flight_unless_told_otherwise(
    device: str, fields: dict[str, Any], depth: int, tmp_path: Path
) -> None:
    config = decode(fake=True, model_dir=str(tmp_path), **fields)
    info = msgspec.structs.replace(build_fake_runner(config)[1], device=device)

    assert depth_of(config, info) == depth


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"unknown_key": 1}, "unknown_key"),
        ({"depth": "two"}, "depth"),
        ({"depth": 0}, "--depth"),
        ({"block_size": 24}, "--block-size"),
        ({"served_model_names": []}, "--served-model-name"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "--max-num-batched-tokens"),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization"),
        ({"num_gpu_blocks_override": 1}, "--num-gpu-blocks-override"),
        ({"max_model_len": 0}, "--max-model-len"),
        ({"replay_endpoint": "tcp://127.0.0.1:0"}, "--kv-replay-endpoint"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        decode(**fields)


def test_any_block_size_is_good_enough_for_the_fake_runner() -> None:
    assert decode(fake=True, block_size=4).block_size == 4
