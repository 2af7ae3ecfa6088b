"""The external scaler on a real socket, called as KEDA calls it."""

import asyncio

import grpc
import pytest

from quire_operator.autoscale.aggregate import Reading

from .wire import KedaClient
from .world import UNKNOWN, demand, known, ref

MAX_LATE = 100
"""Messages that may have been on their way when a stream has nothing more to say."""


async def refused(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details()


async def test_keda_is_told_the_whole_demand_of_a_service_in_both_fields(keda, source) -> None:
    source.say(known(demand(held=3, queued=4, running=12, workers=2)))

    values = await keda.metrics(ref(), "demand")

    assert values == [{"metricName": "demand", "metricValue": 19, "metricValueFloat": 19.0}]


async def test_the_spec_is_told_even_while_demand_is_unknown(keda, source) -> None:
    source.say(UNKNOWN)

    specs = await keda.metric_specs(ref(target="2.5", queueLengthTarget="4"))

    assert specs == [
        {"metricName": "demand", "targetSize": 2, "targetSizeFloat": 2.5},
        {"metricName": "queue_length", "targetSize": 4, "targetSizeFloat": 4.0},
    ]


@pytest.mark.parametrize(
    ("held", "running", "activation", "active"),
    [(0, 0, "", False), (1, 0, "", True), (2, 1, "3", False), (2, 2, "3", True)],
)
async def test_active_is_what_is_above_activation(keda, source, held, running, activation, active) -> None:
    source.say(known(demand(held=held, running=running)))

    assert await keda.is_active(ref(activation=activation)) is active


async def test_what_is_forced_is_active_without_demand(keda, source) -> None:
    source.say(known(demand()))

    assert await keda.is_active(ref(forceActivation="true")) is True


async def test_latencies_are_told_in_milliseconds_and_are_zero_while_there_is_nothing_to_measure(keda, source) -> None:
    source.say(known(demand(running=1, workers=1, TimeToFirstToken=0.35, idle=("InterTokenLatency",))))
    asked = ref(target="", timeToFirstTokenTargetMs="500", interTokenLatencyTargetMs="40")

    assert await keda.metrics(asked, "") == [
        {"metricName": "time_to_first_token_ms", "metricValue": 350, "metricValueFloat": 350.0},
        {"metricName": "inter_token_latency_ms", "metricValue": 0, "metricValueFloat": 0.0},
    ]


async def test_an_unknown_demand_is_an_error_and_never_a_zero(keda, source) -> None:
    source.say(UNKNOWN)
    text = "the demand of models/chat is not known: no answer from router-0: status 503"

    assert await refused(keda.metrics(ref(), "demand")) == (grpc.StatusCode.UNAVAILABLE, text)
    assert await refused(keda.is_active(ref())) == (grpc.StatusCode.UNAVAILABLE, text)


async def test_a_reading_that_nobody_has_made_yet_is_an_error(keda, source) -> None:
    source.say(known(demand(workers=1)))

    code, text = await refused(keda.metrics(ref(target="", kvUseTargetPercent="80"), "kv_use_percent"))

    assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "no worker of models/chat has reported kv_use_percent yet")


async def test_what_some_routers_know_wakes_a_service_and_is_no_measure(keda, source) -> None:
    source.say(Reading(demand=demand(held=1), is_known=False, trouble="no answer from router-1"))

    assert await keda.is_active(ref()) is True
    assert (await refused(keda.metrics(ref(), "demand")))[0] == grpc.StatusCode.UNAVAILABLE


async def test_bad_metadata_is_refused_by_every_method_with_the_keys_name(keda) -> None:
    bad = ref(target="", targt="8")
    stream = keda.stream(bad)

    answers = [
        await refused(keda.is_active(bad)),
        await refused(keda.metric_specs(bad)),
        await refused(keda.metrics(bad, "demand")),
        await refused(stream.read()),
    ]

    for code, text in answers:
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert text.startswith("targt: unknown key")


async def test_nobody_reads_the_demand_of_another_namespace(keda, source) -> None:
    source.say(known(demand(held=1)), "finance/chat")

    code, text = await refused(
        keda.is_active(
            ref(namespace="models") | {"scalerMetadata": {"service": "chat", "namespace": "finance", "target": "1"}}
        )
    )

    assert (code, text.partition(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "namespace")


async def test_a_metric_of_another_name_is_refused(keda, source) -> None:
    source.say(known(demand()))

    code, text = await refused(keda.metrics(ref(), "s0-demand"))

    assert (code, text) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "metricName: 's0-demand' is none of this trigger's (demand)",
    )


async def test_the_stream_says_true_the_moment_a_queue_begins_and_never_false(keda, source) -> None:
    source.say(known(demand()))
    stream = keda.stream(ref())
    first = asyncio.ensure_future(stream.read())
    await source.subscribed.wait()

    source.say(known(demand()), edge=True)  # an edge that is over already
    source.say(known(demand(held=1)), edge=True)

    assert await first == {"result": True}
    stream.cancel()


async def test_a_stream_that_is_opened_late_says_true_at_once(keda, source) -> None:
    source.say(known(demand(held=2)))

    stream = keda.stream(ref())

    assert await stream.read() == {"result": True}
    stream.cancel()


async def test_no_more_streams_are_open_than_may_be_and_questions_are_answered_beside_them(serve, source) -> None:
    scaler, port = await serve(max_streams=1)
    source.say(known(demand(held=1)))
    async with KedaClient(f"127.0.0.1:{port}") as keda:
        first = keda.stream(ref())
        opened = await first.read()

        code = (await refused(keda.stream(ref()).read()))[0]
        is_active = await keda.is_active(ref())

        assert (opened, is_active) == ({"result": True}, True)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert scaler.counts.streams == 1
        first.cancel()


async def test_the_stream_repeats_itself_while_nobody_answers_and_then_no_more(serve, source) -> None:
    scaler, port = await serve(repeat_s=0.01)
    source.say(known(demand(held=2)))
    async with KedaClient(f"127.0.0.1:{port}") as keda:
        stream = keda.stream(ref())

        assert [await stream.read() for _ in range(3)] == [{"result": True}] * 3
        assert scaler.counts.streams == 1

        source.say(known(demand(running=2, workers=1)))
        with pytest.raises(TimeoutError):
            for _ in range(MAX_LATE):
                async with asyncio.timeout(0.2):
                    await stream.read()
        stream.cancel()
        await source.unsubscribed.wait()
    assert source.subscribers["models/chat"] == []
    assert scaler.counts.streams == 0


async def test_a_replica_that_sleeps_does_not_keep_the_service_from_being_woken(keda, source) -> None:
    source.say(known(demand(held=1, workers=1)))

    stream = keda.stream(ref())

    assert await stream.read() == {"result": True}
    stream.cancel()


async def test_streams_of_metric_specs_are_not_implemented(keda) -> None:
    code, _ = await refused(keda.stream(ref(), "StreamMetricSpec").read())

    assert code == grpc.StatusCode.UNIMPLEMENTED


async def test_a_port_that_is_taken_is_an_error(serve) -> None:
    _, port = await serve()

    with pytest.raises(OSError, match="cannot listen"):
        await serve(port=port)
