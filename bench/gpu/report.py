"""Results of gpu.bench as Markdown, ready for docs/benchmarks/gpu.md. Pure: parts that were not measured are left out or say so."""

from collections.abc import Iterable, Sequence
from typing import Any

from gpu.goals import Outcome, outcomes
from gpu.roofline import ModelCost, Rates

Results = dict[str, Any]


def markdown(results: Results, cost: ModelCost) -> str:
    """The whole report."""
    rates = Rates(
        read_bytes_per_s=results["ceilings"]["rates"]["read_bytes_per_s"],
        flops_per_s=results["ceilings"]["rates"]["flops_per_s"],
    )
    parts = [
        _heading(results),
        _goals(outcomes(results, cost, rates)),
        _decode(results.get("decode", []), cost, rates),
        _prompts(results, cost, rates),
        _saturations(results, cost, rates),
        _profiles(results.get("profiles", [])),
        _kernels(results.get("kernels", [])),
        _errors(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _heading(results: Results) -> str:
    device, ceilings, model = results["device"], results["ceilings"], results["model"]
    packages = device["packages"]
    smi = device.get("smi") or {}
    clocks = ", ".join(f"{name} {value}" for name, value in smi.items())
    calibrated = (
        f"Calibrated here: reads {ceilings['read_bytes_per_s'] / 1e12:.2f} TB/s ({ceilings['read_by']}), copies "
        f"{ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s, multiplies bf16 matrices at "
        f"{ceilings['matrix_flops_per_s'] / 1e12:.0f} TFLOP/s. Rooflines below are drawn with these."
    )
    served = (
        f"Model: {model['name']}, random weights, {model['num_parameters'] / 1e9:.2f} B parameters, {model['dtype']}, "
        f"{model['kv_tokens']:,} tokens of KV. Start: {_phases(model['phases_s'])}. Two steps ahead, no sockets."
    )
    versions = f"Python {device['python']}, torch {device['torch']}, Triton {packages['triton']}"
    machine = f"{device['device']}; {results['date']}; {versions}. {clocks}"
    lines = ["# Engine on a GPU", "", "    make gpu-bench", "", machine, "", calibrated, "", served]
    if not results.get("complete"):
        lines += ["", "**Incomplete: the run ended before all of it was measured.**"]
    return "\n".join(lines)


def _phases(phases_s: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases_s.items())


def _goals(found: list[Outcome]) -> str:
    words = {True: "yes", False: "**no**", None: "not measured"}
    rows = [
        (
            outcome.name,
            _number(outcome.found, outcome.unit),
            _number(outcome.roofline, outcome.unit),
            _percent(outcome.share),
            _number(outcome.must, outcome.unit),
            _number(outcome.stretch, outcome.unit),
            words[outcome.passes],
            outcome.judged_by,
        )
        for outcome in found
    ]
    header = ("goal", "found", "roofline", "of roofline", "must (H100)", "stretch (H100)", "reached", "judged by")
    return "## Goals\n\n" + table(header, rows)


def _decode(steps: list[dict[str, Any]], cost: ModelCost, rates: Rates) -> str:
    if not steps:
        return ""
    rows = []
    for step in steps:
        floor_s = cost.decode_s(rates, step["batch"], step["context"])
        rows.append(
            (
                str(step["batch"]),
                f"{step['context']:,.0f}",
                _ms(step["step_s"]),
                _ms(floor_s),
                _percent(floor_s / step["step_s"]),
                f"{step['tokens_per_s']:,.0f}",
                _ms(step["host_enqueue_s"]),
                _ms(step["host_plan_commit_s"]),
                _ms(step["host_wait_s"]),
            )
        )
    header = (
        "rows",
        "context",
        "step ms",
        "roofline ms",
        "of it",
        "tok/s",
        "host: launch ms",
        "plan, commit ms",
        "waiting ms",
    )
    return "## Decode steps\n\n" + table(header, rows)


def _prompts(results: Results, cost: ModelCost, rates: Rates) -> str:
    rows = []
    for row in results.get("prefill", []):
        bound = row["prompt"] / cost.prefill_s(rates, row["prompt"])
        rows.append(
            (
                f"prefill, {row['prompt']:,} tokens",
                f"{row['tokens_per_s']:,.0f} tok/s",
                f"{bound:,.0f} tok/s",
                _percent(row["tokens_per_s"] / bound),
            )
        )
    if results.get("first_token"):
        row = results["first_token"]
        floor_s = cost.prefill_s(rates, row["prompt"])
        rows.append(
            (
                f"first token, {row['prompt']} tokens, idle engine",
                f"{_ms(row['seconds'])} ms",
                f"{_ms(floor_s)} ms",
                _percent(floor_s / row["seconds"]),
            )
        )
    return "## Prompts\n\n" + table(("what", "found", "roofline", "of it"), rows) if rows else ""


def _saturations(results: Results, cost: ModelCost, rates: Rates) -> str:
    rows = []
    for row in results.get("saturation", []):
        bound = cost.saturated_tokens_per_s(rates, row["prompt"], row["output"], results["model"]["kv_tokens"])
        rows.append(
            (
                f"{row['prompt']}/{row['output']}" + (", prefix cache on" if row["caching"] else ""),
                str(row["concurrency"]),
                f"{row['tokens_per_s']:,.0f}",
                f"{bound:,.0f}",
                _percent(row["tokens_per_s"] / bound),
                _ms(row["step_s"]),
                f"{row['seconds']:.0f} s, {row['steps']} steps, {row['requests_ended']} requests ended, {row['preemptions']} preemptions",
            )
        )
    header = ("in/out", "requests at once", "output tok/s", "bound", "of it", "step ms", "sample")
    return "## Saturation\n\n" + table(header, rows) if rows else ""


def _profiles(profiles: list[dict[str, Any]]) -> str:
    parts = []
    for profile in profiles:
        if "note" in profile:
            parts.append(f"{profile['batch']} rows: {profile['note']}")
            continue
        rows = [
            (kernel["name"].replace("|", "\\|"), f"{kernel['calls_per_step']:.1f}", f"{kernel['us_per_step']:,.0f}")
            for kernel in profile["top"]
        ]
        parts.append(
            f"{profile['batch']} rows: the device is busy {_ms(profile['busy_s'])} ms of a step's {_ms(profile['step_s'])} ms, "
            f"so idle {_percent(profile['idle_share'])} ({_percent(profile['idle_share_profiled'])} under the profiler); "
            f"{profile['kernels_per_step']:.0f} kernels a step.\n\n"
            + table(("kernel", "calls a step", "us a step"), rows)
        )
    return "## Where a decode step goes\n\n" + "\n\n".join(parts) if parts else ""


def _kernels(kernels: list[dict[str, Any]]) -> str:
    rows = []
    for kernel in kernels:
        if "note" in kernel:
            rows.append((kernel["op"], kernel["name"], kernel["note"].replace("|", "\\|"), "", "", "", ""))
            continue
        rows.append(
            (
                kernel["op"],
                kernel["name"],
                f"{kernel['time_us']:,.1f}",
                f"{kernel['floor_us']:,.1f}",
                _percent(kernel["share_of_roofline"]),
                f"{kernel['bytes_per_s'] / 1e9:,.0f} GB/s"
                + (f", {kernel['flops_per_s'] / 1e12:,.0f} TFLOP/s" if kernel["flops"] else ""),
                f"{kernel['host_us']:,.0f}",
            )
        )
    header = ("op", "size", "us", "roofline us", "of it", "rate", "host us")
    return "## Single operations\n\n" + table(header, rows) if rows else ""


def _errors(results: Results) -> str:
    errors = results.get("errors") or {}
    return "## What failed\n\n" + table(("part", "error"), list(errors.items())) if errors else ""


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 1000 else 2
    return f"{value:,.{digits}f} {unit}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.1f} %"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"
