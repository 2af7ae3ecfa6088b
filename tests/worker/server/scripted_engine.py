"""A stand-in for the engine process that says what it is told to, or anything at all that a grammar allows.

Its arguments: a model folder, and how many tokens go into one message. Without a grammar it repeats the tokens that stand in the prompt
behind the last <|say|>, up to <|im_end|>; with one it draws tokens that the grammar allows. Speaks engine.messages; run by tests only.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llguidance
import msgspec
import zmq
from tokenizers import Tokenizer

from quire_worker.engine.messages import Outputs, Ready, Shutdown, Stats, Submit, ToEngine
from quire_worker.plan import KVGroup, ModelInfo
from quire_worker.request import ChoiceOutput, TokenLogprobs

STATS = Stats(
    num_steps=1, num_running=0, num_waiting=0, num_free_blocks=60, num_blocks=64, num_preemptions=0, num_prompt_tokens=0,
    num_cached_tokens=0, num_generated_tokens=0, prefix_queries=0, prefix_hits=0,
)  # fmt: skip


class Speaker:
    """The tokens of one answer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.vocab_size = self.tokenizer.get_vocab_size()
        ids = self.tokenizer.get_vocab()
        self.say, self.end = ids["<|say|>"], ids["<|im_end|>"]
        self._closing = {token for text in ('"', "}", "]", "\n", "</") for token in self.tokenizer.encode(text).ids}
        self._ll: Any = None

    def tokens(self, submit: Submit, choice: int) -> Iterator[int]:
        if submit.grammar is not None:
            yield from self._drawn(submit.grammar, submit.sampling.seed + choice)
            return
        prompt = submit.prompt_token_ids
        start = len(prompt) - prompt[::-1].index(self.say)
        ruled_out = {token for token, bias in submit.sampling.logit_bias if bias <= -100}
        yield from (token for token in prompt[start : prompt.index(self.end, start)] if token not in ruled_out)

    def _drawn(self, grammar: str, seed: int) -> Iterator[int]:
        """Random tokens under the grammar, closing what is open where that may be."""
        if self._ll is None:
            self._ll = llguidance.LLTokenizer(
                self.tokenizer.to_str(), n_vocab=self.vocab_size, eos_token=self.end, slices=[]
            )
        draw = random.Random(seed)
        matcher = llguidance.LLMatcher(self._ll, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        for _ in range(2000):
            mask = matcher.compute_bitmask()
            allowed = [token for token in range(self.vocab_size) if mask[token // 8] >> token % 8 & 1]
            assert allowed, matcher.get_error()
            closing = [token for token in allowed if token in self._closing or token == self.end]
            token = draw.choice(closing if closing and draw.random() < 0.5 else allowed)
            if token == self.end:
                return
            assert matcher.consume_token(token), matcher.get_error()
            yield token


def answer(speaker: Speaker, submit: Submit, choice: int, group: int) -> Iterator[ChoiceOutput]:
    tokens = list(speaker.tokens(submit, choice))
    ends = len(tokens) < submit.sampling.max_tokens
    tokens = [*tokens, speaker.end] if ends else tokens[: submit.sampling.max_tokens]
    for start in range(0, len(tokens), group):
        part = tokens[start : start + group]
        last = start + group >= len(tokens)
        yield ChoiceOutput(
            request_id=submit.request_id,
            choice=choice,
            token_ids=part,
            logprobs=None if submit.sampling.logprobs is None else [TokenLogprobs(-1.0, 1, (), ()) for _ in part],
            finish_reason=None if not last else "stop" if ends else "length",
            stop_token_id=speaker.end if last and ends else None,
        )


def main(folder: Path, group: int) -> int:
    speaker = Speaker(folder)
    config = msgspec.json.decode(sys.stdin.buffer.readline())
    context = zmq.Context()
    inbound, outbound = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    inbound.connect(config["inbound_endpoint"])
    outbound.connect(config["outbound_endpoint"])
    info = ModelInfo(
        vocab_size=speaker.vocab_size,
        max_model_len=2048,
        num_blocks=64,
        block_size=16,
        groups=[KVGroup(num_layers=1)],
        device="stub",
        dtype="none",
    )
    for message in (Ready(info=info, epoch="stub"), STATS):
        outbound.send(msgspec.msgpack.encode(message))
    while True:
        received = msgspec.msgpack.decode(inbound.recv(), type=ToEngine)
        if isinstance(received, Shutdown):
            return 0
        if isinstance(received, Submit):
            for choice in range(received.n):
                for output in answer(speaker, received, choice, group):
                    outbound.send(msgspec.msgpack.encode(Outputs(items=[output])))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
