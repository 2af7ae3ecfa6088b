"""Connections to an API server that were cancelled while they were made."""

import gc
import warnings


def collect_forgotten_connections() -> None:
    """Python 3.11 forgets a TLS connection that is cancelled between its making and its first callback; a later test would be blamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
