"""The one error that malformed bytes from another process raise, whatever they should have been.

Knows nothing of what the bytes mean.
"""


class WireError(ValueError):
    """Bytes from another process that do not follow the contract. The message says which part and why."""
