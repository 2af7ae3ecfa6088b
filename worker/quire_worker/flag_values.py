"""How the values of flags are written: numbers, sizes, times, addresses. Each error says what to type instead.

For argparse's `type=`; knows no flag.
"""

import argparse
import re
from collections.abc import Callable

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)(i?)B?")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        wanted = f"a whole number from {low}" + (f" to {high}" if high is not None else "")
        if not re.fullmatch(r"-?\d+", text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        value = int(text)
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is not {wanted}")
        return value

    return parse


def tokens(text: str) -> int | None:
    """A token count, 8k (8000) or 8K (8192) included; auto or -1 for the model's own."""
    if text in {"auto", "-1"}:
        return None
    return integer(1)(text) if text.isdecimal() else _scaled(text, "a number of tokens such as 4096, 8k or auto")


def size(text: str) -> int:
    return _scaled(text, "a size in bytes such as 1073741824, 4G or 512MiB")


def _scaled(text: str, wanted: str) -> int:
    """A number with vLLM's suffixes: k, m, g, t are decimal; K, M, G, T and Ki, Mi, Gi, Ti are binary."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    number, suffix, binary = match.groups()
    base = 1024 if binary or suffix.isupper() else 1000
    value = int(float(number) * base ** _POWERS[suffix.lower()])
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1")
    return value


def block_size(text: str) -> int:
    value = integer(16, 1024)(text)
    if value % 16:
        raise argparse.ArgumentTypeError(f"{value} is not a multiple of 16: use 16, 32, 64 or 128")
    return value


def share(text: str) -> float:
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1, such as 0.9")
    return value


def seconds(text: str) -> float:
    value = number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds, 0 or more")
    return value


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def endpoint(text: str) -> str:
    if not re.fullmatch(r"tcp://[^\s/]+:(\d+|\*)|ipc://\S+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a ZMQ endpoint such as tcp://127.0.0.1:5557")
    return text


def pod_name(text: str) -> str:
    """Part of a topic `kv@<pod>@<model>`, so without @ and spaces."""
    if not re.fullmatch(r"[^@\s]{1,253}", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be 1 to 253 characters without spaces and @")
    return text


def proportion(text: str) -> float:
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1, such as 0.1")
    return value
