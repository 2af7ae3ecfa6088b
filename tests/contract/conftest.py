"""Small tokenizers of the kinds that models use, and a model folder."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog. 12 + 30 = 42\n",
    "héllo wörld, ünïcode; 日本語のテスト and emoji 😀👍🏽 too\n",
    "def area(r):\n    return 3.14159 * r ** 2\n",
    "<|im_start|>user\nWhat is new?<|im_end|>\n",
] * 10
CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """A ByteLevel BPE, as Llama 3 and Qwen have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|bos|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool é>", special=False), AddedToken("日本", special=False)])
    bos = tokenizer.token_to_id("<|bos|>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", bos)])
    return tokenizer


@pytest.fixture(scope="session")
def llama_like() -> Tokenizer:
    """Pieces with a mark for spaces and byte tokens for everything unknown, as Llama 2 and Mistral have."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for char in sorted(
        {char for text in CORPUS for char in text.replace(" ", "▁") if char.isascii() and char != "\n"} | {"▁"}
    ):
        vocab.setdefault(char, len(vocab))
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "q"), ("▁", "▁"), ("o", "x"), ("▁▁", "▁▁")]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@pytest.fixture(scope="session")
def metaspace() -> Tokenizer:
    """Pieces whose decoder is Metaspace alone, as T5 and older conversions have."""
    vocab = {"<unk>": 0, "<s>": 1, "▁the": 2, "▁": 3, "fox": 4, "▁▁x": 5, "é": 6, ",": 7}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


@pytest.fixture(scope="session")
def wordpiece() -> Tokenizer:
    """A decoder that looks at neighbours."""
    tokenizer = Tokenizer(
        models.WordPiece({"[UNK]": 0, "the": 1, "##re": 2, "fox": 3, "é": 4, ",": 5}, unk_token="[UNK]")
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


@pytest.fixture
def model_dir(tmp_path: Path, byte_level: Tokenizer) -> Path:
    """A model folder without weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    byte_level.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "bos_token": "<|bos|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "chat_template": CHATML,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 512, "eos_token_id": 2}))
    generation = {"eos_token_id": [2, 0], "temperature": 0.6, "top_k": 20, "max_new_tokens": 64, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
