"""Kopf's part: it watches our three kinds and says what changed. Nothing is decided here, and nothing is written to the objects.

Only `on.event` handlers: those need no finalizers, no annotations and no state. Kopf posts no events, scans for nothing, and retries
requests for ever, for a server that is away must not end the process. This module must not know queues or decisions.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from quire_contract.kube.access import KubeAccess
from quire_contract.telemetry import Trouble
from quire_operator.cache import OWN_KINDS
from quire_operator.store import KubeObject

Listener = Callable[[str | None, KubeObject], None]

_STOP_S = 3.0
_LOGGER_OF_RETRIES = "kopf._cogs.clients.watching"
_LOGIN_AGE = timedelta(minutes=5)
_SERVER_TIMEOUT_S = 290
_QUIET_S = 300.0
"""A quiet kind's watch sends nothing at all; Kopf would end it after 70 s."""


class _ForEver:
    """Waits between attempts, in seconds: longer and longer, without end."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1.0, 2.0, 4.0)
        while True:
            yield 5.0


class _Retries(logging.Filter):
    """Lets one line a minute through about requests that will be tried again: while the server is away, each is tried every 5 s."""

    def __init__(self) -> None:
        super().__init__()
        self._trouble = Trouble()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        return "will retry" not in record.getMessage() or self._trouble.is_news("retries")


def quieten_kopf() -> None:
    """Kopf's log without what is of no use to an operator's operator. Called once, by __main__."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger(_LOGGER_OF_RETRIES).addFilter(_Retries())


def make_registry(access: KubeAccess, listener: Listener) -> kopf.OperatorRegistry:
    """Handlers that tell `listener` of each event's type (None: from the first list) and object."""
    registry = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(access)

    async def tell(event: Any, **_: Any) -> None:
        listener(event["type"], copy_of(event["object"]))

    kopf.on.login(registry=registry)(login)
    for kind in OWN_KINDS:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)(tell)
    return registry


def make_settings() -> kopf.OperatorSettings:
    """Nothing is written, nothing is scanned, nothing is given up."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.error_backoffs = _ForEver()
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.watching.connect_timeout = 10
    settings.watching.server_timeout = _SERVER_TIMEOUT_S
    settings.watching.client_timeout = _QUIET_S
    settings.watching.inactivity_timeout = _QUIET_S
    settings.queueing.idle_timeout = 1.0
    settings.process.ultimate_exiting_timeout = None
    return settings


async def run_kopf(
    access: KubeAccess, namespaces: Collection[str], listener: Listener, started: Callable[[], None]
) -> None:
    """Watch until cancelled; no namespaces stand for all. `started` is called once Kopf has taken the process's signals."""
    tasks = await kopf.spawn_tasks(
        registry=make_registry(access, listener),
        settings=make_settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
    )
    started()
    try:
        # Not kopf.run_tasks: in the end that cancels every task of the event loop, ours too.
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
        raise KopfEndedError("Kopf has stopped watching")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_STOP_S)


class KopfEndedError(RuntimeError):
    """One of Kopf's tasks, which run for ever, ended."""


def connection_info(access: KubeAccess) -> kopf.ConnectionInfo:
    """Our way to the API server in Kopf's words; a token that the cluster replaces is asked for anew every few minutes."""
    return kopf.ConnectionInfo(
        server=access.server,
        ca_data=access.ca_data,
        token=access.bearer(),
        certificate_path=access.client_cert,
        certificate_data=access.client_cert_data,
        private_key_path=access.client_key,
        private_key_data=access.client_key_data,
        default_namespace=access.namespace,
        expiration=datetime.now(UTC) + _LOGIN_AGE if access.token_file else None,
    )


def copy_of(body: Any) -> KubeObject:
    """The object that Kopf passed on, with metadata that may be changed."""
    meta = dict(body["metadata"])
    if meta.get("annotations"):
        meta["annotations"] = dict(meta["annotations"])
    return {**body, "metadata": meta}
