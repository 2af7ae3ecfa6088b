"""Loads made up: arrivals of four kinds, lengths, and what prompts share. The same numbers and seed give the same requests.

    poisson   arrivals independent of one another, at one rate
    bursty    the rate is drawn anew every few minutes, gamma distributed with a coefficient of variation of `burstiness` (BurstGPT,
              Wang et al., 2024, https://arxiv.org/abs/2401.17644, finds bursts like these in traces of a day)
    diurnal   a day's course, lowest at 4 and highest at 16 hours, with bursts on top
    spike     one rate, and several times it for ten minutes of every two hours

Lengths are lognormal. Of all requests the share `reuse` are later turns of a conversation, whose prompt has the turns before as its
beginning; with `prefix_groups`, every prompt begins with one of so many shared ones.
"""

import random
from collections.abc import Callable, Iterator
from math import cos, log, pi
from typing import Literal

import msgspec

from quire_cli.simulate.request import Request, Segment

Kind = Literal["poisson", "bursty", "diurnal", "spike"]
KINDS: tuple[Kind, ...] = ("poisson", "bursty", "diurnal", "spike")
DAY_S = 86_400.0
_MAX_OPEN = 512
"""Conversations that may go on."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a service."""

    kind: Kind
    duration_s: float
    rate: float
    """Requests per second, on average."""
    prompt: float = 512.0
    """Tokens on average, the shared beginning included; lengths are lognormal."""
    prompt_spread: float = 0.8
    """Standard deviation of the length's logarithm."""
    output: float = 200.0
    output_spread: float = 0.8
    max_len: int = 8192
    """Prompt and output are cut to fit."""
    reuse: float = 0.0
    """Share of requests that go on with a conversation."""
    prefix_groups: int = 0
    prefix_tokens: int = 0
    """Of the beginning that a group shares."""
    burstiness: float = 1.0
    burst_s: float = 240.0
    """How long a drawn rate holds."""
    peak: float = 6.0
    """spike: the rate in a spike, as a multiple of the rate outside it."""
    spike_s: float = 600.0
    """How long one lasts."""
    spike_every_s: float = 7200.0
    """From one to the next; it comes at the end."""
    swing: float = 0.8
    """diurnal: (highest - lowest) / (highest + lowest)."""
    seed: int = 0


def generate(load: Load) -> Iterator[Request]:
    """The requests, in order."""
    times = random.Random(f"{load.seed} times")  # noqa: S311 - simulated chance
    people = _People(load)
    for number, at_s in enumerate(_arrivals(load, times)):
        yield people.request(number, at_s)


def _arrivals(load: Load, rng: random.Random) -> Iterator[float]:
    """Poisson with a rate that holds for one piece after the other."""
    rate_at = _rate_of(load, rng)
    piece_s = load.burst_s if load.kind in ("bursty", "diurnal") else 60.0
    start_s = 0.0
    while start_s < load.duration_s:
        end_s = min(start_s + piece_s, load.duration_s)
        rate = rate_at(start_s)
        at_s = start_s
        while rate > 0:
            at_s += rng.expovariate(rate)
            if at_s >= end_s:
                break
            yield at_s
        start_s = end_s


def _rate_of(load: Load, rng: random.Random) -> Callable[[float], float]:
    """The rate of the piece that begins at a time."""
    spread = max(load.burstiness, 1e-3) ** 2

    def burst() -> float:
        return rng.gammavariate(1 / spread, spread)

    def spike(at_s: float) -> float:
        calm = load.rate / (1 + (load.peak - 1) * load.spike_s / load.spike_every_s)
        is_spike = at_s % load.spike_every_s >= load.spike_every_s - load.spike_s
        return calm * load.peak if is_spike else calm

    if load.kind == "poisson":
        return lambda at_s: load.rate
    if load.kind == "bursty":
        return lambda at_s: load.rate * burst()
    if load.kind == "spike":
        return spike
    return lambda at_s: load.rate * (1 - load.swing * cos(2 * pi * (at_s / DAY_S - 4 / 24))) * burst()


class _People:
    """Who asks, and how long."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._rng = random.Random(f"{load.seed} lengths")  # noqa: S311 - simulated chance
        self._open: list[tuple[tuple[Segment, ...], int]] = []
        """(chain so far, tokens of prompt and answer): conversations that may go on."""
        self._prompt = _lognormal(
            self._rng, load.prompt - (load.prefix_tokens if load.prefix_groups else 0), load.prompt_spread
        )
        self._output = _lognormal(self._rng, load.output, load.output_spread)

    def request(self, number: int, at_s: float) -> Request:
        """The next one."""
        load, rng = self._load, self._rng
        output = min(max(1, self._output()), load.max_len // 2)
        own = max(1, self._prompt())
        chain: tuple[Segment, ...] = ()
        goes_on = load.reuse > 0 and bool(self._open) and rng.random() < load.reuse
        if goes_on:
            chain, length = self._open.pop(rng.randrange(len(self._open)))
            prompt = length + own
            if prompt + output < load.max_len:
                chain = (*chain[:-1], (chain[-1][0], prompt))
            else:
                chain, goes_on = (), False
        if not goes_on:
            chain = self._begin(number, min(own, max(1, load.max_len - output - load.prefix_tokens - 1)))
        prompt = chain[-1][1]
        if load.reuse > 0:
            if len(self._open) >= _MAX_OPEN:
                self._open.pop(0)
            self._open.append((chain, prompt + output))
        return Request(number=number, at_s=at_s, prompt=prompt, output=output, chain=chain)

    def _begin(self, number: int, own: int) -> tuple[Segment, ...]:
        load = self._load
        if not load.prefix_groups or not load.prefix_tokens:
            return ((f"s{number}", own),)
        group = int(load.prefix_groups * self._rng.random() ** 2)  # some are far more frequent than others
        return ((f"g{group}", load.prefix_tokens), (f"s{number}", load.prefix_tokens + own))


def _lognormal(rng: random.Random, mean: float, spread: float) -> Callable[[], int]:
    """Whole numbers of about this mean."""
    mu = log(max(1.0, mean)) - spread * spread / 2
    return lambda: round(rng.lognormvariate(mu, spread))
