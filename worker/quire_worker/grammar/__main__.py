"""Composition root of the process that tries grammars: `python -m quire_worker.grammar`, started by the engine process. See trial.py."""

import resource
import struct
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import msgspec

from quire_worker.grammar.limits import HELPER_STACK_BYTES
from quire_worker.grammar.tokenizer import GrammarTokenizer, NoTokenizerError, load_grammar_tokenizer
from quire_worker.grammar.trial import TrialConfig
from quire_worker.grammar.walk import refusal_of

_LENGTH = struct.Struct(">I")


def main() -> int:
    """Exit code 0 when standard input ends, which is when the engine closes it or dies."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    config = msgspec.json.decode(stdin.readline(), type=TrialConfig)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the grammar
    resource.setrlimit(resource.RLIMIT_DATA, (config.memory_bytes, config.memory_bytes))
    try:
        tokenizer = load_grammar_tokenizer(Path(config.model_dir), config.vocab_size)
    except NoTokenizerError as error:
        _send(stdout, str(error))
        return 0
    _send(stdout, "")
    threading.stack_size(HELPER_STACK_BYTES)
    while text := _receive(stdin):
        _send(stdout, _try(text, tokenizer))
    return 0


def _try(text: str, tokenizer: GrammarTokenizer) -> str:
    """In a thread, whose stack is what the trial is about."""
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(refusal_of(text, tokenizer)))
    thread.start()
    thread.join()
    return found[0] if found else "cannot be compiled"


def _send(stdout: BinaryIO, text: str) -> None:
    frame = msgspec.msgpack.encode(text)
    stdout.write(_LENGTH.pack(len(frame)) + frame)
    stdout.flush()


def _receive(stdin: BinaryIO) -> str:
    """ "" at the end."""
    head = stdin.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return ""
    (length,) = _LENGTH.unpack(head)
    return msgspec.msgpack.decode(stdin.read(length), type=str)


if __name__ == "__main__":
    sys.exit(main())
