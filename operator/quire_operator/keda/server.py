"""Listens for KEDA: plain where the network decides who comes in, or TLS, with a certificate of the caller's if there is a CA to check it.

This module must not know what is answered, or where the files are from.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

_MAX_REQUEST_BYTES = 64 * 1024
_STOP_S = 1.0
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second process on the port is an error, not half of the calls
    ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.keepalive_time_ms", 30_000),  # a KEDA whose node is gone leaves no stream behind
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class ScalerTlsError(ValueError):
    """The files cannot be used. The message names the setting."""


@dataclass(frozen=True, kw_only=True)
class ScalerTls:
    """Files in PEM."""

    cert: Path
    """The server's chain."""
    key: Path
    """Its private key."""
    client_ca: Path | None = None
    """Who signs callers' certificates; None: none is asked for."""


@asynccontextmanager
async def serve_scaler(scaler_handler: Any, *, host: str, port: int, tls: ScalerTls | None) -> AsyncIterator[int]:
    """Answer while entered; gives the port (`port`, or what 0 became). OSError if it is taken, ScalerTlsError."""
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((scaler_handler,))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, _credentials(tls))
    except RuntimeError as error:  # what grpcio makes of an address that cannot be bound
        raise OSError(f"{address}: cannot listen: {error}") from None
    await server.start()
    try:
        yield int(bound)
    finally:
        await server.stop(_STOP_S)


def _credentials(tls: ScalerTls) -> Any:
    """Read anew when their time has come: certificates are renewed in place, by cert-manager or whoever made them."""
    first = _configuration(tls)

    def fetch() -> Any:
        try:
            return _configuration(tls)
        except ScalerTlsError:
            return None  # in the middle of a change: the former ones hold

    return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=tls.client_ca is not None)


def _configuration(tls: ScalerTls) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        key, cert = tls.key.read_bytes(), tls.cert.read_bytes()
        context.load_cert_chain(tls.cert, tls.key)
        ca = None
        if tls.client_ca is not None:
            ca = tls.client_ca.read_bytes()
            context.load_verify_locations(tls.client_ca)
    except (OSError, ssl.SSLError) as error:
        files = f"{tls.cert}, {tls.key}" + (f", {tls.client_ca}" if tls.client_ca else "")
        raise ScalerTlsError(f"the scaler's TLS files ({files}) cannot be used: {error}") from None
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)
