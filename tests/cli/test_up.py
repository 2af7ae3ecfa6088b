"""`quire up` with stand-in programs: what it starts, how it restarts, how it ends."""

import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from quire_cli.app import run_command
from quire_cli.host import Host
from tests.cli.files import put

Quire = Callable[..., Any]
Write = Callable[..., Path]
POLL_S = 0.02


def get(url: str) -> Any:
    """The JSON at a URL."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def endpoint(command: Any) -> str:
    """Waits until it serves; the base URL."""
    url: str = command.wait_for(r"ready: (http://\S+)/v1 ")[1]
    return url


def test_workers_and_router_serve_until_interrupted_and_nothing_stays(
    quire: Quire, manifest: Write, tmp_path: Path
) -> None:
    command = quire("up", str(manifest()), "--port", "0", "--log-dir", str(tmp_path / "logs"))
    base = endpoint(command)
    config = get(f"{base}/ready")["config"]
    processes = command.children()

    command.process.send_signal(2)
    code = command.end()

    assert code == 0
    assert [entry["models"] for entry in config["endpoints"]] == [["demo"], ["demo"]]
    assert len({entry["url"] for entry in config["endpoints"]}) == 2
    assert len(processes) == 5, "a router, two workers and the process that each worker has started"
    assert not psutil.wait_procs(processes, timeout=60)[1]
    logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert [re.sub(r"-[0-9a-f]{10}-", "-REV-", name) for name in logs] == [
        "demo-worker-REV-0.log",
        "demo-worker-REV-1.log",
        "quire-router.log",
    ]
    assert "drained" in (tmp_path / "logs" / logs[0]).read_text()
    assert list((tmp_path / "tmp").iterdir()) == [], "the run's folder with its credentials is gone"


def test_containers_get_their_environment_and_no_secret_of_the_shell(
    quire: Quire, manifest: Write, tmp_path: Path
) -> None:
    spec = "replicas: 1\npodTemplate: {env: [{name: LITERAL, value: 'a$(PORT)b$$'}]}"

    command = quire("up", str(manifest(spec)), "--port", "0", "--compute-threads", "3", QUIRE_API_KEY="key")
    base = endpoint(command)
    router = get(f"{base}/ready")
    (entry,) = router["config"]["endpoints"]
    environ = get(f"{entry['url']}/health")

    assert environ["LITERAL"] == "a$(PORT)b$$"
    assert environ["COMPUTE_THREADS"] == "3"
    assert environ["POD_NAME"] == entry["id"]
    assert environ["MODEL_DIR"] == str(tmp_path / "models" / "demo")
    assert len(environ["TMPDIR"]) < len(str(tmp_path / "tmp")) + 45, "a socket's path has at most 107 bytes"
    assert environ["XDG_CACHE_HOME"] == str(tmp_path / ".cache" / "quire")
    assert f"tcp://127.0.0.1:{entry['events'].rpartition(':')[2]}" == environ["KV_EVENTS_ENDPOINT"]
    assert not {"SECRET_OF_THE_SHELL", "QUIRE_API_KEY"} & environ.keys()
    assert router["environ"]["QUIRE_API_KEY"] == "key"


def test_each_worker_gets_devices_of_its_own(quire: Quire, manifest: Write) -> None:
    file = manifest("replicas: 2\naccelerator: {type: Nvidia}")

    command = quire("up", str(file), "--port", "0", CUDA_VISIBLE_DEVICES="4,7")
    endpoints = get(f"{endpoint(command)}/ready")["config"]["endpoints"]

    environs = [get(f"{entry['url']}/health") for entry in endpoints]
    assert sorted(environ["CUDA_VISIBLE_DEVICES"] for environ in environs) == ["4", "7"]


def test_too_few_devices_are_told_before_anything_starts(
    manifest: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = manifest("replicas: 3\naccelerator: {type: Nvidia}")
    host = Host(environ={"HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0,1"}, python=tmp_path / "python")

    code = run_command(host, ["up", str(file)])

    assert code == 2
    expected = f"error: {file}:9: spec.accelerator: needs 3 Nvidia devices for all workers, this machine has 2; lower spec.replicas"
    assert capsys.readouterr().err.startswith(expected)


def until_served_by(base: str, ids: set[str], timeout_s: float = 60) -> None:
    """Until the router's configuration names just these endpoints."""
    deadline = time.monotonic() + timeout_s
    while (found := {entry["id"] for entry in get(f"{base}/ready")["config"]["endpoints"]}) != ids:
        assert time.monotonic() < deadline, found
        time.sleep(POLL_S)


def test_a_killed_worker_leaves_the_router_before_it_comes_back(quire: Quire, manifest: Write) -> None:
    command = quire("up", str(manifest()), "--port", "0")
    base = endpoint(command)
    ids = {entry["id"] for entry in get(f"{base}/ready")["config"]["endpoints"]}
    victim = min(ids)
    process = psutil.Process(command.pid_of(victim))
    engines = process.children()

    manifest(not_ready=victim)
    process.kill()
    command.wait_for(rf"{victim}: restarting \(killed by signal 9; starts again in 0.5 s\)")
    until_served_by(base, ids - {victim})
    manifest()
    command.wait_for(rf"{victim}: ready")
    until_served_by(base, ids)

    assert engines and not psutil.wait_procs(engines, timeout=60)[1], "what the worker had started goes with it"


def test_a_killed_router_comes_back_on_the_same_port(quire: Quire, manifest: Write) -> None:
    command = quire("up", str(manifest("replicas: 1")), "--port", "0")
    base = endpoint(command)

    psutil.Process(command.pid_of("quire-router")).kill()
    command.wait_for(r"quire-router: ready")

    assert get(f"{base}/ready")["ready_endpoints"] == 1


def test_no_process_outlives_a_killed_supervisor(quire: Quire, manifest: Write) -> None:
    command = quire("up", str(manifest("replicas: 1")), "--port", "0")
    endpoint(command)
    pods = psutil.Process(command.process.pid).children()
    engines = [process for process in command.children() if process not in pods]

    command.process.kill()
    _, alive = psutil.wait_procs(pods, timeout=60)
    for engine in engines:  # the stand-in's does not look after its parent, as a worker's own does
        engine.kill()

    assert len(pods) == 2
    assert alive == []


def test_a_second_interrupt_does_not_wait_for_a_worker_that_hangs(quire: Quire, manifest: Write) -> None:
    command = quire("up", str(manifest("replicas: 1", ignore_term=True)), "--port", "0")
    endpoint(command)
    processes = command.children()

    command.process.send_signal(2)
    command.wait_for(r"demo-worker-\w+-0: stopping")
    command.process.send_signal(2)

    assert command.end(timeout_s=60) == 0
    assert not psutil.wait_procs(processes, timeout=60)[1]


def test_an_interrupt_while_starting_ends_in_order(quire: Quire, manifest: Write) -> None:
    command = quire("up", str(manifest(not_ready="any")), "--port", "0")
    command.wait_for(r"demo-worker-\w+-1: starting")
    processes = command.children()

    command.process.send_signal(2)

    assert command.end() == 0
    assert not psutil.wait_procs(processes, timeout=60)[1]


def test_a_worker_that_cannot_start_ends_the_command_with_its_last_words(quire: Quire, manifest: Write) -> None:
    command = quire(
        "up", str(manifest(exit=2, say="model.safetensors: is cut short; download it again")), "--port", "0"
    )

    code = command.end()

    assert code == 1
    assert re.search(r"error: demo-worker-\w+-\d cannot start \(exit code 2\); it said:", command.output)
    assert "    model.safetensors: is cut short; download it again" in command.output
    assert "restarting" not in command.output


def test_a_port_in_use_is_told_before_anything_starts(quire: Quire, manifest: Write) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = quire("up", str(manifest()), "--port", str(port))

        code = command.end()

    assert code == 1
    message = f"error: port {port} of 127.0.0.1 is in use; stop what listens there, or choose another one with --port\n"
    assert command.output == message


def test_an_address_that_the_machine_does_not_have_is_told(quire: Quire, manifest: Write) -> None:
    command = quire("up", str(manifest()), "--host", "192.0.2.1")

    code = command.end()

    assert code == 1
    assert command.output.startswith("error: --host 192.0.2.1: cannot be listened on: ")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:nowhere", "spec.model.uri: names {folder}/nowhere, which is not a folder"),
        ("file:models", "spec.model.uri: names {folder}/models, which has no config.json"),
        (
            "hf://a/b",
            "spec.model.uri: a/b (main) is not in the Hugging Face cache {folder}/.cache/huggingface/hub; get it with",
        ),
        ("pvc://claim/x", "spec.model.uri: pvc:// needs a cluster"),
    ],
)
def test_a_model_that_is_not_here_is_told_with_file_and_line(
    manifest: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], uri: str, message: str
) -> None:
    file = manifest()
    file.write_text(file.read_text().replace("file:models/demo", uri))
    host = Host(environ={"HOME": str(tmp_path)}, python=tmp_path / "python")

    code = run_command(host, ["up", str(file)])

    assert code == 2
    assert capsys.readouterr().err.startswith(f"error: {file}:7: {message.format(folder=tmp_path)}")


def test_a_program_that_is_not_installed_is_named(
    manifest: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(environ={"HOME": str(tmp_path)}, python=tmp_path / "python")

    code = run_command(host, ["up", str(manifest()), "--port", "0"])

    assert code == 1
    assert "quire-worker: missing; install it with `pip install quire[worker]`" in capsys.readouterr().err


TENANT = """apiVersion: quire.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
spec:
  # who may call
  keys:
    - {id: first, sha256: "%s"}
"""
ROUTE = """apiVersion: quire.dev/v1alpha1
kind: ModelRoute
metadata: {name: chat}
spec: {model: chat, targets: [{model: demo}], sticky: Tenant}
"""


def key_ids(address: str) -> list[str]:
    return [key["id"] for tenant in get(address)["config"].get("tenants", ()) for key in tenant.get("keys", ())]


def test_tenants_routes_and_settings_are_served_and_followed(quire: Quire, manifest: Write, tmp_path: Path) -> None:
    tenants, settings = tmp_path / "tenants.yaml", tmp_path / "settings.yaml"
    put(tenants, TENANT % ("a" * 64) + "---\n" + ROUTE)
    put(settings, "faults:\n  max_resumes: 1\n")
    command = quire("up", str(manifest("replicas: 1")), str(tenants), "--port", "0", "--router-settings", str(settings))
    address = endpoint(command)
    begun = get(address)["config"]

    put(tenants, TENANT % ("b" * 64) + "    - {id: second, sha256: '" + "c" * 64 + "'}\n")
    command.wait_for("are served as the files say now")
    changed = get(address)["config"]
    put(tenants, "kind: Tenant\n")
    command.wait_for("error: .*what was served before is served on")
    kept = key_ids(address)
    put(tenants, TENANT % ("b" * 64))
    command.wait_for("are served as the files say now")
    put(settings, "faults:\n  max_resumes: -1\n")
    command.wait_for("settings.yaml:2: faults.max_resumes: is -1; it must not be negative")
    put(settings, "filters:\n  - {name: code, patterns: ['(?=x)']}\n")
    command.wait_for(r"settings.yaml:2: filters\[0\].patterns\[0\]: RE2 refuses")

    (begun_tenant,) = begun["tenants"]
    assert (begun_tenant["id"], begun_tenant["keys"]) == ("acme", [{"id": "first", "sha256": "a" * 64}])
    assert begun["settings"] == {"faults": {"max_resumes": 1}}
    assert [(route["model"], route["sticky"]) for route in begun["routes"]] == [("chat", "tenant")]
    assert [key["sha256"][0] for key in changed["tenants"][0]["keys"]] == ["b", "c"]
    assert "routes" not in changed
    assert kept == ["first", "second"]


def test_how_a_services_requests_are_treated_and_what_they_cost_is_followed_without_a_restart(
    quire: Quire, manifest: Write
) -> None:
    file = manifest("replicas: 1")
    command = quire("up", str(file), "--port", "0")
    address = endpoint(command)
    text = file.read_text()

    put(file, text + '  routing: {policy: RoundRobin}\n  price: {input: "0.15"}\n')
    command.wait_for("are served as the files say now")
    followed = get(address)["config"]
    put(file, text.replace("uri: file:models/demo", "uri: file:models/demo\n    name: other"))
    command.wait_for(
        "demo: was changed: all but its routing, price, replicas and scaling holds after quire up is started anew"
    )

    assert [service["policy"] for service in followed["services"]] == ["round_robin"]
    assert [model["price"] for model in followed["models"]] == [{"input": "0.15"}]
    assert command.output.count("started anew") == 1


def test_what_is_not_followed_and_what_no_machine_has_is_told_by_name_when_the_file_changes(
    quire: Quire, manifest: Write
) -> None:
    file = manifest("replicas: 1")
    command = quire("up", str(file), "--port", "0")
    endpoint(command)
    text = file.read_text()
    other = text.replace("name: demo", "name: other", 1).replace(
        "uri: file:models/demo", "uri: file:models/demo\n    name: other"
    )

    put(file, text.replace("replicas: 1", "scaling: {maxReplicas: 1, provider: Keda}"))
    command.wait_for(r"warning: .*spec.scaling.provider: there is no KEDA here; the built-in autoscaler does it")
    put(file, f"{text}\n---\n{other}")
    command.wait_for("other: is new, and served after quire up is started anew")
    put(file, other)

    command.wait_for("demo: is in no file any more; it is served on, and gone after quire up is started anew")


def test_a_key_that_is_made_rotated_and_revoked_by_command_reaches_the_router_that_runs(
    quire: Quire, manifest: Write, tmp_path: Path
) -> None:
    tenants = tmp_path / "tenants.yaml"
    made = quire("tenant", "create", "acme", "--model", "demo", "--key-id", "first", "--file", str(tenants))
    assert made.end() == 0
    command = quire("up", str(manifest("replicas: 1")), str(tenants), "--port", "0")
    address = endpoint(command)
    begun = key_ids(address)

    rotated = quire("tenant", "rotate", "acme", "--overlap", "0", "--file", str(tenants))
    rotated.wait_for("key first is revoked")
    assert rotated.end() == 0
    command.wait_for("are served as the files say now")
    after = key_ids(address)
    assert quire("tenant", "revoke", "acme", after[0], "-f", str(tenants)).end() == 0
    command.wait_for("are served as the files say now")

    assert begun == ["first"]
    assert after not in ([], ["first"])
    assert key_ids(address) == []


def test_problems_of_tenants_routes_and_settings_are_told_before_anything_starts(
    quire: Quire, manifest: Write, tmp_path: Path
) -> None:
    wrong, settings = tmp_path / "wrong.yaml", tmp_path / "settings.json"
    text = TENANT % ("a" * 64) + "---\n" + ROUTE.replace("{model: demo}", "{model: nobody}")
    wrong.write_text(text + "---\n" + (TENANT % ("a" * 64)).replace("acme", "other"))
    put(settings, '{"admission": {"max_queud": 1}}')

    command = quire("up", str(manifest()), str(wrong), "--port", "0", "--router-settings", str(settings))

    assert command.end() == 2
    told = command.output.replace(f"{tmp_path}/", "")
    assert "wrong.yaml:12: spec.targets[0].model: no InferenceService in this namespace serves 'nobody'" in told
    assert "wrong.yaml:20: spec.keys[0].sha256: is a key of Tenant acme, too; remove one" in told
    assert "settings.json:1: admission.max_queud: unknown field; did you mean 'max_queued_" in told


def test_names_that_nothing_has_are_warned_of_at_the_start_and_when_a_file_changes(
    quire: Quire, manifest: Write, tmp_path: Path
) -> None:
    tenants, settings = tmp_path / "tenants.yaml", tmp_path / "settings.yaml"
    put(tenants, "apiVersion: quire.dev/v1alpha1\nkind: Tenant\nmetadata: {name: acme}\nspec: {models: [demo, dmo]}\n")
    put(settings, "filters:\n  - {name: a, words: [heck], models: [chat], tenants: [acme, llm/acme]}\n")

    command = quire("up", str(manifest("replicas: 1")), str(tenants), "--port", "0", "--router-settings", str(settings))
    endpoint(command)
    begun = command.output.replace(f"{tmp_path}/", "")
    put(tenants, TENANT % ("a" * 64) + "  models: [dem]\n")
    command.wait_for(r"warning: .*tenants.yaml:8: spec.models\[0\]: nothing here serves 'dem'; served here: demo")

    assert (
        "warning: tenants.yaml:4: spec.keys: is empty, so nobody can call; make a key: quire tenant rotate acme"
        in begun
    )
    assert "warning: tenants.yaml:4: spec.models[1]: nothing here serves 'dmo'; served here: demo" in begun
    assert "warning: settings: filters[0].models: there is no 'chat'; here are: demo" in begun
    assert "warning: settings: filters[0].tenants: there is no 'llm/acme'; here are: acme" in begun


def test_the_usage_of_a_run_is_found_by_itself_and_is_its_users_only(
    quire: Quire, manifest: Write, tmp_path: Path
) -> None:
    command = quire("up", str(manifest("replicas: 1")), "--port", "0")
    endpoint(command)
    (folder,) = (tmp_path / "tmp").glob("quire-up-*")

    asked = quire("tenant", "usage", "acme", "--from", "2026-11-01", "--format", "json")
    asked.wait_for('"asked": "/admin/usage[?]tenant=acme&from=2026-11-01&group_by=day,model&format=json&limit=10000"')
    shown = quire("tenant", "usage", "acme")
    shown.wait_for("DAY +REQUESTS +COST\n2026-11-21 +2 +0.10")

    private = [(folder / name).stat().st_mode & 0o777 for name in ("admin.json", "admin-token")]
    assert (asked.end(), shown.end()) == (0, 0)
    assert private == [0o600, 0o600]
