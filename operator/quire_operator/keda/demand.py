"""Demand as KEDA's scaler asks for it: readings from whoever has them, and who wants to hear of edges. Must not know gRPC or routers."""

from collections.abc import Callable

from quire_operator.autoscale.aggregate import Reading


class EdgeHub:
    """Passes edges on to those who asked for them. `tell` is given to the listener; the rest is a DemandSource."""

    def __init__(self, read: Callable[[str], Reading]) -> None:
        """`read` gives the demand of "namespace/name" now."""
        self._read = read
        self._told: dict[str, list[Callable[[], None]]] = {}

    def reading(self, service: str) -> Reading:
        """The demand of "namespace/name" now."""
        return self._read(service)

    def subscribe(self, service: str, on_edge: Callable[[], None]) -> Callable[[], None]:
        """Call `on_edge` at each edge of the service, until what is returned is called."""
        told = self._told.setdefault(service, [])
        told.append(on_edge)

        def end() -> None:
            told.remove(on_edge)
            if not told and self._told.get(service) is told:
                del self._told[service]

        return end

    def tell(self, service: str) -> None:
        """The service has begun to hold requests."""
        for on_edge in tuple(self._told.get(service, ())):
            on_edge()
