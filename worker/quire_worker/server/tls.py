"""TLS of the main port: a certificate that may change while the worker runs. Knows no HTTP."""

import logging
import ssl
from pathlib import Path

from quire_contract.telemetry import log_event
from quire_worker.errors import ConfigError

_log = logging.getLogger(__name__)


class ServerTls:
    """A context for new connections; those that are open keep what they began with."""

    def __init__(self, cert: Path, key: Path | None) -> None:
        """PEM files; without `key`, `cert` holds the private key too. ConfigError names the flag if they cannot be used."""
        self.paths = [cert] if key is None else [cert, key]
        self._cert, self._key = cert, key
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load(self.context)

    def reload(self) -> None:
        """Read the files again. If they cannot be used, the old certificate stays and the log says why."""
        try:
            # Into another context first: a half-loaded pair would break the one in use.
            self._load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
            self._load(self.context)
        except ConfigError as error:
            log_event(_log, logging.ERROR, "the certificate stays as it was", reason=str(error))
            return
        log_event(_log, logging.INFO, "certificate read again")

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            what = error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
            named = f"--tls-cert {self._cert}" + (f", --tls-key {self._key}" if self._key is not None else "")
            raise ConfigError(f"{named}: {what}") from None


def _no_password() -> str:
    """Asked for an encrypted key: nobody is there to type one."""
    raise ValueError("the private key is encrypted; give one that is not")
