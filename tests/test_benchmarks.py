"""The parts of a benchmark on an accelerator whose time is short."""

import pytest

from benchmarks.accelerator import PARTS, run
from benchmarks.kernels import kernels


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


def test_every_network_and_every_way_to_run_copies_has_a_part():
    assert list(PARTS)[:3] == [
        "noise of 100 M weights",
        "mlp, float32",
        "mlp, float32, four copies",
    ]
    assert len(PARTS) == 12


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


def test_kernels_of_an_iteration_of_the_loop_are_counted():
    assert kernels(PROGRAM) == 2


def test_a_loop_with_branches_is_refused():
    branches = "f32[3]{0} conditional(%g.5, %g.7, %g.7), true_computation=%fused"
    with pytest.raises(ValueError, match="branches"):
        kernels(PROGRAM.replace("f32[3]{0} fusion(%g.7)", branches))
