"""Which versions of a model answer now. An answer of any other version is not given again."""

from collections.abc import Iterable

from quire_contract.router_config import RouterConfig
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint
from quire_router.stored_answers import ModelVersion


class ModelVersions:
    """Looks at the pool. A model without any worker keeps the versions that it had: it sleeps, it has not changed."""

    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool
        self._last: dict[str, frozenset[ModelVersion]] = {}

    def follow(self, config: RouterConfig) -> None:
        """Note what each model runs from now on, and forget models that are not served any more. After the pool has applied `config`."""
        served = {model.name for model in config.models}
        self._last = {model: versions for model, versions in self._last.items() if model in served}
        for model in served:
            self.current(model)

    def current(self, model: str) -> frozenset[ModelVersion]:
        """Those that requests for `model` may go to. Revisions without a share of them have none."""
        found = self._of(self._pool.serving(model) or (), model)
        if found:
            self._last[model] = found
        return found or self._last.get(model, frozenset())

    def of_endpoint(self, endpoint_id: str | None) -> ModelVersion | None:
        """What a worker runs. None: it is gone."""
        endpoint = None if endpoint_id is None else self._pool.get(endpoint_id)
        return None if endpoint is None else _version(endpoint)

    def _of(self, endpoints: Iterable[Endpoint], model: str) -> frozenset[ModelVersion]:
        weights = self._pool.weights(model)
        return frozenset(_version(e) for e in endpoints if weights is None or weights.get(e.entry.revision, 0) > 0)


def _version(endpoint: Endpoint) -> ModelVersion:
    return ModelVersion(service=endpoint.entry.service, revision=endpoint.entry.revision, bundle=endpoint.digest or "")
