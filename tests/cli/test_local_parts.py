"""The small parts of the local runner: $(VAR) expansion, cores, ports, model folders, backoff."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from quire_cli.host import Host
from quire_cli.local.cores import threads_per_engine, usable_cores
from quire_cli.local.devices import visible_devices
from quire_cli.local.expansion import expand
from quire_cli.local.models import resolve_model
from quire_cli.local.pod import RestartPolicy
from quire_cli.local.pod_plan import Surroundings, WorkerKind, plan_worker
from quire_cli.local.ports import free_ports, is_free
from quire_cli.local.run_folder import remove_abandoned
from quire_cli.local.supplies import Share, Supplies
from quire_operator.api.validation import InvalidResourceError, parse_service
from quire_operator.desired_state import desired_state
from quire_operator.platform import Platform
from quire_operator.revisions import current_revision

VARIABLES = {"A": "1", "B": "$(A)"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--port=$(A)", "--port=1"),
        ("$(A)$(A)", "11"),
        ("$(B)", "$(A)"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A and $", "$A and $"),
        ("$(A", "$(A"),
        ("a$$b", "a$b"),
    ],
)
def test_variables_expand_as_the_kubelet_does_it(text: str, expected: str) -> None:
    assert expand(text, VARIABLES) == expected


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 1), ("50000 100000", 1)])
def test_cores_follow_the_cgroup(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(quota)

    assert usable_cores(tmp_path) == expected


def test_cores_follow_the_older_cgroup(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")

    assert usable_cores(tmp_path) == 1


def test_without_a_quota_cores_are_those_that_the_process_may_use(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000")

    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("cores", "engines", "expected"), [(8, 2, 4), (8, 3, 2), (2, 4, 1), (4, 0, 4)])
def test_engines_share_the_cores(cores: int, engines: int, expected: int) -> None:
    assert threads_per_engine(cores, engines) == expected


def test_the_backoff_doubles_up_to_half_a_minute() -> None:
    assert [RestartPolicy().delay_s(n) for n in (1, 2, 3, 7, 50)] == [0.5, 1.0, 2.0, 30.0, 30.0]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["0", "1", "10"]),
        ({"CUDA_VISIBLE_DEVICES": "1, GPU-8f3a"}, ["1", "GPU-8f3a"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
    ],
)
def test_devices_are_those_that_the_user_left_visible(
    tmp_path: Path, environ: dict[str, str], expected: list[str]
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()

    assert visible_devices(environ, tmp_path) == expected


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        assert not is_free("127.0.0.1", taken.getsockname()[1])


def test_free_ports_differ() -> None:
    ports = free_ports("127.0.0.1", seed=1)

    taken = [next(ports) for _ in range(50)]

    assert len(set(taken)) == 50


def test_what_a_pod_had_is_the_next_ones_when_it_has_ended(tmp_path: Path) -> None:
    supplies = Supplies(folder=tmp_path, devices=["4", "7"])
    first, second = (supplies.take(num_ports=4, num_devices=1) for _ in range(2))
    assert first is not None and second is not None
    (first.folder / "cache").mkdir(parents=True)

    refused = supplies.take(num_ports=4, num_devices=1)
    supplies.give_back(first)
    third = supplies.take(num_ports=4, num_devices=1)

    assert refused is None and third is not None
    assert not {*first.ports} & {*second.ports} and len({*third.ports} - {*second.ports}) == 4
    assert [(share.folder.name, share.devices) for share in (first, second, third)] == [
        ("0", ("4",)), ("1", ("7",)), ("0", ("4",)),
    ]  # fmt: skip
    assert not first.folder.exists()


def test_no_pod_gets_the_port_on_which_the_router_will_listen(tmp_path: Path) -> None:
    ports = free_ports("127.0.0.1", seed=2)
    left = {next(ports) for _ in range(8)}
    supplies = Supplies(folder=tmp_path, devices=[], ports_taken={*range(1 << 16)} - left)

    share = supplies.take(num_ports=4)

    assert share is not None
    assert {*share.ports} < left


def service(model: str) -> dict[str, object]:
    """A document with the given model."""
    uri, _, revision = model.partition("#")
    spec = {"uri": uri, "revision": revision} if revision else {"uri": uri}
    head = {"apiVersion": "quire.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": "a"}}
    return {**head, "spec": {"model": spec}}


@pytest.fixture
def hf_cache(tmp_path: Path) -> Path:
    """A Hugging Face cache with org/name at commit abc, which main points to."""
    repository = tmp_path / "hub" / "models--org--name"
    for path, text in (("refs/main", "abc"), ("snapshots/abc/config.json", "{}")):
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_text(text)
    return tmp_path / "hub"


@pytest.mark.parametrize("model", ["hf://org/name", "hf://org/name#main", "hf://org/name#abc"])
def test_a_downloaded_model_is_found_by_branch_and_by_commit(hf_cache: Path, tmp_path: Path, model: str) -> None:
    folder = resolve_model(parse_service(service(model)), tmp_path, hf_cache)

    assert folder == (hf_cache / "models--org--name/snapshots/abc").resolve()


def test_a_revision_that_was_not_downloaded_is_told_with_the_command(hf_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidResourceError, match=r"org/name \(v2\) is not in .* get it with `hf download org/name --revision v2`"
    ):
        resolve_model(parse_service(service("hf://org/name#v2")), tmp_path, hf_cache)


def test_a_relative_source_starts_from_the_manifest_and_an_absolute_one_does_not(tmp_path: Path) -> None:
    model = tmp_path / "here" / "m"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")

    relative = resolve_model(parse_service(service("file:m")), tmp_path / "here", tmp_path)
    absolute = resolve_model(parse_service(service(f"file://{model}")), tmp_path / "elsewhere", tmp_path)

    assert relative == absolute == model.resolve()


def test_folders_of_runs_that_were_killed_are_removed_and_others_are_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    abandoned, running = tmp_path / f"quire-up-{ended.pid}-a", tmp_path / f"quire-up-{os.getpid()}-b"
    unrelated = tmp_path / "quire-up-x-y"
    for folder in (abandoned, running, unrelated):
        (folder / "trust").mkdir(parents=True)

    remove_abandoned(tmp_path)

    assert not abandoned.exists()
    assert running.exists() and unrelated.exists()


def test_a_worker_is_planned_with_its_own_start_timeout_and_without_the_model_fetcher(tmp_path: Path) -> None:
    document = {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "tiny"},
        "spec": {"model": {"uri": "hf://a/b"}, "engine": {"startTimeoutSeconds": 345}},
    }
    service, platform = parse_service(document), Platform()
    manifests = desired_state(service, [current_revision(service, platform)], platform)
    (deployment,) = (manifest for manifest in manifests if manifest["kind"] == "Deployment")
    script = tmp_path / "quire-worker"
    script.touch()
    host = Host(environ={}, python=tmp_path / "python")
    surroundings = Surroundings(host=host, folders={"trust": tmp_path}, compute_threads=1)
    kind = WorkerKind(service="tiny", deployment=deployment, model=tmp_path / "model")

    plan = plan_worker(kind, 0, Share(ports=(1, 2, 3, 4), folder=tmp_path / "0"), surroundings)

    assert "initContainers" in deployment["spec"]["template"]["spec"]
    assert plan.argv[0] == str(script)
    assert plan.argv[plan.argv.index("--model") + 1] == str(tmp_path / "model")
    assert plan.argv[plan.argv.index("--health-port") + 1] == "4"
    assert plan.readiness.url == "http://127.0.0.1:4/ready", "the port that a busy server cannot hold up"
    assert plan.liveness.url == "http://127.0.0.1:4/health"
    assert plan.start_timeout_s == 345
