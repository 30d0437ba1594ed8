"""Attribute classifiers: true factors of rendered faces, networks that survive the disk, labels from three sources."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from isodiff.datasets.faces import FACTORS, render, sample_factors
from isodiff.metrics.attribute_labels import age_gender_labels, celeba_labels, factor_labels
from isodiff.metrics.attributes import (
    RECORD,
    WEIGHTS,
    FaceAttributes,
    NetworkAttributes,
    build_network,
    fit_images,
    open_attributes,
)


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


@pytest.mark.parametrize("architecture", ["resnet18", "resnext50_32x4d"])
def test_network_survives_the_disk(architecture: str, tmp_path: Path, generator: torch.Generator) -> None:
    """Names, record, digest and answers come back, to the bit."""
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
