"""`quire simulate`: options in, a table and a plot out. The work is elsewhere."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, cast, get_args

import msgspec
import typer
from rich.console import Console

from quire_cli.errors import CommandError
from quire_cli.simulate import policies
from quire_cli.simulate.fleet import ColdStart
from quire_cli.simulate.loads import KINDS, Kind, Load, generate
from quire_cli.simulate.options import MAX_WORKERS, WorkerKind, WorkerOptions, duration_s, worker_kind
from quire_cli.simulate.outcome import Objective
from quire_cli.simulate.plot import svg
from quire_cli.simulate.report import as_json, show
from quire_cli.simulate.request import Request
from quire_cli.simulate.run import Fidelity, Outcome, Plan, fixed, shares_prompts, simulate
from quire_cli.simulate.scaler import Scaling
from quire_cli.simulate.trace import MAX_REQUESTS, read_trace
from quire_contract.router_settings import AdmissionSettings


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How the service is scaled, in the order shown, and with how many replicas it begins."""

    scalings: tuple[Scaling, ...]
    replicas: int
    rules: AdmissionSettings = field(default_factory=AdmissionSettings)
    """How long requests wait for workers."""


def add_simulate_command(app: typer.Typer) -> None:
    """Adds it."""

    @app.command("simulate")
    def simulate_command(  # noqa: PLR0913 - one parameter an option
        trace: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Requests as CSV or JSON lines: time, prompt tokens, output tokens."),
        ] = None,
        load: Annotated[str, typer.Option(help=f"Without --trace: {', '.join(KINDS)}.")] = "bursty",
        rate: Annotated[float, typer.Option(help="Requests per second, on average.")] = 5.0,
        duration: Annotated[str, typer.Option(help="How long requests come, such as 10m or 24h.")] = "1h",
        prompt_tokens: Annotated[float, typer.Option(min=1, help="Of a prompt, on average.")] = 1000,
        output_tokens: Annotated[float, typer.Option(min=1, help="Of an answer, on average.")] = 250,
        reuse: Annotated[float, typer.Option(min=0, max=1, help="Share of requests that go on with a talk.")] = 0.0,
        prefix_groups: Annotated[int, typer.Option(min=0, help="System prompts that requests share.")] = 0,
        prefix_tokens: Annotated[int, typer.Option(min=0, help="Tokens of each of them.")] = 0,
        burstiness: Annotated[float, typer.Option(min=0, max=10, help="Coefficient of variation of the rate.")] = 1.0,
        seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
        model: Annotated[str, typer.Option(help="Name, or a checkpoint's folder or config.json.")] = "llama-3-8b",
        gpu: Annotated[str, typer.Option(help="h100, h200, a100, l40s, l4 or a10g.")] = "h100",
        gpus_per_worker: Annotated[int, typer.Option(min=1, max=64, help="In tensor parallelism.")] = 1,
        max_num_seqs: Annotated[int, typer.Option(min=1, max=2048, help="Requests in a worker's batch.")] = 256,
        max_model_len: Annotated[
            int | None, typer.Option(min=2, help="Prompt and answer together.", show_default="the model's")
        ] = None,
        cost: Annotated[
            Path | None, typer.Option(metavar="FILE", help="A measured step cost in place of --model and --gpu.")
        ] = None,
        workers: Annotated[
            int | None,
            typer.Option(min=1, max=MAX_WORKERS, help="So many, always; with --manifest: at the beginning."),
        ] = None,
        manifest: Annotated[
            Path | None, typer.Option(metavar="FILE", help="InferenceService with spec.scaling: scale as it says.")
        ] = None,
        keda_threshold: Annotated[
            list[int] | None, typer.Option(help="Compare with KEDA at so many queued requests a replica; repeatable.")
        ] = None,
        cold_start: Annotated[str, typer.Option(help="From asking for a replica until it serves.")] = "90s",
        ttft: Annotated[str, typer.Option(help="Objective: time to first token.")] = "1s",
        itl: Annotated[str, typer.Option(help="Objective: mean time between a request's tokens.")] = "50ms",
        objective_share: Annotated[float, typer.Option(min=0, max=1, help="Of requests that are to have both.")] = 0.95,
        price_per_hour: Annotated[
            float | None, typer.Option(min=0, help="Of one worker.", show_default="the GPU's list price, in USD")
        ] = None,
        fidelity: Annotated[
            str, typer.Option(help="fast, or exact: every step by the engine's own scheduler.")
        ] = "fast",
        json: Annotated[bool, typer.Option("--json", help="Figures and course as JSON.")] = False,
        plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Write the course as a picture.")] = None,
    ) -> None:
        """Simulate a service under load: latencies, goodput, replicas and cost, before you pay for GPUs.

        Router, scheduler, KV cache and autoscaler are those of the product; only the model is replaced by what its steps cost.
        """
        if fidelity not in get_args(Fidelity):
            raise CommandError(f"--fidelity: {fidelity} is not known; one of {', '.join(get_args(Fidelity))}")
        kind = worker_kind(
            WorkerOptions(
                model=model,
                gpu=gpu,
                gpus_per_worker=gpus_per_worker,
                max_num_seqs=max_num_seqs,
                max_model_len=max_model_len,
                cost=cost,
                price_per_hour=price_per_hour,
            )
        )
        made = Load(
            kind=_kind(load),
            duration_s=duration_s(duration, "--duration"),
            rate=rate,
            max_len=kind.shape.max_model_len,
            prompt=prompt_tokens,
            output=output_tokens,
            reuse=reuse,
            prefix_groups=prefix_groups,
            prefix_tokens=prefix_tokens,
            burstiness=burstiness,
            seed=seed,
        )
        _check(made)
        _check_plot(plot)
        requests = list(generate(made)) if trace is None else read_trace(trace, kind.shape.max_model_len)
        if not requests:
            raise CommandError("the load has no requests; give a higher --rate or a longer --duration")
        ways = _ways(manifest, workers, keda_threshold or [])
        plan = Plan(
            shape=kind.shape,
            cost=kind.cost,
            rules=ways.rules,
            cold_start=ColdStart(median_s=duration_s(cold_start, "--cold-start")),
            replicas=ways.replicas,
            objective=Objective(
                ttft_s=duration_s(ttft, "--ttft"), itl_s=duration_s(itl, "--itl"), share=objective_share
            ),
            price_per_hour=kind.price_per_hour,
            fidelity=cast(Fidelity, fidelity),
            caches=shares_prompts(requests),
            point_s=max(1.0, requests[-1].at_s / 1440),
            seed=seed,
        )
        outcomes = [simulate(plan, scaling, requests) for scaling in ways.scalings]
        _tell(outcomes, kind, requests, plot, is_json=json)


def _kind(name: str) -> Kind:
    """What --load says. CommandError naming those there are."""
    if name not in KINDS:
        raise CommandError(f"--load: {name} is not known; one of {', '.join(KINDS)}")
    return name


def _check(load: Load) -> None:
    """CommandError naming the flag and the fix."""
    if not 0 < load.rate <= 10_000:
        raise CommandError(f"--rate: is {load.rate:g}; give requests per second, more than 0 and at most 10000")
    if load.duration_s <= 0:
        raise CommandError("--duration: is 0; give a time such as 1h")
    if load.rate * load.duration_s > MAX_REQUESTS:
        raise CommandError(
            f"--rate and --duration: make {load.rate * load.duration_s / 1e6:.0f} million requests; "
            f"{MAX_REQUESTS // 1_000_000} million are the most"
        )
    if load.prefix_tokens >= load.max_len // 2:
        raise CommandError(
            f"--prefix-tokens: is {load.prefix_tokens}; prompt and answer together have {load.max_len} tokens here, "
            "give less than half of that"
        )


def _check_plot(plot: Path | None) -> None:
    """CommandError before the simulation: what it took minutes to find out is not lost to a wrong path."""
    if plot is None:
        return
    if plot.suffix.lower() != ".svg":
        raise CommandError(f"--plot: {plot}: pictures are SVG; give a name that ends in .svg")
    if not plot.parent.is_dir():
        raise CommandError(f"--plot: {plot}: there is no folder {plot.parent}; make it, or give another name")


def _ways(manifest: Path | None, workers: int | None, thresholds: list[int]) -> Ways:
    """CommandError where the flags contradict one another."""
    for threshold in thresholds:
        if not 1 <= threshold <= 10_000:
            raise CommandError(f"--keda-threshold: is {threshold}; give 1 to 10000 queued requests")
    if manifest is None:
        if thresholds:
            raise CommandError("--keda-threshold: needs --manifest, which says between how many replicas to scale")
        return Ways(scalings=(fixed(workers or 1),), replicas=workers or 1)
    service = policies.load_scaled(manifest)
    scaling = service.spec.scaling
    assert scaling is not None
    least, most = scaling.min_replicas, scaling.max_replicas
    replicas = least if workers is None else workers
    if not least <= replicas <= most:
        raise CommandError(f"--workers: is {replicas}; {manifest} has {least} to {most} replicas")
    others = tuple(policies.keda(threshold, least=least, most=most) for threshold in thresholds)
    hold_s = float(scaling.hold_timeout_seconds)
    rules = msgspec.structs.replace(AdmissionSettings(), no_endpoint_timeout_s=hold_s)
    return Ways(scalings=(policies.of_service(service), *others), replicas=replicas, rules=rules)


def _tell(
    outcomes: list[Outcome], kind: WorkerKind, requests: list[Request], plot: Path | None, *, is_json: bool
) -> None:
    if plot is not None:
        title = f"{kind.words}: {len(requests):,} requests"
        text = svg(title, [(one.summary.policy, one.points) for one in outcomes])
        try:
            plot.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CommandError(f"--plot: {plot}: cannot be written: {error.strerror}") from None
    if is_json:
        typer.echo(as_json(outcomes))
        return
    console = Console(soft_wrap=False)
    console.print(f"{kind.words}\n", highlight=False)
    show(outcomes, "USD", console)
