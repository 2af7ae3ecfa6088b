"""Where the API server is found, and what is said when it is not."""

import base64
from pathlib import Path

import pytest
import yaml

from quire_contract.kube.access import KubeAccess, KubeAccessError


def kubeconfig(folder: Path, user: dict[str, object], **cluster: object) -> Path:
    document = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443/", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_pod_finds_the_server_by_its_service_account(tmp_path: Path) -> None:
    for name, text in {"namespace": "quire", "ca.crt": "PEM", "token": "secret-token\n"}.items():
        (tmp_path / name).write_text(text)

    access = KubeAccess.in_cluster(tmp_path, host="fd00::1", port="443")

    assert (access.server, access.namespace, access.bearer()) == ("https://[fd00::1]:443", "quire", "secret-token")


def test_outside_a_cluster_the_error_names_the_file_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(KubeAccessError, match=r"namespace: .*give a kubeconfig file"):
        KubeAccess.in_cluster(tmp_path / "missing")


def test_a_kubeconfig_may_hold_its_certificates_inline_or_beside_it(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("CA")
    inline = base64.b64encode(b"CERT").decode()

    path = kubeconfig(tmp_path, {"client-certificate-data": inline}, **{"certificate-authority": "ca.pem"})
    access = KubeAccess.from_kubeconfig(path)

    assert access.server == "https://127.0.0.1:6443"
    assert (access.namespace, access.ca_data, access.client_cert_data) == ("team", "CA", "CERT")


def test_nothing_secret_is_shown(tmp_path: Path) -> None:
    inline = base64.b64encode(b"PRIVATE").decode()

    access = KubeAccess.from_kubeconfig(kubeconfig(tmp_path, {"token": "hush", "client-key-data": inline}))

    assert access.bearer() == "hush"
    assert "hush" not in repr(access)
    assert "PRIVATE" not in repr(access)


@pytest.mark.parametrize(
    ("user", "cluster", "message"),
    [
        ({"exec": {"command": "aws"}}, {}, "through a program"),
        ({}, {"insecure-skip-tls-verify": True}, "certificate-authority-data"),
        ({"client-certificate": "nowhere.pem"}, {}, "nowhere.pem: missing"),
        ({"client-certificate-data": "%%%"}, {}, "not base64"),
        ({}, {"server": "ftp://x"}, "address"),
        ({"as": "somebody", "token": "t"}, {}, "acts as another"),
        ({"token": "t"}, {"server": "http://10.0.0.1"}, "in the clear"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_fix(tmp_path: Path, user, cluster, message) -> None:
    with pytest.raises(KubeAccessError, match=message):
        KubeAccess.from_kubeconfig(kubeconfig(tmp_path, user, **cluster))


def test_a_kubeconfig_without_its_context_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("current-context: gone\n")

    with pytest.raises(KubeAccessError, match="contexts has no 'gone'"):
        KubeAccess.from_kubeconfig(path)


def test_certificates_that_are_none_are_told_as_such(tmp_path: Path) -> None:
    inline = base64.b64encode(b"NOT PEM").decode()
    access = KubeAccess.from_kubeconfig(kubeconfig(tmp_path, {}, **{"certificate-authority-data": inline}))

    with pytest.raises(KubeAccessError, match="certificates for it cannot be used"):
        access.ssl_context()
