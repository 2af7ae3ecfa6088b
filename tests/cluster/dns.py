"""Cluster DNS of the test node: answers for Services (A records) and hands every other name to the machine's resolver.

    python -m cluster.dns KUBECONFIG ADDRESS PORT

Must not need more than a kubeconfig with client certificates. UDP only, no SRV and no reverse names: nothing here asks for them.
"""

import asyncio
import contextlib
import json
import ssl
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import aiohttp

DOMAIN = "cluster.local"
POLL_S = 0.5
TIMEOUT_S = 3.0
TTL_S = 2
MAX_ANSWERS = 24  # what fits into 512 bytes with a long name
HEADER = struct.Struct("!6H")
TYPE_A, CLASS_IN = 1, 1
FLAG_RESPONSE, FLAG_AUTHORITATIVE, FLAG_RECURSION = 0x8000, 0x0400, 0x0180
SERVER_FAILURE, NO_SUCH_NAME = 2, 3


def service_records(services: list[dict[str, Any]], endpoints: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Lower-case name -> IPv4 addresses; a headless Service has its ready pods', a pod with a hostname its own."""
    pods = {(e["metadata"]["namespace"], e["metadata"]["name"]): e.get("subsets") or [] for e in endpoints}
    records: dict[str, list[str]] = {}
    for service in services:
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        full, address = f"{name}.{namespace}.svc.{DOMAIN}", service["spec"].get("clusterIP")
        if address and address != "None":
            records[full] = [address]
            continue
        ready = [entry for subset in pods.get((namespace, name), []) for entry in subset.get("addresses") or []]
        records[full] = [entry["ip"] for entry in ready]
        records.update({f"{entry['hostname']}.{full}": [entry["ip"]] for entry in ready if entry.get("hostname")})
    return records


def question_of(query: bytes) -> tuple[str, int, int]:
    """(name, type, where the question ends) of a query. Raises ValueError, IndexError or struct.error for what is none."""
    labels, at = [], HEADER.size
    while length := query[at]:
        if length > 63:
            raise ValueError("a compressed name in a question")
        labels.append(query[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    kind, _ = struct.unpack_from("!2H", query, at + 1)
    return ".".join(labels).lower(), kind, at + 5


def answer(query: bytes, records: Mapping[str, list[str]]) -> bytes | None:
    """The response to a query for a name of the cluster; None for other names."""
    name, kind, end = question_of(query)
    if name != DOMAIN and not name.endswith(f".{DOMAIN}"):
        return None
    addresses = records.get(name)
    if addresses is None:
        return _response(query, end, NO_SUCH_NAME)
    found = [
        struct.pack("!HHHIH4B", 0xC000 | HEADER.size, TYPE_A, CLASS_IN, TTL_S, 4, *map(int, address.split(".")))
        for address in addresses[:MAX_ANSWERS]
        if kind == TYPE_A
    ]
    return _response(query, end, 0, len(found)) + b"".join(found)


def _response(query: bytes, end: int, status: int, num_answers: int = 0) -> bytes:
    (identifier,) = struct.unpack_from("!H", query)
    flags = FLAG_RESPONSE | FLAG_AUTHORITATIVE | FLAG_RECURSION | status
    return HEADER.pack(identifier, flags, 1, num_answers, 0, 0) + query[HEADER.size : end]


class Server(asyncio.DatagramProtocol):
    """Answers queries from `records`, which a loop replaces."""

    def __init__(self, upstream: str | None) -> None:
        self.records: dict[str, list[str]] = {}
        self._upstream = upstream
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the socket."""
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answers at once, or asks the machine's resolver."""
        try:
            response = answer(data, self.records)
        except (ValueError, IndexError, struct.error):
            return
        if response is not None:
            self._transport.sendto(response, addr)
            return
        task = asyncio.ensure_future(self._ask_upstream(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_upstream(self, query: bytes, client: Any) -> None:
        response = _response(query, question_of(query)[2], SERVER_FAILURE)
        if self._upstream:
            with contextlib.suppress(OSError, TimeoutError):
                response = await asyncio.wait_for(_exchange(query, self._upstream), TIMEOUT_S)
        self._transport.sendto(response, client)


class _Exchange(asyncio.DatagramProtocol):
    def __init__(self, answered: "asyncio.Future[bytes]") -> None:
        self._answered = answered

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self._answered.done():
            self._answered.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answered.done():
            self._answered.set_exception(exc)


async def _exchange(query: bytes, server: str) -> bytes:
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[bytes] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Exchange(answered), remote_addr=(server, 53))
    try:
        return await answered
    finally:
        transport.close()


def machine_resolver(text: str) -> str | None:
    """The first IPv4 name server of a resolv.conf."""
    servers = [line.split()[1] for line in text.splitlines() if line.startswith("nameserver ")]
    return next((server for server in servers if ":" not in server), None)


async def _follow(session: aiohttp.ClientSession, url: str, tls: ssl.SSLContext, server: Server) -> None:
    while True:
        try:
            lists = []
            for plural in ("services", "endpoints"):
                async with session.get(f"{url}/api/v1/{plural}?resourceVersion=0", ssl=tls) as response:
                    response.raise_for_status()
                    lists.append((await response.json())["items"])
            server.records = service_records(*lists)
        except (aiohttp.ClientError, TimeoutError) as error:
            print(f"the last known names are kept: {error!r}", flush=True)
        await asyncio.sleep(POLL_S)


async def _serve(kubeconfig: dict[str, Any], upstream: str | None, address: str, port: int) -> None:
    cluster, user = kubeconfig["clusters"][0]["cluster"], kubeconfig["users"][0]["user"]
    tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
    tls.load_cert_chain(user["client-certificate"], user["client-key"])
    server = Server(upstream)
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: server, local_addr=(address, port))
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        await _follow(session, cluster["server"], tls, server)


if __name__ == "__main__":
    resolver = machine_resolver(Path("/etc/resolv.conf").read_text())
    asyncio.run(_serve(json.loads(Path(sys.argv[1]).read_text()), resolver, sys.argv[2], int(sys.argv[3])))
