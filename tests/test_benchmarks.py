"""The parts of a benchmark on an accelerator whose time is short."""

import time

from benchmarks.accelerator import PARTS, run


def test_parts_are_given_as_they_end_and_none_begins_when_the_time_is_over():
    def works(rounds):
        return {"seconds": [1.0] * rounds}

    def fails(rounds):
        raise MemoryError("of the device")

    found = run({"one": works, "two": fails, "three": works}, 1, minutes=1)
    first = next(found)
    assert first["parts"] == {"one": {"seconds": [1.0]}}
    assert first["not_begun"] == ["two", "three"]
    *_, last = found
    assert last["failed"] == {"two": "MemoryError: of the device"}
    assert list(last["parts"]) == ["one", "three"]
    assert list(run({"one": works}, 1, minutes=-1)) == []


def test_no_part_begins_that_would_outlast_the_time_if_it_took_the_longest():
    def takes_long(rounds):
        time.sleep(0.3)
        return {}

    (last,) = run({"one": takes_long, "two": takes_long}, 1, minutes=0.4 / 60)
    assert list(last["parts"]) == ["one"]
    assert last["not_begun"] == ["two"]


def test_every_network_and_every_way_to_run_copies_has_a_part():
    assert list(PARTS)[:3] == [
        "noise of 100 M weights",
        "mlp, float32",
        "mlp, float32, four copies",
    ]
    assert len(PARTS) == 12
