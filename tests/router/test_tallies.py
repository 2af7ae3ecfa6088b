"""What plain numbers show is what the client library's own instruments show."""

import re

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from quire_router.tallies import Histograms, Tallies

BUCKETS = (0.005, 0.1, 1.0, 2.5)
MODELS = st.sampled_from(["a", 'b"\\\n', "ü"])
VALUES = st.sampled_from([0.0, 0.005, 0.0050001, 0.1, 0.7, 2.5, 3.0, 1e9])


def shown(registry):
    """The exposition, with the times of series' beginnings left out."""
    return re.sub(rb"(_created(?:\{.*?\})?) [0-9.e+]+\n", rb"\1 T\n", generate_latest(registry))


@given(st.lists(st.tuples(MODELS, st.sampled_from(["200", "503"]), st.sampled_from([0, 1, 2.5, 10**7]))))
def test_tallies_look_like_a_counter(counted):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies("quire_requests_total", "Requests.", ["model", "code"], registry=ours)
    counter = Counter("quire_requests_total", "Requests.", ["model", "code"], registry=theirs)

    for model, code, number in counted:
        tallies.labels(model, code).inc(number)
        counter.labels(model, code).inc(number)

    assert shown(ours) == shown(theirs)


@given(st.lists(st.tuples(MODELS, VALUES)))
def test_bars_look_like_a_histogram(observed):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bars = Histograms("quire_request_seconds", "Time.", ["model"], buckets=BUCKETS, registry=ours)
    histogram = Histogram("quire_request_seconds", "Time.", ["model"], buckets=BUCKETS, registry=theirs)

    for model, value in observed:
        bars.labels(model).observe(value)
        histogram.labels(model).observe(value)

    assert shown(ours) == shown(theirs)


def test_without_labels_a_series_is_there_from_the_start():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    Tallies("quire_a", "A.", registry=ours)
    Histograms("quire_b", "B.", buckets=BUCKETS, registry=ours).labels().observe(0.5)
    Counter("quire_a", "A.", registry=theirs)
    Histogram("quire_b", "B.", buckets=BUCKETS, registry=theirs).observe(0.5)

    pages = shown(ours), shown(theirs)

    assert pages[0] == pages[1]


def test_what_is_removed_is_shown_no_more_and_begins_anew():
    registry = CollectorRegistry()
    tallies = Tallies("quire_a", "A.", ["model", "code"], registry=registry)
    bars = Histograms("quire_b", "B.", ["model"], buckets=BUCKETS, registry=registry)
    for model in ("stays", "goes"):
        tallies.labels(model, "200").inc(3)
        bars.labels(model).observe(1.0)

    tallies.remove_by("model", {"goes", "never was"})
    bars.remove_by("model", {"goes"})
    after = shown(registry)
    again = tallies.labels("goes", "200").value

    assert b"goes" not in after
    assert b'quire_a_total{code="200",model="stays"} 3.0' in after
    assert again == 0
