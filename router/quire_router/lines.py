"""The lines of all services, by the models that requests wait for. State only."""

from collections.abc import Collection, Iterator

from quire_contract.router_config import RouterConfig
from quire_contract.router_settings import AdmissionSettings
from quire_router.line import Line


class Lines:
    """One for the process."""

    def __init__(self) -> None:
        self._rules = AdmissionSettings()
        self._by_key: dict[str, Line] = {}
        self._by_model: dict[str, Line] = {}

    def __iter__(self) -> Iterator[Line]:
        return iter(self._by_key.values())

    def of(self, model: str) -> Line:
        """The line of the model's service, or its own; also of a route's target that nobody declared."""
        line = self._by_model.get(model)
        if line is None:
            line = self._by_model[model] = self._at(f"model {model}", "")
            line.limit(self._rules, None)
        return line

    def apply(self, config: RouterConfig, rules: AdmissionSettings, in_use: Collection[Line]) -> None:
        """A new configuration. Lines that somebody waits in (`in_use`) stay, whatever it says."""
        self._rules, self._by_model = rules, {}
        services = {service.id: service for service in config.services}
        for model in config.models:
            name = model.service
            line = self._by_model[model.name] = self._at(f"service {name}" if name else f"model {model.name}", name)
            line.limit(rules, services.get(name))
        used = {*self._by_model.values(), *in_use}
        self._by_key = {key: line for key, line in self._by_key.items() if line in used}

    def _at(self, key: str, service: str) -> Line:
        return self._by_key.get(key) or self._by_key.setdefault(key, Line(key, service))
