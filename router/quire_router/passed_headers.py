"""The headers of a worker's answer on their way to the client: made into a map only where somebody looks at them.

Most answers are written as they came (`plain_http`), and a layer that adds a header pays for the map.
"""

from multidict import CIMultiDict, MultiMapping

from quire_router.headers import to_client


class PassedHeaders:
    """Of one answer. What each is, `headers.to_client` says; nobody changes the worker's."""

    __slots__ = ("endpoint_id", "request_id", "route", "theirs")

    def __init__(self, theirs: MultiMapping[str], request_id: str, endpoint_id: str, route: str) -> None:
        self.theirs = theirs
        self.request_id = request_id
        self.endpoint_id = endpoint_id
        self.route = route

    def made(self) -> CIMultiDict[str]:
        """All that go to the client."""
        return to_client(self.theirs, self.request_id, self.endpoint_id, self.route)
