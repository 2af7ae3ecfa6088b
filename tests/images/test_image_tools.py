"""pip settings for builds, and the look into finished images."""

import configparser
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.images.conftest import ROOT, write_archive


@pytest.fixture(scope="module")
def tools() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_tools", ROOT / ".ci/image_tools.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their own module up.
    sys.modules["image_tools"] = module
    spec.loader.exec_module(module)
    return module


def test_the_environment_wins_over_the_files(tools: ModuleType) -> None:
    listing = (
        ":env:.index-url='https://b.example/simple'\nglobal.index-url='https://a.example/simple'\nfreeze.timeout='1'\n"
    )

    options = tools.parse_listing(listing)

    assert options == {"index-url": "https://b.example/simple"}


def test_only_what_concerns_indexes_and_connections_is_taken_over(tools: ModuleType) -> None:
    options = {
        "index-url": "https://a.example/simple",
        "cert": "/etc/own.pem",
        "client-cert": "/root/me.pem",
        "user": "1",
    }

    settings = tools.settings_for_build(options, "")

    assert settings.options == {"index-url": "https://a.example/simple", "cert": tools.BUILD_CA_FILE}
    assert settings.ca_file == "/etc/own.pem"


def test_local_folders_are_named_for_mounting_an_index_with_the_files_beside_it(
    tools: ModuleType, tmp_path: Path
) -> None:
    wheels, index = tmp_path / "wheels", tmp_path / "pypi" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    options = {
        "find-links": f"{wheels} {tmp_path}/absent",
        "extra-index-url": f"file://{index} https://pypi.org/simple",
    }

    settings = tools.settings_for_build(options, "")

    assert settings.folders == (str(index.parent), str(wheels))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("https://user:password@pypi.corp.example:8443/simple", ["pypi.corp.example:8443"]),
        ("http://10.0.0.7/simple", ["10.0.0.7"]),
        ("http://localhost:3141/root", ["localhost:3141"]),
        ("http://localhost/root", []),
        ("https://pypi.org/simple", []),
    ],
)
def test_hosts_of_private_indexes_may_not_stay_in_an_image(tools: ModuleType, place: str, expected: list[str]) -> None:
    settings = tools.settings_for_build({"extra-index-url": place}, "")

    assert [text for text in settings.forbidden if text != tools.BUILD_CA_FILE] == expected


def test_the_written_file_reads_back_as_pip_reads_it(tools: ModuleType) -> None:
    options = {"extra-index-url": "https://a.example/simple\nhttps://b.example/100%25", "timeout": "60"}

    parser = configparser.RawConfigParser()
    parser.read_string(tools.pip_conf(options))

    assert dict(parser["global"]) == {
        "extra-index-url": "https://a.example/simple https://b.example/100%25",
        "timeout": "60",
    }


def test_no_settings_make_no_file(tools: ModuleType) -> None:
    settings = tools.settings_for_build(tools.parse_listing(""), "")

    assert tools.pip_conf(settings.options) == ""
    assert settings.folders == ()


def test_a_local_build_of_torch_for_cpus_is_found(tools: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()

    assert tools.has_torch_wheel([str(tmp_path)], "2.13.0")
    assert not tools.has_torch_wheel([str(tmp_path)], "2.14.0")


def test_a_clean_image_is_measured_layer_by_layer(tools: ModuleType, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "image.tar", [{"opt/a": b"a" * 50_000}, {"opt/b": b"b" * 100}])

    report = tools.inspect_image(archive, ["pypi.corp.example"])

    assert report.problems == ()
    assert report.user == "65532:65532"
    assert report.plain_bytes == sum(size for size in (61_440, 10_240))
    assert 0 < report.compressed_bytes < 2_000


@pytest.mark.parametrize("user", ["", "root", "0", "0:0", "nobody"])
def test_an_image_of_root_or_of_a_named_user_is_refused(tools: ModuleType, tmp_path: Path, user: str) -> None:
    archive = write_archive(tmp_path / "image.tar", [{}], user=user)

    report = tools.inspect_image(archive, [])

    assert len(report.problems) == 1
    assert "not as a numbered user" in report.problems[0]


def test_pip_settings_in_any_layer_are_found(tools: ModuleType, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "image.tar", [{"etc/pip.conf": b"[global]"}, {"etc/.wh.pip.conf": b""}])

    report = tools.inspect_image(archive, [])

    assert report.problems == ("it holds /etc/pip.conf",)


def test_a_private_host_in_a_file_or_in_the_configuration_is_found(tools: ModuleType, tmp_path: Path) -> None:
    layer = {"opt/quire/record.json": b'{"url": "https://pypi.corp.example/x.whl"}'}
    archive = write_archive(tmp_path / "image.tar", [layer], env=["PIP_INDEX_URL=https://pypi.corp.example/simple"])

    report = tools.inspect_image(archive, ["pypi.corp.example"])

    assert report.problems == (
        "/opt/quire/record.json holds 'pypi.corp.example'",
        "the image's configuration holds 'pypi.corp.example'",
    )
