"""Ranges of the fields that say how urgent a request is."""

from quire_contract.openai.errors import invalid
from quire_contract.openai.requests import GenerationRequest

MAX_PRIORITY = 2**53 - 1
"""What every JSON reader keeps exactly."""
MAX_TIMEOUT_S = 7 * 24 * 3600.0


def check_urgency(request: GenerationRequest) -> None:
    """`priority`, `timeout_s` and `queue_timeout_s`."""
    if request.priority is not None and abs(request.priority) > MAX_PRIORITY:
        raise invalid(
            "priority", f"is out of range; it must be between {-MAX_PRIORITY} and {MAX_PRIORITY}, lower first"
        )
    for name, value in (("timeout_s", request.timeout_s), ("queue_timeout_s", request.queue_timeout_s)):
        if value is not None and not 0 < value <= MAX_TIMEOUT_S:
            raise invalid(
                name, f"{value:g} is out of range; it must be greater than 0 and at most {MAX_TIMEOUT_S:g} seconds"
            )
