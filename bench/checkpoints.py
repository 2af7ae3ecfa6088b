"""Random checkpoints in Hugging Face's format, for benchmarks: right shapes, meaningless weights, a tokenizer only where asked for.

python bench/checkpoints.py FOLDER [llama-88m|llama-372m]
"""

import argparse
import contextlib
import itertools
import json
import string
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from quire_kernels.ops import load_ops
from quire_worker.models.config import parse_model_config
from quire_worker.models.decoder import Decoder
from quire_worker.models.kv_groups import decide_kv_layout
from quire_worker.models.weight_slots import WeightSlots


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A model's shape; `extra` holds further fields of config.json."""

    architecture: str = "LlamaForCausalLM"
    model_type: str = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_position: int = 8192
    is_tied: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def config(self, dtype: torch.dtype) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_position,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.is_tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": str(dtype).removeprefix("torch."),
            **self.extra,
        }


LLAMA_88M = Sizes(
    vocab_size=16_000, hidden_size=768, intermediate_size=2048, num_layers=12, num_heads=12, num_kv_heads=4
)
LLAMA_372M = Sizes(
    vocab_size=16_000, hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14, num_kv_heads=2
)


@contextlib.contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """`kept`, made if need be, or a temporary folder."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def make_random_checkpoint(
    folder: Path, sizes: Sizes, dtype: torch.dtype = torch.bfloat16, std: float = 0.02, seed: int = 0
) -> None:
    """Write config.json and model.safetensors: norms are ones, all else normal with standard deviation `std`."""
    config = sizes.config(dtype)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.ones(shape, dtype=dtype)
        if name.endswith("norm.weight")
        else (torch.randn(shape, generator=generator) * std).to(dtype)
        for name, shape in _shapes(config).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE with exactly `vocab_size` tokens.

    Ids 0 to 2 are special, all others are printable ASCII: whatever a random model says, every token shows at once.
    """
    specials = ["<unk>", "<s>", "</s>"]
    letters = string.ascii_lowercase
    singles = ["Ġ", "Ċ", *(chr(code) for code in range(33, 127))]
    grown = ((left + right, left, right) for left in _words(letters) for right in letters)
    added = list(itertools.islice(grown, vocab_size - len(specials) - len(singles)))
    tokens = [*specials, *singles, *(token for token, _, _ in added)]
    assert len(tokens) == vocab_size, "a vocabulary this large needs longer words"
    tokenizer = Tokenizer(
        BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[(left, right) for _, left, right in added])
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": specials[0]}
    config |= {"bos_token": specials[1], "eos_token": specials[2]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _words(letters: str) -> Iterator[str]:
    """Of one letter, then two, then three: each is there before it is part of a longer one."""
    for length in (1, 2, 3):
        yield from ("".join(word) for word in itertools.product(letters, repeat=length))


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the decoder of this config wants from its checkpoint."""
    model_config = parse_model_config(config)
    slots = WeightSlots()
    Decoder(
        model_config,
        ops=load_ops("reference"),
        slots=slots,
        places=decide_kv_layout(model_config.windows).places,
        device=torch.device("cpu"),
        dtype=torch.float32,
        num_positions=1,
    )
    return slots.shapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sizes", nargs="?", choices=["llama-88m", "llama-372m"], default="llama-88m")
    args = parser.parse_args()
    make_random_checkpoint(args.folder, LLAMA_88M if args.sizes == "llama-88m" else LLAMA_372M)


if __name__ == "__main__":
    main()
