"""Measures of harm: wrong labels learned, and accuracy lost to rounding and noise."""

import itertools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smoothout_jax import uniform
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.data.datasets import load
from smoothout_jax.experiments.training.outcome import (
    accuracy_lost,
    memorised,
    rounded,
)
from smoothout_jax.experiments.training.task import Task

pytestmark = pytest.mark.usefixtures("standard_promotion")


def kernel(*shape):
    return jax.random.normal(jax.random.key(3), shape)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(800, 4), (3, 3, 90, 4)])
def test_each_filter_is_rounded_to_equal_levels(bits, shape):
    """Symmetric about zero, so one of the 2 ** bits levels is unused."""
    weights = np.asarray(kernel(*shape)) * np.array([0.1, 1, 3, 100], np.float32)
    found = np.asarray(rounded({"kernel": weights}, bits)["kernel"])
    filters = zip(found.reshape(-1, 4).T, weights.reshape(-1, 4).T, strict=True)
    for ours, before in filters:
        largest = np.abs(before).max()
        levels = np.unique(ours)
        assert len(levels) <= 2**bits - 1
        assert np.abs(ours).max() == pytest.approx(largest, rel=1e-6)
        step = largest / (2 ** (bits - 1) - 1)
        np.testing.assert_allclose(levels / step, np.round(levels / step), atol=1e-4)
        error = np.abs(ours - before).max()
        assert 0.4 * step < error <= 0.5001 * step
    assert len(np.unique(found[..., 0])) > 2 ** (bits - 1)


def test_biases_and_scales_stay_as_they_are():
    """Including those of attention, which have an axis for the heads."""
    params = {
        "Dense_0": {"bias": kernel(7), "kernel": kernel(7, 2)},
        "BatchNorm_0": {"scale": kernel(7), "bias": kernel(7)},
        "attention": {"query": {"bias": kernel(2, 3), "kernel": kernel(5, 2, 3)}},
    }
    found = rounded(params, 4)
    for layer in ("Dense_0", "BatchNorm_0"):
        for name in params[layer].keys() - {"kernel"}:
            np.testing.assert_array_equal(found[layer][name], params[layer][name])
    query, before = found["attention"]["query"], params["attention"]["query"]
    np.testing.assert_array_equal(query["bias"], before["bias"])
    largest = jnp.abs(before["kernel"]).max(0)
    np.testing.assert_allclose(jnp.abs(query["kernel"]).max(0), largest, rtol=1e-6)


def test_filters_of_zeros_stay():
    found = rounded({"kernel": jnp.array([[0.0, 1.0], [0.0, 0.3]])}, 8)["kernel"]
    np.testing.assert_array_equal(found[:, 0], [0, 0])
    assert bool(jnp.isfinite(found).all())


@pytest.fixture(scope="module")
def task():
    return Task(
        TrainSettings(
            hidden_sizes=(100,), train_size=60, batch_size=20, label_noise=0.4
        )
    )


def interpolation(task, labels):
    """A network made by hand that predicts these labels for the training images."""
    params, _ = task.init(jax.random.key(0))
    hidden, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    images = task.data.train_images.reshape(60, -1)
    units = np.maximum(images @ np.asarray(hidden["kernel"]), 0)
    targets = np.eye(10)[labels]
    weights = np.linalg.lstsq(units, targets, rcond=None)[0]
    last = {"kernel": jnp.asarray(weights, jnp.float32), "bias": jnp.zeros(10)}
    return {"params": {"Dense_0": hidden, "Dense_1": last}}


@pytest.mark.parametrize("number", [0, 6, None])
def test_memorised_is_the_fraction_of_the_wrong_labels_predicted(number, task):
    data = task.data
    (wrong,) = np.nonzero(data.train_labels != data.true_labels)
    assert len(wrong) == pytest.approx(24, abs=6)
    labels = data.true_labels.copy()
    labels[wrong[:number]] = data.train_labels[wrong[:number]]
    found = memorised(task, interpolation(task, labels), {})
    expected = 1 if number is None else number / len(wrong)
    assert found == pytest.approx(expected, rel=1e-6)


def test_without_wrong_labels_nothing_is_memorised(task):
    plain = Task(task.settings, data=load("digits", Path(), 60))
    assert np.isnan(memorised(plain, task.init(jax.random.key(0))[0], {}))


def accuracy_of(task, params):
    layers = jax.tree.map(np.asarray, params["params"])
    hidden, last = layers["Dense_0"], layers["Dense_1"]
    images = task.data.test_images.reshape(-1, 64)
    units = np.maximum(images @ hidden["kernel"] + hidden["bias"], 0)
    predicted = (units @ last["kernel"] + last["bias"]).argmax(-1)
    return float((predicted == task.data.test_labels).mean())


def test_rounding_and_noise_cost_accuracy(task):
    """Noise that cancels all weights leaves the first class."""
    params = interpolation(task, task.data.true_labels)
    whole = accuracy_of(task, params)
    assert whole > 0.5

    def opposite(key, params, step):
        del key, step
        return jax.tree.map(jnp.negative, params)

    lost = accuracy_lost(task, params, {}, opposite)
    first = (task.data.test_labels == 0).mean()
    assert lost["lost_under_noise"] == pytest.approx(whole - first, abs=1e-5)
    for bits in (4, 8):
        expected = whole - accuracy_of(task, rounded(params, bits))
        assert lost[f"lost_at_{bits}_bits"] == pytest.approx(expected, abs=1e-5)
    assert abs(lost["lost_at_4_bits"]) > abs(lost["lost_at_8_bits"])


def test_the_samples_of_noise_differ(task):
    params = interpolation(task, task.data.true_labels)
    drawn = []

    def noise(key, params, step):
        drawn.append(uniform(1.0)(key, params, step))
        return optax.tree.zeros_like(params)

    accuracy_lost(task, params, {}, noise)
    assert len(drawn) == 3
    kernels = [each["params"]["Dense_0"]["kernel"] for each in drawn]
    assert not any(
        np.allclose(one, other) for one, other in itertools.pairwise(kernels)
    )
    chex.assert_tree_all_finite(drawn)
