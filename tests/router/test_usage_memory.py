"""Usage kept in the process: what is written down together, later, must be seen as if each had been written down at once."""

from hypothesis import given
from hypothesis import strategies as st

from quire_router.usage.memory import MemoryUsage
from quire_router.usage.record import Query, Sums, day_of, record_of, sums_of

START = 1_800_000_000.0
ALL = Query(from_day="0000-00-00", to_day="9999-99-99")


def noted(number, tenant="t", model="m", noted_ts=START, tokens=1):
    return (tenant, model, noted_ts, 0.25, tokens, 0, 2, 3, "r", number, "k", f"id-{number}", model, "/v1", 200, "")


@given(
    st.lists(
        st.tuples(
            st.integers(1, 300),
            st.sampled_from(["t", "u"]),
            st.sampled_from(["m", "n"]),
            st.floats(0, 3 * 86_400),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.integers(0, 600),
)
async def test_sums_are_of_all_and_records_are_the_last_ones_whenever_somebody_looks(runs, most):
    usage = MemoryUsage(lambda: most)
    all_noted = []
    for times, tenant, model, later_s, looks in runs:
        for _ in range(times):
            all_noted.append(noted(len(all_noted), tenant, model, START + later_s, times))
            usage.add(all_noted[-1])
        if looks:
            assert len((await usage.page(ALL, None, 10_000)).records) == min(len(all_noted), max(1, most))

    records = [record_of(one) for one in all_noted]

    assert dict(await usage.sums(ALL)) == sums_of(records)
    assert (await usage.page(ALL, None, 10_000)).records == records[::-1][: max(1, most)]


async def test_a_page_goes_on_where_the_one_before_ended_whatever_comes_meanwhile():
    usage = MemoryUsage(lambda: 1000)
    for number in range(500):
        usage.add(noted(number))

    first = await usage.page(ALL, None, 200)
    usage.add(noted(500))
    second = await usage.page(ALL, first.cursor, 1000)

    assert [record.id for record in (*first.records, *second.records)] == [f"r-{i}" for i in reversed(range(500))]


def test_a_record_is_of_the_day_on_which_its_request_came():
    record = record_of(noted(7, noted_ts=START))

    assert (record.ts, record.duration_ms, record.id, record.day) == (START - 0.25, 250, "r-7", day_of(START - 0.25))
    sums = Sums(requests=1, prompt_tokens=1, cached_tokens=0, output_tokens=2, cost_nano=3)
    assert sums_of([record]) == {(record.day, "t", "m"): sums}
