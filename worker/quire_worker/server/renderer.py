"""Reads what turns requests into prompts: tokenizer and chat template, from the model's folder. No weights."""

import asyncio
import contextlib
from pathlib import Path

import msgspec

from quire_contract.chat_template import PromptError
from quire_contract.model_folder import ModelFolderError
from quire_contract.prompt import PromptRenderer
from quire_contract.prompt_bundle import PromptBundle
from quire_worker.config import WorkerConfig
from quire_worker.errors import ConfigError


async def load_renderer(config: WorkerConfig) -> PromptRenderer:
    """Tokenizer and chat template, read in a thread. ConfigError names the file that is wrong."""
    try:
        return await asyncio.to_thread(_read_renderer, config)
    except (ModelFolderError, PromptError) as error:
        raise ConfigError(f"--model: {error}") from None


def _read_renderer(config: WorkerConfig) -> PromptRenderer:
    template = None
    if config.chat_template is not None:
        try:
            template = config.chat_template.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--chat-template: cannot read {config.chat_template}: {error}") from None
    bundle = PromptBundle.from_model_dir(
        config.model,
        block_size=config.block_size,
        max_model_len=config.max_model_len or _likely_max_model_len(config.model),
        served_model_names=config.model_names,
        generation_config=config.generation_config,
        chat_template=template,
    )
    return PromptRenderer(bundle)


def _likely_max_model_len(folder: Path) -> int:
    """What the engine will most likely say. A wrong guess costs reading the tokenizer a second time."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        model = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, object])
        length = model.get("max_position_embeddings")
        if isinstance(length, int) and length > 0:
            return min(length, _intended_length(folder) or length)
    return 1


def _intended_length(folder: Path) -> int | None:
    """Of the inputs of a model that embeds, as sentence-transformers notes it."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        settings = msgspec.json.decode((folder / "sentence_bert_config.json").read_bytes(), type=dict[str, object])
        length = settings.get("max_seq_length")
        return length if isinstance(length, int) and length > 0 else None
    return None
