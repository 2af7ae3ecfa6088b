"""`quire tenant`: keys, files, and a real API server."""

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.control_plane import ControlPlane
from cluster.tools import Command

from quire_cli.app import run_command
from quire_cli.errors import CommandError
from quire_cli.host import Host
from quire_cli.tenant.documents import rotated, without_key
from quire_cli.tenant.keys import new_key, parse_duration
from quire_cli.tenant.store import with_keys
from quire_cli.tenant.usage import find_admin, usage_table

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOST = Host(environ={}, python=Path("/nowhere/python"))
Quire = Callable[..., tuple[int, str, str]]


@pytest.fixture
def quire(capsys: pytest.CaptureFixture[str]) -> Quire:
    """Runs a command: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = run_command(HOST, list(arguments))
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def tenant(*keys: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": "acme"},
        "spec": {"keys": list(keys)},
    }


def key(key_id: str, digit: str, **more: str) -> dict[str, str]:
    return {"id": key_id, "sha256": digit * 64, **more}


def keys_in(path: Path) -> list[dict[str, str]]:
    document = next(yaml.safe_load_all(path.read_text()))
    return list(document["spec"]["keys"])


def test_a_key_has_256_random_bits_and_only_its_digest_is_kept() -> None:
    made = [new_key(NOW, timedelta(days=90)) for _ in range(100)]

    assert len({one.key for one in made}) == 100
    assert all(re.fullmatch(r"sk-quire-[0-9A-Za-z]{43}", one.key) for one in made)
    assert made[0].entry["sha256"] == hashlib.sha256(made[0].key.encode()).hexdigest()
    assert made[0].entry["expiresAt"] == "2026-04-01T00:00:00Z"
    assert made[0].entry["id"].startswith("20260101-")


@pytest.mark.parametrize(("text", "hours"), [("24h", 24), ("90d", 2160), ("30m", 0.5), ("1w", 168), ("0", 0)])
def test_times_are_numbers_with_a_unit(text: str, hours: float) -> None:
    assert parse_duration("--overlap", text) == timedelta(hours=hours)


def test_a_time_without_a_unit_names_the_flag() -> None:
    with pytest.raises(CommandError, match="--overlap 24: must be a time such as 90d"):
        parse_duration("--overlap", "24")


def test_a_rotation_lets_the_old_key_expire_and_removes_those_that_did() -> None:
    document = tenant(key("old", "a"), key("gone", "b", expiresAt="2025-12-31T00:00:00Z"))

    change = rotated(document, new_key(NOW, None, "new"), replaced=None, overlap=timedelta(hours=24), now=NOW)

    kept = change.document["spec"]["keys"]
    assert [(one["id"], one.get("expiresAt")) for one in kept] == [("old", "2026-01-02T00:00:00Z"), ("new", None)]
    assert document["spec"]["keys"][0] == key("old", "a")


def test_a_rotation_without_overlap_revokes() -> None:
    change = rotated(tenant(key("old", "a")), new_key(NOW, None, "new"), replaced="old", overlap=timedelta(), now=NOW)

    assert [one["id"] for one in change.document["spec"]["keys"]] == ["new"]
    assert change.lines == ("acme: key new works", "acme: key old is revoked")


def test_a_rotation_among_several_keys_needs_to_be_told_which() -> None:
    document = tenant(key("a", "a"), key("b", "b"))

    with pytest.raises(CommandError, match="acme has several keys: a, b; name the one to replace with --key-id"):
        rotated(document, new_key(NOW, None), replaced=None, overlap=timedelta(hours=1), now=NOW)
    with pytest.raises(CommandError, match="--key-id c: acme has no such key; it has: a, b"):
        rotated(document, new_key(NOW, None), replaced="c", overlap=timedelta(hours=1), now=NOW)


def test_revoking_the_last_key_says_what_that_means() -> None:
    change = without_key(tenant(key("a", "a")), "a")

    assert change.document["spec"]["keys"] == []
    assert "nobody can call" in change.lines[1]
    with pytest.raises(CommandError, match="acme has no key b; it has: a"):
        without_key(tenant(key("a", "a")), "b")


HEAD = "# mine\nkind: Service\n---\nkind: Tenant\nmetadata: {name: acme}\n"


@pytest.mark.parametrize(
    "spec",
    [
        "spec:\n  # above\n  keys:\n    - id: a # first\n      sha256: x\n  # below\n  weight: 2\n",
        "spec:\n  keys:\n  - {id: a}\n  - {id: b}\n  # below\n  weight: 2\n",
        "spec:\n  weight: 2 # below\n",
        "spec:\n  keys: []\n  weight: 2 # below\n",
        "spec:\n  keys: [{id: a}, {id: b}] # below\n  weight: 2\n",
        "spec: {weight: 2} # below\n",
        "spec: {keys: [{id: a}], weight: 2} # below\n",
    ],
)
@pytest.mark.parametrize("keys", [[], [{"id": "x"}], [{"id": "x"}, {"id": "y"}]], ids=len)
def test_a_files_keys_are_written_where_they_stand_and_the_rest_stays(spec: str, keys: list[dict[str, str]]) -> None:
    text = HEAD + spec + "---\nkind: Tenant\nmetadata: {name: other}\nspec: {keys: [{id: z}]}\n"

    changed = with_keys(text, "acme", keys)

    documents = list(yaml.safe_load_all(changed))
    assert documents[1]["spec"] == {"keys": keys, "weight": 2}
    assert (documents[0], documents[2]["spec"]) == ({"kind": "Service"}, {"keys": [{"id": "z"}]})
    assert "# mine" in changed
    assert "# below" in changed


def test_a_tenant_is_made_rotated_and_revoked_in_a_file(quire: Quire, tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    limits = ("--requests-per-minute", "60", "--tokens-per-month", "9", "--credit", "1.50", "--weight", "3")

    made = quire("tenant", "create", "acme", "--model", "m", *limits, "--expires-in", "90d", "--file", str(file))
    again = quire("tenant", "create", "acme", "--file", str(file))
    first = keys_in(file)
    turned = quire("tenant", "rotate", "acme", "-f", str(file))
    listed = quire("tenant", "list", "-f", str(file))
    revoked = quire("tenant", "revoke", "acme", first[0]["id"], "-f", str(file))

    assert made[0] == 0
    assert hashlib.sha256(made[1].strip().encode()).hexdigest() == first[0]["sha256"]
    assert made[1].strip() not in file.read_text()
    assert again[0] == 1
    assert "is in" in again[2]
    assert "quire tenant rotate acme" in again[2]
    assert hashlib.sha256(turned[1].strip().encode()).hexdigest() == keys_in(file)[0]["sha256"]
    assert "60 req/min,9 tok/month" in listed[1]
    assert "prepaid 1.50" in listed[1]
    assert (revoked[0], revoked[1]) == (0, "")
    assert len(keys_in(file)) == 1


def test_flags_that_make_no_sense_are_named(quire: Quire, tmp_path: Path) -> None:
    file = str(tmp_path / "t.yaml")

    told = [
        quire("tenant", "create", "Acme", "--file", file)[2],
        quire("tenant", "create", "acme", "--credit", "much", "--file", file)[2],
        quire("tenant", "create", "acme", "--expires-in", "0", "--file", file)[2],
        quire("tenant", "list", "--file", file, "-n", "team")[2],
        quire("tenant", "rotate", "acme", "--file", file)[2],
    ]

    for text, expected in zip(
        told,
        ("metadata.name", "spec.billing.credit", "--expires-in 0", "leave one of them out", "there is none"),
        strict=True,
    ):
        assert expected in text
    assert not Path(file).exists()


def test_tenants_on_a_cluster(
    quire: Quire, control_plane: ControlPlane, kubectl: Command, install_crds: list[str], namespace: str
) -> None:
    assert install_crds
    where = ("-n", namespace, "--kubeconfig", str(control_plane.kubeconfig))

    def keys() -> list[str]:
        found = kubectl.json("get", "qtenant", "acme", "-n", namespace)
        return [one["id"] for one in found["spec"].get("keys", ())]

    made = quire("tenant", "create", "acme", "--key-id", "first", "--requests-per-minute", "60", *where)
    begun = keys()
    again = quire("tenant", "create", "acme", *where)
    turned = quire("tenant", "rotate", "acme", "--overlap", "0", *where)
    after = keys()
    listed = quire("tenant", "list", *where)
    revoked = quire("tenant", "revoke", "acme", after[0], *where)
    unknown = quire("tenant", "revoke", "nobody", "x", *where)

    assert (made[0], begun) == (0, ["first"])
    assert again[0] == 1
    assert turned[0] == 0
    assert after not in ([], ["first"])
    assert after[0] in listed[1]
    assert "60 req/min" in listed[1]
    assert (revoked[0], keys()) == (0, [])
    assert f"Tenant nobody is not in namespace {namespace}; there are: acme" in unknown[2]


def test_usage_becomes_a_table() -> None:
    answer = {"data": [{"model": "m", "requests": 2, "cost": "0.10"}, {"model": "other", "requests": 1, "cost": None}]}

    assert usage_table(answer) == ["MODEL   REQUESTS   COST", "m       2          0.10", "other   1          -"]
    assert usage_table({"currency": "EUR", "data": [{"ts": 1795273526.4, "cost": "1"}]}) == [
        "TS                          COST EUR",
        "2026-11-21 15:05:26+00:00   1",
    ]
    assert usage_table({"data": []}) == ["no usage in that time"]
    assert usage_table({**answer, "has_more": True})[-1].startswith("there is more")


def test_the_admin_api_is_the_one_that_the_flags_name(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")

    by_file = find_admin("http://127.0.0.1:1/", token, {})
    by_variable = find_admin("http://127.0.0.1:1", None, {"QUIRE_ADMIN_TOKEN": "other"})

    assert (by_file.url, by_file.token, by_variable.token) == ("http://127.0.0.1:1", "secret", "other")
    with pytest.raises(CommandError, match="needs the admin token"):
        find_admin("http://127.0.0.1:1", None, {})
