"""The router's metrics, in a registry of their own. Names come from the contract; labels are bounded by configuration, never by clients."""

from bisect import bisect_left
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from quire_contract import names
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint
from quire_router.kv_index import KvIndex
from quire_router.tallies import Histograms, Tallies, Tally

UNKNOWN_MODEL = "unknown"
"""Label of requests whose model nobody declared: what clients write must not make series."""

USUAL_STATUSES = ("200", "429", "502", "503", "504")
OTHER = "other"
RETRY_REASONS = (
    "connect",
    "reset",
    "unavailable",
    "lost",
    OTHER,
    names.REASON_DRAINING,
    names.REASON_QUEUE_FULL,
    names.REASON_NOT_READY,
    names.REASON_ASLEEP,
)
RESUME_REASONS = ("migrate", "died", "lost", "cut", "stalled")


class ModelMetrics:
    """What is counted for one model; looking labels up anew would cost each request a few microseconds."""

    __slots__ = (
        "_all",
        "_by_level",
        "_model",
        "by_status",
        "first_byte_s",
        "prefix_hit_tokens",
        "prefix_tokens",
        "request_s"
    )  # fmt: skip

    def __init__(self, all_models: "RouterMetrics", model: str) -> None:
        self._all, self._model = all_models, model
        self.request_s = all_models.request_s.labels(model)
        self.first_byte_s = all_models.first_byte_s.labels(model)
        self.prefix_tokens = all_models.prefix_tokens.labels(model)
        self.prefix_hit_tokens = all_models.prefix_hit_tokens.labels(model)
        self.by_status: dict[int, Tally] = {}
        self._by_level: dict[str, Tally] = {}

    def status(self, status: int) -> Tally:
        """Requests that were answered so."""
        tally = self.by_status.get(status)
        if tally is None:
            tally = self.by_status[status] = self._all.requests.labels(self._model, str(status))
        return tally

    def level(self, level: str) -> Tally:
        """Choices by what that level knows."""
        tally = self._by_level.get(level)
        if tally is None:
            tally = self._by_level[level] = self._all.choices.labels(self._model, level)
        return tally


class RouterMetrics:
    """All instruments. Gauges of state are set when somebody scrapes."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Tallies(names.QUIRE_ROUTER_REQUESTS, "Requests answered.", ["model", "code"], registry=registry)
        self.request_s = Histograms(
            names.QUIRE_ROUTER_REQUEST_SECONDS,
            "Time of a request, the answer's last byte included.",
            ["model"],
            buckets=names.BUCKETS_REQUEST_S,
            registry=registry,
        )
        self.first_byte_s = Histograms(
            names.QUIRE_ROUTER_TIME_TO_FIRST_BYTE,
            "Time to the first byte of an answer's body.",
            ["model"],
            buckets=names.BUCKETS_TTFT_S,
            registry=registry,
        )
        self.choice_s = Histograms(
            names.QUIRE_ROUTER_CHOICE_SECONDS,
            "Time to read the prompt and choose an endpoint.",
            buckets=names.BUCKETS_TOKEN_S,
            registry=registry,
        ).labels()
        self.choices = Tallies(
            names.QUIRE_ROUTER_CHOICES, "Choices by the level of knowledge used.", ["model", "level"], registry=registry
        )
        self.retries = Counter(
            names.QUIRE_ROUTER_RETRIES, "Attempts repeated on another endpoint.", ["reason"], registry=registry
        )
        for reason in RETRY_REASONS:
            self.retries.labels(reason)
        self.in_flight = Gauge(
            names.QUIRE_ROUTER_IN_FLIGHT, "Requests at each endpoint.", ["endpoint"], registry=registry
        )
        self.endpoints = Gauge(
            names.QUIRE_ROUTER_ENDPOINTS,
            "Endpoints by state: ready, ejected, draining, down.",
            ["state"],
            registry=registry,
        )
        self.model_ready_endpoints = Gauge(
            names.QUIRE_ROUTER_MODEL_READY_ENDPOINTS,
            "Endpoints that would take a request for a model now.",
            ["model"],
            registry=registry,
        )
        self.config_age_s = Gauge(
            names.QUIRE_ROUTER_CONFIG_AGE_SECONDS,
            "Time since the configuration was last known to be the newest.",
            registry=registry,
        )
        self.services = Gauge(names.QUIRE_ROUTER_SERVICES, "InferenceServices in the configuration.", registry=registry)
        self.index_blocks = Gauge(
            names.QUIRE_ROUTER_INDEX_BLOCKS, "Blocks that endpoints said they hold.", registry=registry
        )
        self.kv_batches = Counter(names.QUIRE_ROUTER_KV_BATCHES, "KV event batches applied.", registry=registry)
        self.kv_gaps = Counter(
            names.QUIRE_ROUTER_KV_GAPS, "Times that KV events were found missing or out of step.", registry=registry
        )
        self.kv_snapshots = Counter(names.QUIRE_ROUTER_KV_SNAPSHOTS, "KV snapshots applied.", registry=registry)
        self.prefix_tokens = Tallies(
            names.QUIRE_ROUTER_PREFIX_TOKENS, "Prompt tokens of chosen requests.", ["model"], registry=registry
        )
        self.prefix_hit_tokens = Tallies(
            names.QUIRE_ROUTER_PREFIX_HIT_TOKENS,
            "Prompt tokens that the chosen endpoint was believed to hold.",
            ["model"],
            registry=registry,
        )
        self.loop_lag_s = Gauge(
            names.QUIRE_ROUTER_EVENT_LAG_SECONDS, "How late the event loop runs what is due.", registry=registry
        )
        self._add_faults(registry)

        self.filtered = Counter(
            names.QUIRE_ROUTER_FILTER,
            "Requests in which a content filter found something.",
            ["filter", "stage", "action"],
            registry=registry,
        )
        self._by_model: dict[str, ModelMetrics] = {}

    def _add_faults(self, registry: CollectorRegistry) -> None:
        self.resumes = Counter(
            names.QUIRE_ROUTER_RESUMES,
            "Streams that went on at another worker, by what happened to theirs.",
            ["reason"],
            registry=registry,
        )
        for reason in RESUME_REASONS:
            self.resumes.labels(reason)
        self.ejections = Counter(
            names.QUIRE_ROUTER_EJECTIONS, "Workers left out of the choice as they kept failing.", registry=registry
        )
        self.hedges = Counter(
            names.QUIRE_ROUTER_HEDGES,
            "Streams sent to a second worker, by who began first.",
            ["won"],
            registry=registry,
        )
        for winner in ("first", "second", "none"):
            self.hedges.labels(winner)

    def of_model(self, model: str) -> ModelMetrics:
        """The instruments of one declared model (or UNKNOWN_MODEL)."""
        found = self._by_model.get(model)
        if found is None:
            found = self._by_model[model] = ModelMetrics(self, model)
        return found

    def count_request(self, model: str, status: int, total_s: float, first_byte_s: float | None) -> None:
        """A request has ended. Times are from its arrival; None: no byte of a worker's answer came. Does what `inc` and `observe` of its
        instruments do, without calling any of them."""
        mine = self._by_model.get(model) or self.of_model(model)
        tally = mine.by_status.get(status) or mine.status(status)
        tally.value += 1
        bars = mine.request_s
        bars.counts[bisect_left(bars.bounds, total_s)] += 1
        bars.total += total_s
        if first_byte_s is not None:
            bars = mine.first_byte_s
            bars.counts[bisect_left(bars.bounds, first_byte_s)] += 1
            bars.total += first_byte_s

    def count_retry(self, reason: str) -> None:
        """An attempt is repeated. What a worker writes as its reason must not make series either."""
        self.retries.labels(reason if reason in RETRY_REASONS else OTHER).inc()

    def count_filtered(self, name: str, stage: str, action: str) -> None:
        """A content filter found something in a request, or in its answer. Names are the configuration's."""
        self.filtered.labels(name, stage, action).inc()

    def show_state(self, pool: EndpointPool, index: KvIndex) -> None:
        """Set the gauges to what is true now."""
        states = {"ready": 0, "ejected": 0, "draining": 0, "down": 0}
        self.in_flight.clear()
        for endpoint in pool:
            states[state_of(endpoint)] += 1
            self.in_flight.labels(endpoint.id).set(endpoint.num_in_flight)
        for state, number in states.items():
            self.endpoints.labels(state).set(number)
        self.model_ready_endpoints.clear()
        for model in pool.models:
            ready = sum(endpoint.is_usable for endpoint in pool.answering(model))
            self.model_ready_endpoints.labels(model).set(ready)
            self._begin_at_zero(model)
        if gone := self._by_model.keys() - {*pool.models, UNKNOWN_MODEL}:
            self._forget(gone)
        self.index_blocks.set(index.num_entries)
        self.services.set(pool.num_services)

    def _forget(self, models: Collection[str]) -> None:
        """Names that nobody serves any more: in a long life they would only become more."""
        for model in models:
            del self._by_model[model]
        for by_model in (self.request_s, self.first_byte_s):
            by_model.remove_by("model", models)
        for counts in (self.requests, self.choices, self.prefix_tokens, self.prefix_hit_tokens):
            counts.remove_by("model", models)

    def _begin_at_zero(self, model: str) -> None:
        """A series that is born at 1 has no rate: its first error would raise no alert."""
        self.of_model(model)
        for status in USUAL_STATUSES:
            self.requests.labels(model, status)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


def state_of(endpoint: Endpoint) -> str:
    """In a word."""
    if endpoint.draining:
        return "draining"
    if not endpoint.ready:
        return "down"
    return "ejected" if endpoint.health.is_ejected else "ready"
