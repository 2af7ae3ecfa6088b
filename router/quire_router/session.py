"""What names the session of a request, for the policy session_affinity. The first of these that is there:

    header x-session-id | "prompt_cache_key" of the body | "user" of the body (Anthropic: metadata.user_id)

Names of one tenant are not those of another.
"""

from hashlib import blake2b

from multidict import MultiMapping

from quire_contract.openai.requests import RoutingFields

HEADER_SESSION_ID = "x-session-id"
MAX_NAME_CHARS = 1024
"""What is beyond does not tell sessions apart."""


def session_key(headers: MultiMapping[str], fields: RoutingFields, tenant_id: str) -> int | None:
    """64 bits of the session's name. None: the request names none."""
    header = headers.get(HEADER_SESSION_ID)
    if not (header or fields.prompt_cache_key or fields.user):
        return None
    for kind, name in (("header", header), ("key", fields.prompt_cache_key), ("user", fields.user)):
        if name:
            parts = (tenant_id, kind, name[:MAX_NAME_CHARS])
            named = "\x1f".join(parts).encode("utf-8", "surrogateescape")
            return int.from_bytes(blake2b(named, digest_size=8).digest(), "big")
    return None
