"""Makes the demo model: tokenizer, training in stages on generated conversations, Hugging Face folder, training log.

    python examples/demo_model/train.py

Each finished stage leaves its weights in `--work`, and a run that is started again goes on after the last of them. It must not know
held-out questions except to log how many the model gets right; they never choose what is trained on.
"""

import argparse
import csv
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import llama
import questions
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokens import (
    END,
    END_OF_TEXT,
    Turn,
    conversation,
    encode,
    random_conversation,
    token_id,
    train_tokenizer,
    write_tokenizer,
)
from torch import Tensor, nn

HERE = Path(__file__).parent
SEED = 20
STEP_TOKENS = 4096
LOG_COLUMNS = ("stage", "step", "tokens", "seconds", "learning_rate", "loss", *questions.TASKS, "long_prompt")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of training: steps of `STEP_TOKENS` tokens in rows of one of `lengths` (drawn for each step).

    The learning rate falls on a cosine from `high` to `low` that would end at step `horizon`; system prompts have up to
    `max_sentences` sentences.
    """

    name: str
    steps: int
    horizon: int
    lengths: tuple[int, ...]
    max_sentences: int
    high: float
    low: float
    weights: dict[str, float]


EVEN = {"arithmetic": 5.0, "conversion": 3.0, "sorting": 4.0, "copying": 2.0, "extraction": 2.0, "facts": 3.0}
HARD = {"arithmetic": 8.0, "conversion": 1.0, "sorting": 6.0, "copying": 2.0, "extraction": 1.0, "facts": 1.0}
HARDEST = {"arithmetic": 6.0, "conversion": 1.5, "sorting": 9.0, "copying": 4.0, "extraction": 1.0, "facts": 1.0}
STAGES = (
    Stage(name="short", steps=1000, horizon=2400, lengths=(256,), max_sentences=6, high=4e-3, low=1e-3, weights=EVEN),
    Stage(
        name="hard",
        steps=900,
        horizon=1200,
        lengths=(256, 256, 256, 256, 1024),
        max_sentences=60,
        high=3e-3,
        low=1e-3,
        weights=HARD,
    ),
    Stage(
        name="long",
        steps=650,
        horizon=650,
        lengths=(256, 256, 256, 512, 1024, 2048, 4096),
        max_sentences=150,
        high=1.5e-3,
        low=1e-5,
        weights=HARDEST,
    ),
)


def rows(tokenizer: Tokenizer, stage: Stage, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (ids, targets), int64 [rows, length]: conversations one after the other; -100 where nothing is to be learnt."""
    ids: list[int] = []
    learnt: list[bool] = []
    while True:
        length = rng.choice(stage.lengths)
        max_sentences = min(stage.max_sentences, max(2, length // 16))
        while len(ids) <= STEP_TOKENS:
            more, mask = encode(tokenizer, random_conversation(rng, max_sentences, stage.weights))
            ids += more
            learnt += mask
        chunk, targets = torch.tensor(ids[: STEP_TOKENS + 1]), torch.tensor(learnt[1 : STEP_TOKENS + 1])
        wanted = chunk[1:].masked_fill(~targets, -100)
        ids, learnt = [], []
        yield chunk[:-1].view(-1, length), wanted.view(-1, length)


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding and norms; their learning rates are set by step."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up over 50 steps, then a cosine from `high` to `low`."""
    wave = 0.5 * (1 + math.cos(math.pi * step / stage.horizon))
    return (stage.low + (stage.high - stage.low) * wave) * min(1.0, (step + 1) / 50)


@torch.no_grad()
def share_right(model: llama.Llama, tokenizer: Tokenizer, asked: list[list[Turn]]) -> float:
    """Share of conversations whose last answer is the greedy one.

    That is so when every token of it, end-of-turn included, is the likeliest after those before, so one pass decides.
    """
    num_right = 0
    for turns in asked:
        ids, learnt = encode(tokenizer, turns)
        answer = list(range(len(encode(tokenizer, turns[:-1])[0]), len(ids)))
        positions = torch.tensor([i for i in answer if learnt[i]])
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(torch.tensor([ids[: int(positions[-1])]]))[0, positions - 1]
            likeliest = nn.functional.linear(hidden, model.embed_tokens.weight).argmax(-1)
        num_right += bool((likeliest == torch.tensor(ids)[positions]).all())
    return num_right / len(asked)


def held_out_shares(model: llama.Llama, tokenizer: Tokenizer, num_each: int) -> dict[str, float]:
    """Share right by task, and over all tasks behind a long system prompt with earlier turns."""
    shares: dict[str, float] = {}
    behind_long: list[list[Turn]] = []
    rng = random.Random("long prompts")
    for task in questions.TASKS:
        asked = [
            [Turn("user", q.prompt), Turn("assistant", q.answer)]
            for q in questions.held_out_questions(SEED, num_each, (task,))
        ]
        shares[task] = share_right(model, tokenizer, asked)
        behind_long += [conversation(rng, 2, 40, EVEN) + turns for turns in asked[: num_each // 5]]
    return shares | {"long_prompt": share_right(model, tokenizer, behind_long)}


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Runs stages on one model, logs to `log` and publishes to `folder`."""

    model: llama.Llama
    tokenizer: Tokenizer
    work: Path
    folder: Path
    log: Path
    check_every: int

    def run(self, stage: Stage) -> None:
        """One stage: train, log the shares right now and then, publish the model each time; at the end keep the stage's weights."""
        batches = rows(self.tokenizer, stage, random.Random(f"{SEED} {stage.name}"))
        updaters = optimizers(self.model)
        start, losses = time.monotonic(), []
        for step in range(1, stage.steps + 1):
            rate = learning_rate(stage, step)
            ids, targets = next(batches)
            with torch.autocast("cpu", torch.bfloat16):
                loss = self.model.loss(ids, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for updater in updaters:
                updater.param_groups[0]["lr"] = rate
                updater.step()
                updater.zero_grad()
            losses.append(loss.item())
            if step % self.check_every == 0 or step == stage.steps:
                shares = held_out_shares(self.model, self.tokenizer, 60)
                self.note(stage.name, step, time.monotonic() - start, rate, sum(losses) / len(losses), shares)
                self.publish()
                losses.clear()
        self.publish()
        shutil.copyfile(self.folder / "model.safetensors", self.work / f"{stage.name}.safetensors")

    def note(self, stage: str, step: int, seconds: float, rate: float, loss: float, shares: dict[str, float]) -> None:
        """A line in the log and on the terminal."""
        values = [
            stage,
            step,
            step * STEP_TOKENS,
            round(seconds),
            f"{rate:.2e}",
            f"{loss:.4f}",
            *(f"{share:.3f}" for share in shares.values()),
        ]
        is_new = not self.log.exists()
        with self.log.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(LOG_COLUMNS)
            writer.writerow(values)
        print(*values, flush=True)

    def publish(self) -> None:
        """Replace the model folder's files one by one, each at once, so that a reader never sees half a file."""
        new = self.work / "new"
        new.mkdir(exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(self.tokenizer, new)
        end, end_of_text = (token_id(self.tokenizer, t) for t in (END, END_OF_TEXT))
        llama.write_model(self.model, new, end=end, end_of_text=end_of_text)
        for file in new.iterdir():
            file.replace(self.folder / file.name)


def main() -> None:
    """Parse, build, run the stages that are not finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, default=HERE / "work", help="for weights between stages; not needed afterwards"
    )
    parser.add_argument("--output", type=Path, default=HERE.parent / "models" / "quire-demo")
    parser.add_argument("--log", type=Path, default=HERE / "training_log.csv")
    parser.add_argument("--check-every", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    options.work.mkdir(parents=True, exist_ok=True)
    model = llama.Llama(llama.Shape())
    tokenizer = train_tokenizer(SEED, 6000)
    trainer = Trainer(
        model=model,
        tokenizer=tokenizer,
        work=options.work,
        folder=options.output,
        log=options.log,
        check_every=options.check_every,
    )
    for stage in STAGES:
        finished = options.work / f"{stage.name}.safetensors"
        if not finished.exists():
            trainer.run(stage)
        # The next stage starts from what was published, so that a resumed run is the same run.
        model.load_state_dict(
            {name.removeprefix("model."): weight.float() for name, weight in load_file(finished).items()}
        )


if __name__ == "__main__":
    main()
