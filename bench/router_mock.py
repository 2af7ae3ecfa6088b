"""Workers that compute nothing, for bench/router.py: every port is one, all in this process, which answers at once.

    python bench/router_mock.py --port 9000 --workers 2 --folder DIR

Real KV events and load reports come from a worker's own publisher: each of the shared prefixes is held by one of the workers, so that a
router chooses precisely. Prompt bundle: a byte-level BPE with Llama 3's splitter and 16,000 tokens, trained on Python's own documentation.
Streams: the body's "max_tokens" events, one every `stream_gap_s` of the body (0: all at once).
"""

import argparse
import asyncio
import json
import pydoc_data.topics
import random
import re
import time
from pathlib import Path
from typing import cast

import uvloop
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from quire_contract.block_hash import hash_blocks
from quire_contract.load_report import LoadReport
from quire_contract.prompt import PromptRenderer
from quire_contract.prompt_bundle import PromptBundle
from quire_worker.engine.publisher import Publisher, PublisherSettings
from quire_worker.kv.events import BlocksStored

MODEL = "mock"
BLOCK_SIZE = 16
VOCAB_SIZE = 16_000
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
NUM_PREFIXES = 20
_LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)
_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"mock","choices":[{"index":0,'
    b'"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 250, "completion_tokens": 1, "total_tokens": 251},
    }
).encode()
_INFO = json.dumps({"model_path": MODEL, "data": [{"id": MODEL, "object": "model"}], "status": "ok"}).encode()


def words() -> list[str]:
    """What prompts are made of: words of an English text, the same in every process."""
    return sorted(set(re.findall(r"[a-z]{3,12}", " ".join(pydoc_data.topics.topics.values()))))


def text(rng: random.Random, num_chars: int) -> str:
    """So many characters of words."""
    found, vocabulary = "", words()
    while len(found) < num_chars:
        found += rng.choice(vocabulary) + " "
    return found[:num_chars].strip()


def prefixes() -> list[str]:
    """The shared system prompts: 900 characters each, so that a body with a tail of 200 has about 1.1 KB."""
    rng = random.Random(1)
    return [text(rng, 850) for _ in range(NUM_PREFIXES)]


def make_bundle() -> PromptBundle:
    tokenizer = Tokenizer(models.BPE())
    inner = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), inner])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    return PromptBundle(
        tokenizer_json=tokenizer.to_str().encode(),
        chat_templates={"default": TEMPLATE},
        vocab_size=VOCAB_SIZE,
        served_model_names=[MODEL],
        block_size=BLOCK_SIZE,
        max_model_len=32_768,
    )


def response(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)


class Connection(asyncio.Protocol):
    """One connection, without an HTTP library: it must cost less than whatever is measured in front of it."""

    pages: dict[bytes, bytes] = {}  # noqa: RUF012 - the same for all connections of the process
    answer = response(_ANSWER)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.held = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self.held = held = self.held + data if self.held else data
        while (end := held.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(held, 0, end)
            size = end + 4 + (int(found[1]) if found else 0)
            if len(held) < size:
                return
            request, self.held = held[:size], held[size:]
            held = self.held
            self.respond(request, end)

    def respond(self, request: bytes, end: int) -> None:
        if request.startswith(b"GET"):
            self.transport.write(self.pages.get(request.split(b" ", 2)[1], response(_INFO)))
        elif b'"stream": true' in request or b'"stream":true' in request:
            self.stream(json.loads(request[end + 4 :]))
        else:
            self.transport.write(self.answer)

    def stream(self, body: dict[str, object]) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.transport.write(head)
        gap_s = float(str(body.get("stream_gap_s", 0)))
        self.send(int(str(body.get("max_tokens", 1))), gap_s, asyncio.get_running_loop().time() + gap_s)

    def send(self, left: int, gap_s: float, due_s: float) -> None:
        chunk = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
        end = b"%x\r\n%b\r\n0\r\n\r\n" % (len(b"data: [DONE]\n\n"), b"data: [DONE]\n\n")
        if self.transport.is_closing():
            return
        if not gap_s:
            self.transport.write(chunk * left + end)
            return
        self.transport.write(chunk if left else end)
        if left:
            asyncio.get_running_loop().call_at(due_s, self.send, left - 1, gap_s, due_s + gap_s)


def start_publisher(number: int, port: int, num_workers: int, bundle: PromptBundle) -> Publisher:
    """Events of one worker: it holds every `num_workers`-th prefix."""
    publisher = Publisher(
        PublisherSettings(
            pod=f"w{number}",
            model=MODEL,
            epoch=f"epoch-{number}",
            block_size=BLOCK_SIZE,
            events_endpoint=f"tcp://127.0.0.1:{port}",
            replay_endpoint=f"tcp://127.0.0.1:{port + 1}",
        ),
        None,
        time.time,
    )
    renderer = PromptRenderer(bundle)
    for prefix in prefixes()[number::num_workers]:
        ids = renderer.chat([{"role": "system", "content": prefix}], add_generation_prompt=False)
        ids = ids[: len(ids) // BLOCK_SIZE * BLOCK_SIZE]
        digests = hash_blocks(ids, BLOCK_SIZE)
        publisher.offer_events([BlocksStored(group=0, digests=digests, parent=None, token_ids=ids, adapter=None)])
    publisher.start()
    return publisher


def report(number: int) -> LoadReport:
    return LoadReport(
        pod=f"w{number}",
        model=MODEL,
        epoch=f"epoch-{number}",
        ts=0.0,
        kv_seq=0,
        running=0,
        waiting=0,
        free_blocks=10_000,
        total_blocks=10_000,
        uncached_tokens=0,
        prefill_tokens_per_s=10_000.0,
    )


async def serve(port: int, num_workers: int, folder: Path) -> None:
    bundle = make_bundle()
    digest = bundle.digest()
    Connection.pages = {
        b"/internal/prompt-bundle": response(json.dumps({"digest": digest}).encode()),
        b"/internal/prompt-bundle/" + digest.encode(): response(bundle.to_bytes(), b"application/octet-stream"),
    }
    loop = asyncio.get_running_loop()
    publishers = [start_publisher(i, port + 100 + 2 * i, num_workers, bundle) for i in range(num_workers)]
    servers = [await loop.create_server(Connection, "127.0.0.1", port + i, backlog=4096) for i in range(num_workers)]
    (folder / "tokenizer.json").write_bytes(bundle.tokenizer_json)
    (folder / "mock.ready").touch()
    while servers:
        for number, publisher in enumerate(publishers):
            publisher.offer_load(report(number))
        await asyncio.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(args.port, args.workers, args.folder))


if __name__ == "__main__":
    main()
