"""The headers of a worker's answer on their way to the client: made into a map only where somebody looks at them.

Most answers are written as they came (`plain_http`), and a layer that adds a header pays for the map.
"""

from multidict import CIMultiDict, MultiMapping

from quire_contract import names
from quire_router.headers import HEADER_ROUTE, to_client


class PassedHeaders:
    """Of one answer."""

    __slots__ = ("own", "theirs")

    def __init__(self, theirs: MultiMapping[str], request_id: str, endpoint_id: str, route: str) -> None:
        """`theirs`: the worker's, which nobody changes. The others are as `headers.to_client` takes them."""
        self.theirs = theirs
        self.own = ((names.HEADER_REQUEST_ID, request_id), (names.HEADER_WORKER, endpoint_id), (HEADER_ROUTE, route))
        """What is added to those of the worker's that pass."""

    def made(self) -> CIMultiDict[str]:
        """All that go to the client."""
        (_, request_id), (_, endpoint_id), (_, route) = self.own
        return to_client(self.theirs, request_id, endpoint_id, route)
