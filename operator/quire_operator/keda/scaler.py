"""KEDA's external scaler over gRPC: reads a request, asks for the present reading, answers.

KEDA asks IsActive and GetMetrics at each pollingInterval, and GetMetrics again for its HPA; StreamIsActive stays open and is told the
moment a queue begins at zero replicas. Every answer is about the whole release. This module must not know routers or ScaledObjects.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from quire_operator.autoscale.aggregate import Reading
from quire_operator.keda.answers import UnknownDemandError, is_active, needs_waking, values_of
from quire_operator.keda.metadata import METRIC_NAMES, MetadataError, Trigger, parse_trigger
from quire_operator.keda.proto import MESSAGES, SERVICE

REPEAT_S = 10.0
"""While demand waits at zero replicas, KEDA is told so often: it may have missed it, or have been restarted."""
MAX_STREAMS = 5000
"""StreamIsActive calls at once: more than one release has services. Each costs memory; who gets none still asks every pollingInterval."""
_Context = Any
"""grpc.aio.ServicerContext; grpcio has no types."""


class DemandSource(Protocol):
    """Who knows demand."""

    def reading(self, service: str) -> Reading:
        """What is asked of "namespace/name" now."""

    def subscribe(self, service: str, on_edge: Callable[[], None]) -> Callable[[], None]:
        """`on_edge` is called whenever the service begins to hold requests; what is returned ends that."""


@dataclass(kw_only=True)
class Counts:
    """For metrics of the process."""

    streams: int = 0
    """StreamIsActive calls that are open."""


class ExternalScaler:
    """The service's methods. One for the process."""

    def __init__(self, source: DemandSource, *, repeat_s: float = REPEAT_S, max_streams: int = MAX_STREAMS) -> None:
        """`repeat_s`: see REPEAT_S; `max_streams`: see MAX_STREAMS."""
        self._source = source
        self._max_streams = max_streams
        self._repeat_s = repeat_s
        self.counts = Counts()

    def handler(self) -> Any:
        """For `grpc.aio.Server.add_generic_rpc_handlers`. Methods that are not here are answered UNIMPLEMENTED, StreamMetricSpec too."""
        messages = MESSAGES
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        ref, asked = messages.scaled_object_ref.FromString, messages.get_metrics_request.FromString
        active = messages.is_active_response.SerializeToString
        methods = {
            "IsActive": unary(self.is_active, ref, active),
            "StreamIsActive": stream(self.stream_is_active, ref, active),
            "GetMetricSpec": unary(self.get_metric_spec, ref, messages.get_metric_spec_response.SerializeToString),
            "GetMetrics": unary(self.get_metrics, asked, messages.get_metrics_response.SerializeToString),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def is_active(self, request: Any, context: _Context) -> Any:
        """Whether demand is above activation. UNAVAILABLE while that cannot be told."""
        trigger = await _trigger(request, context)
        try:
            result = is_active(trigger, self._source.reading(trigger.service))
        except UnknownDemandError as error:
            return await _abort(context, grpc.StatusCode.UNAVAILABLE, error)
        return MESSAGES.is_active_response(result=result)

    async def stream_is_active(self, request: Any, context: _Context) -> AsyncIterator[Any]:
        """True at once when demand begins, and again while nobody answers it. Never False: KEDA learns of that by asking."""
        trigger = await _trigger(request, context)
        if self.counts.streams >= self._max_streams:
            text = f"{self._max_streams} streams are open already; IsActive is answered all the same"
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        edge = asyncio.Event()
        unsubscribe = self._source.subscribe(trigger.service, edge.set)
        self.counts.streams += 1
        try:
            while True:
                edge.clear()
                if needs_waking(trigger, self._source.reading(trigger.service)):
                    yield MESSAGES.is_active_response(result=True)
                await _either(edge.wait(), self._repeat_s)
        finally:
            self.counts.streams -= 1
            unsubscribe()

    async def get_metric_spec(self, request: Any, context: _Context) -> Any:
        """The metrics and what each should be. It needs no demand: KEDA makes its HPA of it, and must be able to at any time."""
        trigger = await _trigger(request, context)
        response = MESSAGES.get_metric_spec_response()
        for metric, target in trigger.targets.items():
            response.metricSpecs.add(
                metricName=METRIC_NAMES[metric], targetSize=max(1, round(target)), targetSizeFloat=target
            )
        return response

    async def get_metrics(self, request: Any, context: _Context) -> Any:
        """The value of the metric that is asked for, or of all of the trigger's."""
        trigger = await _trigger(request.scaledObjectRef, context)
        wanted = {name: metric for name, metric in trigger.metrics.items() if request.metricName in ("", name)}
        if not wanted:
            known = ", ".join(trigger.metrics)
            text = f"metricName: {request.metricName[:100]!r} is none of this trigger's ({known})"
            return await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, text)
        try:
            values = values_of(trigger, self._source.reading(trigger.service), wanted)
        except UnknownDemandError as error:
            return await _abort(context, grpc.StatusCode.UNAVAILABLE, error)
        response = MESSAGES.get_metrics_response()
        for name, value in values.items():
            response.metricValues.add(metricName=name, metricValue=round(value), metricValueFloat=value)
        return response


async def _trigger(ref: Any, context: _Context) -> Trigger:
    try:
        return parse_trigger(ref.namespace, dict(ref.scalerMetadata))
    except MetadataError as error:
        await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, error)
        raise AssertionError("abort raises") from None


async def _abort(context: _Context, code: Any, reason: object) -> Any:
    """Ends the call; raises."""
    await context.abort(code, str(reason))


async def _either(event: Awaitable[Any], timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event
    except TimeoutError:
        return
