"""The server that other tests rely on."""

from pathlib import Path

import redis
from redis_server import running_redis


def test_a_server_answers_and_is_gone_after_the_block(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
        assert client.get("key") == b"value"

    with redis.Redis.from_url(server.url) as client:
        try:
            client.ping()
            alive = True
        except redis.ConnectionError:
            alive = False

    assert not alive
