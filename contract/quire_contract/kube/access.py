"""Where the API server is and how to prove who we are: from a pod's service account, or from a kubeconfig file.

This module reads files, and starts the program that a kubeconfig names only where it is handed an environment for it. It must not know
requests. `repr` shows no credentials.
"""

import base64
import binascii
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quire_contract.kube.errors import KubeAccessError
from quire_contract.kube.sign_in import ExecSignIn

__all__ = ["SERVICE_ACCOUNT_FOLDER", "KubeAccess", "KubeAccessError"]

SERVICE_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, kw_only=True)
class KubeAccess:
    """One API server and one identity there."""

    server: str
    """https://host:port, no path behind it."""
    namespace: str
    """Our own namespace, or the kubeconfig's."""
    ca_data: str | None = field(default=None, repr=False)
    """Certificates that the server must be signed by, PEM; None: those that this machine trusts."""
    token_file: Path | None = None
    """Holds a bearer token, which the cluster replaces from time to time."""
    client_cert: Path | None = None
    """Client certificate, PEM."""
    client_key: Path | None = None
    """Its key, PEM."""
    token: str | None = field(default=None, repr=False)
    """A bearer token that never changes; token_file goes first."""
    client_cert_data: str | None = field(default=None, repr=False)
    """Client certificate where it is no file, PEM."""
    client_key_data: str | None = field(default=None, repr=False)
    """Client key where it is no file, PEM."""
    sign_in: ExecSignIn | None = field(default=None, repr=False, compare=False)
    """Gives the token and the client certificate instead."""

    @classmethod
    def in_cluster(
        cls, folder: Path = SERVICE_ACCOUNT_FOLDER, *, host: str = "kubernetes.default.svc", port: str = "443"
    ) -> "KubeAccess":
        """The pod's own identity. `host` and `port` come from KUBERNETES_SERVICE_HOST and _PORT. KubeAccessError outside a cluster."""
        shown_host = f"[{host}]" if ":" in host else host
        return cls(
            server=f"https://{shown_host}:{port}",
            namespace=_text(folder / "namespace").strip(),
            ca_data=_text(folder / "ca.crt"),
            token_file=_existing(folder / "token"),
        )

    @classmethod
    def from_kubeconfig(cls, path: Path, *, environ: Mapping[str, str] | None = None) -> "KubeAccess":
        """What the file's current-context says. KubeAccessError if it cannot be used.

        With `environ` the file may name a program to sign in with, which gets it: only for a file that the user chose.
        """
        try:
            import yaml
        except ModuleNotFoundError:
            raise KubeAccessError(f"{path}: reading a kubeconfig needs the package pyyaml; install it") from None

        try:
            document = yaml.safe_load(_text(path))
        except yaml.YAMLError as error:
            raise KubeAccessError(f"{path}: is not YAML: {error}") from None
        if not isinstance(document, Mapping):
            raise KubeAccessError(f"{path}: is not a kubeconfig file")
        return _Kubeconfig(path, document, environ).access()

    def bearer(self) -> str | None:
        """The token to send now. KubeAccessError if its file cannot be read, or nobody signs in. Blocks where `sign_in` is set."""
        if self.sign_in is not None:
            return self.sign_in.credential().token
        if self.token_file is not None:
            return _text(self.token_file).strip()
        return self.token

    def ssl_context(self) -> ssl.SSLContext | None:
        """How to speak with the server; None without TLS. KubeAccessError if a certificate cannot be used. Blocks like `bearer`."""
        if not self.server.startswith("https://"):
            return None
        try:
            context = ssl.create_default_context(cadata=self.ca_data)
            # Clusters' own authorities are often older than the rules that newer Pythons demand of public ones.
            context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
            self.load_client_certificate(context)
        except (ssl.SSLError, ValueError) as error:
            if isinstance(error, KubeAccessError):
                raise
            raise KubeAccessError(f"{self.server}: the certificates for it cannot be used: {error}") from None
        return context

    def load_client_certificate(self, context: ssl.SSLContext) -> None:
        """Show the present client certificate, if there is one, on connections that `context` makes from now on."""
        signed = None if self.sign_in is None else self.sign_in.credential()
        if signed is not None and signed.client_cert is not None:
            _load_chain(context, signed.client_cert, signed.client_key)
        elif self.client_cert is not None:
            context.load_cert_chain(self.client_cert, self.client_key)
        elif self.client_cert_data is not None:
            _load_chain(context, self.client_cert_data, self.client_key_data)


def _load_chain(context: ssl.SSLContext, certificate_pem: str, key_pem: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:  # mode 0700; OpenSSL reads client keys from files only
        certificate, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
        certificate.write_text(certificate_pem)
        key.write_text(key_pem or "")
        context.load_cert_chain(certificate, key)


class _Kubeconfig:
    """Reads one kubeconfig document; relative paths start at the file's folder."""

    def __init__(self, path: Path, document: Mapping[str, Any], environ: Mapping[str, str] | None) -> None:
        self._path = path
        self._document = document
        self._environ = environ

    def access(self) -> KubeAccess:
        context = self._entry("contexts", self._document.get("current-context"), "context")
        cluster = self._entry("clusters", context.get("cluster"), "cluster")
        user = self._entry("users", context.get("user"), "user") if context.get("user") else {}
        if "as" in user or "as-user-extra" in user:
            # Ignored, it would give more rights than the file means to.
            raise KubeAccessError(f"{self._path}: its user acts as another one (as:), which is not supported")
        if cluster.get("insecure-skip-tls-verify"):
            raise KubeAccessError(
                f"{self._path}: insecure-skip-tls-verify is not supported; give certificate-authority-data"
            )
        server = cluster.get("server")
        if not isinstance(server, str) or not server.startswith(("https://", "http://")):
            raise KubeAccessError(f"{self._path}: the cluster's server must be an http(s):// address")
        sign_in = self._sign_in(user, cluster)
        has_secret = any(user.get(key) for key in ("token", "tokenFile")) or sign_in is not None
        if server.startswith("http://") and has_secret and not _is_loopback(server):
            raise KubeAccessError(f"{self._path}: its user's token would cross the network in the clear; use https://")
        return KubeAccess(
            server=server.rstrip("/"),
            namespace=context.get("namespace") or "default",
            ca_data=self._pem(cluster, "certificate-authority"),
            token_file=self._file(user, "tokenFile"),
            client_cert=self._file(user, "client-certificate"),
            client_key=self._file(user, "client-key"),
            token=user.get("token"),
            client_cert_data=self._data(user, "client-certificate-data"),
            client_key_data=self._data(user, "client-key-data"),
            sign_in=sign_in,
        )

    def _sign_in(self, user: Mapping[str, Any], cluster: Mapping[str, Any]) -> ExecSignIn | None:
        spec = user.get("exec")
        if "auth-provider" in user or (spec is not None and self._environ is None):
            raise KubeAccessError(
                f"{self._path}: its user signs in through a program, which is not started here; use a token or a client certificate"
            )
        if spec is None or self._environ is None:
            return None
        if not isinstance(spec, Mapping):
            raise KubeAccessError(f"{self._path}: exec is not a mapping")
        told = {"server": cluster.get("server")}
        if ca := self._pem(cluster, "certificate-authority"):
            told["certificate-authority-data"] = base64.b64encode(ca.encode()).decode()
        return ExecSignIn(self._path, spec, told, self._environ)

    def _entry(self, section: str, name: Any, key: str) -> Mapping[str, Any]:
        for entry in self._document.get(section) or []:
            if isinstance(entry, Mapping) and entry.get("name") == name and isinstance(entry.get(key), Mapping):
                found: Mapping[str, Any] = entry[key]
                return found
        raise KubeAccessError(
            f"{self._path}: {section} has no {name!r}; set current-context with kubectl config use-context"
        )

    def _file(self, entry: Mapping[str, Any], key: str) -> Path | None:
        name = entry.get(key)
        return _existing(self._path.parent / name) if name else None

    def _data(self, entry: Mapping[str, Any], key: str) -> str | None:
        encoded = entry.get(key)
        if not encoded:
            return None
        try:
            return base64.b64decode(encoded, validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            raise KubeAccessError(f"{self._path}: {key} is not base64 of PEM text") from None

    def _pem(self, entry: Mapping[str, Any], key: str) -> str | None:
        file = self._file(entry, key)
        return self._data(entry, f"{key}-data") if file is None else _text(file)


def _is_loopback(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise KubeAccessError(
            f"{path}: missing; run inside a cluster with a service account, or give a kubeconfig file"
        )
    return path


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise KubeAccessError(
            f"{path}: {error.strerror}; run inside a cluster with a service account, or give a kubeconfig file"
        ) from None
