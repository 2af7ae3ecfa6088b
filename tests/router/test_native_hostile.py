"""What the C++ does with arguments of any kind, callbacks that raise or call back, several threads at once, and no memory left."""

import asyncio
import contextlib
import gc
import random
import subprocess
import sys
import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from quire_router import relay as relays
from quire_router.native.library import native
from quire_router.usual_pick import CLASSES, RULES

NO_MEMORY = """
import resource
from quire_router.native.library import native

parts = native()
events, text = b": t 0 1\\n\\n" * 2_000_000, "v" * 40_000_000
heads = parts.RequestHeads([], [], "x-", "id")
writer = parts.AnswerWriter(lambda name: True, lambda status, second: b"", ("A", "B", "C"))
lines = parts.LineWriter((("a=", False),), lambda label, value, is_secret: text)
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 30_000_000, resource.RLIM_INFINITY))
for ask in (
    lambda: parts.take_events(None, events, 1, 1, b"none"),
    lambda: heads.write(b"", {"a": text}, True, "1", [], b""),
    lambda: writer.write(200, {"a": text}, "", "", "", b"", {}),
    lambda: lines.write("", (object(),)),
):
    try:
        ask()
    except MemoryError:
        print("MemoryError")
"""


class Odd:
    """Raises or calls back wherever it is asked for something."""

    def __init__(self, rng, again):
        self._rng, self._again = rng, again

    def _answer(self, value):
        if self._rng.random() < 0.3:
            raise ValueError("odd")
        if self._rng.random() < 0.3:
            self._again()
        return value

    def __index__(self):
        return self._answer(self._rng.choice([0, 1, -1, 2**62, 2**64]))

    def __float__(self):
        return self._answer(self._rng.choice([0.0, 1e308, float("nan")]))

    def __bool__(self):
        return self._answer(True)

    def __iter__(self):
        return iter(self._answer([("a", "b"), self, ("Connection", "x")]))

    def __call__(self, *args):
        return self._answer(self._rng.choice([None, b"", b"\1\0\0\0", "text", 1.0, [], [b"\1\0\0\0"], True]))

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._answer(self)


def any_value(rng, again):
    return rng.choice([
        lambda: None, lambda: rng.random() < 0.5, lambda: rng.choice([0, 1, -1, 512, 2**31, 2**53, 2**63, -(2**70)]),
        lambda: rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e9]), lambda: rng.choice([b"", rng.randbytes(40)]),
        lambda: rng.choice(["", "a" * 700 + " b", "\ud800", "é x " * 300, "w0", "w1", "<s> hello"]),
        lambda: [rng.choice([1, "w0", "text " * 30, None, 2**64]) for _ in range(rng.randrange(6))],
        lambda: [rng.getrandbits(64) for _ in range(rng.randrange(99))], lambda: (("A", "b"), ("c", "d")),
        lambda: {"Content-Type": "text", "a": "b"}, lambda: Odd(rng, again), lambda: SimpleNamespace(messages=[Odd(rng, again)]),
        lambda: bytearray(b"x"), lambda: b": t 0 1,2\n\n: t 1 3\ndata: x\n\n",
        lambda: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + rng.randbytes(2), lambda: b"3\r\nabc\r\n",
        lambda: b"POST /v1 HTTP/1.1\r\nHost: a\r\nX-%d: y\r\nContent-Length: 1\r\n\r\nz" % rng.randrange(2000),
    ])()  # fmt: skip


def encoder_args(rng, again):
    def ids(*args):
        if rng.random() < 0.2:
            again()
        return (
            rng.choice([b"\1\0\0\0", b"\1\0\0\0" * 5, b"\1\0\0\0", b"x", None]) if rng.random() < 0.3 else b"\2\0\0\0"
        )

    words = SimpleNamespace(added={"<s>": b"\7\0\0\0"}, word_ids=ids, texts_ids=lambda texts: [ids() for _ in texts])
    whole = SimpleNamespace(encode=ids, encode_whole=ids, is_firm=lambda piece: rng.random() < 0.5,
                            segments=lambda text: [text[at : at + 9] for at in range(0, len(text), 9)])  # fmt: skip
    return "d", 4, -1, Odd(rng, again), whole, rng.choice([None, words]), "llama3", (b"\1\0\0\0", None)


def objects_of(parts, rng, again):
    """One of each type, and the module's own functions."""
    index, sent = parts.KvIndex(max_blocks=300), parts.SentIndex(max_blocks_per_endpoint=40)
    cache = parts.PromptCache(lambda **blocks: blocks, max_bytes=20_000)
    encoder = parts.PromptEncoder(*encoder_args(rng, again))
    made = [
        parts, index, sent, cache, encoder, parts.Chunks(), parts.ClientSink(Odd(rng, again), True), relays._relaying(),
        parts.PlainReader(("/v1",), Odd(rng, again)), parts.LineWriter((("a=", False),), Odd(rng, again)),
        parts.AnswerWriter(Odd(rng, again), Odd(rng, again), ("A", "B", "C")),
        parts.RequestHeads(["host"], ["authorization"], "x-", "id"), parts.Turn(Odd(rng, again)),
        parts.ChatBody(Odd(rng, again), Odd(rng, again), 999, 5, 5),
        parts.ChatReader(cache, encoder, Odd(rng, again), Odd(rng, again), "default", 999, 999),
    ]  # fmt: skip
    with contextlib.suppress(Exception):
        made.append(cache.job(encoder, ["hello " * 300, "é" * 60, "there"], None, "salt", True))
    return made


def functions_of(thing):
    names = [
        name for name in dir(thing) if not name.startswith("__") or name in ("__call__", "__len__", "__contains__")
    ]
    return [function for name in names if callable(function := getattr(thing, name, None))]


def ask_all(parts, seed, number):
    """Calls functions by chance, and again from what they call."""
    rng, depth = random.Random(seed), [0]

    def once():
        if depth[0] > 3:
            return
        depth[0] += 1
        with contextlib.suppress(Exception, asyncio.CancelledError):
            rng.choice(functions)(*[any_value(rng, once) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 5, 6, 7]))])
        depth[0] -= 1

    made = objects_of(parts, rng, once)
    functions = [function for thing in made for function in functions_of(thing)]
    index, sent, cache, encoder = made[1:5]
    for _ in range(number):
        once()
        with contextlib.suppress(Exception):
            index.add(f"w{rng.randrange(90)}", [rng.getrandbits(5) for _ in range(9)])
            sent.record(f"w{rng.randrange(9)}", [rng.getrandbits(7) for _ in range(30)], rng.random())
        with contextlib.suppress(Exception):
            cache.read(encoder, [any_value(rng, once), "ab é" * rng.randrange(400), "<s>x"], None, None, True, 9999)
    functions.clear()  # those that hold callbacks hold themselves by them, which no collector of cycles sees
    return index, sent, cache


def test_no_arguments_and_no_callbacks_break_the_bounds():
    index, sent, cache = ask_all(native(), 7, 1500)

    assert index.num_entries <= sum(300 // number for number in range(1, 91))  # each the share it had when it came
    assert all(sent.num_blocks(f"w{number}") <= 40 for number in range(9))
    assert cache.size_bytes <= 20_000


def test_threads_may_ask_the_same_encoder_and_cache_at_once():
    parts, rng, failed = native(), random.Random(1), []
    gate = threading.Barrier(4)
    args = encoder_args(random.Random(3), lambda: None)
    words = SimpleNamespace(
        added={"<s>": b"\7\0\0\0"},
        word_ids=lambda word: (gate_open(), len(word).to_bytes(4, "little"))[1],
        texts_ids=lambda texts: (gate_open(), [len(text).to_bytes(4, "little") for text in texts])[1],
    )
    encoder = parts.PromptEncoder(*args[:3], print, args[4], words, "llama3", None)
    cache = parts.PromptCache(lambda **blocks: blocks["hashes"], max_bytes=60_000)
    texts = [" ".join(rng.choice("abcé") * rng.randrange(1, 40) for _ in range(300)) for _ in range(8)]

    def gate_open():
        with contextlib.suppress(threading.BrokenBarrierError):
            gate.wait(0.0001)  # lets the others run

    def read(number):
        for text in texts[number % 2 :] + texts:
            got = cache.read(encoder, [text, "", ""], None, None, False, 1 << 20)
            alone = parts.PromptCache(lambda **blocks: blocks["hashes"]).read(
                encoder, [text, "", ""], None, None, False, 1 << 20
            )
            failed.extend([text] * (got != alone))

    threads = [threading.Thread(target=read, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert cache.size_bytes <= 60_000


def num_of_types():
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects())


def test_what_is_asked_for_by_chance_leaves_no_references_behind():
    """A leak grows in each period; what else lives in this process may grow in one of them."""
    parts, kept = native(), (b"POST /v1 HTTP/1.1\r\nHost: a\r\nX: y\r\nContent-Length: 1\r\n\r\nz", None, True, 1000003)
    ask_all(parts, 1, 300)
    references, objects = [], []

    for _ in range(3):
        before, types = [sys.getrefcount(thing) for thing in kept], num_of_types()
        for _ in range(5):
            ask_all(parts, 1, 300)
        objects.append(num_of_types() - types)
        references.append([sys.getrefcount(thing) - was for thing, was in zip(kept, before, strict=True)])

    assert [min(grown) < 20 for grown in zip(*references, strict=True)] == [True] * 4, references
    assert min(grown.total() for grown in objects) < 50, objects


def test_a_class_with_the_slots_of_another_is_not_read():
    parts, endpoint = native(), CLASSES[0]
    borrowed = {name: slot for name, slot in vars(endpoint).items() if type(slot).__name__ == "member_descriptor"}
    other = type("Other", (), borrowed)

    with pytest.raises(TypeError, match="id is no slot"):
        parts.UsualChoice(parts.KvIndex(), parts.SentIndex(), random.random, (other, *CLASSES[1:]), RULES)

    assert "id" in borrowed


def test_without_memory_python_hears_of_it():
    done = subprocess.run([sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout.split()) == (0, ["MemoryError"] * 4), done.stderr[-500:]
