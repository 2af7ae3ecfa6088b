"""The router's file is written whole and refused with the field's name."""

from pathlib import Path

import msgspec
import pytest

from quire_contract.router_config import (
    EndpointEntry,
    ModelEntry,
    RouterConfig,
    RouterConfigError,
    decode_config,
    encode_config,
    read_config,
    write_config,
)

ENDPOINT = EndpointEntry(
    id="demo-0",
    url="http://127.0.0.1:8000",
    models=["demo"],
    events="tcp://127.0.0.1:5557",
    replay="tcp://127.0.0.1:5558",
)
CONFIG = RouterConfig(models=[ModelEntry(name="demo", service="default/demo")], endpoints=[ENDPOINT])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    write_config(path, RouterConfig(models=[], endpoints=[]))

    write_config(path, CONFIG)

    assert read_config(path) == CONFIG
    assert [entry.name for entry in tmp_path.iterdir()] == ["router.json"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RouterConfigError, match=r"absent\.json: cannot be read"):
        read_config(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version is 2"),
        ({"endpoints": [ENDPOINT, ENDPOINT]}, "id 'demo-0' is used twice"),
        ({"models": [ModelEntry(name="demo")] * 2}, "'demo' is listed twice"),
        ({"models": []}, r"endpoints\[0\].models: 'demo' is not in models"),
        ({"endpoints": [msgspec.structs.replace(ENDPOINT, url="127.0.0.1:8000")]}, r"endpoints\[0\].url"),
        ({"endpoints": [msgspec.structs.replace(ENDPOINT, url="http://h:1/path")]}, r"endpoints\[0\].url"),
        ({"endpoints": [msgspec.structs.replace(ENDPOINT, id="a@b")]}, r"endpoints\[0\].id"),
        ({"endpoints": [msgspec.structs.replace(ENDPOINT, events="5557")]}, r"endpoints\[0\].events"),
    ],
)
def test_a_wrong_value_is_refused_by_name(change: dict[str, object], words: str) -> None:
    data = encode_config(msgspec.structs.replace(CONFIG, **change))

    with pytest.raises(RouterConfigError, match=words):
        decode_config(data, "router.json")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "router.json: "),
        (b'{"models": [], "endpoint": []}', "unknown field `endpoint`"),
        (b'{"models": []}', "endpoints"),
    ],
)
def test_a_misspelt_or_broken_file_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(RouterConfigError, match=words):
        decode_config(data, "router.json")
