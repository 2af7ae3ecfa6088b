"""The memory of answers: bounded, and fair to tenants."""

from hypothesis import given
from hypothesis import strategies as st

from quire_router.stored_answers import ENTRY_BYTES, AnswerMemory, ModelVersion, StoredAnswer


def stored(size=0):
    version = ModelVersion(service="", revision="", bundle="")
    return StoredAnswer(stored_ts=0.0, target="m", version=version, is_events=False, headers=[], body=b"x" * size)


def test_the_least_recently_used_answer_goes_first():
    memory = AnswerMemory(3 * ENTRY_BYTES)
    for name in (b"a", b"b", b"c"):
        memory.put("", name, stored())

    memory.get("", b"a")
    memory.put("", b"d", stored())

    assert [memory.get("", name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_a_tenant_that_fills_the_memory_pushes_out_its_own_answers():
    memory = AnswerMemory(4 * ENTRY_BYTES)
    memory.put("small", b"mine", stored())

    for number in range(50):
        memory.put("large", b"%d" % number, stored())

    assert memory.get("small", b"mine") is not None
    assert len(memory) == 4


def test_an_answer_that_is_larger_than_the_memory_is_not_kept():
    memory = AnswerMemory(2 * ENTRY_BYTES)
    memory.put("", b"a", stored())

    memory.put("", b"a", stored(2 * ENTRY_BYTES))

    assert (memory.get("", b"a"), memory.num_bytes) == (None, 0)


def test_a_memory_that_is_turned_off_forgets_everything():
    memory = AnswerMemory(10 * ENTRY_BYTES)
    memory.put("", b"a", stored())

    memory.resize(0)

    assert (len(memory), memory.num_bytes) == (0, 0)


steps = st.lists(
    st.tuples(st.sampled_from("pgd"), st.sampled_from("ab"), st.binary(min_size=1, max_size=1), st.integers(0, 3000)),
    max_size=60,
)


@given(steps=steps)
def test_bytes_are_counted_right_whatever_is_done(steps):
    memory = AnswerMemory(5 * ENTRY_BYTES)

    for step, group, key, size in steps:
        if step == "p":
            memory.put(group, key, stored(size))
        elif step == "g":
            memory.get(group, key)
        else:
            memory.drop(group, key)
        held = [a.num_bytes for answers in memory._groups.values() for a in answers.values()]
        assert memory.num_bytes == sum(held) <= 5 * ENTRY_BYTES
        assert memory._sizes.keys() == memory._groups.keys()
