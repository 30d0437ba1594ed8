"""Attribute classifiers: true factors, networks that survive the disk, labels, a training that resumes to the bit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom

from isodiff.datasets import open_dataset
from isodiff.datasets.faces import FACTORS, FacesDataset, render, sample_factors
from isodiff.datasets.images import ImageDataset
from isodiff.diffusion import AttributeConfig, TrainingInterrupted
from isodiff.metrics import attribute_training
from isodiff.metrics.attribute_training import held_out_accuracy, held_out_table, split, train_attributes
from isodiff.metrics.attributes import (
    RECORD,
    WEIGHTS,
    FaceAttributes,
    NetworkAttributes,
    age_gender_labels,
    build_network,
    celeba_labels,
    factor_labels,
    fit_images,
    open_attributes,
    read_labels,
)
from isodiff.metrics.generator import to_uint8

PHOTOGRAPHS = Path(
    os.environ.get("ISODIFF_PHOTOGRAPHS", Path(__file__).parents[3] / "shared/data/faces64_train.tar.xz")
)
TINY = AttributeConfig(architecture="resnet18", num_epochs=2, batch_size=16, held_out=0.2)


def small_faces(num: int = 60, *, flip: bool = False) -> tuple[ImageDataset, np.ndarray, tuple[str, ...]]:
    """Render tiny faces, labelled by the colour of the wall and of the skin."""
    factors = sample_factors(num, generator=torch.Generator().manual_seed(0))
    names = [f"{i:06d}.jpg" for i in range(num)]
    images = ImageDataset(to_uint8(render(factors, 16)), names, horizontal_flip=flip)
    return images, factor_labels(factors).values[:, [9, 3]], ("background", "skin_tone")


@pytest.fixture
def classifier() -> NetworkAttributes:
    """Make an untrained network for two attributes at 16 pixels."""
    network = build_network("resnet18", 2, 16)
    return NetworkAttributes(network, ("a", "b"), architecture="resnet18", resolution=16, record={"num_train": 3})


def pictures(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Draw images of random pixels in [−1, 1]."""
    return torch.rand(*shape, generator=generator) * 2 - 1


# Faces


def test_faces_are_told_by_their_factors(generator: torch.Generator) -> None:
    factors = sample_factors(6, generator=generator)
    classifier = open_attributes("faces")
    told = classifier.probabilities(render(factors, 32))
    assert isinstance(classifier, FaceAttributes)
    assert classifier.names == FACTORS
    np.testing.assert_allclose(told, (1 + factors.numpy()) / 2, atol=1e-3)


# Networks


def test_network_answers_with_the_sigmoid_of_its_logits(
    classifier: NetworkAttributes, generator: torch.Generator
) -> None:
    """In evaluation mode, so that a row's answer is its own: the same alone and in company, beyond a batch too."""
    images = pictures(generator, 70, 3, 16, 16)
    told = classifier.probabilities(images)
    with torch.no_grad():
        expected = classifier.network(images).double().sigmoid().numpy()
    np.testing.assert_allclose(told, expected, atol=1e-6)
    np.testing.assert_allclose(classifier.probabilities(images[69:]), told[69:], atol=1e-6)
    assert told.shape == (70, 2)


def test_images_are_fitted_to_the_network(classifier: NetworkAttributes, generator: torch.Generator) -> None:
    """Grey becomes three channels; other sizes are averaged down, not sampled."""
    grey = pictures(generator, 2, 1, 16, 16)
    np.testing.assert_array_equal(
        classifier.probabilities(grey), classifier.probabilities(grey.repeat_interleave(3, dim=1))
    )
    board = (torch.arange(64) % 2 * 2.0 - 1).expand(1, 3, 64, 64)
    assert fit_images(board, 16).abs().max() < 0.1
    assert classifier.probabilities(pictures(generator, 3, 3, 24, 24)).shape == (3, 2)


def test_network_survives_the_disk(tmp_path: Path, generator: torch.Generator) -> None:
    """Names, record, digest and answers of the paper's kind of network come back, to the bit."""
    architecture = "resnext50_32x4d"
    network = build_network(architecture, 3, 32)
    saved = NetworkAttributes(
        network, ("a", "b", "age>=30"), architecture=architecture, resolution=32, record={"num_train": 3}
    )
    saved.save(tmp_path / "new")
    loaded = open_attributes(str(tmp_path / "new"))
    assert (loaded.names, loaded.digest, loaded.resolution) == (saved.names, saved.digest, 32)
    assert loaded.record == {"num_train": 3}
    images = pictures(generator, 2, 3, 32, 32)
    np.testing.assert_array_equal(loaded.probabilities(images), saved.probabilities(images))
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [RECORD, WEIGHTS]


def test_digest_sees_weights_and_names(classifier: NetworkAttributes) -> None:
    before = classifier.digest
    renamed = NetworkAttributes(classifier.network, ("a", "c"), architecture="resnet18", resolution=16)
    with torch.no_grad():
        next(classifier.network.parameters()).view(-1)[0] += 1e-3
    moved = NetworkAttributes(classifier.network, ("a", "b"), architecture="resnet18", resolution=16)
    assert len({before, renamed.digest, moved.digest}) == 3


def test_missing_classifier(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"attributes\.json is missing; give 'faces' or a directory"):
        open_attributes(str(tmp_path))


def test_damaged_classifier(classifier: NetworkAttributes, tmp_path: Path) -> None:
    """A record cut short, weights cut short, weights of another record, and a record without an entry."""
    classifier.save(tmp_path)
    record, weights = (tmp_path / RECORD).read_text(), (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(weights[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or belongs to another.*train-attributes"):
        NetworkAttributes.load(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(weights)
    (tmp_path / RECORD).write_text(record[:50])
    with pytest.raises(ValueError, match=r"attributes\.json is damaged"):
        NetworkAttributes.load(tmp_path)
    for key, value, message in (
        ("names", None, r"attributes\.json is damaged .*names"),
        ("names", ["a", "b", "c"], "does not fit resnet18"),
        ("architecture", "resnet5", "architecture is 'resnet5'; torchvision has alexnet"),
    ):
        plain = json.loads(record)
        plain.pop(key) if value is None else plain.update({key: value})
        (tmp_path / RECORD).write_text(json.dumps(plain))
        with pytest.raises(ValueError, match=message):
            NetworkAttributes.load(tmp_path)
    (tmp_path / RECORD).write_text(record)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        NetworkAttributes.load(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "resolution", "message"),
    [
        ("resnet5", 32, "architecture is 'resnet5'; torchvision has alexnet, .*resnext50_32x4d"),
        ("alexnet", 32, "alexnet cannot take images of 32 pixels"),
        ("vit_b_16", 64, "vit_b_16 cannot take images of 64 pixels"),
        ("googlenet", 64, "googlenet answers with more than logits"),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_network_that_cannot_serve(architecture: str, resolution: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(architecture, 2, resolution)


@pytest.mark.parametrize("kind", ["faces", "network"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 16, 16), 1.5), r"images in \[−1, 1\]; got values from 1\.5"),
        (torch.full((1, 3, 16, 16), torch.nan), "finite images"),
        (torch.zeros(3, 16, 16), "got shape"),
        (torch.zeros(1, 2, 16, 16), "got shape"),
    ],
)
def test_bad_images_are_refused(classifier: NetworkAttributes, kind: str, images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        (FaceAttributes() if kind == "faces" else classifier).probabilities(images)


# Labels


def test_age_and_gender_from_names() -> None:
    names = ["00000_age26_gender0.jpg", "in/00001_age3_gender1.jpg", "00002_age116_gender1.jpg"]
    labels = age_gender_labels(names, age=26)
    assert labels.names == ("age>=26", "gender1")
    assert labels.values.dtype == bool
    assert labels.values.tolist() == [[True, False], [False, True], [True, True]]
    assert age_gender_labels([*names, "a_age27_gender0.png"]).names == ("age>=27", "gender1")  # the median is 26.5


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0_age26_gender0.jpg", "portrait.jpg"], "got 'portrait.jpg'"),
        (["0_age26_gender2.jpg"], "got '0_age26_gender2.jpg'"),
        (["_age26_gender0/portrait.jpg"], "got '_age26_gender0/portrait.jpg'"),
        ([], "got no images"),
    ],
)
def test_names_without_age_and_gender(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        age_gender_labels(names)


def test_factors_become_labels() -> None:
    labels = factor_labels(torch.tensor([[0.5] * 9 + [-0.1], [-1.0] * 9 + [0.0]]))
    assert labels.names == FACTORS
    assert labels.values.tolist() == [[True] * 9 + [False], [False] * 10]
    with pytest.raises(ValueError, match=r"\(N, 10\); got shape \(2, 3\)"):
        factor_labels(torch.zeros(2, 3))


def test_celeba_table_in_the_order_of_the_images(tmp_path: Path) -> None:
    """As CelebA writes it: padded columns, a space at the end of the names, images in another order and folder."""
    file = tmp_path / "list_attr_celeba.txt"
    file.write_text("3\nBald Smiling \n000001.jpg -1  1\n000002.jpg  1 -1\n000003.jpg -1 -1\n")
    labels = celeba_labels(file, ["aligned/000003.jpg", "aligned/000001.jpg"])
    assert labels.names == ("Bald", "Smiling")
    assert labels.values.tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with a line that counts the images"),
        ("000001.jpg 1 -1\n000002.jpg 1 -1\n000003.jpg 1 1\n", "must begin.*got '000001.jpg 1 -1'"),
        ("1\nBald Smiling\n000001.jpg 1\n", "line 3 .* an image and 2 values −1 or 1; got '000001.jpg 1'"),
        ("1\nBald Smiling\n000001.jpg 1 0\n", "line 3 .*got '000001.jpg 1 0'"),
        ("2\nBald Smiling\n000001.jpg 1 1\n\n", "line 4 "),
        ("9\nBald Smiling\n000001.jpg 1 1\n", "announces 9 images and lists 1"),
        ("1\nBald Smiling\n000002.jpg 1 1\n", "lacks 1 of 1 images, such as '000001.jpg'"),
    ],
)
def test_celeba_table_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "list_attr_celeba.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        celeba_labels(file, ["000001.jpg"])


def test_missing_celeba_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*list_attr_celeba"):
        celeba_labels(tmp_path / "list.txt", [])


@pytest.mark.parametrize(
    ("spec", "images", "count", "message"),
    [
        (
            "smiles",
            FacesDataset(16),
            5,
            "labels is 'smiles' of faces; accepted: 'factors' of rendered faces",
        ),
        ("celeba:", small_faces(2)[0], None, "labels is 'celeba:' of other images"),
        ("age-gender", FacesDataset(16), 5, "labels is 'age-gender' of faces"),
        ("factors", small_faces(2)[0], None, "labels is 'factors' of other images"),
        ("factors", FacesDataset(16), 0, "num_images must be 1 to 1000000.*got 0"),
    ],
)
def test_labels_that_a_dataset_has_not(spec: str, images: ImageDataset, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels(spec, images, count)


def test_labels_of_a_dataset() -> None:
    faces = FacesDataset(16, seed=3)
    assert np.array_equal(read_labels("factors", faces, 40).values, factor_labels(faces.factors[:40]).values)
    assert len(read_labels("factors", faces).values) == 10_000


# Training


def test_forty_attributes_of_a_folder_in_the_format_of_celeba(tmp_path: Path) -> None:
    """From CelebA's table to a classifier that tells the easy ones of 40 attributes on held-out images."""
    factors = sample_factors(220, generator=torch.Generator().manual_seed(1))
    drawn = to_uint8(render(factors, 16))
    columns = [(f"Factor_{i}", factors[:, i] > 0) for i in range(10)]
    columns += [(f"Both_{i}", factors[:, i] + factors[:, (i + 1) % 10] > 0) for i in range(10)]
    pixels = drawn.float()[:, :, ::4, ::4].flatten(1)[:, :20]
    columns += [(f"Pixel_{i}", pixels[:, i] > pixels[:, i].median()) for i in range(20)]
    lines = [str(len(drawn)), " ".join(name for name, _ in columns) + " "]
    (tmp_path / "img_align_celeba").mkdir()
    for i, image in enumerate(drawn):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"img_align_celeba/{i + 1:06d}.png")
        lines.append(f"{i + 1:06d}.png " + " ".join(f"{1 if values[i] else -1:2d}" for _, values in columns))
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")

    images = open_dataset(f"folder:{tmp_path / 'img_align_celeba'}", 16)
    labels = read_labels(f"celeba:{tmp_path / 'list_attr_celeba.txt'}", images)
    config = dataclasses.replace(TINY, num_epochs=5, batch_size=20, held_out=0.3)
    trained = train_attributes(images, labels.values, labels.names, tmp_path / "out", config)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert len(record["names"]) == 40
    wall = record["held_out"]["Factor_9"]
    assert wall["beats_chance"]
    assert wall["accuracy"] > 0.8
    printed = held_out_table(trained).splitlines()
    assert f"{wall['accuracy']:.3f}" in next(line for line in printed if line.startswith("Factor_9 "))
    assert printed[-1] == "n = 66 held out, 154 trained on"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [RECORD, WEIGHTS]


def test_record_says_what_was_measured(tmp_path: Path) -> None:
    """The held-out figures are those of the saved network on exactly the images that the seed holds out."""
    images, labels, names = small_faces()
    before = torch.get_rng_state()
    trained = train_attributes(images, labels, names, tmp_path, TINY, provenance={"dataset": "small"})
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    _, test = split(60, 0.2, TINY.seed)
    told = NetworkAttributes.load(tmp_path).probabilities(torch.stack(images.__getitems__(test))) > 0.5
    assert trained.record["held_out"] == held_out_accuracy(told, labels[test], names)
    assert trained.record["config"] == dataclasses.asdict(TINY)
    assert trained.record["dataset"] == "small"
    assert (trained.record["num_train"], trained.record["num_held_out"]) == (48, 12)


@pytest.mark.parametrize("kind", ["killed", "stopped"])
def test_interrupted_training_resumes_to_the_bit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second epoch, or asked to stop in the first, it ends where the uninterrupted training ends."""
    images, labels, names = small_faces(40, flip=True)
    whole = train_attributes(images, labels, names, tmp_path / "whole", TINY)
    epochs, train_epoch = [], attribute_training._train_epoch

    def interrupted(*arguments: object) -> None:
        epochs.append(arguments[5])
        if kind == "killed" and epochs == [0, 1]:
            raise KeyboardInterrupt
        if kind == "stopped" and epochs == [0]:
            os.kill(os.getpid(), signal.SIGTERM)
        train_epoch(*arguments)

    monkeypatch.setattr(attribute_training, "_train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt if kind == "killed" else TrainingInterrupted):
        train_attributes(images, labels, names, tmp_path / "cut", TINY)
    torch.randn(3)  # the global generator is not part of the training
    resumed = train_attributes(images, labels, names, tmp_path / "cut", TINY)
    again = train_attributes(images, labels, names, tmp_path / "cut", TINY)  # done: nothing is trained
    assert epochs == ([0, 1, 1] if kind == "killed" else [0, 1])
    assert resumed.digest == again.digest == whole.digest
    assert resumed.record == whole.record


def test_seed_and_flips_decide(tmp_path: Path) -> None:
    images, labels, names = small_faces(40)
    flipped, _, _ = small_faces(40, flip=True)
    config = dataclasses.replace(TINY, num_epochs=1)
    runs = [(images, config), (images, config), (images, dataclasses.replace(config, seed=1)), (flipped, config)]
    digests = [train_attributes(data, labels, names, tmp_path / str(i), c).digest for i, (data, c) in enumerate(runs)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_split_is_a_partition() -> None:
    train, test = split(101, 0.25, 3)
    assert sorted([*train, *test]) == list(range(101))
    assert len(test) == 25
    assert not np.array_equal(split(101, 0.25, 4)[1], test)


def test_accuracy_has_an_exact_interval_next_to_chance() -> None:
    """Clopper and Pearson: at each end, what was seen is just at the edge of 2.5 %."""
    labels = np.array([[True]] * 70 + [[False]] * 30)
    told = labels.copy()
    told[:10] = False
    row = held_out_accuracy(told, labels, ["a"])["a"]
    low, high = row["interval"]
    assert (row["accuracy"], row["chance"], row["n"], row["beats_chance"]) == (0.9, 0.7, 100, True)
    assert binom.sf(89, 100, low) == pytest.approx(0.025, abs=1e-6)
    assert binom.cdf(90, 100, high) == pytest.approx(0.025, abs=1e-6)
    assert not held_out_accuracy(np.ones_like(labels), labels, ["a"])["a"]["beats_chance"]
    assert held_out_accuracy(labels, ~labels, ["a"])["a"]["accuracy"] == 0


def test_directory_of_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings are refused, whether the training there is done or not."""
    images, labels, names = small_faces(24)
    config = dataclasses.replace(TINY, num_epochs=1, batch_size=8)
    train_attributes(images, labels, names, tmp_path / "done", config)
    with pytest.raises(ValueError, match=r"attributes\.json is of a run with other settings: labels_sha256 = "):
        train_attributes(images, ~labels, names, tmp_path / "done", config)
    with monkeypatch.context() as patch:
        patch.setattr(NetworkAttributes, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            train_attributes(images, labels, names, tmp_path / "cut", config)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of a run with other settings: learning_rate = 0\.001"):
        train_attributes(images, labels, names, tmp_path / "cut", dataclasses.replace(config, learning_rate=0.1))


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (np.ones((24, 2), dtype=bool), "ab", "a is true for all 19 images to train on"),
        (np.zeros((24, 1), dtype=bool), "a", "a is false for all 19 images to train on"),
        (np.ones((24, 2)), "ab", "labels must be boolean"),
        (np.ones((24, 2), dtype=bool), "abc", r"\(N, 3\).*shape \(24, 2\)"),
        (np.ones((24, 2), dtype=bool), "aa", "names must differ; got a, a"),
        (np.ones((25, 1), dtype=bool), "a", "labels for 25 images and 24 images"),
        (np.ones((2, 1), dtype=bool), "a", "of 2 images leaves 2 to train on and 0 to test on"),
    ],
)
def test_bad_labels_are_refused(labels: np.ndarray, names: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_attributes(small_faces(24)[0], labels, names, tmp_path / "out", TINY)
    assert not (tmp_path / "out").exists()


def test_loss_that_leaves_the_numbers(tmp_path: Path) -> None:
    images, labels, names = small_faces(24)
    config = dataclasses.replace(TINY, batch_size=4, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"loss became .* in epoch 1; lower learning_rate"):
        train_attributes(images, labels, names, tmp_path, config)


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=f"no photographs at {PHOTOGRAPHS}")
def test_photographs_show_gender(tmp_path: Path) -> None:
    """A few hundred photographs, small and briefly trained on, already tell gender better than chance."""
    with tarfile.open(PHOTOGRAPHS) as whole, tarfile.open(tmp_path / "few.tar", "w") as few:
        for _, member in zip(range(600), whole, strict=False):
            few.addfile(member, whole.extractfile(member))
    images = open_dataset(f"folder:{tmp_path / 'few.tar'}", 16)
    labels = read_labels("age-gender", images)
    config = dataclasses.replace(TINY, num_epochs=4, batch_size=32, held_out=0.33)
    trained = train_attributes(images, labels.values, labels.names, tmp_path / "out", config)
    assert trained.record["held_out"]["gender1"]["n"] == 198
    assert trained.record["held_out"]["gender1"]["beats_chance"]
