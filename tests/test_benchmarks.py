"""Benchmarks time what they say, and keep the figures of each part."""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.accelerator import PARTS, run
from benchmarks.contenders import (
    CONTENDERS,
    LEARNING_RATE,
    RADIUS,
    RELATIVE_RADIUS,
    RHO,
)
from benchmarks.harness import command, count
from smoothout_jax import smoothout_eval_params
from smoothout_jax.loss_rise import START


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


def test_no_part_begins_that_may_take_as_long_as_the_longest():
    todo = {"long": lambda rounds: time.sleep(0.3) or {}, "next": lambda rounds: {}}
    *_, last = run(todo, 1, minutes=0.5 / 60)
    assert last["not_begun"] == ["next"]


def test_figures_are_written_after_each_part(tmp_path, monkeypatch):
    path, seen = tmp_path / "new" / "figures.json", []

    def parts(rounds):
        yield {"first": rounds}
        seen.append(json.loads(path.read_text()))
        yield {"first": rounds, "second": 2}

    monkeypatch.setattr(sys, "argv", ["benchmark", "--output", str(path)])
    command("figures", "Two parts.", parts, rounds={"type": count, "default": 3})
    assert seen[0]["first"] == 3
    assert "second" not in seen[0]
    assert json.loads(path.read_text())["second"] == 2


@pytest.fixture(scope="module")
def displaced():
    """By contender: its second gradient is taken here, less where its weights are."""

    def loss(params, batch):  # whose gradient is the weights
        return 0.5 * jnp.sum(params["kernel"] ** 2)

    def of(name):
        step = jax.jit(CONTENDERS[name].step(loss))
        states = [step(CONTENDERS[name].init({"kernel": WEIGHTS}, KEY), jnp.ones(8))]
        states.append(step(states[0], jnp.ones(8)))
        if name in ("smoothout", "held"):
            states = [(smoothout_eval_params(rest, p), rest) for p, rest in states]
        (before, _), (after, _) = states
        moved = optax.tree.sub(before, after)["kernel"]
        return moved / LEARNING_RATE - before["kernel"]

    return {name: np.asarray(of(name)) for name in CONTENDERS}


KEY = jax.random.key(0)
WEIGHTS = 0.1 * jax.random.normal(KEY, (400, 50))


def test_peers_take_their_gradients_where_they_say(displaced):
    np.testing.assert_allclose(displaced["plain"], 0, atol=1e-4)
    climb = WEIGHTS / jnp.linalg.norm(WEIGHTS)
    np.testing.assert_allclose(displaced["sam"], RHO * climb, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "copies"),
    [("naive", 1), ("uniform", 1), ("smoothout", 1), ("split", 4), ("whole", 4)],
)
def test_uniform_noise_is_averaged_over_as_many_copies_as_named(
    name, copies, displaced
):
    assert np.abs(displaced[name]).max() <= 1.01 * RADIUS
    spread = RADIUS / (3 * copies) ** 0.5
    assert displaced[name].std() == pytest.approx(spread, rel=0.03)


@pytest.mark.parametrize(("name", "scale"), [("filter", 1.0), ("held", START)])
def test_relative_noise_has_a_share_of_each_filter_s_norm(name, scale, displaced):
    norms = np.linalg.norm(displaced[name], axis=0) / np.linalg.norm(WEIGHTS, axis=0)
    np.testing.assert_allclose(norms, scale * RELATIVE_RADIUS, rtol=0.02)


def test_every_network_and_every_way_to_run_copies_has_a_part():
    assert list(PARTS)[:3] == [
        "noise of 100 M weights",
        "mlp, float32",
        "mlp, float32, four copies",
    ]
    assert len(PARTS) == 12
