"""Programs that sign in for a kubeconfig: real ones, written by the tests."""

import json
import stat
import sys
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from quire_contract.kube.access import KubeAccess, KubeAccessError
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import CONFIG_MAP

PROGRAM = """#!{python}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
calls = here / "calls"
calls.write_text((calls.read_text() if calls.exists() else "") + "x")
(here / "told").write_text(json.dumps([sys.argv[1:], os.environ.get("EXTRA"), os.environ.get("HOME"),
    json.loads(os.environ["KUBERNETES_EXEC_INFO"]), sys.stdin.read()]))
{rest}
"""
ANSWER = (
    'print(json.dumps({{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {}}}))'
)
ENVIRON = {"PATH": "/usr/bin:/bin", "HOME": "/home/somebody"}


def kubeconfig(
    folder: Path, status: dict[str, object] | str, server: str = "http://127.0.0.1:1", **spec: object
) -> Path:
    """A kubeconfig whose program answers with `status`, or does what that text says."""
    program = folder / "sign-in"
    rest = status if isinstance(status, str) else ANSWER.format(status)
    program.write_text(PROGRAM.format(python=sys.executable, rest=rest))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    how = {"apiVersion": "client.authentication.k8s.io/v1", "command": "./sign-in", "args": ["get-token", 7], **spec}
    document = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"exec": how}}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(document))
    return path


def num_calls(folder: Path) -> int:
    calls = folder / "calls"
    return len(calls.read_text()) if calls.exists() else 0


def test_a_program_gives_the_token_once_and_is_told_what_it_asks_for(tmp_path: Path) -> None:
    env = [{"name": "EXTRA", "value": "more"}]
    path = kubeconfig(tmp_path, {"token": "hush"}, env=env, provideClusterInfo=True)
    access = KubeAccess.from_kubeconfig(path, environ=ENVIRON)
    before = num_calls(tmp_path)

    tokens = [access.bearer(), access.bearer()]

    args, extra, home, info, stdin = json.loads((tmp_path / "told").read_text())
    assert (before, tokens, num_calls(tmp_path)) == (0, ["hush", "hush"], 1)
    assert (args, extra, home, stdin) == (["get-token", "7"], "more", "/home/somebody", "")
    assert info["spec"] == {"interactive": False, "cluster": {"server": "http://127.0.0.1:1"}}
    assert "hush" not in repr(access) + repr(access.sign_in.credential())


@pytest.mark.parametrize(("expires", "calls"), [("2020-01-01T00:00:00Z", 2), ("2120-01-01T00:00:00Z", 1)])
def test_a_credential_is_kept_until_it_expires(tmp_path: Path, expires: str, calls: int) -> None:
    access = KubeAccess.from_kubeconfig(
        kubeconfig(tmp_path, {"token": "t", "expirationTimestamp": expires}), environ=ENVIRON
    )

    access.bearer()
    access.bearer()

    assert num_calls(tmp_path) == calls


async def test_a_refused_credential_is_asked_for_anew(tmp_path: Path, api) -> None:
    api.lists = [web.json_response({}, status=401), {"metadata": {}}]
    access = KubeAccess.from_kubeconfig(kubeconfig(tmp_path, {"token": "t"}, server=api.access.server), environ=ENVIRON)

    async with KubeClient(access, user_agent="quire-test") as client:
        with pytest.raises(KubeError):
            await client.get(CONFIG_MAP, "here", "a")
        await client.get(CONFIG_MAP, "here", "a")

    assert num_calls(tmp_path) == 2
    assert [asked["authorization"] for asked in api.asked] == ["Bearer t"] * 2


async def test_a_program_that_fails_is_an_error_of_the_client(tmp_path: Path) -> None:
    access = KubeAccess.from_kubeconfig(kubeconfig(tmp_path, "sys.exit(3)"), environ=ENVIRON)

    async with KubeClient(access, user_agent="quire-test") as client:
        with pytest.raises(KubeError, match="ended with 3") as caught:
            await client.get(CONFIG_MAP, "here", "a")

    assert (caught.value.status, caught.value.reason) == (0, "NoCredential")


def test_no_program_is_started_where_the_caller_does_not_hand_over_an_environment(tmp_path: Path) -> None:
    with pytest.raises(KubeAccessError, match="through a program"):
        KubeAccess.from_kubeconfig(kubeconfig(tmp_path, {"token": "t"}))

    assert num_calls(tmp_path) == 0


@pytest.mark.parametrize(
    ("status", "spec", "message"),
    [
        ({}, {}, "usable ExecCredential"),
        ("print('token: hush')", {}, "usable ExecCredential"),
        ({"clientCertificateData": "PEM"}, {}, "usable ExecCredential"),
        ({"token": "t"}, {"apiVersion": "client.authentication.k8s.io/v1beta1"}, "usable ExecCredential"),
        ({"token": "t"}, {"apiVersion": "client.authentication.k8s.io/v1alpha1"}, "apiVersion must be"),
        ({"token": "t"}, {"interactiveMode": "Always"}, "needs a terminal"),
        ({"token": "t"}, {"command": "no-such-program-here", "installHint": "get it at x"}, "get it at x"),
        ({"token": "t"}, {"env": ["A=b"]}, "exec.env"),
        ({"token": "t"}, {"command": None}, "needs a command"),
    ],
)
def test_what_a_program_gets_wrong_is_told_without_its_answer(tmp_path: Path, status, spec, message) -> None:
    with pytest.raises(KubeAccessError, match=message) as caught:
        KubeAccess.from_kubeconfig(kubeconfig(tmp_path, status, **spec), environ=ENVIRON).bearer()

    assert "hush" not in str(caught.value)


def test_a_token_does_not_cross_the_network_in_the_clear(tmp_path: Path) -> None:
    with pytest.raises(KubeAccessError, match="in the clear"):
        KubeAccess.from_kubeconfig(kubeconfig(tmp_path, {"token": "t"}, server="http://example.com"), environ=ENVIRON)
