"""The parts of a benchmark on an accelerator whose time is short."""

import json

from benchmarks.accelerator import parts, run


def test_parts_are_written_as_they_end_and_none_begins_when_the_time_is_over(tmp_path):
    path = tmp_path / "figures.json"
    seen = []

    def works():
        seen.append(json.loads(path.read_text())["parts"] if path.exists() else {})
        return {"seconds": [1.0]}

    def fails():
        raise MemoryError("of the device")

    results = run({"one": works, "two": fails, "three": works}, path, seconds=60)
    assert seen == [{}, {"one": {"seconds": [1.0]}}]
    assert results["failed"] == {"two": "MemoryError: of the device"}
    assert json.loads(path.read_text()) == results
    assert run({"one": works}, path, seconds=-1)["not_begun"] == ["one"]


def test_every_network_and_every_way_to_run_copies_has_a_part():
    assert list(parts(1))[:4] == [
        "noise of 100 M weights",
        "mlp, float32",
        "mlp, float32, four copies",
        "resnet20, float32",
    ]
    assert len(parts(1)) == 12
