"""Scores of the committed demo model: greedy answers to held-out questions, through Hugging Face transformers in bfloat16.

    python examples/demo_model/evaluate.py

Each question is asked alone, behind long system prompts of generated text, behind a system prompt in English prose
that is in no training text, and in a conversation with earlier turns. Writes `scores.json`. It must not know how the model was trained.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import questions
import torch
from questions import Question
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
Messages = list[dict[str, str]]
FOREIGN_SYSTEM = (HERE / "foreign_system_prompt.txt").read_text(encoding="utf-8").strip()


def user(content: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": content}


def alone(question: Question, rng: random.Random) -> Messages:
    """The question only."""
    return [user(question.prompt)]


def behind_long_system(question: Question, rng: random.Random) -> Messages:
    """A generated system prompt of 300 to 700 tokens."""
    return [{"role": "system", "content": questions.system_prompt(rng, rng.randint(28, 60))}, user(question.prompt)]


def behind_very_long_system(question: Question, rng: random.Random) -> Messages:
    """A generated system prompt of about 2000 tokens."""
    return [{"role": "system", "content": questions.system_prompt(rng, 180)}, user(question.prompt)]


def behind_foreign_system(question: Question, rng: random.Random) -> Messages:
    """A system prompt in English prose, as an operator would write it."""
    return [{"role": "system", "content": FOREIGN_SYSTEM}, user(question.prompt)]


def in_conversation(question: Question, rng: random.Random) -> Messages:
    """A long system prompt and three earlier questions with right answers."""
    messages = behind_long_system(question, rng)[:1]
    for earlier in questions.held_out_questions(rng.randrange(10**9), 3):
        messages += [user(earlier.prompt), {"role": "assistant", "content": earlier.answer}]
    return [*messages, user(question.prompt)]


SETTINGS: dict[str, tuple[Callable[[Question, random.Random], Messages], int]] = {
    "alone": (alone, 100),
    "long_system_prompt": (behind_long_system, 30),
    "very_long_system_prompt": (behind_very_long_system, 10),
    "foreign_system_prompt": (behind_foreign_system, 30),
    "conversation": (in_conversation, 30),
}


class Answerer:
    """The model and its tokenizer, loaded once; answers greedily."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        # Any: the library's annotations do not describe these calls.
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model.train(False)

    @torch.no_grad()
    def answer(self, messages: Messages) -> tuple[str, int]:
        """The reply and the number of prompt tokens."""
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False, temperature=None, top_p=None
        )
        reply: str = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        return reply, int(ids.shape[1])


def score(answerer: Answerer, setting: str, num_each: int, seed: int) -> dict[str, object]:
    """Shares right by task and overall in one setting, with the mean prompt length and up to ten wrong replies."""
    arrange, _ = SETTINGS[setting]
    rng = random.Random(f"{setting} {seed}")
    num_right = dict.fromkeys(questions.TASKS, 0)
    num_tokens, wrong = 0, []
    asked = list(questions.held_out_questions(seed, num_each * len(questions.TASKS)))
    for question in asked:
        reply, length = answerer.answer(arrange(question, rng))
        num_tokens += length
        if questions.is_right(question, reply):
            num_right[question.task] += 1
        else:
            wrong.append({"task": question.task, "prompt": question.prompt, "answer": question.answer, "reply": reply})
    return {
        "questions": len(asked),
        "right": sum(num_right.values()),
        "overall": round(sum(num_right.values()) / len(asked), 4),
        "tasks": {task: round(count / num_each, 4) for task, count in num_right.items()},
        "mean_prompt_tokens": round(num_tokens / len(asked)),
        "wrong": wrong[:10],
    }


def main() -> None:
    """Parse, score every setting, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE.parent / "models" / "quire-demo")
    parser.add_argument("--output", type=Path, default=HERE / "scores.json")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--share", type=float, default=1.0, help="share of the questions to ask, for a quick look")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    answerer = Answerer(options.model, getattr(torch, options.dtype))
    scores: dict[str, object] = {
        "dtype": options.dtype,
        "seed": options.seed,
        "parameters": sum(p.numel() for p in answerer.model.parameters()),
    }
    for setting, (_, num_each) in SETTINGS.items():
        result = score(answerer, setting, max(1, round(num_each * options.share)), options.seed)
        print(setting, {k: v for k, v in result.items() if k != "wrong"}, flush=True)
        scores[setting] = result
    options.output.write_text(json.dumps(scores, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
