"""Wrong labels: which they are, what they become, and what stays right."""

import numpy as np
import pytest
from command_line import untrained

from smoothout_jax.experiments.data.datasets import DataSettings, load, prepare
from smoothout_jax.experiments.data.parts import Dataset, hold_out, with_wrong_labels
from smoothout_jax.experiments.options import InputError


def labelled(*counts, test=(0,)):
    """Images that show their number, with so many of each class, in a mixed order."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    labels = np.random.default_rng(1).permutation(labels)
    images = np.arange(len(labels), dtype=np.float32)[:, None]
    return Dataset(images, labels, images[: len(test)], np.array(test, int), labels)


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.3, [3, 6, 9, 12]), (0.95, [10, 19, 28, 38])]
)
def test_as_many_labels_of_each_class_become_wrong(kind, fraction, expected):
    """The same each time; so none becomes the class it was."""
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


def test_symmetric_wrong_labels_are_any_other_class_alike():
    data = labelled(3000, 3000, 3000, 3000)
    changed = with_wrong_labels(data, 0.5, "symmetric").train_labels
    for label in range(4):
        became = np.bincount(changed[data.train_labels == label], minlength=4)
        assert became[label] == 1500
        others = np.delete(became, label)
        np.testing.assert_allclose(others, 500, rtol=0.12)


def test_a_pair_flip_makes_labels_the_next_class_and_the_last_the_first():
    data = labelled(10, 10, 10)
    changed = with_wrong_labels(data, 0.4, "pair").train_labels
    wrong = changed != data.train_labels
    assert wrong.sum() == 12
    np.testing.assert_array_equal(
        changed[wrong], np.array([1, 2, 0])[data.train_labels[wrong]]
    )


def test_classes_are_counted_with_those_of_the_test_images():
    """The next class after the last training label may be one of them."""
    data = labelled(10, 10, test=(0, 1, 2))
    changed = with_wrong_labels(data, 0.5, "pair").train_labels
    assert set(changed[data.train_labels == 1]) == {1, 2}


SPLIT = {"train_size": 400, "validation_size": 100, "watch_size": 100}


@pytest.fixture(scope="module")
def whole():
    """The digits as they are, before any is held out."""
    return load("digits", None, 400)


@pytest.fixture(scope="module")
def true_label(whole):
    """The label of each training image, by its bytes."""
    pairs = zip(whole.train_images, whole.train_labels, strict=True)
    return {image.tobytes(): label for image, label in pairs}


@pytest.fixture(scope="module")
def split():
    return prepare(DataSettings(label_noise=0.4, **SPLIT))


def true_of(images, true_label):
    return np.array([true_label[image.tobytes()] for image in images])


def test_held_out_and_watched_labels_are_wrong_in_the_same_proportion(
    split, true_label
):
    for images, labels in (
        (split.train_images, split.train_labels),
        (split.test_images, split.test_labels),
        split.watched,
    ):
        wrong = labels != true_of(images, true_label)
        assert wrong.mean() == pytest.approx(0.4, abs=0.08)
    expected = true_of(split.train_images, true_label)
    np.testing.assert_array_equal(split.true_labels, expected)
    parts = split.train_labels, split.test_labels, split.watched.labels
    assert [len(each) for each in parts] == [200, 100, 100]


def test_test_labels_stay_right(whole):
    wrong = prepare(DataSettings(train_size=400, watch_size=100, label_noise=0.4))
    np.testing.assert_array_equal(wrong.test_labels, whole.test_labels)
    np.testing.assert_array_equal(wrong.test_images, whole.test_images)


def test_without_wrong_labels_all_is_as_it_was(whole):
    data = prepare(DataSettings(train_size=400, label_noise_kind="pair"))
    assert data.watched is None
    for ours, theirs in zip(data[:-1], whole[:-1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(whole.true_labels, whole.train_labels)


def test_watched_images_are_taken_out_of_the_training_images(whole):
    data = prepare(DataSettings(**SPLIT))

    def images(array):
        return {image.tobytes() for image in array}

    parts = [
        images(array)
        for array in (data.train_images, data.test_images, data.watched.images)
    ]
    assert [len(part) for part in parts] == [200, 100, 100]
    assert set.union(*parts) == images(whole.train_images)
    assert np.ptp(np.bincount(data.watched.labels)) <= 2


def test_watched_labels_go_with_their_images(whole, true_label):
    alone = prepare(DataSettings(train_size=400, watch_size=100))
    for images, labels in (alone.watched, (alone.train_images, alone.train_labels)):
        np.testing.assert_array_equal(labels, true_of(images, true_label))


@pytest.mark.parametrize("name", ["watch_size", "validation_size"])
def test_images_held_out_must_leave_some(name):
    with pytest.raises(InputError, match=f"{name}=20 leaves none of the 20 training"):
        hold_out(labelled(10, 10), **{name: 20})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--label-noise 1", "label_noise must be in [0, 1), got 1.0"),
        ("--label-noise -0.1", "label_noise must be in [0, 1), got -0.1"),
        ("--label-noise nan", "label_noise must be in [0, 1), got nan"),
        ("--watch-size -1", "watch_size must be at least 0, got -1"),
        ("--watch-size 5", "watch_size=5 must leave at least 10 of 500 training"),
        (
            "--validation-size 200 --watch-size 250",
            "batch_size=100 is larger than train_size=500 less validation_size=200 less"
            " watch_size=250",
        ),
        ("--label-smoothing 1", "label_smoothing must be in [0, 1), got 1.0"),
        ("--ema-decay 1", "ema_decay must be in [0, 1), got 1.0"),
        ("--dropout 1", "dropout must be in [0, 1), got 1.0"),
        ("--network resnet --dropout 0.1", "dropout does not apply to resnet"),
    ],
)
def test_bad_values_are_refused_by_name(options, message, monkeypatch, capsys):
    assert message in untrained(monkeypatch, capsys, "train", *options.split())
