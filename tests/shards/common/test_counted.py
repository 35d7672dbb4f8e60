"""Numbers of things in sentences."""

from shards.common.counted import counted


def test_one_thing_has_no_plural():
    assert [counted(number, "shard") for number in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
    assert [counted(number, "box") for number in (1, 36)] == ["1 box", "36 boxes"]
    assert [counted(number, "image has", "images have") for number in (1, 2)] == ["1 image has", "2 images have"]
