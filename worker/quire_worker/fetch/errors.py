"""How fetching fails: for good, with a reason that the operator shows, or for the moment.

Messages name the cause and the fix, and never a credential.
"""

from enum import StrEnum

from quire_worker.errors import QuireWorkerError


class Reason(StrEnum):
    """What the operator reads in the init container's termination message."""

    UNAUTHORIZED = "ModelSourceUnauthorized"
    NOT_FOUND = "ModelSourceNotFound"
    UNREACHABLE = "ModelSourceUnreachable"
    CHECKSUM_MISMATCH = "ModelChecksumMismatch"
    NO_SPACE = "NoSpace"
    INVALID_MODEL = "InvalidModel"
    CACHE_UNUSABLE = "ModelCacheUnusable"


class FetchError(QuireWorkerError):
    """It will not work however often it is tried, until somebody changes something."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InterruptedFetchError(FetchError):
    """It may work the next time: the source was away for too long, or another pod took over."""


class TransientError(QuireWorkerError):
    """The source has trouble just now."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When the source asks to be tried again, in seconds."""
