"""What is done to a tenant's meters with each request, in C++ where that is there: `meters` and `tenant_errors` have the twins."""

import functools
import logging
from typing import Any

from quire_contract.telemetry import log_event
from quire_router.limits.accounts import ONLY_HELD
from quire_router.limits.meter import Meter
from quire_router.native.library import native

log = logging.getLogger("quire_router.limits.metering")

WHOLE_WINDOW = "1m0s"
"""Until all of a minute's limit is there again, as OpenAI writes it."""


@functools.cache
def metering() -> Any:
    """Has `reserve`, `settle` and `show`, which give None for what they leave to their twins. None: there is no such thing."""
    parts = native()
    if parts is None:
        return None
    try:
        return parts.Metering(Meter, ONLY_HELD, WHOLE_WINDOW)
    except (TypeError, AttributeError) as error:  # another Python than is known: fields lie elsewhere
        log_event(log, logging.WARNING, "native_metering", used=False, why=str(error))
        return None
