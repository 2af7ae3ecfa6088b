"""TLS both ways: who is let in, and that certificates are renewed without a restart."""

import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from quire_operator.keda.server import ScalerTls, ScalerTlsError

from .wire import KedaClient
from .world import demand, known, ref

NAME = "quire-scaler.llm.svc"


class Authority:
    """A CA in a folder, which signs certificates for the scaler's name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "extensions").write_text(f"subjectAltName=DNS:{NAME}\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._openssl("req", "-x509", *self._key("ca"), "-out", "ca.crt", "-days", "2", "-subj", "/CN=test-ca")

    def sign(self, name: str) -> tuple[Path, Path]:
        """A new certificate and its key."""
        self._openssl("req", *self._key(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.crt", "-days", "2", "-extfile", "extensions",
        )  # fmt: skip
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def _key(self, name: str) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, check=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("tls") / "ours")
    made.sign("scaler")
    made.sign("keda")
    return made


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("tls") / "theirs")
    made.sign("keda")
    made.sign("scaler")
    return made


def tls_of(folder: Path, *, asks: bool) -> ScalerTls:
    return ScalerTls(
        cert=folder / "scaler.crt", key=folder / "scaler.key", client_ca=folder / "ca.crt" if asks else None
    )


def client(port: int, ca: Path, own: Authority | None = None) -> KedaClient:
    """A KEDA that trusts `ca`, with a certificate of `own`."""
    key = None if own is None else (own.folder / "keda.key").read_bytes()
    chain = None if own is None else (own.folder / "keda.crt").read_bytes()
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), private_key=key, certificate_chain=chain)
    return KedaClient(f"127.0.0.1:{port}", credentials, name=NAME)


async def is_let_in(keda: KedaClient) -> bool:
    async with keda:
        try:
            return await keda.is_active(ref(), wait=False)
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            return False


async def test_with_tls_the_answers_are_the_same(serve, source, authority) -> None:
    source.say(known(demand(held=1)))
    _, port = await serve(tls_of(authority.folder, asks=False))

    assert await is_let_in(client(port, authority.ca))


async def test_a_client_that_does_not_know_the_authority_does_not_talk_to_us(
    serve, source, authority, stranger
) -> None:
    source.say(known(demand(held=1)))
    _, port = await serve(tls_of(authority.folder, asks=False))

    assert not await is_let_in(client(port, stranger.ca))


async def test_with_an_authority_for_clients_only_its_own_are_let_in(serve, source, authority, stranger) -> None:
    source.say(known(demand(held=1)))
    _, port = await serve(tls_of(authority.folder, asks=True))

    assert await is_let_in(client(port, authority.ca, authority))
    assert not await is_let_in(client(port, authority.ca, stranger))
    assert not await is_let_in(client(port, authority.ca))


async def test_a_plain_client_is_not_let_in(serve, source, authority) -> None:
    source.say(known(demand(held=1)))
    _, port = await serve(tls_of(authority.folder, asks=False))

    assert not await is_let_in(KedaClient(f"127.0.0.1:{port}"))


async def test_a_renewed_certificate_is_used_without_a_restart(serve, source, authority, stranger, tmp_path) -> None:
    source.say(known(demand(held=1)))
    shutil.copytree(authority.folder, tmp_path / "mounted")
    _, port = await serve(tls_of(tmp_path / "mounted", asks=False))
    assert await is_let_in(client(port, authority.ca))

    (tmp_path / "mounted" / "scaler.key").write_text("half a file")
    assert await is_let_in(client(port, authority.ca))  # the former one holds

    for name in ("scaler.crt", "scaler.key"):
        shutil.copy(stranger.folder / name, tmp_path / "mounted" / name)
    assert await is_let_in(client(port, stranger.ca))
    assert not await is_let_in(client(port, authority.ca))


async def test_files_that_cannot_be_used_are_named(serve, authority, tmp_path) -> None:
    tls = ScalerTls(cert=authority.folder / "scaler.crt", key=tmp_path / "missing.key")

    with pytest.raises(ScalerTlsError, match=r"scaler\.crt, .*missing\.key\) cannot be used: .*No such file"):
        await serve(tls)
