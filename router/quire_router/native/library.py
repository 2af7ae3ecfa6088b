"""The compiled C++, loaded once for the process.

parts = native()        None where there is none: the caller then uses its twin in Python
"""

import importlib.machinery
import importlib.util
import logging
from functools import cache
from typing import Any

from quire_contract.telemetry import log_event
from quire_router.native.build import find_library

log = logging.getLogger("quire_router.native")

_NAME = "quire_router_native"
"""As the module calls itself."""


@cache
def native() -> Any:
    """The extension module; None where it was not compiled. Logs which."""
    found = find_library()
    if found.path is None:
        log_event(log, logging.WARNING, "native", used=False, why=found.why)
        return None
    loader = importlib.machinery.ExtensionFileLoader(_NAME, str(found.path))
    spec = importlib.util.spec_from_file_location(_NAME, str(found.path), loader=loader)
    assert spec is not None, "a loader was given"
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        log_event(log, logging.WARNING, "native", used=False, why=str(error))
        return None
    log_event(log, logging.INFO, "native", used=True, why=found.why)
    return module
