"""Bounds on the shape of a JSON body, before it is decoded.

A decoder makes an object for every bracket and string while nobody else in the process may run, and code that walks deep values ends at the
interpreter's recursion limit. Counting costs a few passes over the bytes in C. Knows no field.
"""

from itertools import accumulate

from quire_contract.openai.errors import CODE_INVALID_JSON, ApiError

MAX_DEPTH = 128
"""Objects and arrays inside each other: the deepest schema that is taken, and what it lies in."""
MAX_CONTAINERS = 32_768
"""Objects and arrays of one body: 4096 messages of several parts, large tool schemas."""
MAX_STRINGS = 131_072
"""Names of fields included."""

_BRACKETS = b"[]{}"
_OTHERS = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_AS_ARRAYS = bytes.maketrans(b"{}", b"[]")
_STEP = {ord("["): 1, ord("]"): -1}
_COLLAPSES = 8


def check_structure(body: bytes) -> None:
    """ApiError 400 for more strings, containers or levels than any request needs. What is no JSON at all is left to the decoder."""
    num_brackets = body.count(b"{") + body.count(b"[")
    num_quotes = body.count(b'"')
    if num_brackets <= MAX_DEPTH and num_quotes <= MAX_STRINGS:
        return
    # A string has two quotes, of which the second may follow an escaped backslash and so look like an escaped quote.
    if num_quotes - body.count(b'\\"') > 2 * MAX_STRINGS:
        raise _too_much(f"too large: more than {MAX_STRINGS} strings")
    if num_brackets <= MAX_DEPTH:
        return
    outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside.translate(_AS_ARRAYS, _OTHERS)
    if _is_deeper(brackets[: 2 * MAX_CONTAINERS], MAX_DEPTH):
        raise _too_much(f"nested too deeply: more than {MAX_DEPTH} objects and arrays inside each other")
    if brackets.count(b"[") > MAX_CONTAINERS:
        raise _too_much(f"too large: more than {MAX_CONTAINERS} objects and arrays")


def _is_deeper(brackets: bytes, limit: int) -> bool:
    """Collapses the innermost pairs a few times, so that what is wide but not deep is soon short. One kind of pair: of two, the
    second would collapse what the first has made an innermost pair, two levels at once."""
    for collapsed in range(_COLLAPSES):
        if len(brackets) <= 2 * (limit - collapsed):
            break
        brackets = brackets.replace(b"[]", b"")
        limit -= 1
    return any(depth > limit for depth in accumulate(map(_STEP.__getitem__, brackets)))


def _too_much(what: str) -> ApiError:
    return ApiError(400, f"The body is {what}.", code=CODE_INVALID_JSON)
