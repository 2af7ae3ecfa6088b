"""What lets router, worker and operator believe each other: a token for HTTP, a CURVE key pair for ZMQ.

All parties of a release hold the same three values, from a Secret's folder (`token`, `curve.pub`, `curve.key`) or, under `quire up`, made
for the run. Servers admit only clients that prove to hold the same key pair. Never logged: `repr` shows none of it.
"""

import hmac
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from quire_contract.names import HEADER_API_KEY, HEADER_TOKEN

TOKEN_FILE = "token"  # noqa: S105 - a file's name
PUBLIC_FILE = "curve.pub"
SECRET_FILE = "curve.key"  # noqa: S105 - a file's name
SALT_FILE = "cache-salt"
_Z85_KEY_LENGTH = 40
_MIN_TOKEN_LENGTH = 16


class TrustError(ValueError):
    """The folder does not hold usable credentials. The message names the file and the fix."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Credentials shared by the parts of one release."""

    token: str = field(repr=False)
    curve_public: bytes = field(repr=False)
    """Z85, 40 characters."""
    curve_secret: bytes = field(repr=False)
    cache_salt: str = field(default="", repr=False)
    """What tenants' cache salts are made with, kept for as long as the release; empty: the token serves."""

    @classmethod
    def generate(cls) -> "Trust":
        """New credentials."""
        public, secret = zmq.curve_keypair()
        return cls(secrets.token_urlsafe(32), public, secret)

    @classmethod
    def read(cls, folder: Path) -> "Trust":
        """Credentials from `folder`. TrustError names what is missing or malformed."""
        token = _read(folder / TOKEN_FILE)
        if len(token) < _MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
            raise TrustError(
                f"{folder / TOKEN_FILE}: must hold at least {_MIN_TOKEN_LENGTH} printable ASCII characters"
            )
        public, secret = (_read(folder / name).encode() for name in (PUBLIC_FILE, SECRET_FILE))
        if _public_of(secret, folder / SECRET_FILE) != public:
            raise TrustError(f"{folder / PUBLIC_FILE}: is not the public key of {SECRET_FILE}; write the folder anew")
        salt = _read(folder / SALT_FILE) if (folder / SALT_FILE).exists() else ""
        return cls(token, public, secret, salt)

    def write(self, folder: Path) -> None:
        """Store in `folder` (made if missing), files readable by their owner only."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(folder / TOKEN_FILE, self.token.encode())
        _write(folder / PUBLIC_FILE, self.curve_public)
        _write(folder / SECRET_FILE, self.curve_secret)
        if self.cache_salt:
            _write(folder / SALT_FILE, self.cache_salt.encode())

    def admits(self, presented: str | None) -> bool:
        """Whether `presented` (from a header) is the token; takes the same time for every wrong one."""
        return presented is not None and hmac.compare_digest(presented.encode("utf-8", "replace"), self.token.encode())

    def headers(self) -> dict[str, str]:
        """What to send along with a request to another part of the release."""
        return {HEADER_TOKEN: self.token}

    def secure_server(self, socket: zmq.Socket[Any]) -> None:
        """Make `socket` a CURVE server. Before bind; its context needs `only_trusted_clients`."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.curve_public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.curve_secret)

    def secure_client(self, socket: zmq.Socket[Any]) -> None:
        """Make `socket` a CURVE client of our servers. Before connect."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.curve_public)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.curve_public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.curve_secret)

    @contextmanager
    def only_trusted_clients(self, context: zmq.Context[Any]) -> Iterator[None]:
        """While entered, the CURVE servers of `context` admit only holders of our key pair. One at a time per context."""
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback("*", credentials_provider=_OnlyKey(self.curve_public))
        try:
            yield
        finally:
            authenticator.stop()


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """The key in `Authorization: Bearer <key>`, if there is one. `headers` is case-insensitive."""
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    return value.strip() or None if scheme.lower() == "bearer" else None


def presented_key(headers: Mapping[str, str]) -> str | None:
    """The API key that a request presents: as a bearer token (OpenAI's clients) or in x-api-key (Anthropic's)."""
    return bearer_token(headers) or headers.get(HEADER_API_KEY, "").strip() or None


def presented_token(headers: Mapping[str, str]) -> str | None:
    """The trust token that a request presents: in its own header, or as a bearer token."""
    return headers.get(HEADER_TOKEN) or bearer_token(headers)


class _OnlyKey:
    """Credentials provider of pyzmq's authenticator: admits one public key."""

    def __init__(self, public_z85: bytes) -> None:
        self._public_z85 = public_z85

    def callback(self, domain: str, key: bytes) -> bool:
        """`key` is Z85."""
        del domain
        return hmac.compare_digest(key, self._public_z85)


def _public_of(secret: bytes, path: Path) -> bytes:
    problem = f"{path}: must hold a Z85 CURVE key of {_Z85_KEY_LENGTH} characters"
    if len(secret) != _Z85_KEY_LENGTH:
        raise TrustError(problem)
    try:
        return zmq.curve_public(secret)
    except (zmq.ZMQError, ValueError):
        raise TrustError(problem) from None


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        raise TrustError(
            f"{path}: missing; mount the release's trust Secret or let `quire up` write the folder"
        ) from None
    except OSError as error:
        raise TrustError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TrustError(f"{path}: holds characters that are not ASCII") from None


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    beside.replace(path)
