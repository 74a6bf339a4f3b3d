"""Wrong labels and images held out: which they are, and what stays as it was."""

import numpy as np
import pytest

from smoothout_jax.experiments.data.datasets import DataSettings, load, prepare
from smoothout_jax.experiments.data.parts import Dataset, hold_out, with_wrong_labels
from smoothout_jax.experiments.options import InputError


def labelled(*counts, test=(0,)):
    """Images that are their own index, with these counts of each class, shuffled."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    labels = np.random.default_rng(1).permutation(labels)
    images = np.arange(len(labels), dtype=np.float32)[:, None]
    return Dataset(images, labels, images[: len(test)], np.array(test, int), labels)


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.3, [3, 6, 9, 12]), (0.95, [10, 19, 28, 38])]
)
def test_the_same_fraction_of_each_class_becomes_wrong(kind, fraction, expected):
    """Each time the same ones."""
    data = labelled(10, 20, 30, 40)
    changed, again = (with_wrong_labels(data, fraction, kind) for _ in range(2))
    wrong = changed.train_labels != data.train_labels
    np.testing.assert_array_equal(np.bincount(data.train_labels[wrong]), expected)
    assert set(changed.train_labels) <= {0, 1, 2, 3}
    assert changed.train_labels.dtype == np.int32
    np.testing.assert_array_equal(changed.true_labels, data.train_labels)
    np.testing.assert_array_equal(changed.train_images, data.train_images)
    np.testing.assert_array_equal(changed.train_labels, again.train_labels)
    assert with_wrong_labels(data, 0.0, kind) is data


def test_symmetric_wrong_labels_are_spread_evenly_over_the_other_classes():
    data = labelled(3000, 3000, 3000, 3000)
    changed = with_wrong_labels(data, 0.5, "symmetric").train_labels
    for label in range(4):
        became = np.bincount(changed[data.train_labels == label], minlength=4)
        assert became[label] == 1500
        others = np.delete(became, label)
        np.testing.assert_allclose(others, 500, rtol=0.12)


def test_a_pair_flip_makes_labels_the_next_class_cyclically():
    data = labelled(10, 10, 10)
    changed = with_wrong_labels(data, 0.4, "pair").train_labels
    wrong = changed != data.train_labels
    assert wrong.sum() == 12
    np.testing.assert_array_equal(
        changed[wrong], np.array([1, 2, 0])[data.train_labels[wrong]]
    )


def test_classes_of_the_test_images_count():
    data = labelled(10, 10, test=(0, 1, 2))
    changed = with_wrong_labels(data, 0.5, "pair").train_labels
    assert set(changed[data.train_labels == 1]) == {1, 2}


def images(array):
    return {image.tobytes() for image in array}


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_parts_held_out_are_disjoint_and_have_wrong_labels_in_proportion(noise):
    whole = load("digits", None, 400)
    pairs = zip(whole.train_images, whole.train_labels, strict=True)
    label_of = {image.tobytes(): label for image, label in pairs}
    split = {"train_size": 400, "validation_size": 100, "watch_size": 100}
    data = prepare(DataSettings(label_noise=noise, **split))
    parts = [
        (data.train_images, data.train_labels),
        (data.test_images, data.test_labels),
        data.watched[:2],
    ]
    assert [len(images(part)) for part, _ in parts] == [200, 100, 100]
    assert set.union(*(images(part) for part, _ in parts)) == label_of.keys()
    for part, labels in parts:
        right = np.array([label_of[image.tobytes()] for image in part])
        assert (labels != right).mean() == pytest.approx(noise, abs=0.2 * noise)
        assert noise or np.ptp(np.bincount(labels)) <= len(part) // 50
    expected = [label_of[image.tobytes()] for image in data.train_images]
    np.testing.assert_array_equal(data.true_labels, expected)


def test_test_labels_and_what_is_not_asked_for_stay_as_they_are():
    whole = load("digits", None, 400)
    wrong = prepare(DataSettings(train_size=400, watch_size=100, label_noise=0.4))
    np.testing.assert_array_equal(wrong.test_labels, whole.test_labels)
    np.testing.assert_array_equal(wrong.test_images, whole.test_images)
    data = prepare(DataSettings(train_size=400, label_noise_kind="pair"))
    assert data.watched is data.heldout is None
    for name in ("train_images", "train_labels", "true_labels", "test_images"):
        np.testing.assert_array_equal(getattr(data, name), getattr(whole, name))
    np.testing.assert_array_equal(whole.true_labels, whole.train_labels)


@pytest.mark.parametrize("name", ["watch_size", "validation_size"])
def test_images_held_out_must_leave_some(name):
    with pytest.raises(InputError, match=f"{name}=20 leaves none of the 20 training"):
        hold_out(labelled(10, 10), **{name: 20})
