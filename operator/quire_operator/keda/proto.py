"""The messages of KEDA's externalscaler.proto, from a descriptor that is written here: no compiler is needed, to build or to run.

Names, numbers and types are those that KEDA publishes (kedacore/keda, pkg/scalers/externalscaler/externalscaler.proto); they are all that
is on the wire. The descriptors live in a pool of their own. This module must not know what is answered.
"""

from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "externalscaler"
SERVICE = f"{PACKAGE}.ExternalScaler"

_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "string": _FIELD.TYPE_STRING,
    "bool": _FIELD.TYPE_BOOL,
    "int64": _FIELD.TYPE_INT64,
    "double": _FIELD.TYPE_DOUBLE,
}
_MAP = "map<string, string>"
_MESSAGES: dict[str, tuple[tuple[str, str, int], ...]] = {
    "ScaledObjectRef": (("name", "string", 1), ("namespace", "string", 2), ("scalerMetadata", _MAP, 3)),
    "IsActiveResponse": (("result", "bool", 1),),
    "MetricSpec": (("metricName", "string", 1), ("targetSize", "int64", 2), ("targetSizeFloat", "double", 3)),
    "GetMetricSpecResponse": (("metricSpecs", "repeated MetricSpec", 1),),
    "GetMetricsRequest": (("scaledObjectRef", "ScaledObjectRef", 1), ("metricName", "string", 2)),
    "MetricValue": (("metricName", "string", 1), ("metricValue", "int64", 2), ("metricValueFloat", "double", 3)),
    "GetMetricsResponse": (("metricValues", "repeated MetricValue", 1),),
}


@dataclass(frozen=True, kw_only=True)
class Messages:
    """The messages' classes. They are made at run time, so that no type checker knows their fields."""

    scaled_object_ref: Any
    is_active_response: Any
    metric_spec: Any
    get_metric_spec_response: Any
    get_metrics_request: Any
    metric_value: Any
    get_metrics_response: Any


def build_messages() -> Messages:
    """The classes of one new pool."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())

    def message(name: str) -> Any:
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))

    return Messages(
        scaled_object_ref=message("ScaledObjectRef"),
        is_active_response=message("IsActiveResponse"),
        metric_spec=message("MetricSpec"),
        get_metric_spec_response=message("GetMetricSpecResponse"),
        get_metrics_request=message("GetMetricsRequest"),
        metric_value=message("MetricValue"),
        get_metrics_response=message("GetMetricsResponse"),
    )


def _file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="externalscaler.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, kind, number in fields:
            _add_field(message, field, kind, number)
    return file


def _add_field(message: Any, name: str, kind: str, number: int) -> None:
    field = message.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
    if kind in _TYPES:
        field.type = _TYPES[kind]
        return
    field.type = _FIELD.TYPE_MESSAGE
    if kind == _MAP:
        entry = message.nested_type.add(name=f"{name[0].upper()}{name[1:]}Entry")
        entry.options.map_entry = True
        for number_of, key in enumerate(("key", "value"), start=1):
            entry.field.add(name=key, number=number_of, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING)
        field.label = _FIELD.LABEL_REPEATED
        field.type_name = f".{PACKAGE}.{message.name}.{entry.name}"
        return
    repeated, _, of = kind.rpartition(" ")
    if repeated:
        field.label = _FIELD.LABEL_REPEATED
    field.type_name = f".{PACKAGE}.{of}"


MESSAGES = build_messages()
