"""The demo model's tokenizer as grammars see it, and a compiler of grammars with its process."""

import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quire_worker.grammar.compiler import GrammarCompiler, Outcome, Refused, digest_of
from quire_worker.grammar.limits import GrammarLimits
from quire_worker.grammar.tokenizer import GrammarTokenizer, load_grammar_tokenizer

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
PADDED_VOCAB_SIZE = 1600
"""More than the tokenizer has, as models have whose embeddings were rounded up."""
MAX_TRIES = 20


class Bench:
    """Compiles, and waits for it."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self.compiler = compiler

    def compile(self, text: str, timeout_s: float = 600) -> Outcome:
        """What becomes of a text that nobody asked for before. A machine that was too busy to tell is asked again."""
        for _ in range(MAX_TRIES):
            assert self.compiler.start(digest_of(text), text)
            outcome = dict(self.wait(1, timeout_s))[digest_of(text)]
            if not (isinstance(outcome, Refused) and not outcome.is_for_good):
                break
        return outcome

    def wait(self, count: int, timeout_s: float = 600) -> list[tuple[bytes, Outcome]]:
        """The next `count` outcomes."""
        found: list[tuple[bytes, Outcome]] = []
        while len(found) < count:
            readable, _, _ = select.select([self.compiler.wake_fd], [], [], timeout_s)
            assert readable, f"{len(found)} of {count} grammars were compiled in time"
            found += self.compiler.collect()
        return found


@pytest.fixture(scope="session")
def tokenizer() -> GrammarTokenizer:
    return load_grammar_tokenizer(DEMO, PADDED_VOCAB_SIZE)


@pytest.fixture(scope="session")
def make_bench(tokenizer: GrammarTokenizer) -> Iterator[Callable[..., Bench]]:
    """Makes compilers with limits of their own; they end with the session."""
    made: list[Bench] = []

    def make(limits: GrammarLimits | None = None) -> Bench:
        made.append(Bench(GrammarCompiler(DEMO, tokenizer, limits or GrammarLimits(num_threads=1))))
        return made[-1]

    yield make
    for bench in made:
        bench.compiler.close()


@pytest.fixture(scope="session")
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
