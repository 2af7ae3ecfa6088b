"""The headers of a worker's answer on their way to the client: made into a map only where somebody looks at them.

Most answers are written as they came (`plain_http`), with what layers add beside; one that looks at
them pays for the map.
"""

import msgspec
from multidict import CIMultiDict, MultiMapping

from quire_router.headers import to_client


class PassedHeaders(msgspec.Struct, eq=False, gc=False):
    """Of one answer. What each is, `headers.to_client` says; nobody changes the worker's."""

    theirs: MultiMapping[str]
    request_id: str
    endpoint_id: str
    route: str
    added: dict[str, str] = {}
    """By layers on the answer's way; each takes the place of any other one of its name."""

    def made(self) -> CIMultiDict[str]:
        """All that go to the client."""
        headers = to_client(self.theirs, self.request_id, self.endpoint_id, self.route)
        for name, value in self.added.items():
            headers[name] = value
        return headers
