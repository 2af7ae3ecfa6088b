"""Measurements of bench/engine.py and what is said about them. Ratios are taken within a pair, that is a round; medians count."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from rows import Row
from side import Memory

OURS = "quire"
QUANTIZED = {"quire-int8": "int8", "quire-int8-weight-only": "int8-weight-only"}
"""Sides that are ours, by what --quantization says."""
BOUND = "linear"


@dataclass(frozen=True)
class Round:
    """Every side once."""

    tokens_per_s: dict[str, float]
    others: float
    """Share of the processors that went to processes outside the benchmark, in the turn that had most of it."""


@dataclass
class Results:
    """What was measured, by row's name and by side."""

    sides: list[str]
    rows: list[Row] = field(default_factory=list)
    """Complete ones."""
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    start_s: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    cost_s: dict[str, dict[str, float]] = field(default_factory=dict)
    """Wall time of all rounds of a row, warm-up and rounds not kept included."""

    def begin(self, row: Row) -> None:
        """The next rounds are of this row."""
        self.rounds[row.name] = []
        self.cost_s[row.name] = dict.fromkeys(self.sides, 0.0)

    def num_quiet(self, row: Row, max_others: float) -> int:
        """Rounds of the row in which others took no more than `max_others`."""
        return sum(one.others <= max_others for one in self.rounds[row.name])

    def keep_quietest(self, row: Row, count: int) -> None:
        """The row is complete: drop all its rounds but the `count` that others disturbed least, whatever they measured."""
        self.rows.append(row)
        self.rounds[row.name] = sorted(self.rounds[row.name], key=lambda one: one.others)[:count]

    def rates(self, row: Row, side: str) -> list[float]:
        """Tokens/s, round by round."""
        return [one.tokens_per_s[side] for one in self.rounds[row.name]]

    def ratios(self, row: Row, side: str, to: str) -> list[float]:
        """Speed of `side` over that of `to`, round by round."""
        return [mine / theirs for mine, theirs in zip(self.rates(row, side), self.rates(row, to), strict=True)]

    def as_json(self) -> dict[str, object]:
        """Everything, and the ratios."""
        return {
            "rows": {row.name: str(row) for row in self.rows},
            "tokens_per_s": {row.name: {side: self.rates(row, side) for side in self.sides} for row in self.rows},
            "others_share": {row.name: [one.others for one in self.rounds[row.name]] for row in self.rows},
            "ratios": {
                f"{side} / {to}": {row.name: self._summary(row, side, to) for row in self.rows}
                for side, to in self.comparisons()
            },
            "start_to_first_token_s": self.start_s,
            "memory_mib": {side: {"pss": round(m.pss), "rss": round(m.rss)} for side, m in self.memory.items()},
            "cost_s": self.cost_s,
        }

    def comparisons(self) -> list[tuple[str, str]]:
        """Pairs (side, to) worth a column: us to every peer, us to the bound, our variants to us."""
        peers = [side for side in self.sides if side not in {OURS, *QUANTIZED, BOUND}]
        pairs = [(OURS, peer) for peer in peers]
        pairs += [(OURS, BOUND), (peers[0] if peers else OURS, BOUND)] if BOUND in self.sides else []
        pairs += [(side, OURS) for side in QUANTIZED]
        kept = [(a, b) for a, b in pairs if a in self.sides and b in self.sides]
        return list(dict.fromkeys(kept))

    def _summary(self, row: Row, side: str, to: str) -> dict[str, object]:
        values = self.ratios(row, side, to)
        return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}


def _markdown(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def speed_table(results: Results) -> str:
    """A row each: medians of tokens/s, then medians of ratios with their range; a share of the bound in per cent."""
    pairs = results.comparisons()
    header = ["prompts x (in, out)", "tokens", *(f"{side} tok/s" for side in results.sides)]
    header += [f"{side}, share of bound" if to == BOUND else f"{side} / {to}" for side, to in pairs]
    header += ["others took, at most"]
    body = []
    for row in results.rows:
        rates = [f"{statistics.median(results.rates(row, side)):,.0f}" for side in results.sides]
        ratios = [_ratio(results.ratios(row, side, to), is_share=to == BOUND) for side, to in pairs]
        others = f"{100 * max(one.others for one in results.rounds[row.name]):.0f} %"
        body.append([str(row), row.counts, *rates, *ratios, others])
    return _markdown(header, body)


def _ratio(values: list[float], *, is_share: bool) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    if is_share:
        return f"{100 * middle:.0f} % ({100 * low:.0f}-{100 * high:.0f})"
    return f"**{middle:.2f}x** ({low:.2f}-{high:.2f})"


def cost_table(results: Results) -> str:
    """Start and memory of each side, as shares of each peer's."""
    engines = [side for side in results.sides if side != BOUND]
    peers = [side for side in engines if side not in {OURS, *QUANTIZED}]
    header = ["", *engines, *(f"{OURS} / {peer}" for peer in peers)]

    def line(name: str, shown: Callable[[str], str], share: Callable[[str], str]) -> list[str]:
        return [name, *(shown(side) for side in engines), *(share(peer) for peer in peers)]

    def start_share(peer: str) -> str:
        pairs = zip(results.start_s[OURS], results.start_s[peer], strict=True)
        return f"**1/{statistics.median(theirs / mine for mine, theirs in pairs):.1f}**"

    def start(side: str) -> str:
        values = results.start_s[side]
        return f"{statistics.median(values):.1f} s ({min(values):.1f}-{max(values):.1f})"

    def memory_share(peer: str) -> str:
        ours, theirs = results.memory[OURS], results.memory[peer]
        return f"**{ours.pss / theirs.pss:.2f}** (our RSS / their PSS {ours.rss / theirs.pss:.2f})"

    def memory(side: str) -> str:
        of = results.memory[side]
        return f"{of.pss:,.0f} MiB (RSS {of.rss:,.0f})"

    body = [
        line("process start to first token", start, start_share if OURS in engines else lambda _: "-"),
        line("resident memory, PSS", memory, memory_share if OURS in engines else lambda _: "-"),
    ]
    return _markdown(header, body)


def row_costs(results: Results) -> str:
    """How long each row took to measure."""
    parts = []
    for name, by_side in results.cost_s.items():
        each = ", ".join(f"{side} {seconds:.0f}" for side, seconds in by_side.items())
        parts.append(f"{name} {sum(by_side.values()):.0f} s ({each})")
    return "; ".join(parts)
