"""The parts of a benchmark on an accelerator whose time is short."""

import json

import pytest

from benchmarks.accelerator import changes, parts, run
from benchmarks.kernels import kernels
from benchmarks.problems import mlp


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
        "changes of resnet20",
        "mlp, float32",
        "mlp, float32, four copies",
    ]
    assert len(parts(1)) == 13


@pytest.mark.usefixtures("standard_promotion")
def test_smoothout_knows_its_own_parameters_again():
    found = changes(mlp(batch_size=4, width=8), steps=20)
    assert found["steps"] == 20
    assert found["changed"] <= 1  # the program of init may sum in another order


def test_kernels_are_counted_by_the_branch_that_is_taken():
    text = """HloModule jit_train, entry_computation_layout={(f32[3]{0})->f32[3]{0}}

%fused (p: f32[3]) -> f32[3] {
  %p = f32[3]{0} parameter(0)
  ROOT %e = f32[3]{0} exponential(%p)
}

%kept (p.1: (f32[3])) -> (f32[3]) {
  %p.1 = (f32[3]{0}) parameter(0)
  %g.1 = f32[3]{0} get-tuple-element(%p.1), index=0
  %copy.1 = f32[3]{0} copy(%g.1)
  ROOT %t.1 = (f32[3]{0}) tuple(%copy.1)
}

%moved (p.2: (f32[3])) -> (f32[3]) {
  %p.2 = (f32[3]{0}) parameter(0)
  %g.2 = f32[3]{0} get-tuple-element(%p.2), index=0
  %f.1 = f32[3]{0} fusion(%g.2), kind=kLoop, calls=%fused
  %f.2 = (f32[3]{0}, /*index=1*/f32[3]{0}) fusion(%f.1), kind=kLoop, calls=%fused
  %g.3 = f32[3]{0} get-tuple-element(%f.2), index=1
  ROOT %t.2 = (f32[3]{0}) tuple(%g.3)
}

%condition (p.3: (pred[], f32[3])) -> pred[] {
  %p.3 = (pred[], f32[3]{0}) parameter(0)
  ROOT %g.4 = pred[] get-tuple-element(%p.3), index=0
}

%body (p.4: (pred[], f32[3])) -> (pred[], f32[3]) {
  %p.4 = (pred[], f32[3]{0}) parameter(0)
  %g.5 = pred[] get-tuple-element(%p.4), index=0
  %g.6 = f32[3]{0} get-tuple-element(%p.4), index=1
  %t.3 = (f32[3]{0}) tuple(%g.6)
  %c = (f32[3]{0}) conditional(%g.5, %t.3, %t.3), true_computation=%moved, \
false_computation=%kept
  %g.7 = f32[3]{0} get-tuple-element(%c), index=0
  %f.3 = f32[3]{0} fusion(%g.7), kind=kLoop, calls=%fused
  ROOT %t.4 = (pred[], f32[3]{0}) tuple(%g.5, %f.3)
}

ENTRY %main (p.5: (pred[], f32[3])) -> (pred[], f32[3]) {
  %p.5 = (pred[], f32[3]{0}) parameter(0)
  ROOT %w = (pred[], f32[3]{0}) while(%p.5), condition=%condition, body=%body
}
"""
    assert kernels(text) == {"usual": 2, "rare": 3}
