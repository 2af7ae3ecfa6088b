"""The shape of the pretended model behind --fake: from the folder's config.json where there is one, else from defaults.

No torch, no weights; reads one small file.
"""

import time
from pathlib import Path
from typing import Any

import msgspec

from quire_worker.engine.config import EngineConfig
from quire_worker.errors import LoadError
from quire_worker.execution.fake_runner import FakeLatency, FakeRunner
from quire_worker.plan import KVGroup, ModelInfo, Runner
from quire_worker.scheduling.limits import fit_max_model_len

_DEFAULT_NUM_BLOCKS = 4096
_DEFAULT_MAX_MODEL_LEN = 8192


def build_fake_runner(config: EngineConfig) -> tuple[Runner, ModelInfo]:
    """A FakeRunner as `config` describes it. Raises LoadError for a config.json that cannot be read."""
    model = _model_config(Path(config.model_dir) / "config.json")
    num_blocks = config.num_gpu_blocks_override or _DEFAULT_NUM_BLOCKS
    longest = config.max_model_len or model.get("max_position_embeddings") or _DEFAULT_MAX_MODEL_LEN
    info = ModelInfo(
        vocab_size=model.get("vocab_size") or config.fake_vocab_size,
        max_model_len=fit_max_model_len(longest, num_blocks, config.block_size, num_groups=1),
        num_blocks=num_blocks,
        block_size=config.block_size,
        groups=[KVGroup(num_layers=1)],
        device="fake",
        dtype="none",
    )
    latency = FakeLatency(
        prefill_s_per_token=config.fake_prefill_s_per_token, step_s=config.fake_decode_s_per_step, sleep=time.sleep
    )
    return FakeRunner(info, max_num_seqs=config.max_num_seqs, seed=config.seed, latency=latency), info


def _model_config(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        raise LoadError(f"{path}: {error}") from error
