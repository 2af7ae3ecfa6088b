"""`make images`, with tools that record what they are asked."""

import itertools
import json
import os
import re
import signal
import subprocess
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from quire_operator.platform import Platform
from tests.images.conftest import ROOT, write_archive

DEADLINE_S = 120
TOOL = """#!/usr/bin/env bash
# Records its arguments, and the pip.conf that a build gets.
name=$(basename "$0")
python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$name" "$@" >>"$FAKE_HOME/calls"
case "$name $1" in
"docker info" | "podman info" | "buildah version") [ -e "$FAKE_HOME/$name.answers" ] ;;
"buildah inspect") [ -e "$FAKE_HOME/base" ] ;;
*" pull") exit 1 ;;
"buildah bud" | "docker build")
    for argument in "$@"; do
        case "$argument" in id=pip.conf,src=*) cp "${argument#*src=}" "$FAKE_HOME/pip.conf" ;; esac
    done
    [ ! -e "$FAKE_HOME/fails" ] || { echo "the compiler is missing"; exit 1; }
    [ ! -e "$FAKE_HOME/hangs" ] || { echo $$ >"$FAKE_HOME/building"; exec tail -f /dev/null; } ;;
"buildah push") target=${4#docker-archive:}; cp "$FAKE_HOME/image.tar" "${target%%:*}" ;;
"docker save") cp "$FAKE_HOME/image.tar" "$3" ;;
esac
"""
PYTHON = """#!/usr/bin/env bash
if [ "$1 $2" = "-m pip" ]; then cat "$FAKE_HOME/listing"; else exec python3 "$@"; fi
"""


@dataclass
class Machine:
    """A machine with the tools that `answers` names."""

    home: Path
    temporary: Path
    answers: tuple[str, ...] = ("buildah",)
    listing: str = ""
    layer: dict[str, bytes] = field(default_factory=dict)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        programs = self.home / "bin"
        programs.mkdir(exist_ok=True)
        for name, text in {"docker": TOOL, "podman": TOOL, "buildah": TOOL, "its-python": PYTHON}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        for tool in self.answers:
            (self.home / f"{tool}.answers").touch()
        (self.home / "listing").write_text(self.listing)
        write_archive(self.home / "image.tar", [self.layer])
        env = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "FAKE_HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PYTHON": str(programs / "its-python"),
            "https_proxy": "http://proxy.example:3128",
        }
        return subprocess.Popen(
            ["bash", str(ROOT / ".ci/images"), *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=DEADLINE_S)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def calls(self, *beginning: str) -> list[list[str]]:
        recorded = self.home / "calls"
        lines = recorded.read_text().splitlines() if recorded.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if call[: len(beginning)] == list(beginning)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    (home / "base").touch()
    return Machine(home, temporary)


def option(call: list[str], name: str) -> list[str]:
    return [value for flag, value in itertools.pairwise(call) if flag == name]


def built(result: subprocess.CompletedProcess[str]) -> list[str]:
    return re.findall(r"^built (\S+)$", result.stdout, re.MULTILINE)


def test_three_images_are_built_with_the_names_that_the_operator_uses(machine: Machine) -> None:
    result = machine.run("operator", "router", "worker", "worker-cuda")

    platform = Platform()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    named = {platform.router_image, platform.worker_image, platform.worker_cuda_image, f"quire-operator:{version}"}
    assert result.returncode == 0, result.stderr
    assert set(built(result)) == {f"localhost/{name}" for name in named}
    assert machine.run().stdout.count("built ") == 3


def test_names_are_chosen_by_options(machine: Machine) -> None:
    result = machine.run("--tag", "e2e", "--prefix", "q-", "--registry", "ghcr.io/acme", "--no-sizes", "router")

    (build,) = machine.calls("buildah", "bud")
    assert built(result) == ["ghcr.io/acme/q-router:e2e"]
    assert option(build, "-t") == ["ghcr.io/acme/q-router:e2e"]
    assert option(build, "-f") == ["router/Dockerfile"]
    assert "BASE=python:3.11-slim-bookworm" in option(build, "--build-arg")


def test_pip_settings_reach_the_build_as_mounts_only(machine: Machine) -> None:
    wheels, authorities = machine.home / "wheels", machine.home / "ca.pem"
    wheels.mkdir()
    (wheels / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    machine.listing = f"global.find-links='{wheels}'\nglobal.cert='{authorities}'\n"
    machine.listing += "global.index-url='https://user:secret@pypi.corp.example/simple'\n"

    result = machine.run("--no-sizes", "worker")

    (build,) = machine.calls("buildah", "bud")
    assert result.returncode == 0, result.stderr
    assert option(build, "-v") == [f"{wheels}:{wheels}:ro"]
    assert f"id=ca.crt,src={authorities}" in option(build, "--secret")
    assert "secret" not in " ".join(option(build, "--build-arg")) + result.stdout
    assert {"TORCH_INDEX=", "https_proxy"} <= set(option(build, "--build-arg"))
    settings = (machine.home / "pip.conf").read_text()
    assert "index-url = https://user:secret@pypi.corp.example/simple" in settings
    assert "cert = /etc/quire-build/ca.crt" in settings


def test_without_a_local_torch_the_dockerfile_says_where_it_comes_from(machine: Machine) -> None:
    machine.run("--no-sizes", "worker")
    machine.run("--no-sizes", "--torch-index", "https://torch.example/cpu", "worker")

    plain, chosen = machine.calls("buildah", "bud")
    assert not [argument for argument in option(plain, "--build-arg") if argument.startswith("TORCH_INDEX")]
    assert "TORCH_INDEX=https://torch.example/cpu" in option(chosen, "--build-arg")


def test_docker_is_taken_if_its_daemon_answers(machine: Machine) -> None:
    machine.answers = ("docker", "buildah")

    result = machine.run("--base", "base:1", "router")

    assert result.returncode == 0, result.stderr
    assert len(machine.calls("docker", "build")) == 1
    assert machine.calls("buildah") == []


def test_docker_with_local_wheel_folders_names_the_way_out(machine: Machine) -> None:
    machine.answers = ("docker",)
    machine.listing = f"global.find-links='{machine.home}'\n"

    result = machine.run("router")

    assert result.returncode == 1
    assert "cannot mount: use --tool podman or buildah" in result.stderr


@pytest.mark.parametrize("arguments", [("--tool", "docker"), ("--tool", "kaniko")])
def test_a_named_tool_that_does_not_answer_is_an_error(machine: Machine, arguments: tuple[str, ...]) -> None:
    result = machine.run(*arguments, "router")

    assert result.returncode == 1
    assert arguments[1] in result.stderr


@pytest.mark.parametrize("arguments", [("gateway",), ("--tag",), ("--tags", "x")])
def test_unknown_arguments_show_the_usage(machine: Machine, arguments: tuple[str, ...]) -> None:
    result = machine.run(*arguments)

    assert result.returncode == 2
    assert "usage: images" in result.stderr


def test_the_help_names_every_option_of_the_make_target(machine: Machine) -> None:
    result = machine.run("--help")

    assert result.returncode == 0
    assert machine.calls() == []
    for name in ("--tag", "--prefix", "--registry", "--variant", "--export", "--base", "--torch-index", "--tool"):
        assert name in result.stdout
        assert f"{name[2:].upper().replace('-', '_')}" in result.stdout


def test_exported_archives_are_whole_and_named_after_the_image(machine: Machine) -> None:
    folder = machine.home / "out"

    result = machine.run("--tag", "e2e", "--export", str(folder), "--variant", "worker:e2e-2", "router", "worker")

    names = ["quire-router-e2e.tar", "quire-worker-e2e-2.tar", "quire-worker-e2e.tar"]
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / names[0]).read_bytes() == (machine.home / "image.tar").read_bytes()
    assert built(result) == ["localhost/quire-router:e2e", "localhost/quire-worker:e2e", "localhost/quire-worker:e2e-2"]
    assert len(re.findall(r"MB compressed, .* MB plain, user 65532:65532", result.stdout)) == 2


def test_an_image_that_keeps_a_private_index_is_refused_and_not_exported(machine: Machine) -> None:
    machine.listing = "global.index-url='https://pypi.corp.example/simple'\n"
    machine.layer = {"opt/quire/record": b"from pypi.corp.example"}
    folder = machine.home / "out"

    result = machine.run("--export", str(folder), "router")

    assert result.returncode == 1
    assert "/opt/quire/record holds 'pypi.corp.example'" in result.stderr
    assert built(result) == []
    assert list(folder.iterdir()) == []


def test_a_failed_build_shows_the_tools_last_words(machine: Machine) -> None:
    (machine.home / "fails").touch()

    result = machine.run("router")

    assert result.returncode == 1
    assert "the compiler is missing" in result.stderr
    assert "building localhost/quire-router" in result.stderr
    assert list(machine.temporary.iterdir()) == []


def test_a_base_that_cannot_be_pulled_and_has_no_stand_in_is_an_error(machine: Machine) -> None:
    (machine.home / "base").unlink()

    result = machine.run("worker-cuda")

    assert result.returncode == 1
    assert "name another with --base" in result.stderr
    assert machine.calls("buildah", "pull")[0][-1].startswith("docker.io/nvidia/cuda:")


def is_alive(pid: str) -> bool:
    """Whether the process runs: it may end while it is looked at."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_sigterm_ends_the_build_and_leaves_no_temporary_files(machine: Machine) -> None:
    (machine.home / "hangs").touch()
    process = machine.start("router")
    marker = machine.home / "building"
    deadline = time.monotonic() + DEADLINE_S
    while not (marker.exists() and marker.read_text().strip()):
        assert time.monotonic() < deadline, "no build began"
        assert process.poll() is None
    assert len(list(machine.temporary.iterdir())) == 1

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 143
    assert list(machine.temporary.iterdir()) == []
    while is_alive(marker.read_text().strip()):
        assert time.monotonic() < deadline, "the tool goes on"


def test_what_a_killed_run_left_is_removed_by_the_next(machine: Machine) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(timeout=DEADLINE_S)
    left = machine.temporary / f"quire-images.{ended.pid}.abcdef"
    alive = machine.temporary / f"quire-images.{os.getpid()}.abcdef"
    left.mkdir()
    alive.mkdir()

    machine.run("--no-sizes", "router")

    assert list(machine.temporary.iterdir()) == [alive]
