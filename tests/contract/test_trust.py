"""Only holders of the release's credentials get through."""

import stat
from pathlib import Path

import pytest
import zmq

from quire_contract.trust import Trust, TrustError, bearer_token, presented_token


def test_credentials_survive_a_folder_that_only_the_owner_reads(tmp_path: Path) -> None:
    trust = Trust.generate()

    trust.write(tmp_path / "trust")

    assert Trust.read(tmp_path / "trust") == trust
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "trust").iterdir()} == {0o600}


def test_credentials_are_not_printed() -> None:
    trust = Trust.generate()

    shown = f"{trust} {trust!r}"

    assert trust.token not in shown
    assert trust.curve_secret.decode() not in shown


def test_only_the_token_is_admitted() -> None:
    trust = Trust.generate()

    verdicts = [trust.admits(value) for value in (trust.token, trust.token + "x", "", None, "ü", "\udc80")]

    assert verdicts == [True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("headers", "bearer", "token"),
    [
        ({}, None, None),
        ({"Authorization": "Bearer abc"}, "abc", "abc"),
        ({"Authorization": "bearer  abc "}, "abc", "abc"),
        ({"Authorization": "Basic abc"}, None, None),
        ({"Authorization": "Bearer "}, None, None),
        ({"Authorization": "Bearer abc", "x-quire-token": "t"}, "abc", "t"),
    ],
)
def test_credentials_are_found_in_headers(headers: dict[str, str], bearer: str | None, token: str | None) -> None:
    assert (bearer_token(headers), presented_token(headers)) == (bearer, token)


def test_what_a_part_sends_is_what_the_other_admits() -> None:
    trust = Trust.generate()

    assert trust.admits(presented_token(trust.headers()))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("token", None, "token: missing"),
        ("token", "short", "at least 16"),
        ("token", "ü" * 20, "not ASCII"),
        ("curve.key", "x" * 10, "curve.key: must hold a Z85"),
        ("curve.key", "~" * 40, "curve.key: must hold a Z85"),
        ("curve.pub", "x" * 40, "curve.pub: is not the public key"),
    ],
)
def test_a_wrong_folder_is_refused_by_file(tmp_path: Path, file: str, content: str | None, words: str) -> None:
    Trust.generate().write(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)

    with pytest.raises(TrustError, match=words):
        Trust.read(tmp_path)


def test_a_server_hears_its_own_and_no_stranger() -> None:
    trust, stranger = Trust.generate(), Trust.generate()
    heard = []

    with zmq.Context() as context, trust.only_trusted_clients(context), context.socket(zmq.PULL) as server:
        trust.secure_server(server)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        with context.socket(zmq.PUSH) as foe, context.socket(zmq.PUSH) as friend:
            foe.linger = friend.linger = 0
            foe.curve_serverkey = trust.curve_public
            foe.curve_publickey, foe.curve_secretkey = stranger.curve_public, stranger.curve_secret
            trust.secure_client(friend)
            for socket, words in ((foe, b"foe"), (friend, b"friend")):
                socket.connect(f"tcp://127.0.0.1:{port}")
                socket.send(words)
            while server.poll(3000 if not heard else 100):
                heard.append(server.recv())

    assert heard == [b"friend"]
