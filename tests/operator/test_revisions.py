"""Revisions: what makes one, how it is stored and read back, which are kept."""

from collections.abc import Callable
from typing import Any

import pytest

from quire_operator.api.validation import parse_service
from quire_operator.platform import Platform
from quire_operator.revisions import (
    StoredRevision,
    controller_revision,
    kept_revisions,
    revision_name,
    stored_revisions,
    wanted_revision,
)

Make = Callable[..., dict[str, Any]]
SPEC = "{engine: {maxNumSeqs: 8, image: 'mine:1'}, placement: {nodeSelector: {pool: llm}}, replicas: 3, rollout: {strategy: Recreate}}"


def stored(name: str, number: int) -> StoredRevision:
    """A revision of no interest but for its age."""
    return StoredRevision(name=name, number=number, shape={"model": {}}, served_names=(), image="i", template={})


def test_a_stored_revision_reads_back_as_it_was(document: Make) -> None:
    service = parse_service(document(SPEC))
    revision = wanted_revision(service, [], Platform())

    manifest = controller_revision(service, revision)

    assert stored_revisions([manifest]) == [revision]
    assert manifest["metadata"]["name"] == f"llama-{revision.name}"


def test_the_stored_shape_is_what_the_spec_said_about_pods_and_no_more(document: Make) -> None:
    revision = wanted_revision(parse_service(document(SPEC)), [], Platform())

    assert revision.shape == {
        "model": {"uri": "pvc://models/llama"},
        "engine": {"maxNumSeqs": 8, "image": "mine:1"},
        "placement": {"nodeSelector": {"pool": "llm"}},
    }
    assert revision.image == "mine:1"


def test_a_revision_that_is_wanted_again_becomes_the_newest_without_another_rendering(document: Make) -> None:
    service = parse_service(document())
    first = wanted_revision(service, [], Platform())

    again = wanted_revision(service, [first, stored("other", 7)], Platform(run_as_user=1))

    assert (again.number, again.template) == (8, first.template)


def test_the_digest_counts_the_image_and_not_who_named_it(document: Make) -> None:
    named = parse_service(document("engine: {image: 'quire-worker:7'}"))
    unnamed = parse_service(document())

    assert revision_name(named, Platform()) == revision_name(unnamed, Platform(worker_image="quire-worker:7"))


def test_a_service_that_asks_for_no_quantisation_keeps_the_revision_it_had_before_there_was_any(document: Make) -> None:
    platform = Platform(worker_image="quire-worker:7")

    plain = wanted_revision(parse_service(document()), [], platform)
    int8 = wanted_revision(
        parse_service(document("model: {uri: 'pvc://models/llama', quantization: int8}")), [], platform
    )

    assert plain.name == "a7851edafb"
    assert "--quantization" not in plain.template["spec"]["containers"][0]["args"]
    assert int8.name != plain.name
    assert int8.shape == {"model": {"uri": "pvc://models/llama", "quantization": "int8"}}


def test_two_revisions_have_the_same_shape_when_only_the_default_image_differs(document: Make) -> None:
    plain = wanted_revision(parse_service(document()), [], Platform())
    newer = wanted_revision(parse_service(document()), [], Platform(worker_image="quire-worker:7"))
    named = wanted_revision(parse_service(document("engine: {image: 'quire-worker:7'}")), [], Platform())

    assert plain.has_shape_of(newer)
    assert not named.has_shape_of(newer)


@pytest.mark.parametrize(
    ("needed", "limit", "kept"),
    [
        ({"e"}, 2, ["e", "d", "c"]),
        ({"e", "a"}, 1, ["e", "d", "a"]),
        ({"e"}, 9, ["e", "d", "c", "b", "a"]),
        ({"a"}, 1, ["e", "a"]),
    ],
)
def test_the_newest_revisions_are_kept_beside_the_needed_ones(needed: set[str], limit: int, kept: list[str]) -> None:
    revisions = [stored(name, number) for number, name in enumerate("abcde")]

    assert [revision.name for revision in kept_revisions(revisions, needed, limit)] == kept


def test_objects_of_others_are_no_revisions() -> None:
    strange = [
        {"kind": "ControllerRevision", "metadata": {"name": "x"}, "data": {"template": {}}},
        {"kind": "ControllerRevision", "metadata": {"name": "y", "labels": {"quire.dev/revision": "r"}}, "data": {}},
        {"kind": "ConfigMap", "metadata": {"name": "z"}},
    ]

    assert stored_revisions(strange) == []
