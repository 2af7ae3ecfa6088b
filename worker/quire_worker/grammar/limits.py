"""How much one grammar may cost, and what it costs others."""

from dataclasses import dataclass

from llguidance import LLParserLimits

HELPER_STACK_BYTES = 4 * 2**20
"""Stack of a trial. llguidance recurses over references, and what overflows this would overflow any stack if it were longer."""
COMPILE_STACK_BYTES = 64 * 2**20
"""Stack where a grammar is compiled that passed its trial: many times as much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GrammarLimits:
    """Bounds of one engine."""

    compile_time_s: float = 10.0
    """A trial that takes longer is ended, and the grammar refused."""
    load_time_s: float = 120.0
    """Until the process that tries grammars must have read the tokenizer."""
    compile_memory_bytes: int = 2 * 2**30
    """Memory of the process that tries grammars."""
    max_text_bytes: int = 2**20
    """Of a grammar's text."""
    max_waiting: int = 256
    """Texts that wait to be compiled; more are refused with "queue_full"."""
    cache_bytes: int = 256 * 2**20
    """Compiled grammars kept, by an estimate of their size without what they learn."""
    max_cached: int = 256
    """Grammars kept, refused ones included: what a lexer learns (some 500 bytes a state) is bounded by this."""
    num_threads: int = 2
    """Grammars compiled at once, each with a process to try them in."""


def parser_limits() -> LLParserLimits:
    """llguidance's bounds. A matcher that leaves them fails its choice; errors must not show the parser's state."""
    return LLParserLimits(max_lexer_states=25_000, verbose_errors=False)
