"""Clients that say nothing, too slowly or too often: cut off in time, and nobody else notices."""

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

UNFINISHED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
)
FAST = ("--header-timeout", "0.5", "--body-timeout", "0.5", "--keep-alive-timeout", "1")


@pytest.fixture(scope="module")
def strict(launch_in_module: Callable[..., Any]) -> Any:
    return launch_in_module("--served-model-name", "tiny", *FAST, "--max-connections", "4").wait_until_ready()


@pytest.fixture(scope="module")
def patient(launch_in_module: Callable[..., Any]) -> Any:
    """Only with heads: those that a test sends come when the machine lets it."""
    flags = ("--header-timeout", "60", "--body-timeout", "0.5", "--keep-alive-timeout", "1")
    return launch_in_module("--served-model-name", "tiny", *flags).wait_until_ready()


async def open_to(worker: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(worker.base.rpartition(":")[2]))


async def said(worker: Any, data: bytes) -> bytes:
    """All that comes until the worker closes."""
    reader, writer = await open_to(worker)
    writer.write(data)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """What still comes. Closing resets a connection of which not all bytes were read; that is an end like another."""
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    except ConnectionResetError:
        return b""


async def test_a_head_that_never_ends_is_cut_off(strict: Any) -> None:
    assert await said(strict, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ") == b""


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /health HTTP/1.1\r\nX-Slow: "])
def test_a_connection_that_never_gets_as_far_as_a_request_is_cut_off(strict: Any, sent: bytes) -> None:
    address = ("127.0.0.1", int(strict.base.rpartition(":")[2]))

    for _ in range(3):
        with socket.create_connection(address, timeout=60) as client:
            client.sendall(sent)  # at once: the worker has hardly accepted

            assert client.recv(1) == b""


async def test_a_head_that_drips_is_cut_off(strict: Any) -> None:
    reader, writer = await open_to(strict)
    dripped = 0
    async with asyncio.timeout(60):
        writer.write(b"GET /health HTTP/1.1\r\nX-Slow: ")
        while not reader.at_eof():
            writer.write(b"a")
            dripped += 1
            try:
                async with asyncio.timeout(0.01):
                    assert await reader.read(1) == b""
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
    writer.close()

    assert 2 < dripped < 4000


async def test_a_body_that_never_ends_is_408(patient: Any) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n"

    answer = await said(patient, head + b'{"model":')

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off_and_its_request_ends(
    launch: Callable[..., Any], metric: Any, eventually: Any
) -> None:
    worker = launch("--served-model-name", "tiny", "--send-timeout", "0.5").wait_until_ready()
    body = {
        "model": "tiny",
        "prompt": "the fox",
        "n": 16,
        "max_tokens": 1900,
        "ignore_eos": True,
        "stream": True,
        "logprobs": 20,
    }
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"

    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(worker.base.rpartition(":")[2])))
        client.sendall(head.encode() + data)
        await eventually(lambda: metric(worker, "vllm:request_success_total", finished_reason="abort"), 16)
        await eventually(lambda: metric(worker, "vllm:num_requests_running"), 0)
        await eventually(lambda: metric(worker, "vllm:kv_cache_usage_perc"), 0)


async def test_a_stream_of_which_too_much_waits_ends_with_an_error_and_others_go_on(
    launch: Callable[..., Any], http: aiohttp.ClientSession, metric: Any, eventually: Any
) -> None:
    worker = launch("--served-model-name", "tiny", "--max-unread-bytes", "4M").wait_until_ready()
    short = {"model": "tiny", "prompt": "the fox", "max_tokens": 100, "ignore_eos": True, "temperature": 0}
    data = json.dumps({**short, "n": 16, "temperature": 1, "max_tokens": 1900, "stream": True, "logprobs": 20}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"

    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(worker.base.rpartition(":")[2])))
        client.sendall(head.encode() + data)
        async with http.post(f"{worker.base}/v1/completions", json={**short, "stream": True}) as stream:
            beside = await stream.text()
        await eventually(lambda: metric(worker, "quire_worker_slow_readers_total"), 1)
        await eventually(lambda: metric(worker, "vllm:num_requests_running"), 0)
        await eventually(lambda: metric(worker, "vllm:kv_cache_usage_perc"), 0)
        client.settimeout(120)
        came = await asyncio.to_thread(read_to, client, b"[DONE]\n\n\r\n0\r\n\r\n")

    last = json.loads(came[came.rindex(b'data: {"error"') :].split(b"\n", 1)[0][6:])
    assert last["error"]["code"] == "slow_reader"
    assert '"finish_reason":"length"' in beside
    assert came.count(b'"finish_reason":"length"') == 0
    await eventually(lambda: metric(worker, "vllm:request_success_total", finished_reason="abort"), 16)
    assert await metric(worker, "vllm:request_success_total", finished_reason="error") == 0


def read_to(client: socket.socket, end: bytes) -> bytes:
    """All up to there."""
    came = bytearray()
    while not came.endswith(end):
        part = client.recv(1 << 16)
        assert part, "the connection ended"
        came += part
    return bytes(came)


async def test_an_idle_connection_is_closed(patient: Any) -> None:
    answer = await said(patient, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_one_connection_too_many_is_told_so(
    launch: Callable[..., Any], http: aiohttp.ClientSession, eventually: Any
) -> None:
    flags = (
        "--served-model-name",
        "tiny",
        "--max-connections",
        "4",
        "--header-timeout",
        "600",
        "--body-timeout",
        "600",
    )
    small = launch(*flags).wait_until_ready()

    async def healthy() -> int:
        async with http.get(f"{small.base}/health", headers={"Connection": "close"}) as response:
            return response.status

    await eventually(healthy, 200)
    opened = [await open_to(small) for _ in range(4)]
    for _, writer in opened:
        writer.write(UNFINISHED)
    heads = [await reader.readline() for reader, _ in opened]
    refused = await said(small, b"")
    for _, writer in opened:
        writer.close()
    await eventually(healthy, 200)

    assert heads == [b"HTTP/1.1 100 Continue\r\n"] * 4
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in refused
    assert b'"code":"too_many_connections"' in refused


async def test_connections_that_ask_for_nothing_make_room_for_one_that_does(
    launch: Callable[..., Any], http: aiohttp.ClientSession
) -> None:
    flags = ("--served-model-name", "tiny", "--max-connections", "4", "--header-timeout", "60")
    worker = launch(*flags).wait_until_ready()
    opened = [await open_to(worker) for _ in range(20)]
    for _, writer in opened:
        writer.write(b"GET /health HTTP/1.1\r\nX-Slow: ")

    async with http.get(f"{worker.base}/health") as response:
        status = response.status
    first = await rest_of(opened[0][0])
    for _, writer in opened:
        writer.close()

    assert status == 200
    assert first == b""


async def test_an_unknown_expectation_gets_the_nested_body(worker: Any) -> None:
    answer = await said(worker, b"GET /health HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 417 ")
    assert b'{"error":{"message":"Expectation Failed."' in answer
    assert b"miracles" not in answer


async def test_too_many_headers_are_400(worker: Any) -> None:
    headers = b"".join(b"X-%d: a\r\n" % number for number in range(100))

    answer = await said(worker, b"GET /health HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")

    assert b" 400 " in answer.splitlines()[0]
    assert b'"code":"invalid_http"' in answer


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A key and a certificate that it signs itself."""
    cert, key = folder / "tls.crt", folder / "tls.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, *subject, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True, timeout=60
    )
    return cert, key


async def test_tls_is_served_and_a_new_certificate_counts_without_a_restart(
    http: aiohttp.ClientSession, launch: Callable[..., Any], tmp_path: Path, eventually: Any
) -> None:
    cert, key = await asyncio.to_thread(certificate, tmp_path, "first")
    worker = launch("--tls-cert", str(cert), "--tls-key", str(key)).wait_until_ready()
    port = int(worker.base.rpartition(":")[2])

    async def subject() -> str:
        context = ssl.create_default_context(cafile=str(cert))
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        except ssl.SSLError:
            return "not trusted"
        peer = writer.get_extra_info("peercert")
        writer.close()
        return str(peer["subject"][0][0][1])

    context = ssl.create_default_context(cafile=str(cert))
    async with http.get(f"https://127.0.0.1:{port}/health", ssl=context) as response:
        healthy = response.status
    first = await subject()
    await asyncio.to_thread(certificate, tmp_path, "second")
    await eventually(subject, "second")

    assert (healthy, first) == (200, "first")


def test_a_certificate_that_cannot_be_used_is_named(launch: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "tls.crt").write_text("nonsense")

    worker = launch("--tls-cert", str(tmp_path / "tls.crt"))

    assert worker.wait() == 2
    assert f"--tls-cert {tmp_path / 'tls.crt'}: " in worker.log
    assert "Traceback" not in worker.log
