"""What operators may write into `REDIS_URL`."""

import os

import pytest

from dataplane.limits.redis_urls import RedisMode, RedisUrl, read_redis_url
from dataplane.limits.sentinel import SentinelTarget
from dataplane.limits.topology import targets_at
from dataplane.settings import SettingsError, read_settings


def test_one_server_is_what_it_says() -> None:
    url = read_redis_url("rediss://me:p%40ss@redis.example:7000/3?ssl_ca_certs=/ca.pem")

    assert (url.addresses, url.db, url.is_cluster) == ((("redis.example", 7000),), 3, False)
    assert url.server(("10.0.0.1", 1)) == "rediss://me:p%40ss@10.0.0.1:1/3?ssl_ca_certs=%2Fca.pem"


def test_ports_have_their_usual_values() -> None:
    assert read_redis_url("redis://one").addresses == (("one", 6379),)
    assert read_redis_url("redis+sentinel://one/p").addresses == (("one", 26379),)


def test_several_servers_are_nodes_of_a_cluster() -> None:
    url = read_redis_url("redis://:p@a:1,[::1]:2,c")

    assert url.is_cluster
    assert url.addresses == (("a", 1), ("::1", 2), ("c", 6379))
    assert url.server(("::1", 2)) == "redis://:p@[::1]:2/0"


def test_sentinels_and_servers_have_passwords_of_their_own() -> None:
    url = read_redis_url(
        "rediss+sentinel://u:server@a,b:2/main/4"
        "?sentinel_password=w%2Ft%3F&sentinel_username=s&ssl_ca_certs=ca"
    )

    assert (url.primary_name, url.db) == ("main", 4)
    assert url.server(("x", 1)) == "rediss://u:server@x:1/4?ssl_ca_certs=ca"
    assert url.sentinel(("a", 26379)) == "rediss://s:w%2Ft%3F@a:26379/0?ssl_ca_certs=ca"
    assert read_redis_url("redis+sentinel://:p@a/m").sentinel(("a", 1)) == "redis://a:1/0"


def test_no_password_shows_in_a_log() -> None:
    url = read_redis_url("redis+sentinel://:se1@a/m?sentinel_password=se2")
    assert "se1" not in repr(url)
    assert "se2" not in repr(url)
    assert "se1" not in repr(targets_at("redis://:se1@a,b", RedisMode.ORG)("g"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://secret@a",
        "redis:secret",
        "redis://:secret@",
        "redis://:secret@a,,b",
        "redis://:secret@a:port",
        "redis://:secret@a:70000",
        "redis://:secret@[::1",
        "redis://:secret@a/db",
        "redis://:secret@a/1/2",
        "redis://:secret@a,b/1",
        "redis+sentinel://:secret@a",
        "redis+sentinel://:secret@a/",
        "redis+sentinel://:secret@a/main/x",
        "redis+sentinel://:secret@a/main?sentinel_pasword=secret",
        "redis+sentinel://:secret@a/main?sentinel_username=secret",
    ],
)
def test_what_is_no_such_url_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        read_redis_url(text)
    assert "secret" not in str(refused.value)


def test_a_target_of_sentinels_wants_sentinels() -> None:
    with pytest.raises(ValueError, match="no sentinels"):
        SentinelTarget(RedisUrl("redis", "", (("a", 1),)))


@pytest.mark.parametrize(
    ("text", "mode", "kind"),
    [
        ("redis://a", RedisMode.SINGLE, "FixedTarget"),
        ("redis://a", RedisMode.ORG, "SlotTarget"),
        # All counters are on the shard that has their tag.
        ("redis://a,b", RedisMode.SINGLE, "SlotTarget"),
        ("unix:///run/redis.sock", RedisMode.ORG, "FixedTarget"),
        ("redis+sentinel://a/m", RedisMode.SINGLE, "SentinelTarget"),
        ("redis+sentinel://a/m", RedisMode.ORG, "SentinelTarget"),
    ],
)
def test_each_form_has_its_way_to_the_counters(text: str, mode: RedisMode, kind: str) -> None:
    assert type(targets_at(text, mode)("g")).__name__ == kind


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [each for each in os.environ if each.startswith("TOLLKEEPER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TOLLKEEPER_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("TOLLKEEPER_JOIN_TOKEN", "j" * 32)
    return monkeypatch


def test_a_data_plane_counts_under_one_tag_unless_it_is_told(
    environment: pytest.MonkeyPatch,
) -> None:
    assert read_settings().redis_mode is RedisMode.SINGLE

    environment.setenv("TOLLKEEPER_REDIS_MODE", "org")
    assert read_settings().redis_mode is RedisMode.ORG


@pytest.mark.parametrize(
    ("name", "value"), [("REDIS_MODE", "shards"), ("REDIS_URL", "redis+sentinel://:hush@a")]
)
def test_a_bad_setting_stops_the_start_with_a_line_that_names_it(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(f"TOLLKEEPER_{name}", value)

    with pytest.raises(SettingsError) as refused:
        read_settings()

    assert f"TOLLKEEPER_{name}: " in str(refused.value)
    assert "hush" not in str(refused.value)
