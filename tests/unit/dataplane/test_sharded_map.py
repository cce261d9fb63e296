"""A mapping of which changed copies share what they did not change."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.domain.sharded_map import MAX_SHARD_ENTRIES, MapEdition, ShardedMap


class Name(str):
    """A key with a hash of its own choice: its text is a number, of which the last bits count."""

    __slots__ = ()

    def __hash__(self) -> int:
        return int(self) % 64


def edited(
    origin: ShardedMap[int, str], changes: Sequence[tuple[int, str | None]]
) -> ShardedMap[int, str]:
    edition = MapEdition(origin)
    for key, value in changes:
        if value is None:
            edition.discard(key)
        else:
            edition.put(key, value)
    return edition.done()


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.none() | st.text(max_size=1)))))
@settings(max_examples=60, deadline=None)
def test_every_edition_is_a_dict_that_was_copied_and_changed(
    editions: list[list[tuple[int, str | None]]],
) -> None:
    maps: list[tuple[ShardedMap[int, str], dict[int, str]]] = [(ShardedMap(), {})]
    for changes in editions:
        origin, model = maps[-1]
        after = dict(model)
        for key, value in changes:
            after.pop(key, None)
            if value is not None:
                after[key] = value
        maps.append((edited(origin, changes), after))

    for found, model in maps:
        assert found == model
        assert len(found) == len(model)
        assert set(found.items()) == set(model.items())
        assert sorted(found.values()) == sorted(model.values())
        assert {**found} == model
        assert [found.get(key, "none") for key in range(11)] == [
            model.get(key, "none") for key in range(11)
        ]
        assert [key in found for key in range(11)] == [key in model for key in range(11)]


def test_a_map_that_grows_keeps_all_and_divides_itself() -> None:
    keys = [f"key {number}" for number in range(5 * MAX_SHARD_ENTRIES)]
    grown = ShardedMap((key, number) for number, key in enumerate(keys))

    parts = list(grown.parts())

    assert len(grown) == len(keys) == sum(map(len, parts))
    assert len(parts) > 5
    assert max(map(len, parts)) <= MAX_SHARD_ENTRIES
    assert all(grown[key] == number for number, key in enumerate(keys))
    assert sorted(grown) == sorted(keys)


def test_one_entry_more_copies_one_shard() -> None:
    origin = ShardedMap((number, number) for number in range(10 * MAX_SHARD_ENTRIES))
    edition = MapEdition(origin)
    edition.put(-5, 1)
    changed = edition.done()

    before, after = list(origin.parts()), list(changed.parts())

    assert sum(one is not other for one, other in zip(before, after, strict=True)) == 1
    assert -5 not in origin
    assert changed[-5] == 1


def test_shards_that_look_at_fewer_bits_than_others_are_found_at_each_of_their_places() -> None:
    # Three quarters of all hashes end alike: one side divides itself again and again.
    crowded = [Name(number * 64) for number in range(MAX_SHARD_ENTRIES + 10)]
    others = [Name(number * 64 + number % 64) for number in range(3 * MAX_SHARD_ENTRIES)]
    origin = ShardedMap((each, "before") for each in (*crowded, *others))
    edition = MapEdition(origin)
    for each in others:
        edition.put(each, "after")
    changed = edition.done()

    assert len(changed) == len(origin) == len({*crowded, *others})
    assert all(changed[each] == "after" for each in others)
    assert all(origin[each] == "before" for each in others)
    assert sum(map(len, changed.parts())) == len(changed)


def test_hashes_that_are_all_alike_are_found_too() -> None:
    keys = [Name(number * 64) for number in range(2 * MAX_SHARD_ENTRIES)]
    alike = ShardedMap((each, int(each)) for each in keys)

    assert len(alike) == len(keys)
    assert all(alike[each] == int(each) for each in keys)


def test_what_was_not_changed_is_the_same_object() -> None:
    origin = ShardedMap({"a": 1}.items())
    edition = MapEdition(origin)
    edition.discard("b")

    assert edition.done() is origin


def test_room_that_is_made_beforehand_changes_nothing_but_the_work() -> None:
    edition: MapEdition[int, int] = MapEdition(ShardedMap(), expected=10_000)
    for number in range(10_000):
        edition.put(number, -number)
    made = edition.done()

    assert made == {number: -number for number in range(10_000)}
    assert max(map(len, made.parts())) <= MAX_SHARD_ENTRIES
    assert len(list(made.parts())) <= 128
