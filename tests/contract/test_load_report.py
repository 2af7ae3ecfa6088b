"""Load reports survive the wire, newer and older readers included."""

import msgspec
import pytest

from quire_contract.load_report import LoadReport, decode_report, encode_report
from quire_contract.wire import WireError

REPORT = LoadReport(
    pod="p",
    model="m",
    epoch="e",
    ts=1.5,
    kv_seq=9,
    running=3,
    waiting=1,
    free_blocks=10,
    total_blocks=64,
    uncached_tokens=512,
    adapters=["a"],
    draining=True,
)


def test_what_is_encoded_is_decoded() -> None:
    payload = encode_report(REPORT)

    assert decode_report(payload) == REPORT


def test_fields_of_a_newer_worker_are_ignored() -> None:
    newer = msgspec.msgpack.encode({**msgspec.to_builtins(REPORT), "temperature_c": 60})

    assert decode_report(newer) == REPORT


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", msgspec.msgpack.encode({"pod": "p"}), msgspec.msgpack.encode([1, 2])]
)
def test_anything_else_raises_one_error(payload: bytes) -> None:
    with pytest.raises(WireError, match="load report"):
        decode_report(payload)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("running", -1),
        ("waiting", 2**41),
        ("free_blocks", -(2**63)),
        ("total_blocks", 2**63),
        ("block_size", 0),
        ("max_num_seqs", -1),
        ("decode_step_s", float("nan")),
        ("prefill_tokens_per_s", float("inf")),
    ],
)
def test_numbers_that_nothing_counts_pass_for_no_report(field: str, value: float) -> None:
    payload = msgspec.msgpack.encode({**msgspec.to_builtins(REPORT), field: value})

    with pytest.raises(WireError, match=field):
        decode_report(payload)
