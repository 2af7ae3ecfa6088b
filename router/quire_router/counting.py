"""The class of reservations: counted in Python, or in C++ where that is there. Both count the same (tests/router/test_counting.py)."""

import functools
import logging

from quire_contract.telemetry import log_event
from quire_router import endpoints
from quire_router.endpoints import Endpoint, Reservation
from quire_router.native.library import native
from quire_router.scoring import DECODE_MS_PER_REQUEST, DEFAULT_MS_PER_TOKEN

log = logging.getLogger("quire_router.counting")


@functools.cache
def reservation_class() -> type[Reservation]:
    """The quickest that is there."""
    parts = native()
    if parts is None:
        return Reservation
    try:
        counting = parts.Counting(
            Reservation,
            Endpoint,
            endpoints.REPORT_LAG_S,
            endpoints.RECENT_LIFE_S,
            DEFAULT_MS_PER_TOKEN,
            DECODE_MS_PER_REQUEST,
            endpoints.SPEED_MIN_TOKENS,
        )
    except (TypeError, AttributeError) as error:  # another Python than is known: fields lie elsewhere
        log_event(log, logging.WARNING, "native_counting", used=False, why=str(error))
        return Reservation
    return type("CountedReservation", (Reservation,), {"__slots__": (), **counting.methods()})
