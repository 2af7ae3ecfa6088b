"""Signing in through the program that a kubeconfig names (client.authentication.k8s.io), as managed clusters ask for.

The program is started from a list of arguments, without a terminal; what it prints on standard error is shown, what it answers never is.
This module must not know requests or TLS, nor where kubeconfigs are found.
"""

import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from quire_contract.kube.errors import KubeAccessError

API_GROUP = "client.authentication.k8s.io"
API_VERSIONS = (f"{API_GROUP}/v1", f"{API_GROUP}/v1beta1")
TIMEOUT_S = 120.0
"""Some programs wait for a person at a web browser."""
EARLY = timedelta(seconds=10)
"""A credential counts as expired this long before it is: a request takes time to arrive."""
_INFO_VARIABLE = "KUBERNETES_EXEC_INFO"


@dataclass(frozen=True, kw_only=True)
class Credential:
    """What a program answered; `repr` shows nothing of it."""

    token: str | None = field(default=None, repr=False)
    client_cert: str | None = field(default=None, repr=False)
    """PEM."""
    client_key: str | None = field(default=None, repr=False)
    """PEM."""
    expires: datetime | None = None
    """None: good until it is refused."""


class _Status(msgspec.Struct, rename="camel"):
    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None
    expiration_timestamp: datetime | None = None


class _Answer(msgspec.Struct, rename="camel"):
    kind: str
    api_version: str
    status: _Status


class ExecSignIn:
    """One program, and its last credential until that expires. May be used from several threads."""

    def __init__(
        self,
        path: Path,
        spec: Mapping[str, Any],
        cluster: Mapping[str, Any],
        environ: Mapping[str, str],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`spec` is the user's `exec` in the kubeconfig at `path`, `cluster` what a program may ask to be told, `environ` what it inherits.

        KubeAccessError if `spec` cannot be used.
        """
        self._path = path
        self._argv = _argv(path, spec)
        self._hint = str(spec.get("installHint") or "install it, or use a token or a client certificate").strip()
        self._api_version = str(spec.get("apiVersion"))
        if self._api_version not in API_VERSIONS:
            raise KubeAccessError(f"{path}: exec.apiVersion must be one of {', '.join(API_VERSIONS)}")
        if spec.get("interactiveMode") == "Always":
            raise KubeAccessError(f"{path}: exec needs a terminal (interactiveMode: Always); use IfAvailable or Never")
        info: dict[str, Any] = {"interactive": False}
        if spec.get("provideClusterInfo"):
            info["cluster"] = dict(cluster)
        request = {"apiVersion": self._api_version, "kind": "ExecCredential", "spec": info}
        self._environ = {**environ, **_variables(path, spec), _INFO_VARIABLE: msgspec.json.encode(request).decode()}
        self._now = now
        self._lock = threading.Lock()
        self._known: Credential | None = None

    def credential(self) -> Credential:
        """The present credential; the program runs if there is none. Blocks. KubeAccessError if it gives none."""
        with self._lock:
            known = self._known
            if known is None or (known.expires is not None and self._now() + EARLY >= known.expires):
                self._known = known = self._read(self._run())
            return known

    def refused(self) -> None:
        """The API server does not accept the credential: ask for another one the next time."""
        self._known = None

    def _run(self) -> bytes:
        program = self._argv[0]
        try:
            done = subprocess.run(
                self._argv,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError:
            raise KubeAccessError(f"{self._path}: signing in needs the program {program}; {self._hint}") from None
        except subprocess.TimeoutExpired:
            raise KubeAccessError(f"{self._path}: {program} did not sign in within {TIMEOUT_S:g} s") from None
        except (OSError, ValueError) as error:
            raise KubeAccessError(f"{self._path}: {program} cannot be started: {error}") from None
        if done.returncode != 0:
            raise KubeAccessError(
                f"{self._path}: {program} could not sign in (it ended with {done.returncode}); run it by hand to see why"
            )
        return done.stdout

    def _read(self, answered: bytes) -> Credential:
        problem = f"{self._path}: {self._argv[0]} did not answer with a usable ExecCredential of {self._api_version}"
        try:
            answer = msgspec.json.decode(answered, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise KubeAccessError(problem) from None  # the cause may quote the credential
        status, expires = answer.status, answer.status.expiration_timestamp
        has_chain = bool(status.client_certificate_data and status.client_key_data)
        if (
            answer.api_version != self._api_version
            or answer.kind != "ExecCredential"
            or not (status.token or has_chain)
        ):
            raise KubeAccessError(problem)
        return Credential(
            token=status.token or None,
            client_cert=status.client_certificate_data if has_chain else None,
            client_key=status.client_key_data if has_chain else None,
            expires=expires.replace(tzinfo=UTC) if expires is not None and expires.tzinfo is None else expires,
        )


def _argv(path: Path, spec: Mapping[str, Any]) -> list[str]:
    """A command with a slash in it starts at the kubeconfig's folder; any other is looked for in PATH."""
    command, args = spec.get("command"), spec.get("args") or []
    if not isinstance(command, str) or not command or not isinstance(args, list):
        raise KubeAccessError(f"{path}: exec needs a command, and args as a list")
    return [str(path.parent / command) if "/" in command else command, *map(str, args)]


def _variables(path: Path, spec: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {str(entry["name"]): str(entry["value"]) for entry in spec.get("env") or []}
    except (KeyError, TypeError):
        raise KubeAccessError(f"{path}: exec.env must be a list of name and value") from None
