"""The operator's own metrics, in a registry of their own. This module must not know what is counted where."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from quire_contract import names

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.leader = Gauge("quire_operator_leader", "1 while this process holds the lease.", registry=registry)
        self.reconciles = Counter(
            "quire_operator_reconciles_total", "Passes over one object.", ["result"], registry=registry
        )
        for result in ("success", "retry", "permanent", "error"):
            self.reconciles.labels(result)  # from 0 on: a series that is born at 1 has no rate
        self.reconcile_seconds = Histogram(
            "quire_operator_reconcile_seconds", "Duration of a pass.", ["kind"], buckets=_SECONDS, registry=registry
        )
        self.queue_depth = Gauge("quire_operator_queue_depth", "Objects that wait for a pass.", registry=registry)
        self.applies = Counter("quire_operator_applies_total", "Children written.", ["kind"], registry=registry)
        self.skipped_applies = Counter(
            "quire_operator_skipped_applies_total", "Children found as they should be.", registry=registry
        )
        self.prunes = Counter("quire_operator_prunes_total", "Children removed.", ["kind"], registry=registry)
        self.apply_errors = Gauge(
            "quire_operator_apply_errors", "Children that the API server refuses now.", registry=registry
        )
        self.api_requests = Counter(
            "quire_operator_api_requests_total",
            "Requests to the API server, Kopf's watches apart.",
            ["method", "kind", "code"],
            registry=registry,
        )
        self.services = Gauge(
            "quire_operator_services",
            "InferenceServices by their Ready condition (true or false); only the leader sets it.",
            ["ready"],
            registry=registry,
        )
        self.scalings = Counter(
            names.QUIRE_OPERATOR_SCALINGS,
            "Changes of the number of replicas that were written.",
            ["direction", "reason"],
            registry=registry,
        )
        # Its parts too: a label selector, which an HPA has, cannot hold the whole.
        self._demand = Gauge(
            names.QUIRE_OPERATOR_DEMAND,
            "Held, queued and running, over all routers.",
            ["service", "service_namespace", "service_name"],
            registry=registry,
        )
        self._demand_age = self._by_service(
            names.QUIRE_OPERATOR_DEMAND_AGE_SECONDS, "How long ago all routers were last heard."
        )
        self._desired = self._by_service(names.QUIRE_OPERATOR_DESIRED_REPLICAS, "What the autoscaler asks for.")

    def show_scaling(self, service: str, *, demand: int | None, age_s: float, desired: int) -> None:
        """Of "namespace/name", at its last look. An unknown demand shows the last that was known, and its age grows."""
        if demand is not None:
            self._demand.labels(service, *service.split("/", 1)).set(demand)
        self._demand_age.labels(service).set(age_s)
        self._desired.labels(service).set(desired)

    def forget_service(self, service: str) -> None:
        """It is gone, or scales no more."""
        for gauge in (self._demand, self._demand_age, self._desired):
            gauge.remove_by_labels({"service": service})

    def _by_service(self, name: str, about: str) -> Gauge:
        return Gauge(name, about, ["service"], registry=self.registry)
