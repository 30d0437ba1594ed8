"""Training an attribute classifier: it learns, resumes to the bit, and says what its accuracy is worth."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom

from isodiff.cli_attributes import add_train_attributes
from isodiff.datasets import open_dataset
from isodiff.datasets.faces import FacesDataset, render, sample_factors
from isodiff.datasets.images import ImageDataset
from isodiff.metrics import attribute_training
from isodiff.metrics.attribute_config import AttributeConfig
from isodiff.metrics.attribute_labels import factor_labels
from isodiff.metrics.attribute_training import CHECKPOINT, held_out_accuracy, split, train_attributes
from isodiff.metrics.attributes import RECORD, NetworkAttributes
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


# CelebA's format: 40 attributes in a table beside the images


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """Write rendered faces and a table of 40 attributes as CelebA does: factors, their pairs, and pixels."""
    factors = sample_factors(220, generator=torch.Generator().manual_seed(1))
    images = to_uint8(render(factors, 16))
    columns = [(f"Factor_{i}", factors[:, i] > 0) for i in range(10)]
    columns += [(f"Both_{i}", factors[:, i] + factors[:, (i + 1) % 10] > 0) for i in range(10)]
    pixels = images.float()[:, :, ::4, ::4].flatten(1)[:, :20]
    columns += [(f"Pixel_{i}", pixels[:, i] > pixels[:, i].median()) for i in range(20)]
    lines = [str(len(images)), " ".join(name for name, _ in columns) + " "]
    (tmp_path / "img_align_celeba").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"img_align_celeba/{i + 1:06d}.png")
        lines.append(f"{i + 1:06d}.png " + " ".join(f"{1 if values[i] else -1:2d}" for _, values in columns))
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def command(*arguments: object) -> int:
    """Run ``isodiff train-attributes`` with some arguments."""
    parser = argparse.ArgumentParser()
    add_train_attributes(parser.add_subparsers())
    options = parser.parse_args(["train-attributes", *map(str, arguments)])
    return options.run(options)


def test_forty_attributes_from_the_command_line(celeba: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From CelebA's table to a classifier that tells the easy ones of 40 attributes on held-out images."""
    arguments = ["--dataset", f"folder:{celeba / 'img_align_celeba'}", "--output", celeba / "out"]
    arguments += ["--labels", f"celeba:{celeba / 'list_attr_celeba.txt'}", "--resolution", 16, "--device", "cpu"]
    arguments += ["--architecture", "resnet18", "--num-epochs", 5, "--batch-size", 20, "--held-out", 0.3]
    assert command(*arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    record = json.loads((celeba / "out" / RECORD).read_text())
    assert len(record["names"]) == 40
    assert (record["num_train"], record["num_held_out"]) == (154, 66)
    wall = record["held_out"]["Factor_9"]
    assert wall["beats_chance"]
    assert wall["accuracy"] > 0.8
    assert f"{wall['accuracy']:.3f}" in next(line for line in printed if line.startswith("Factor_9 "))
    assert "n = 66 held out, 154 trained on" in printed
    classifier = NetworkAttributes.load(celeba / "out")
    images = open_dataset(f"folder:{celeba / 'img_align_celeba'}", 16)
    assert classifier.probabilities(torch.stack(images.__getitems__([0, 1]))).shape == (2, 40)
    assert not (celeba / "out" / CHECKPOINT).exists()


def test_resnext_trains(tmp_path: Path) -> None:
    """The paper's kind of network takes every step of the same road."""
    images, labels, names = small_faces(24)
    config = AttributeConfig(architecture="resnext50_32x4d", num_epochs=1, batch_size=8, held_out=0.25)
    trained = train_attributes(images, labels, names, tmp_path, config)
    assert type(trained.network.layer1[0]).__name__ == "Bottleneck"
    assert trained.network.layer1[0].conv2.groups == 32
    assert set(trained.record["held_out"]) == set(names)


# The training


def test_record_says_what_was_measured(tmp_path: Path) -> None:
    """The held-out figures are those of the saved network on exactly the images that the seed holds out."""
    images, labels, names = small_faces()
    trained = train_attributes(images, labels, names, tmp_path, TINY, provenance={"dataset": "small"})
    _, test = split(60, 0.2, TINY.seed)
    told = NetworkAttributes.load(tmp_path).probabilities(torch.stack(images.__getitems__(test))) > 0.5
    assert trained.record["held_out"] == held_out_accuracy(told, labels[test], names)
    assert trained.record["config"] == dataclasses.asdict(TINY)
    assert trained.record["dataset"] == "small"
    assert (trained.record["num_train"], trained.record["num_held_out"]) == (48, 12)


def test_interrupted_training_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the first epoch and called again, it ends where the uninterrupted training ends."""
    images, labels, names = small_faces(40, flip=True)
    whole = train_attributes(images, labels, names, tmp_path / "whole", TINY)
    epochs, train_epoch = [], attribute_training._train_epoch

    def interrupted(*arguments: object) -> float:
        epochs.append(arguments[5])
        if epochs == [0, 1]:
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    monkeypatch.setattr(attribute_training, "_train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_attributes(images, labels, names, tmp_path / "cut", TINY)
    torch.randn(3)  # the global generator is not part of the training
    resumed = train_attributes(images, labels, names, tmp_path / "cut", TINY)
    assert epochs == [0, 1, 1]
    assert resumed.digest == whole.digest
    assert resumed.record == whole.record
    again = train_attributes(images, labels, names, tmp_path / "cut", TINY)  # done: nothing is trained
    assert again.digest == whole.digest
    assert epochs == [0, 1, 1]


def test_seed_and_flips_decide(tmp_path: Path) -> None:
    images, labels, names = small_faces(40)
    flipped, _, _ = small_faces(40, flip=True)
    config = dataclasses.replace(TINY, num_epochs=1)
    digests = [
        train_attributes(data, labels, names, tmp_path / str(i), setting).digest
        for i, (data, setting) in enumerate(
            [(images, config), (images, config), (images, dataclasses.replace(config, seed=1)), (flipped, config)]
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    images, labels, names = small_faces(24)
    before = torch.get_rng_state()
    train_attributes(images, labels, names, tmp_path, dataclasses.replace(TINY, num_epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_split_is_a_partition() -> None:
    train, test = split(101, 0.25, 3)
    assert sorted([*train, *test]) == list(range(101))
    assert len(test) == 25
    np.testing.assert_array_equal(split(101, 0.25, 3)[1], test)
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


# Bad input


def test_directory_of_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings are refused, whether the training there is done or not; so is a checkpoint cut short."""
    images, labels, names = small_faces(24)
    config = dataclasses.replace(TINY, num_epochs=1, batch_size=8)
    train_attributes(images, labels, names, tmp_path / "done", config)
    with pytest.raises(ValueError, match=r"attributes\.json belongs to another training: labels_sha256 = "):
        train_attributes(images, ~labels, names, tmp_path / "done", config)
    with monkeypatch.context() as patch:
        patch.setattr(NetworkAttributes, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            train_attributes(images, labels, names, tmp_path / "cut", config)
    with pytest.raises(ValueError, match=r"checkpoint\.pt belongs to another training: config = .*Choose another"):
        train_attributes(images, labels, names, tmp_path / "cut", dataclasses.replace(config, learning_rate=0.1))
    checkpoint = tmp_path / "cut" / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"checkpoint .* is damaged .*delete it to start again"):
        train_attributes(images, labels, names, tmp_path / "cut", config)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_epochs": 0}, "num_epochs must be at least 1; got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2; got 1"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number; got nan"),
        ({"weight_decay": -1.0}, r"weight_decay must be 0 or more; got -1\.0"),
        ({"held_out": 1.0}, r"held_out must be a share between 0 and 1; got 1\.0"),
        ({"mixed_precision": "fp16"}, "mixed_precision must be 'no' or 'bf16'; got 'fp16'"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttributeConfig(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "smiles"], "labels is 'smiles'; accepted: 'age-gender', 'celeba:FILE' or 'factors'"),
        (["--labels", "celeba:"], "labels is 'celeba:'"),
        (["--labels", "age-gender"], "rendered faces have no file names; give --labels factors"),
        (["--labels", "factors", "--num-images", "0"], "num-images must be 1 to 1000000.*got 0"),
        (["--labels", "factors", "--dataset", "digits"], "only the dataset 'faces' has factors; got 'digits'"),
        (["--labels", "factors", "--architecture", "resnet5"], "architecture is 'resnet5'"),
        (["--labels", "factors", "--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_bad_commands_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        command("--dataset", "faces", "--resolution", 16, "--output", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_loss_that_leaves_the_numbers(tmp_path: Path) -> None:
    images, labels, names = small_faces(24)
    config = dataclasses.replace(TINY, batch_size=4, learning_rate=1e30)
    with pytest.raises(ArithmeticError, match=r"loss became .* in epoch 1; lower learning_rate"):
        train_attributes(images, labels, names, tmp_path, config)


# Data


def test_rendered_faces_are_labelled_by_their_factors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command's factors are those of the images it trains on."""
    arguments = ["--dataset", "faces", "--labels", "factors", "--resolution", 16, "--num-images", 40, "--device", "cpu"]
    settings = ["--architecture", "resnet18", "--num-epochs", 1, "--batch-size", 8, "--seed", 3]
    assert command(*arguments, *settings, "--output", tmp_path / "one") == 0
    assert "background" in capsys.readouterr().out
    dataset = FacesDataset(16, seed=3)
    labels = factor_labels(dataset.factors[:40])
    config = AttributeConfig(architecture="resnet18", num_epochs=1, batch_size=8, seed=3)
    direct = train_attributes(dataset, labels.values, labels.names, tmp_path / "two", config)
    assert NetworkAttributes.load(tmp_path / "one").digest == direct.digest


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=f"no photographs at {PHOTOGRAPHS}")
def test_photographs_show_gender(tmp_path: Path) -> None:
    """A few hundred photographs, small and briefly trained on, already tell gender better than chance."""
    with tarfile.open(PHOTOGRAPHS) as whole, tarfile.open(tmp_path / "few.tar", "w") as few:
        for _, member in zip(range(600), whole, strict=False):
            few.addfile(member, whole.extractfile(member))
    dataset = ["--dataset", f"folder:{tmp_path / 'few.tar'}", "--labels", "age-gender", "--resolution", 16]
    settings = [
        "--architecture",
        "resnet18",
        "--num-epochs",
        4,
        "--batch-size",
        32,
        "--held-out",
        0.33,
        "--device",
        "cpu",
    ]
    assert command(*dataset, *settings, "--output", tmp_path / "out") == 0
    held_out = json.loads((tmp_path / "out" / RECORD).read_text())["held_out"]
    assert held_out["gender1"]["n"] == 198
    assert held_out["gender1"]["beats_chance"]
