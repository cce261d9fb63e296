import json
import socket

from tests.dev.conftest import StartDev
from tests.dev.running import RunningDev


def stopped(dev: RunningDev) -> dict[str, object]:
    """Wait until it is ready, stop it and return its JSON line."""
    ready = dev.ready()
    dev.interrupt()
    assert dev.wait() == 0
    return ready


def test_a_second_start_keeps_the_key_and_the_mock_and_changes_nothing(start_dev: StartDev) -> None:
    first = stopped(start_dev())

    again = start_dev()
    second = stopped(again)

    kept = ("api_key", "admin_token", "mock_url")
    assert [second[name] for name in kept] == [first[name] for name in kept]
    assert not [event for event in again.events() if event.split()[0] not in ("start", "stop")]
    seeded = json.loads((again.data_dir / "seeded").read_text(encoding="utf-8"))
    assert (seeded["is_complete"], seeded["mock_url"]) == (True, first["mock_url"])


def test_a_start_that_died_while_seeding_is_finished_by_the_next(start_dev: StartDev) -> None:
    dying = start_dev(environ={"STANDIN_SEED_FAILS": "1"})
    dying.wait()

    next_one = start_dev()

    assert next_one.ready()["api_key"].startswith("tk_live_")
    assert "seed" in [event.split()[0] for event in next_one.events()]


def test_the_configuration_follows_a_mock_whose_port_was_taken_meanwhile(
    start_dev: StartDev,
) -> None:
    first = stopped(start_dev())
    former_url = str(first["mock_url"])

    with socket.create_server(("127.0.0.1", int(former_url.rpartition(":")[2]))):
        dev = start_dev()
        second = stopped(dev)

    assert second["mock_url"] != former_url
    assert second["api_key"] == first["api_key"]
    assert f"move {former_url} {second['mock_url']}" in dev.log.read_text(encoding="utf-8")


def test_a_lost_key_is_replaced_without_seeding_again(start_dev: StartDev) -> None:
    dev = start_dev()
    first = stopped(dev)
    (dev.data_dir / "credentials.json").unlink()

    again = start_dev()
    second = stopped(again)

    assert second["api_key"] != first["api_key"]
    verbs = [event.split()[0] for event in again.events()]
    assert "mint" in verbs
    assert "seed" not in verbs


def test_another_database_is_seeded_of_its_own(start_dev: StartDev) -> None:
    first = stopped(start_dev())

    dev = start_dev(environ={"TOLLKEEPER_DATABASE_URL": "postgresql+asyncpg://u:p@127.0.0.1/x"})
    second = stopped(dev)

    assert second["api_key"] != first["api_key"]
    assert "seed" in [event.split()[0] for event in dev.events()]
    assert "u:p@" not in (dev.data_dir / "seeded").read_text(encoding="utf-8")


def test_a_database_that_was_removed_is_seeded_anew(start_dev: StartDev) -> None:
    first_dev = start_dev()
    first = stopped(first_dev)
    (first_dev.data_dir / "controlplane" / "controlplane.sqlite").unlink()

    second = stopped(start_dev())

    assert second["api_key"] != first["api_key"]
