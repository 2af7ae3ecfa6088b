"""KEDA's side of externalscaler.proto, written from the protocol's definition and protobuf's encoding, without protobuf's library and
without ours: messages are dicts, and what is on the wire is what this file says.
"""

import struct
from typing import Any

import grpc

Message = dict[str, Any]
SERVICE = "/externalscaler.ExternalScaler/"

# field number -> (name, type); a list type is repeated, a tuple type is a map of strings.
REF = {1: ("name", "string"), 2: ("namespace", "string"), 3: ("scalerMetadata", ("string", "string"))}
ACTIVE = {1: ("result", "bool")}
SPEC = {1: ("metricName", "string"), 2: ("targetSize", "int64"), 3: ("targetSizeFloat", "double")}
SPECS = {1: ("metricSpecs", [SPEC])}
ASKED = {1: ("scaledObjectRef", REF), 2: ("metricName", "string")}
VALUE = {1: ("metricName", "string"), 2: ("metricValue", "int64"), 3: ("metricValueFloat", "double")}
VALUES = {1: ("metricValues", [VALUE])}
_MAP_ENTRY = {1: ("key", "string"), 2: ("value", "string")}
_VARINT, _FIXED64, _BYTES = 0, 1, 2


def encode(schema: dict[int, Any], message: Message) -> bytes:
    """The message's bytes; empty fields are left out, as proto3 has it."""
    found = b""
    for number, (name, kind) in schema.items():
        value = message.get(name)
        if not value:
            continue
        if isinstance(kind, tuple):
            for key, text in value.items():
                found += _field(number, _MAP_ENTRY, {"key": key, "value": text})
        elif isinstance(kind, list):
            for item in value:
                found += _field(number, kind[0], item)
        else:
            found += _field(number, kind, value)
    return found


def decode(schema: dict[int, Any], body: bytes) -> Message:
    """The message in `body`, every field of it; ValueError on a field that the protocol does not have."""
    message = {name: _empty(kind) for name, kind in schema.values()}
    at = 0
    while at < len(body):
        tag, at = _varint(body, at)
        if tag >> 3 not in schema:
            raise ValueError(f"field {tag >> 3} is none of {schema}")
        name, kind = schema[tag >> 3]
        raw, at = _raw(body, at, tag & 7)
        if isinstance(kind, tuple):
            entry = decode(_MAP_ENTRY, raw)
            message[name][entry["key"]] = entry["value"]
        elif isinstance(kind, list):
            message[name].append(decode(kind[0], raw))
        else:
            message[name] = _value(kind, raw)
    return message


def _field(number: int, kind: Any, value: Any) -> bytes:
    if isinstance(kind, dict):
        body = encode(kind, value)
    elif kind == "string":
        body = value.encode()
    elif kind == "double":
        return _tag(number, _FIXED64) + struct.pack("<d", value)
    else:
        return _tag(number, _VARINT) + _varint_bytes(int(value))
    return _tag(number, _BYTES) + _varint_bytes(len(body)) + body


def _tag(number: int, wire_type: int) -> bytes:
    return _varint_bytes(number << 3 | wire_type)


def _varint_bytes(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _raw(body: bytes, at: int, wire_type: int) -> tuple[Any, int]:
    if wire_type == _VARINT:
        return _varint(body, at)
    if wire_type == _FIXED64:
        return body[at : at + 8], at + 8
    length, at = _varint(body, at)
    return body[at : at + length], at + length


def _value(kind: Any, raw: Any) -> Any:
    if isinstance(kind, dict):
        return decode(kind, raw)
    if kind == "string":
        return raw.decode()
    if kind == "double":
        return struct.unpack("<d", raw)[0]
    return bool(raw) if kind == "bool" else int(raw)


def _empty(kind: Any) -> Any:
    if isinstance(kind, tuple | dict):
        return {}
    return [] if isinstance(kind, list) else {"string": "", "double": 0.0, "bool": False}.get(kind, 0)


class KedaClient:
    """Calls a scaler as KEDA does. An async context manager."""

    def __init__(
        self, address: str, credentials: grpc.ChannelCredentials | None = None, name: str | None = None
    ) -> None:
        # As KEDA dials: every address that the name has, in turns. `name` stands for the one that a certificate is for.
        options = [("grpc.service_config", '{"loadBalancingConfig": [{"round_robin":{}}]}')]
        options += [("grpc.ssl_target_name_override", name)] if name else []
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)

    async def __aenter__(self) -> "KedaClient":
        return self

    async def __aexit__(self, *args: object) -> None:
        await self._channel.close()

    async def is_active(self, ref: Message, *, wait: bool = True) -> bool:
        return (await self._call("IsActive", REF, ACTIVE, ref, wait=wait))["result"]

    async def metric_specs(self, ref: Message) -> list[Message]:
        return (await self._call("GetMetricSpec", REF, SPECS, ref))["metricSpecs"]

    async def metrics(self, ref: Message, name: str) -> list[Message]:
        asked = {"scaledObjectRef": ref, "metricName": name}
        return (await self._call("GetMetrics", ASKED, VALUES, asked))["metricValues"]

    def stream(self, ref: Message, method: str = "StreamIsActive"):
        """Answers as they come."""
        call = self._channel.unary_stream(
            SERVICE + method,
            request_serializer=lambda message: encode(REF, message),
            response_deserializer=lambda body: decode(ACTIVE, body),
        )
        return call(ref)

    async def _call(
        self, method: str, asked: dict[int, Any], told: dict[int, Any], message: Message, *, wait: bool = True
    ) -> Message:
        call = self._channel.unary_unary(
            SERVICE + method,
            request_serializer=lambda body: encode(asked, body),
            response_deserializer=lambda body: decode(told, body),
        )
        return await call(message, timeout=60, wait_for_ready=wait)
