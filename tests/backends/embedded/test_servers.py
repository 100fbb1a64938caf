"""Both bundled servers: started, used, killed, started again."""

import psycopg
import redis


def test_postgres_speaks_sql_and_logical_replication(database_url: str) -> None:
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        row = connection.execute(
            "SELECT current_database(), current_setting('wal_level'), gen_random_uuid()"
        ).fetchone()
    assert row is not None
    assert row[:2] == ("sinas", "logical")


def test_valkey_has_streams_lists_and_messages(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client, client.pubsub() as messages:
        messages.subscribe("news")
        assert client.xadd("stream", {"a": "1"}, id="1-1") == b"1-1"
        client.rpush("list", "x")
        assert client.blpop(["list"], timeout=1) == (b"list", b"x")
        client.publish("news", "hello")
        received = [messages.get_message(timeout=5) for _ in range(2)]
    assert [message["data"] for message in received if message] == [1, b"hello"]
