"""What an image shows, as probabilities: by a fit of the renderer, or by a network trained on labelled images."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load, save
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from isodiff import diffusion
from isodiff.datasets import check_images
from isodiff.datasets.face_factors import estimate_factors
from isodiff.datasets.faces import FACTORS
from isodiff.files import claim_folder, write_whole
from isodiff.metrics.measure import content_digest

RECORD, WEIGHTS = "attributes.json", "model.safetensors"
OURS = (RECORD, *diffusion.CHECKPOINTS)  # of these a training leaves one


class FaceAttributes:
    """The ten factors z of rendered faces, p = (1 + z)/2, of other images those of the most similar face."""

    names = FACTORS
    digest = content_digest("renderer's factors, version 1", *FACTORS)

    def probabilities(self, images: Tensor) -> np.ndarray:
        """Return (N, 10) values in [0, 1] for images (N, 3, R, R), at the cost of about 120 renderings each."""
        factors = estimate_factors(check_images(images, len(images), name="the source of the images")).factors
        return (1 + factors.clamp(-1, 1).cpu().double().numpy()) / 2


class NetworkAttributes:
    """A network of `build_network` with a sigmoid an attribute; `record` holds further facts, plain JSON values."""

    def __init__(
        self, network: nn.Module, names: Sequence[str], architecture: str, resolution: int, record: dict | None = None
    ) -> None:
        weights = (part for key, value in sorted(network.state_dict().items()) for part in (key, value))
        self.digest = content_digest(architecture, str(resolution), *names, *weights)  # of all that answers depend on
        self.network, self.names = network.eval(), tuple(names)
        self.architecture, self.resolution, self.record = architecture, resolution, dict(record or {})

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> np.ndarray:
        """Return (N, A) float64 probabilities for images (N, 1 or 3, H, W) in [−1, 1], resized to the network's."""
        images = check_images(images, len(images), name="the source of the images")
        device = next(self.network.parameters()).device
        logits = [self.network(fit_images(piece.to(device), self.resolution)) for piece in images.split(64)]
        return torch.cat(logits).sigmoid().cpu().double().numpy()

    def save(self, directory: str | Path) -> None:
        """Write weights and record; whoever reads sees both of one network or an error, never a mixture."""
        weights = save({key: value.cpu().contiguous() for key, value in self.network.state_dict().items()})
        record = {"architecture": self.architecture, "resolution": self.resolution, "names": list(self.names)}
        record |= {"sha256": hashlib.sha256(weights).hexdigest(), **self.record}
        write_whole(Path(directory) / WEIGHTS, weights)
        write_whole(Path(directory) / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, directory: str | Path, *, device: str | torch.device = "cpu") -> Self:
        """Read what `save` wrote."""
        file, weights_file = Path(directory) / RECORD, Path(directory) / WEIGHTS
        if missing := [path.name for path in (file, weights_file) if not path.is_file()]:
            place = f"no attribute classifier in {directory}: {missing[0]} is missing"
            raise FileNotFoundError(f"{place}; give 'faces' or what `isodiff train-attributes` wrote")
        weights, fix = weights_file.read_bytes(), "train it again with `isodiff train-attributes`"
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            names, architecture, resolution, sha256 = map(record.pop, ("names", "architecture", "resolution", "sha256"))
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is damaged ({error!r}); {fix}") from error
        if hashlib.sha256(weights).hexdigest() != sha256:
            raise ValueError(f"{weights_file} is damaged or belongs to another {RECORD}; {fix}")
        network = build_network(architecture, len(names), resolution)
        try:
            network.load_state_dict(load(weights))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{weights_file} does not fit {architecture} ({error}); {fix}") from error
        return cls(network.to(device), names, architecture, resolution, record)


AttributeClassifier = FaceAttributes | NetworkAttributes


def open_attributes(spec: str, *, device: str | torch.device = "cpu") -> AttributeClassifier:
    """Open a classifier: ``"faces"`` for the renderer's factors, or a directory of `isodiff train-attributes`."""
    return FaceAttributes() if spec == "faces" else NetworkAttributes.load(spec, device=device)


def build_network(architecture: str, num_attributes: int, resolution: int) -> nn.Module:
    """Build an untrained classification network of torchvision, such as ``resnet18``, with a logit an attribute."""
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise ValueError(f"architecture is {architecture!r}; torchvision has {', '.join(known)}")
    build = partial(torchvision.models.get_model, architecture, weights=None, num_classes=num_attributes)
    try:
        with torch.device("meta"):  # shapes without numbers: does it take such images, and answer as it should?
            logits = build()(torch.zeros(2, 3, resolution, resolution))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{architecture} cannot take images of {resolution} pixels ({error})") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_attributes):
        raise ValueError(f"{architecture} answers with more than logits; choose another, such as resnext50_32x4d")
    return build()


def fit_images(images: Tensor, resolution: int) -> Tensor:
    """Return images (N, 1 or 3, H, W) as the network gets them: three channels, square, antialiased bilinear resize."""
    images, size = images.expand(-1, 3, -1, -1), (resolution, resolution)
    if images.shape[-2:] == size:
        return images
    return nn.functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).clamp(-1, 1)


class Labels(NamedTuple):
    """Which image shows what: (N, A) true or false, and the names of the A attributes."""

    values: np.ndarray
    names: tuple[str, ...]


def age_gender_labels(names: Sequence[str]) -> Labels:
    """Read ``age>=<median, rounded up>`` and ``gender1`` from names such as ``00000_age26_gender0.jpg``."""
    found = [re.search(r"_age(\d+)_gender([01])(?!\d)", PurePosixPath(name).name) for name in names]
    if not found or None in found:
        odd = repr(names[found.index(None)]) if found else "no images"
        raise ValueError(f"names must hold age and gender as in 00000_age26_gender0.jpg; got {odd}")
    ages, genders = np.array([[int(match[1]), int(match[2])] for match in found]).T
    median = int(np.ceil(np.median(ages)))
    return Labels(np.stack([ages >= median, genders == 1], axis=1), (f"age>={median}", "gender1"))


def celeba_labels(path: str | Path, names: Sequence[str]) -> Labels:
    """Read the attributes of images, by the last part of their names, from CelebA's ``list_attr_celeba.txt``."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; give CelebA's list_attr_celeba.txt")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if len(lines) < 3 or not lines[0].strip().isdigit():
        needed = "a line that counts the images and one that names the attributes"
        raise ValueError(f"{path} must begin with {needed}; got {(lines or [''])[0][:60]!r}")
    attributes, table = tuple(lines[1].split()), {}
    for number, line in enumerate(lines[2:], start=3):
        image, *values = line.split() or [""]
        if len(values) != len(attributes) or not set(values) <= {"-1", "1"}:
            needed = f"an image and {len(attributes)} values −1 or 1"
            raise ValueError(f"line {number} of {path} must be {needed}; got {line[:60]!r}")
        table[image] = [value == "1" for value in values]
    if len(table) != int(lines[0]):
        raise ValueError(f"{path} announces {int(lines[0])} images and lists {len(table)}; fetch it again")
    files = [PurePosixPath(name).name for name in names]
    if missing := [file for file in files if file not in table]:
        raise ValueError(f"{path} lacks {len(missing)} of {len(files)} images, such as {missing[0]!r}")
    return Labels(np.array([table[file] for file in files], dtype=bool).reshape(len(files), -1), attributes)


def read_labels(spec: str, images: Dataset[Tensor], num_images: int | None = None) -> Labels:
    """Label the first images of a dataset, by default all, of the endless faces 10,000.

    Rendered faces by the signs of their ``"factors"``, others by names, ``"age-gender"``, or by ``"celeba:FILE"``.
    """
    faces, (kind, _, file) = hasattr(images, "factors"), spec.partition(":")
    count = num_images if num_images is not None else min(len(images), 10_000) if faces else len(images)
    if not 1 <= count <= len(images):
        raise ValueError(f"num_images must be 1 to {len(images)}, the number of images; got {count}")
    if spec == "factors" and faces:
        return Labels((images.factors[:count] > 0).cpu().numpy(), FACTORS)
    if spec == "age-gender" and not faces:
        return age_gender_labels(images.names[:count])
    if kind == "celeba" and file and not faces:
        return celeba_labels(file, images.names[:count])
    accepted = "'factors' of rendered faces, 'age-gender' or 'celeba:FILE' of other images"
    raise ValueError(f"labels is {spec!r} of {'faces' if faces else 'other images'}; accepted: {accepted}")


def train_attributes(
    images: Dataset[Tensor],
    labels: np.ndarray,
    names: Sequence[str],
    output: str | Path,
    config: diffusion.AttributeConfig | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    num_workers: int = 0,
    progress: bool = False,
    overwrite: bool = False,
) -> NetworkAttributes:
    """Train a classifier of the attributes (N, A), true or false, of the first N images, into a directory.

    Images are those of `open_dataset`. Called again, it goes on after the last finished epoch, on a CPU to the same
    bits, or loads the result. `provenance`, plain JSON values, is recorded; with others, ``command`` excepted, it is
    another training. ``record["held_out"]`` is `held_out_accuracy`, by which nothing is chosen; the split is by image.
    """
    output = claim_folder(output, OURS, overwrite=overwrite)
    config, device = config or diffusion.AttributeConfig(), torch.device(device)
    labels, names = np.asarray(labels), tuple(names)
    train, test = _split(labels, names, len(images), config)
    known = {"num_images": len(labels), "labels_sha256": content_digest(labels, *names), **(provenance or {})}
    facts = asdict(config) | known | {"resolution": images.resolution, "names": list(names)}
    accelerator = diffusion.accelerator_for(str(device))
    with diffusion.seeded(config.seed, device):
        network = build_network(config.architecture, len(names), images.resolution).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)
    parts = {"network": network, "optimizer": optimizer}
    checkpoint = diffusion.Checkpoint(output / "checkpoint.pt", parts, facts, accelerator)
    if (output / RECORD).exists():
        trained = NetworkAttributes.load(output, device=device)
        there = trained.record | trained.record["config"]
        there |= {"resolution": trained.resolution, "names": list(trained.names)}
        diffusion.require_same_run({name: there.get(name) for name in facts}, facts, str(output / RECORD))
        checkpoint.discard()  # a kill may have come just before this
        return trained

    size = min(config.batch_size, len(train))
    num_batches = len(train) // size  # a last batch of one image would break batch normalisation
    total = config.num_epochs * num_batches
    warmup = max(1, round(0.1 * total))
    targets, done = torch.from_numpy(labels).float().to(device), checkpoint.restore()

    def train_epoch(epoch: int) -> None:
        network.train()
        order = torch.from_numpy(train)[torch.randperm(len(train))]
        batches = order[: num_batches * size].view(num_batches, size).tolist()
        loader, summed = DataLoader(images, batch_sampler=batches, num_workers=num_workers), 0.0
        for step, (batch, x) in enumerate(zip(batches, loader, strict=True), start=epoch * num_batches):
            decay = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
            optimizer.param_groups[0]["lr"] = config.learning_rate * ((step + 1) / warmup if step < warmup else decay)
            if images.horizontal_flip:
                x = torch.where(torch.rand(size, 1, 1, 1) < 0.5, x.flip(3), x)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
                logits = network(fit_images(x.to(device), images.resolution))
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            summed += loss.detach()
        if not math.isfinite(summed):
            raise FloatingPointError(f"the loss became {float(summed)} in epoch {epoch + 1}; lower learning_rate")

    epochs = range(done, config.num_epochs)
    with diffusion.stop_signals() as stop:
        for epoch in tqdm(epochs, config.architecture, config.num_epochs, initial=done, disable=not progress):
            with diffusion.seeded(diffusion.derived_seed(config.seed, epoch), device):
                train_epoch(epoch)
            checkpoint.save(epoch + 1)
            if stop():
                place = f"stopped after epoch {epoch + 1} of {config.num_epochs}; {checkpoint.path} is written"
                raise diffusion.TrainingInterrupted(f"{place}, run the same again to go on", stop())

    trained = NetworkAttributes(network, names, config.architecture, images.resolution)
    rest = Subset(images, test.tolist())
    held_out = DataLoader(rest, batch_size=256, num_workers=num_workers, generator=torch.Generator())
    told = np.concatenate([trained.probabilities(batch) for batch in held_out])
    trained.record = {"config": asdict(config), **known, "num_train": len(train), "num_held_out": len(test)}
    trained.record["held_out"] = held_out_accuracy(told > 0.5, labels[test], names)
    trained.save(output)
    checkpoint.discard()
    return trained


def held_out_accuracy(told: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return by attribute the accuracy of answers (n, A), its 95 % Clopper–Pearson interval and the larger class."""
    table, n = {}, len(labels)
    for name, right, share in zip(names, (told == labels).sum(axis=0).tolist(), labels.mean(axis=0), strict=True):
        low, high = map(float, binomtest(right, n).proportion_ci(0.95, method="exact"))
        chance = float(max(share, 1 - share))
        table[name] = {"accuracy": right / n, "interval": [low, high], "chance": chance, "beats_chance": low > chance}
    return table


def held_out_table(trained: NetworkAttributes) -> str:
    """Return the accuracies on held-out images as text, an attribute a line."""
    width, record = max(len(name) for name in (*trained.names, "attribute")), trained.record
    lines = [f"{'attribute':{width}}  accuracy  95 % interval  chance  beats chance"]
    for name, row in record["held_out"].items():
        interval, beats = "{:.3f} to {:.3f}".format(*row["interval"]), "yes" if row["beats_chance"] else "no"
        lines.append(f"{name:{width}}  {row['accuracy']:8.3f}  {interval}  {row['chance']:.3f}   {beats}")
    return "\n".join([*lines, f"n = {record['num_held_out']:,} held out, {record['num_train']:,} trained on"])


def _split(
    labels: np.ndarray, names: tuple[str, ...], num_images: int, config: diffusion.AttributeConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the images to train on and of those held out, both ascending, if they and labels serve."""
    if labels.ndim != 2 or labels.dtype != bool or labels.shape[1] != len(names) or not names:
        accepted = f"boolean (N, {len(names)}), with at least one name"
        raise ValueError(f"labels must be {accepted}; got {labels.dtype} of shape {labels.shape}")
    if len(set(names)) < len(names):
        raise ValueError(f"names must differ; got {', '.join(names)}")
    if (count := len(labels)) > num_images:
        raise ValueError(f"there are labels for {count} images and {num_images} images")
    num_test = round(config.held_out * count)
    if num_test < 1 or count - num_test < 2:
        left = f"{count - num_test} to train on and {num_test} to test on; at least 2 and 1 are needed"
        raise ValueError(f"held_out = {config.held_out} of {count} images leaves {left}")
    order = np.random.default_rng(config.seed).permutation(count)
    train, test = np.sort(order[num_test:]), np.sort(order[:num_test])
    for name, share in zip(names, labels[train].mean(axis=0), strict=True):
        if share in (0, 1):
            found = f"{name} is {'true' if share else 'false'} for all {len(train)} images to train on"
            raise ValueError(f"{found}; leave it out, or give images of both kinds")
    return train, test
