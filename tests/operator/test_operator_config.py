"""The operator's flags and its platform file."""

from pathlib import Path

import pytest

from quire_operator.config import ConfigError, parse_config, read_platform, with_namespace


def write(folder: Path, text: str) -> Path:
    path = folder / "platform.yaml"
    path.write_text(text)
    return path


def test_a_platform_file_has_the_fields_names_in_camel_case(tmp_path: Path) -> None:
    text = (
        "workerImage: x/y:1\nmodelSources: [hf, pvc]\nmodelCache: {kind: PersistentVolumeClaim, size: 5Gi}\n"
        "spot: {labelKey: a, labelValue: b}\n"
    )

    platform = read_platform(write(tmp_path, text))

    assert platform.worker_image == "x/y:1"
    assert platform.model_sources == frozenset({"hf", "pvc"})
    assert (platform.model_cache.kind, platform.model_cache.size, platform.model_cache.claim) == (
        "PersistentVolumeClaim",
        "5Gi",
        "quire-models",
    )
    assert platform.spot.label_key == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workerImge: x", "workerImge: unknown key"),
        ("modelCache: {sise: 1Gi}", "modelCache.sise: unknown key"),
        ("modelCache: {kind: Tape}", "Tape"),
        ("routerReplicas: many", "routerReplicas|router_replicas"),
        ("- a", "must be a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_what_is_wrong_in_it_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_platform(write(tmp_path, text))


def test_namespaces_are_the_own_one_those_given_or_all() -> None:
    def watched(*flags: str) -> tuple[str, ...]:
        return with_namespace(parse_config(flags, identity="me"), "own")[1]

    assert watched() == ("own",)
    assert watched("--watch-namespace", "a", "--watch-namespace", "b", "--watch-namespace", "a") == ("a", "b")
    assert watched("--watch-namespace", "*") == ()
    with pytest.raises(ConfigError, match="stands for all"):
        watched("--watch-namespace", "*", "--watch-namespace", "a")
