"""Folders of images: found, read, checked, trained on and classified."""

import json
import shutil

import jax
import numpy as np
import pytest
from command_line import content, refused, run
from PIL import Image

import smoothout_jax.experiments as experiments
from smoothout_jax.experiments import cli
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.data import datasets, image_folder
from smoothout_jax.experiments.data.image_folder import (
    ImageFiles,
    find_images,
    read_folder,
)
from smoothout_jax.experiments.data.images import centre, open_image, random_crop
from smoothout_jax.experiments.data.stream import read_batches
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.regime import random_crops

pytestmark = pytest.mark.usefixtures("standard_promotion")

RED, BLUE = (200, 30, 20), (10, 40, 220)


def picture(color, draw, size=(24, 18)):
    """An image of one colour, less noise."""
    noise = draw.integers(0, 20, (size[1], size[0], 3))
    return Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8))


def write(folder, number=12):
    """Red and blue images."""
    draw = np.random.default_rng(0)
    for name, color in (("blue", BLUE), ("red", RED)):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            picture(color, draw).save(folder / name / f"{index:02}.jpg")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """Images for training and for testing, these of fewer classes."""
    folder = tmp_path_factory.mktemp("apart")
    write(folder / "train")
    write(folder / "valid", 2)
    shutil.rmtree(folder / "valid" / "blue")
    (folder / "train" / "red" / ".hidden").write_text("")
    return folder


def test_class_folders_are_found(photos, apart):
    whole, none = find_images(photos)
    assert none is None
    assert whole.classes == ("blue", "red")
    assert whole.paths[:2] == ("blue/00.jpg", "blue/01.jpg")
    assert np.bincount(whole.labels).tolist() == [12, 12]
    train, test = find_images(apart)
    assert len(train.paths) == 24
    assert (test.classes, test.labels.tolist()) == (("blue", "red"), [1, 1])


def test_a_fifth_is_drawn_for_testing_where_no_images_are_apart(photos):
    train, test = read_folder(photos, 6, skip=False)
    assert train.images.shape == (19, 6, 6, 3)
    assert sorted(np.bincount(test.labels)) == [2, 3]


@pytest.mark.parametrize("small", [True, False])
def test_images_for_training_do_not_come_by_class(small, apart, monkeypatch):
    monkeypatch.setattr(image_folder, "SMALL", 2**30 if small else 0)
    train, test = read_folder(apart, 6, skip=False)
    assert isinstance(train.images, ImageFiles) is not small
    assert 0 < train.labels[:12].sum() < 12
    redder = np.asarray(train.images)[..., 0].mean((1, 2)) > 100
    assert redder.tolist() == train.labels.tolist()
    assert test.labels.tolist() == [1, 1]


def test_channels_are_standardized_by_the_training_images(photos):
    settings = TrainSettings(data=str(photos), image_size=6, batch_size=6)
    data = datasets.prepare(settings)
    images = data.train_images.astype(np.float64)
    mean, deviation = data.scaling
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(deviation, images.std((0, 1, 2)), rtol=1e-5)


# What a file may hold, and the colour of its upper left pixel.
WAYS = {
    "a.jpg": lambda image: image,
    "a.png": lambda image: image,
    "a.webp": lambda image: image,
    "grey.png": lambda image: image.convert("L"),
    "palette.png": lambda image: image.convert("P"),
    "cmyk.jpg": lambda image: image.convert("CMYK"),
    "alpha.png": lambda image: image.convert("RGBA"),
}


@pytest.mark.parametrize("name", WAYS)
def test_images_of_any_format_are_read_in_rgb(name, tmp_path):
    image = picture(RED, np.random.default_rng(0))
    WAYS[name](image).save(tmp_path / name)
    read = np.asarray(open_image(tmp_path / name), float).mean((0, 1))
    expected = image.convert("L").convert("RGB") if name == "grey.png" else image
    np.testing.assert_allclose(read, np.asarray(expected).mean((0, 1)), atol=12)


def test_transparency_is_white_and_sixteen_bits_of_grey_are_not_cut_off(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(open_image(tmp_path / "clear.png")) == 255).all()
    Image.fromarray(np.full((4, 4), 257 * 99, np.uint16)).save(tmp_path / "deep.png")
    assert (np.asarray(open_image(tmp_path / "deep.png")) == 99).all()


def test_images_are_turned_upright(tmp_path):
    image = picture(RED, np.random.default_rng(0))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    expected = image.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(open_image(tmp_path / "turned.png"), expected)


def test_the_centre_is_resized_by_the_shorter_side():
    across, down = np.meshgrid(np.arange(40), np.arange(20))
    ramp = np.stack([5 * across, 5 * down, 0 * down], -1).astype(np.uint8)
    found = centre(Image.fromarray(ramp), 10)
    middle = ramp[:, 10:30].reshape(10, 2, 10, 2, 3).mean((1, 3))
    np.testing.assert_allclose(found, middle, atol=3)


def test_random_crops_have_their_area_and_ratio():
    """Of the host, and of the device: sides of parts of a ramp."""
    across, down = np.meshgrid(np.arange(60.0), np.arange(60.0))
    ramp = np.stack([4 * down, 4 * across, 0 * down], -1)
    image, draw = Image.fromarray(ramp.astype(np.uint8)), np.random.default_rng(0)
    host = np.stack([random_crop(image, 60, 0.25, draw) for _ in range(300)])
    many = np.broadcast_to(ramp.astype(np.float32), (300, *ramp.shape))
    device = random_crops(jax.random.key(0), jax.numpy.asarray(many), 0.25)
    for crops in (host, device):
        crops = np.asarray(crops, float)
        high = (crops[:, -1, 30, 0] - crops[:, 0, 30, 0]) / 236
        wide = (crops[:, 30, -1, 1] - crops[:, 30, 0, 1]) / 236
        area, ratio = high * wide, wide / high
        assert 0.2 < area.min() < 0.35
        assert 0.85 < area.max() <= 1.01
        assert abs(area.mean() - 0.6) < 0.05
        assert 0.7 < ratio.min() < 0.8
        assert 1.25 < ratio.max() < 1.4
        corners = crops[:, 30, 30, :2].mean(0)
        np.testing.assert_allclose(corners, 4 * 29.5, atol=8)


def batches(images, steps, **options):
    read = read_batches(images, images.files.labels, 3, steps, 4, **options)
    return [(each.tobytes(), labels.tolist()) for each, labels in read]


def test_batches_do_not_depend_on_threads_processes_or_interruptions(
    photos, monkeypatch
):
    images = ImageFiles(find_images(photos)[0], 6)
    options = {"crop_area": 0.3}
    whole = batches(images, range(14), workers=1, **options)
    assert whole == batches(images, range(14), workers=4, **options)
    assert whole[9:] == batches(images, range(9, 14), **options)
    assert whole != batches(images, range(14))
    epochs = [[label for _, each in whole[i : i + 6] for label in each] for i in (0, 6)]
    assert epochs[0] != epochs[1]
    for labels in epochs:
        assert sorted(labels) == [0] * 12 + [1] * 12
    halves = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for number in range(2):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        halves.append(batches(images, range(14), **options))
    joined = [(a + b, x + y) for (a, x), (b, y) in zip(*halves, strict=True)]
    assert joined == whole


def cut(path):
    path.write_bytes(path.read_bytes()[:300])


def lead_nowhere(path):
    path.unlink()
    path.symlink_to("nowhere")


BAD = {
    "cannot be read: No such file": lead_nowhere,
    "is no image": lambda path: path.write_text("text"),
    "is empty": lambda path: path.write_text(""),
    "is damaged": cut,
    "has more than 100 million pixels": lambda path: Image.new(
        "1", (20_000, 20_000)
    ).save(path, "PNG"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files_are_named_or_left_out(message, tmp_path, capsys):
    folder = write(tmp_path / "photos")
    bad = folder / "blue" / "11.jpg"  # the last of its class
    BAD[message](bad)
    command = "train", "--data", folder, "--steps", 4, "--batch-size", 5
    line = refused(capsys, *command, output=tmp_path / "run")
    assert f"{bad} {message}" in line
    assert "--bad-images skip" in line
    run(*command, "--bad-images", "skip", output=tmp_path / "run")
    assert f"left out: {bad} {message}" in capsys.readouterr().err
    for skip in (False, True):
        images = ImageFiles(find_images(folder)[0], 6, skip=skip)
        if not skip:
            with pytest.raises(InputError, match=message):
                images.read(11)
            continue
        np.testing.assert_array_equal(images.read(11), images.read(0))
    with pytest.raises(SystemExit, match="2"):
        run("check", folder, output=tmp_path / "check")
    assert f"{bad} {message}" in capsys.readouterr().err
    found = json.loads((tmp_path / "check" / "check.json").read_text())
    assert len(found["faults"]) == 1


def test_folders_of_another_form_are_refused(tmp_path, capsys):
    folder = write(tmp_path / "photos", 5)

    def says(message):
        line = refused(capsys, "train", "--data", folder, output=tmp_path / "run")
        assert message in line

    (folder / "green").mkdir()
    says(f"{folder}/green is a class without images")
    (folder / "green" / "inside").mkdir()
    says(f"{folder}/green/inside is a folder inside a class folder")
    shutil.rmtree(folder)
    folder.mkdir()
    says(f"{folder} holds no folders: it needs one for each class")
    write(folder / "train", 5)
    write(folder / "val", 5)
    (folder / "val" / "red").rename(folder / "val" / "green")
    says(f"{folder}/val/green is a class that {folder}/train does not have")
    folder = tmp_path / "none"
    says("or a folder of images; got ")


def test_an_image_of_two_classes_is_found(tmp_path, capsys):
    folder = write(tmp_path / "photos")
    shutil.copy(folder / "red" / "03.jpg", folder / "blue" / "copy.jpg")
    with pytest.raises(SystemExit, match="2"):
        run("check", folder, output=tmp_path / "check")
    both = f"{folder}/blue/copy.jpg, {folder}/red/03.jpg"
    assert f"the same image is in two classes: {both}" in capsys.readouterr().err


TRAINING = "--image-size 8 --hidden-sizes 8 --batch-size 6 --crop-area 0.5 --flip"


@pytest.mark.slow
@pytest.mark.parametrize("small", [True, False])
def test_colours_are_learned_and_images_classified(
    small, photos, tmp_path, monkeypatch, capsys
):
    """Read at once or while it trains; resumed to the same bits; loaded and used."""
    monkeypatch.setattr(image_folder, "SMALL", 2**30 if small else 0)
    words = ["train", "--data", photos, *TRAINING.split(), "--steps", 30]
    words += ["--evaluate-every", 10, "--checkpoint-minutes", 0]
    outputs = tmp_path / "whole", tmp_path / "parts"
    for output in outputs:
        run(*words, output=output)
    shutil.rmtree(outputs[1] / "checkpoints" / "30")
    run("train", "--resume", output=outputs[1])
    digests = [
        json.loads((each / "checkpoints/30/about/metadata").read_text())["digests"]
        for each in outputs
    ]
    assert digests[0] == digests[1]
    trained = experiments.load(outputs[0])
    assert trained.classes == ("blue", "red")
    paths = [photos / "blue" / "00.jpg", photos / "red" / "05.jpg"]
    probabilities = np.asarray(trained.probabilities(trained.read(paths)))
    assert probabilities.argmax(1).tolist() == [0, 1]
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match=r"images must have shape \(images, 8, 8, 3\)"):
        trained.probabilities(np.zeros((2, 9, 9, 3)))
    capsys.readouterr()
    words = ["predict", outputs[0], *paths, photos / "red", "--top", 2]
    run(*words, output=tmp_path / "predictions")
    rows = (tmp_path / "predictions" / "predictions.csv").read_text().splitlines()
    assert rows[0] == "image,class 1,probability 1,class 2,probability 2"
    assert rows[1].startswith(f"{paths[0]},blue,")
    assert len(rows) == 1 + 2 + 12
    assert "red" in capsys.readouterr().out


def test_a_small_convolutional_network_is_the_default_for_folders(photos, monkeypatch):
    ran = []
    monkeypatch.setattr(cli, "_run", lambda module, settings: ran.append(settings))
    for words in ("", "--network mlp", "--hidden-sizes 4", "--optimizer adam"):
        cli.main(["train", "--data", str(photos), *words.split()])
    cli.main(["train", "--data", "digits"])
    found = [(each.network, each.width, each.learning_rate) for each in ran]
    assert found == [
        ("cnet", 12, 0.03),
        ("mlp", None, 0.03),
        ("mlp", None, 0.03),
        ("cnet", 12, 0.001),
        ("mlp", None, 0.1),
    ]


def test_a_changed_folder_is_not_trained_on(tmp_path, capsys):
    folder = write(tmp_path / "photos")
    words = ["train", "--data", folder, *TRAINING.split(), "--steps", 2]
    run(*words, output=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    (folder / "red" / "00.jpg").unlink()
    before = content(tmp_path / "run")
    line = refused(capsys, "train", "--resume", output=tmp_path / "run")
    assert f"files in {folder} have changed" in line
    assert content(tmp_path / "run") == before


def test_predictions_name_what_cannot_be_read(photos, tmp_path, capsys):
    run("train", "--data", photos, *TRAINING.split(), "--steps", 2, output=tmp_path)
    bad = tmp_path / "bad.jpg"
    bad.write_text("text")
    for words, message in (
        ([tmp_path, bad], f"{bad} is no image"),
        ([tmp_path, tmp_path / "none"], f"{tmp_path}/none does not exist"),
        ([tmp_path / "none", bad], "does not exist"),
        ([tmp_path, photos / "red" / "00.jpg", "--seed", 7], "seeds (0,), not 7"),
    ):
        line = refused(capsys, "predict", *words, output=tmp_path / "out")
        assert message in line
    words = "predict", tmp_path, bad, photos / "red" / "00.jpg"
    run(*words, "--bad-images", "skip", output=tmp_path / "out")
    assert f"{bad} is no image" in capsys.readouterr().err


def test_npz_files_may_name_classes_and_a_run_on_them_resumes_by_itself(
    tmp_path, capsys
):
    names = np.array(["dog", "cat", "cow"])[np.arange(24) % 3]
    data = save_npz(save_npz(tmp_path, labels=names), "test", labels=names[:9])
    words = f"train --data npz --data-dir {data} --hidden-sizes 4 --batch-size 6"
    run(*words.split(), "--steps", 2, output=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    run("train", "--resume", output=tmp_path / "run")
    trained = experiments.load(tmp_path / "run")
    assert trained.classes == ("cat", "cow", "dog")
    save_npz(tmp_path, "test", labels=np.where(names == "cow", "hen", names))
    line = refused(capsys, *words.split(), output=tmp_path / "other")
    assert "test.npz has a label 'hen' that no training image has" in line


def save_npz(folder, part="train", *, labels):
    images = np.random.default_rng(0).uniform(0, 1, (len(labels), 4, 4, 1))
    np.savez(folder / f"{part}.npz", images=images, labels=labels)
    return folder
