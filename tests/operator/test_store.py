"""The store never goes back in time."""

from quire_operator.store import ObjectStore


def pod(name: str, version: int, service: str | None = "s") -> dict:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "n", "resourceVersion": str(version), "labels": service},
    }


def make() -> tuple[ObjectStore, list]:
    told: list = []
    return ObjectStore(lambda item: item["metadata"]["labels"], told.append), told


def test_older_news_is_ignored_and_nobody_is_told() -> None:
    store, told = make()
    store.put(pod("a", 5))
    store.handle("MODIFIED", pod("a", 4))
    store.handle("DELETED", pod("a", 3))

    assert [item["metadata"]["resourceVersion"] for item in store.of("s")] == ["5"]
    assert told == ["s"]


def test_what_was_deleted_does_not_come_back_by_a_late_answer() -> None:
    store, _ = make()
    store.put(pod("a", 5))
    store.handle("DELETED", pod("a", 7))
    store.put(pod("a", 6))
    assert store.of("s") == ()

    store.put(pod("a", 8))
    assert len(store.of("s")) == 1


def test_an_object_that_changes_its_index_concerns_both() -> None:
    store, told = make()
    store.put(pod("a", 1, "s"))
    store.put(pod("a", 2, "t"))

    assert store.of("s") == ()
    assert len(store.of("t")) == 1
    assert told == ["s", "s", "t"]


def test_a_list_removes_what_it_lacks_unless_that_is_newer() -> None:
    store, _ = make()
    for item in (pod("old", 1), pod("kept", 2), pod("new", 9)):
        store.put(item)

    store.replace("Pod", "n", [pod("kept", 2)], version=5)

    assert [item["metadata"]["name"] for item in store.of("s")] == ["kept", "new"]
