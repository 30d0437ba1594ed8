"""Attribute classifiers: true factors, networks that survive the disk, labels, a training that resumes to the bit."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

from isodiff.datasets.faces import FACTORS, FacesDataset, render, sample_factors
from isodiff.datasets.images import ImageDataset
from isodiff.diffusion import AttributeConfig, TrainingInterrupted
from isodiff.metrics import attributes
from isodiff.metrics.attributes import NetworkAttributes, build_network, held_out_accuracy, train_attributes
from isodiff.metrics.generator import to_uint8

from ..geometry.tensors import noise

TINY = AttributeConfig(architecture="resnet18", num_epochs=2, batch_size=16, held_out=0.2)


def small_faces(num: int, *, flip: bool = False) -> tuple[ImageDataset, np.ndarray, tuple[str, ...]]:
    """Render tiny faces, labelled by the colour of the wall and of the skin."""
    factors = sample_factors(num, generator=torch.Generator().manual_seed(0))
    names = [f"{i:06d}.jpg" for i in range(num)]
    images = ImageDataset(to_uint8(render(factors, 16)), names, horizontal_flip=flip)
    return images, (factors > 0).numpy()[:, [9, 3]], ("background", "skin_tone")


@pytest.fixture
def classifier() -> NetworkAttributes:
    return NetworkAttributes(build_network("resnet18", 2, 16), ("a", "b"), "resnet18", 16, {"num_train": 3})


def test_faces_are_told_by_their_factors(generator: torch.Generator) -> None:
    factors = sample_factors(6, generator=generator)
    classifier = attributes.open_attributes("faces")
    assert classifier.names == FACTORS
    np.testing.assert_allclose(classifier.probabilities(render(factors, 32)), (1 + factors.numpy()) / 2, atol=1e-3)


def test_network_answers_with_the_sigmoid_of_its_logits(classifier: NetworkAttributes) -> None:
    """In evaluation mode, so that a row's answer is its own: the same alone and in company, beyond a batch too."""
    images = noise(70, 3, 16, 16).float().tanh()
    told = classifier.probabilities(images)
    with torch.no_grad():
        expected = classifier.network(images).double().sigmoid().numpy()
    np.testing.assert_allclose(told, expected, atol=1e-6)
    np.testing.assert_allclose(classifier.probabilities(images[69:]), told[69:], atol=1e-6)


def test_grey_becomes_three_channels_and_other_sizes_are_averaged(classifier: NetworkAttributes) -> None:
    grey = noise(2, 1, 16, 16).float().tanh()
    told = classifier.probabilities(grey.repeat_interleave(3, dim=1))
    np.testing.assert_array_equal(classifier.probabilities(grey), told)
    board = (torch.arange(64) % 2 * 2.0 - 1).expand(1, 3, 64, 64)
    assert attributes.fit_images(board, 16).abs().max() < 0.1


def test_network_survives_the_disk_to_the_bit(tmp_path: Path) -> None:
    architecture, names = "resnext50_32x4d", ("a", "b", "age>=30")  # the paper's kind of network
    saved = NetworkAttributes(build_network(architecture, 3, 32), names, architecture, 32, {"num_train": 3})
    saved.save(tmp_path / "new")
    loaded = attributes.open_attributes(str(tmp_path / "new"))
    assert (loaded.names, loaded.digest, loaded.resolution, loaded.record) == (names, saved.digest, 32, saved.record)
    images = noise(2, 3, 32, 32).float().tanh()
    np.testing.assert_array_equal(loaded.probabilities(images), saved.probabilities(images))


def test_digest_sees_weights_and_names(classifier: NetworkAttributes) -> None:
    renamed = NetworkAttributes(classifier.network, ("a", "c"), "resnet18", 16)
    with torch.no_grad():
        next(classifier.network.parameters()).view(-1)[0] += 1e-3
    moved = NetworkAttributes(classifier.network, ("a", "b"), "resnet18", 16)
    assert len({classifier.digest, renamed.digest, moved.digest}) == 3


def test_missing_and_damaged_classifiers_are_refused(classifier: NetworkAttributes, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"attributes\.json is missing; give 'faces' or what"):
        attributes.open_attributes(str(tmp_path))
    classifier.save(tmp_path)
    record, weights = (tmp_path / attributes.RECORD).read_text(), (tmp_path / attributes.WEIGHTS).read_bytes()
    plain = json.loads(record)
    for text, data, message in (
        (record, weights[:1000], r"model\.safetensors is damaged or belongs to another.*train-attributes"),
        (record[:50], weights, r"attributes\.json is damaged"),
        (json.dumps({k: v for k, v in plain.items() if k != "names"}), weights, r"attributes\.json is damaged .*names"),
        (json.dumps(plain | {"names": ["a", "b", "c"]}), weights, "does not fit resnet18"),
    ):
        (tmp_path / attributes.RECORD).write_text(text)
        (tmp_path / attributes.WEIGHTS).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            NetworkAttributes.load(tmp_path)


def test_age_and_gender_are_read_from_names() -> None:
    names = ["00000_age26_gender0.jpg", "in/00001_age3_gender1.jpg", "00002_age116_gender1.jpg"]
    labels = attributes.age_gender_labels(names)
    assert labels.names == ("age>=26", "gender1")
    assert labels.values.tolist() == [[True, False], [False, True], [True, True]]
    more = attributes.age_gender_labels([*names, "a_age27_gender0.png"])
    assert more.names == ("age>=27", "gender1")  # the median is 26.5


def test_faces_are_labelled_by_the_signs_of_their_factors() -> None:
    faces = FacesDataset(16, seed=3)
    labels = attributes.read_labels("factors", faces)
    assert (labels.names, len(labels.values)) == (FACTORS, 10_000)
    np.testing.assert_array_equal(attributes.read_labels("factors", faces, 40).values, faces.factors[:40] > 0)


def test_a_table_in_the_format_of_celeba_trains_a_classifier(tmp_path: Path) -> None:
    images, shown, names = small_faces(220)
    signs = np.where(shown, " 1", "-1")
    rows = [" ".join([name, *signs[i]]) for i, name in enumerate(images.names)]
    (tmp_path / "list.txt").write_text("\n".join(["220", " ".join(names) + " ", *reversed(rows)]) + "\n")
    labels = attributes.read_labels(f"celeba:{tmp_path / 'list.txt'}", images)
    np.testing.assert_array_equal(labels.values, shown)
    config = dataclasses.replace(TINY, num_epochs=8, batch_size=20, held_out=0.3)
    trained = train_attributes(images, labels.values, labels.names, tmp_path / "out", config)
    wall = trained.record["held_out"]["background"]
    assert wall["beats_chance"]
    assert wall["accuracy"] > 0.8
    printed = attributes.held_out_table(trained).splitlines()
    assert f"{wall['accuracy']:.3f}" in next(line for line in printed if line.startswith("background "))
    assert printed[-1] == "n = 66 held out, 154 trained on"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [attributes.RECORD, attributes.WEIGHTS]


def test_held_out_images_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, names = small_faces(60)
    read, seen = ImageDataset.__getitems__, []
    monkeypatch.setattr(ImageDataset, "__getitems__", lambda self, rows: seen.append(rows) or read(self, rows))
    before = torch.get_rng_state()
    trained = train_attributes(images, labels, names, tmp_path, TINY, provenance={"dataset": "small"})
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    *_, test = seen
    assert {row for rows in seen[:-1] for row in rows} == set(range(60)) - set(test)
    told = NetworkAttributes.load(tmp_path).probabilities(torch.stack(read(images, test))) > 0.5
    assert trained.record["held_out"] == held_out_accuracy(told, labels[test], names)
    assert trained.record["config"] == dataclasses.asdict(TINY)
    assert trained.record["dataset"] == "small"
    assert (trained.record["num_train"], trained.record["num_held_out"]) == (48, len(test)) == (48, 12)


@pytest.mark.parametrize("kind", ["killed", "stopped"])
def test_interrupted_training_resumes_to_the_bit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, names = small_faces(40, flip=True)
    whole = train_attributes(images, labels, names, tmp_path / "whole", TINY)
    read, reads = ImageDataset.__getitems__, []

    def interrupted(self: ImageDataset, rows: list[int]) -> list[torch.Tensor]:
        reads.append(rows)
        if kind == "killed" and len(reads) == 4:  # in the second epoch, of two batches
            raise KeyboardInterrupt
        if kind == "stopped" and len(reads) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, rows)

    monkeypatch.setattr(ImageDataset, "__getitems__", interrupted)
    with pytest.raises(KeyboardInterrupt if kind == "killed" else TrainingInterrupted):
        train_attributes(images, labels, names, tmp_path / "cut", TINY)
    torch.randn(3)  # the global generator is not part of the training
    resumed = train_attributes(images, labels, names, tmp_path / "cut", TINY)
    again = train_attributes(images, labels, names, tmp_path / "cut", TINY)  # done: nothing is trained
    assert len(reads) == (4 if kind == "killed" else 2) + 2 + 1  # the second epoch, and the images held out
    assert resumed.digest == again.digest == whole.digest
    assert resumed.record == whole.record


def test_accuracy_has_an_exact_interval_next_to_chance() -> None:
    """Clopper and Pearson: at each end, what was seen is just at the edge of 2.5 %."""
    labels = np.array([[True]] * 70 + [[False]] * 30)
    told = labels.copy()
    told[:10] = False
    row = held_out_accuracy(told, labels, ["a"])["a"]
    low, high = row["interval"]
    assert (row["accuracy"], row["chance"], row["beats_chance"]) == (0.9, 0.7, True)
    assert binom.sf(89, 100, low) == pytest.approx(0.025, abs=1e-6)
    assert binom.cdf(90, 100, high) == pytest.approx(0.025, abs=1e-6)
    assert not held_out_accuracy(np.ones_like(labels), labels, ["a"])["a"]["beats_chance"]
    assert held_out_accuracy(labels, ~labels, ["a"])["a"]["accuracy"] == 0


def test_another_training_is_refused_done_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def celeba(folder: Path, text: str) -> None:
    (folder / "list.txt").write_text(text)
    attributes.celeba_labels(folder / "list.txt", ["000001.jpg"])


def train(folder: Path, labels: np.ndarray, names: str, **changes: float) -> None:
    train_attributes(small_faces(24)[0], labels, names, folder / "out", dataclasses.replace(TINY, **changes))


YES, TOLD = np.ones((24, 2), dtype=bool), small_faces(24)[1]


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda _: build_network("resnet5", 2, 32), "is 'resnet5'; torchvision has alexnet, .*resnext50_32x4d"),
        (lambda _: build_network("vit_b_16", 2, 64), "vit_b_16 cannot take images of 64 pixels"),
        (lambda _: build_network("googlenet", 2, 64), "googlenet answers with more than logits"),
        (lambda _: attributes.age_gender_labels(["0_age26_gender2.jpg"]), "got '0_age26_gender2.jpg'"),
        (lambda _: attributes.age_gender_labels([]), "got no images"),
        (lambda _: attributes.read_labels("celeba:", small_faces(2)[0]), "'celeba:' of other images; accepted: 'fac"),
        (lambda _: attributes.read_labels("factors", FacesDataset(16), 0), "num_images must be 1 to 1000000.*got 0"),
        (lambda at: celeba(at, ""), "must begin with a line that counts the images"),
        (lambda at: celeba(at, "1\nBald\n000001.jpg 0\n"), "line 3 .* an image and 1 values .*'000001.jpg 0'"),
        (lambda at: celeba(at, "1\nBald\n000001.jpg 1 1\n"), "line 3 .*got '000001.jpg 1 1'"),
        (lambda at: celeba(at, "9\nBald Smiling\n000001.jpg 1 1\n"), "announces 9 images and lists 1"),
        (lambda at: celeba(at, "1\nBald Smiling\n000002.jpg 1 1\n"), "lacks 1 of 1 images, such as '000001.jpg'"),
        (lambda at: train(at, TOLD, "ab", batch_size=4, learning_rate=1e30), "in epoch 1; lower learning_rate"),
        (lambda at: train(at, YES, "ab"), "a is true for all 19 images to train on"),
        (lambda at: train(at, np.ones((24, 2)), "ab"), "labels must be boolean"),
        (lambda at: train(at, YES, "abc"), r"\(N, 3\).*shape \(24, 2\)"),
        (lambda at: train(at, YES, "aa"), "names must differ; got a, a"),
        (lambda at: train(at, np.ones((25, 1), dtype=bool), "a"), "labels for 25 images and 24 images"),
        (lambda at: train(at, YES[:2], "ab"), "of 2 images leaves 2 to train on and 0 to test on"),
    ],
)
def test_bad_input_is_refused(refused: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FloatingPointError), match=message):
        refused(tmp_path)
    assert not (tmp_path / "out").exists()
