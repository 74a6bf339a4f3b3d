"""The parts of a benchmark on an accelerator whose time is short."""

import json

import pytest

from benchmarks.accelerator import parts, run
from benchmarks.kernels import kernels


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
    assert list(parts(1))[:3] == [
        "noise of 100 M weights",
        "mlp, float32",
        "mlp, float32, four copies",
    ]
    assert len(parts(1)) == 12


PROGRAM = """HloModule jit_train, entry_computation_layout={(f32[3]{0})->f32[3]{0}}

%fused (p: f32[3]) -> f32[3] {
  %p = f32[3]{0} parameter(0)
  ROOT %e = f32[3]{0} exponential(%p)
}

%condition (p.3: (pred[], f32[3])) -> pred[] {
  %p.3 = (pred[], f32[3]{0}) parameter(0)
  ROOT %g.4 = pred[] get-tuple-element(%p.3), index=0
}

%body (p.4: (pred[], f32[3])) -> (pred[], f32[3]) {
  %p.4 = (pred[], f32[3]{0}) parameter(0)
  %g.5 = pred[] get-tuple-element(%p.4), index=0
  %g.6 = f32[3]{0} get-tuple-element(%p.4), index=1
  %f.2 = (f32[3]{0}, /*index=1*/f32[3]{0}) fusion(%g.6), kind=kLoop, calls=%fused
  %g.7 = f32[3]{0} get-tuple-element(%f.2), index=1
  %f.3 = f32[3]{0} fusion(%g.7), kind=kLoop, calls=%fused
  ROOT %t.4 = (pred[], f32[3]{0}) tuple(%g.5, %f.3)
}

ENTRY %main (p.5: (pred[], f32[3])) -> (pred[], f32[3]) {
  %p.5 = (pred[], f32[3]{0}) parameter(0)
  ROOT %w = (pred[], f32[3]{0}) while(%p.5), condition=%condition, body=%body
}
"""


def test_kernels_of_a_turn_of_the_loop_are_counted():
    assert kernels(PROGRAM) == 2


def test_a_loop_of_which_turns_differ_is_refused():
    branches = "f32[3]{0} conditional(%g.5, %g.7, %g.7), true_computation=%fused"
    with pytest.raises(ValueError, match="branches"):
        kernels(PROGRAM.replace("f32[3]{0} fusion(%g.7)", branches))
