"""Filters for names that nothing has: allowed, since they may come later, and most likely a mistake that lets everything pass."""

import logging

from quire_contract.router_config import RouterConfig
from quire_contract.telemetry import log_event

log = logging.getLogger("quire_router.filters")
MAX_NAMED = 20


def unknown_names(config: RouterConfig) -> list[str]:
    """A line for each field of a filter that names what the configuration does not have."""
    models = sorted({model.name for model in config.models} | {route.model for route in config.routes})
    tenants = sorted(tenant.id for tenant in config.tenants)
    lines = []
    for i, entry in enumerate(config.settings.filters if config.settings is not None else ()):
        for field, given, known in (("models", entry.models, models), ("tenants", entry.tenants, tenants)):
            missing = [one for one in given if one not in known]
            if missing:
                here = ", ".join(known[:MAX_NAMED]) or "none"
                more = f" and {len(known) - MAX_NAMED} more" if len(known) > MAX_NAMED else ""
                lines.append(
                    f"filters[{i}].{field}: there is no {', '.join(map(repr, missing))}; here are: {here}{more}"
                )
    return lines


class UnknownNames:
    """Says it in the log, each once until it is mended. Follows configurations."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def apply(self, config: RouterConfig) -> None:
        """A new configuration is in force."""
        found = {line.partition(";")[0]: line for line in unknown_names(config)}
        for what in found.keys() - self._said:
            log_event(log, logging.WARNING, "filter_for_nobody", problem=f"settings: {found[what]}")
        self._said = set(found)
