"""Our messages against the published protocol's, byte for byte."""

import pytest

from quire_operator.keda.proto import MESSAGES

from . import wire

REF = {"name": "chat", "namespace": "models", "scalerMetadata": {"service": "chat"}}
CASES = [
    (MESSAGES.scaled_object_ref, wire.REF, REF, "0a046368617412066d6f64656c731a0f0a0773657276696365120463686174"),
    (MESSAGES.is_active_response, wire.ACTIVE, {"result": True}, "0801"),
    (MESSAGES.is_active_response, wire.ACTIVE, {"result": False}, ""),
    (
        MESSAGES.get_metric_spec_response,
        wire.SPECS,
        {"metricSpecs": [{"metricName": "demand", "targetSize": 8, "targetSizeFloat": 8.0}]},
        "0a130a0664656d616e641008190000000000002040",
    ),
    (
        MESSAGES.get_metrics_request,
        wire.ASKED,
        {"scaledObjectRef": REF, "metricName": "demand"},
        "0a1f0a046368617412066d6f64656c731a0f0a0773657276696365120463686174120664656d616e64",
    ),
    (
        MESSAGES.get_metrics_response,
        wire.VALUES,
        {"metricValues": [{"metricName": "demand", "metricValue": 300, "metricValueFloat": 300.5}]},
        "0a140a0664656d616e6410ac02190000000000c87240",
    ),
]


@pytest.mark.parametrize(("message", "schema", "content", "body"), CASES)
def test_a_message_has_the_bytes_that_the_protocol_says(message, schema, content, body) -> None:
    ours = message(**content).SerializeToString()

    assert ours.hex() == body
    assert wire.encode(schema, content).hex() == body


@pytest.mark.parametrize(("message", "schema", "content", "body"), CASES)
def test_a_message_is_read_from_the_bytes_that_the_protocol_says(message, schema, content, body) -> None:
    read = message.FromString(bytes.fromhex(body))

    assert read == message(**content)
    assert {key: value for key, value in wire.decode(schema, read.SerializeToString()).items() if value} == {
        key: value for key, value in content.items() if value
    }


def test_fields_of_a_later_protocol_are_skipped() -> None:
    body = bytes.fromhex("0801" + "9a0603616263")  # field 99, a string

    assert MESSAGES.is_active_response.FromString(body).result is True
