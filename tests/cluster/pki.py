"""Certificates and kubeconfigs of one control plane, made with openssl.

Must not know who listens where: the names and addresses come as arguments.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

SUBJECTS = {
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "kube-proxy": "/CN=system:kube-proxy",
    "kubelet": "/O=system:nodes/CN=system:node:node",
    "api-server": "/CN=kube-apiserver",
}


@dataclass(frozen=True, kw_only=True)
class Pki:
    """A folder with ca.crt, sa.key, sa.pub and NAME.crt, NAME.key for each of SUBJECTS."""

    folder: Path

    def file(self, name: str) -> Path:
        """One file of it."""
        return self.folder / name

    def kubeconfig(self, user: str, server: str) -> Path:
        """Writes NAME.kubeconfig for a user of SUBJECTS; its path."""
        path = self.folder / f"{user}.kubeconfig"
        cluster = {"server": server, "certificate-authority": str(self.file("ca.crt"))}
        client = {
            "client-certificate": str(self.file(f"{user}.crt")),
            "client-key": str(self.file(f"{user}.key")),
        }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "quire-test", "cluster": cluster}],
            "users": [{"name": user, "user": client}],
            "contexts": [{"name": "quire-test", "context": {"cluster": "quire-test", "user": user}}],
            "current-context": "quire-test",
        }
        path.write_text(json.dumps(document, indent=1))  # JSON is YAML
        return path


def make_pki(folder: Path, *, addresses: list[str], names: list[str]) -> Pki:
    """Makes all certificates, good for ten days; `addresses` and `names` are what servers are called by."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _openssl(folder, "req", "-x509", *_new_key("ca"), "-out", "ca.crt", "-days", "10", "-subj", "/CN=quire-test-ca")
    _openssl(folder, "genrsa", "-out", "sa.key", "2048")
    _openssl(folder, "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
    alternatives = ",".join([*(f"IP:{address}" for address in addresses), *(f"DNS:{name}" for name in names)])
    (folder / "extensions").write_text(f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth,clientAuth\n")
    for name, subject in SUBJECTS.items():
        _openssl(folder, "req", *_new_key(name), "-out", f"{name}.csr", "-subj", subject)
        _openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.crt", "-days", "10", "-extfile", "extensions",
        )  # fmt: skip
    return Pki(folder=folder)


def _new_key(name: str) -> list[str]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, check=True)
