"""Jobs of bench/fairness.py: what arrives when, how it went, and the figures that say it. Knows no engine."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from quire_worker.request import SamplingParams, Submit
from quire_worker.scheduling.scheduler import Scheduler

VOCAB_SIZE = 16_000
EOS = 2
UNTOLD_TOKENS = 4096


@dataclass(kw_only=True)
class Job:
    """A request, and what became of it. Times in seconds since the beginning."""

    name: str
    kind: str
    arrives_s: float
    prompt_tokens: int
    output_tokens: int
    told: bool = True
    streamed: bool = True
    wait_s: float = 0.0
    token_s: list[float] = field(default_factory=list)

    @property
    def latency_s(self) -> float:
        return self.token_s[-1] - self.arrives_s

    @property
    def first_token_s(self) -> float:
        return self.token_s[0] - self.arrives_s

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in zip(self.token_s[:-1], self.token_s[1:], strict=True)]

    def submit(self, rng: random.Random) -> Submit:
        most = self.output_tokens if self.told else UNTOLD_TOKENS
        return Submit(
            request_id=self.name,
            prompt_token_ids=[rng.randrange(3, VOCAB_SIZE) for _ in range(self.prompt_tokens)],
            sampling=SamplingParams(max_tokens=most, temperature=0.0, eos_token_ids=(EOS,), ignore_eos=self.told),
            is_streamed=self.streamed,
        )


def mix(num_jobs: int, scale: int, *, told: bool, seed: int = 1) -> list[Job]:
    """Four short jobs (64 tokens in, 8 to 32 out) for each long one (512 in, `scale` to 3 `scale` out), one a second."""
    rng, now_s, jobs = random.Random(seed), 0.0, []
    for index in range(num_jobs):
        now_s += rng.expovariate(1.0)
        if is_long := rng.random() < 0.2:
            prompt, output = 512, rng.randint(scale, 3 * scale)
        else:
            prompt, output = 64, rng.randint(8, 32)
        kind = "long" if is_long else "short"
        jobs.append(
            Job(
                name=f"{kind}-{index}",
                kind=kind,
                arrives_s=now_s,
                prompt_tokens=prompt,
                output_tokens=output,
                told=told,
            )
        )
    return jobs


def at_rate(jobs: Sequence[Job], rate: float) -> list[Job]:
    """The same jobs, so many a second."""
    return [replace(job, arrives_s=job.arrives_s / rate, token_s=[]) for job in jobs]


def streams_and_prompts(
    *, streams: int, output: int, long_tokens: int, long_every_s: float, short_every_s: float, until_s: float
) -> list[Job]:
    """`streams` that begin at once and decode throughout; meanwhile long prompts and short ones (64 tokens) come in turn."""
    jobs = [
        Job(name=f"stream-{index}", kind="stream", arrives_s=0.0, prompt_tokens=32, output_tokens=output)
        for index in range(streams)
    ]
    for kind, tokens, every_s in (("long", long_tokens, long_every_s), ("short", 64, short_every_s)):
        at_s = long_every_s / 2 + (0.0 if kind == "long" else 0.03)
        while at_s < until_s:
            jobs.append(
                Job(name=f"{kind}-{at_s:.3f}", kind=kind, arrives_s=at_s, prompt_tokens=tokens, output_tokens=8)
            )
            at_s += every_s
    return sorted(jobs, key=lambda job: job.arrives_s)


def answers_in_one_go(num_jobs: int, seed: int = 1) -> list[Job]:
    """Six long ones (1,000 to 3,000 tokens in, 50 to 150 out) for three short ones (64 in, 16 out) and a stream (64 in, 64 out).

    One a second."""
    rng, now_s, jobs = random.Random(seed), 0.0, []
    for index in range(num_jobs):
        now_s += rng.expovariate(1.0)
        kind = rng.choices(("long", "short", "stream"), (6, 3, 1))[0]
        if kind == "long":
            prompt, output = rng.randint(1000, 3000), rng.randint(50, 150)
        else:
            prompt, output = 64, 16 if kind == "short" else 64
        jobs.append(
            Job(
                name=f"{kind}-{index}",
                kind=kind,
                arrives_s=now_s,
                prompt_tokens=prompt,
                output_tokens=output,
                streamed=kind == "stream",
            )
        )
    return jobs


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def policy_row(jobs: Sequence[Job], scheduler: Scheduler) -> dict[str, float]:
    """Seconds, and counts."""
    by_kind = {kind: [job for job in jobs if job.kind == kind] for kind in ("short", "long")}
    return {
        "mean latency": statistics.mean(job.latency_s for job in jobs),
        "p50": statistics.median(job.latency_s for job in jobs),
        "p99": percentile([job.latency_s for job in jobs], 0.99),
        "mean, short": statistics.mean(job.latency_s for job in by_kind["short"]),
        "mean, long": statistics.mean(job.latency_s for job in by_kind["long"]),
        "longest wait": max(job.wait_s for job in jobs),
        "done after": max(job.token_s[-1] for job in jobs),
        "preemptions": float(scheduler.counters.num_preemptions),
    }


def in_one_go_row(jobs: Sequence[Job]) -> dict[str, float]:
    """Seconds."""
    by_kind = {kind: [job for job in jobs if job.kind == kind] for kind in ("long", "short", "stream")}
    return {
        "done after": max(job.token_s[-1] for job in jobs),
        "mean, long": statistics.mean(job.latency_s for job in by_kind["long"]),
        "mean, short": statistics.mean(job.latency_s for job in by_kind["short"]),
        "p99, short": percentile([job.latency_s for job in by_kind["short"]], 0.99),
        "first token of streams, mean": statistics.mean(job.first_token_s for job in by_kind["stream"]),
        "p99": percentile([job.first_token_s for job in by_kind["stream"]], 0.99),
        "gap of streams, p99": percentile([gap for job in by_kind["stream"] for gap in job.gaps_s], 0.99),
    }


def prompt_row(jobs: Sequence[Job]) -> dict[str, float]:
    """Milliseconds. Gaps of streams after the first prompt came."""
    gaps = [gap * 1e3 for job in jobs if job.kind == "stream" for gap in job.gaps_s]
    first = {kind: [job.first_token_s * 1e3 for job in jobs if job.kind == kind] for kind in ("short", "long")}
    return {
        "gap p50": statistics.median(gaps),
        "gap p99": percentile(gaps, 0.99),
        "gap max": max(gaps),
        "first token, short, p50": statistics.median(first["short"]),
        "first token, short, p99": percentile(first["short"], 0.99),
        "first token, long, p50": statistics.median(first["long"]),
    }
