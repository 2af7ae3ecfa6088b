"""What gpu.check runs: the list of shards and the checks that each must report."""

from dataclasses import dataclass, fields

from gpu.cases import Case
from gpu.cases_attention import attention_cases
from gpu.cases_experts import expert_cases
from gpu.cases_fused import fused_cases
from gpu.cases_rows import row_cases
from gpu.cases_sampling import sampling_cases
from quire_kernels.ops import Ops

ENGINE = "engine: "
"""Prefix of the shards that run a model."""
IMPLIED_OPS = frozenset({"name", "plan_attention"})
"""Fields of Ops that need no case of their own: attention's cases plan as well."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Checks that run in one process."""

    name: str
    checks: tuple[tuple[str, str], ...]
    """(op, name) of each verdict that must come."""


def all_cases(*, small: bool) -> list[Case]:
    """Of every operation."""
    cases = [*attention_cases(), *row_cases(), *fused_cases(), *expert_cases(), *sampling_cases()]
    return [case for case in cases if case.is_small] if small else cases


def cases_of(shard: str, *, small: bool) -> list[Case]:
    """Of one shard."""
    return [case for case in all_cases(small=small) if case.shard == shard]


def shards(*, small: bool, engine: bool) -> list[Shard]:
    """Slowest first, as far as that is known, so that the last ones to end are short."""
    by_name: dict[str, list[tuple[str, str]]] = {}
    for case in all_cases(small=small):
        by_name.setdefault(case.shard, []).append((case.op, case.name))
    found = [Shard(name=name, checks=tuple(checks)) for name, checks in by_name.items()]
    if engine:
        from gpu.parity import CHECK_NAMES, FULL, SMALL

        models = (SMALL if small else FULL).models
        engines = [
            Shard(name=ENGINE + model, checks=tuple(("engine", f"{model}: {check}") for check in CHECK_NAMES))
            for model in models
        ]
        found = engines + found
    return found


def ops_without_cases() -> list[str]:
    """Fields of Ops that no case runs: a finding, since nobody would notice that they are wrong."""
    covered = {case.op for case in all_cases(small=False)} | IMPLIED_OPS
    return sorted({field.name for field in fields(Ops)} - covered)
