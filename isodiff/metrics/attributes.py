"""What an image shows, as probabilities: from a fit of the renderer, or from a network trained on labelled images."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.data import Dataset

from isodiff.datasets import check_images
from isodiff.datasets.face_factors import estimate_factors
from isodiff.datasets.faces import FACTORS
from isodiff.files import write_whole
from isodiff.metrics.measure import content_digest

RECORD, WEIGHTS = "attributes.json", "model.safetensors"


class AttributeClassifier(Protocol):
    """Tells the A attributes `names` of images; `digest` is the SHA-256 of all that its answers depend on."""

    names: tuple[str, ...]
    digest: str

    def probabilities(self, images: Tensor) -> np.ndarray:
        """Return (N, A) values in [0, 1] for images (N, 3, H, W) in [−1, 1]."""
        ...


class FaceAttributes:
    """The ten factors z of rendered faces, found by fitting the renderer: p = (1 + z)/2.

    A face that the renderer drew gets its own factors; any other image those of the most similar face. Cost: about 120
    renderings an image.
    """

    names = FACTORS
    digest = content_digest("renderer's factors, version 1", *FACTORS)

    def probabilities(self, images: Tensor) -> np.ndarray:
        """Return (N, 10) values in [0, 1] for images (N, 3, R, R); ½ is the middle of a factor's range."""
        factors = estimate_factors(check_images(images, len(images), name="the source of the images")).factors
        return (1 + factors.clamp(-1, 1).cpu().double().numpy()) / 2


class NetworkAttributes:
    """A torchvision classification network, as `build_network` makes it, with one sigmoid for each attribute.

    Images of another side than `resolution`, that of training, are resized to it. `record` holds what else is known,
    such as settings and held-out accuracies, as plain JSON values.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        *,
        architecture: str,
        resolution: int,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.names = network.eval(), tuple(names)
        self.architecture, self.resolution, self.record = architecture, resolution, dict(record or {})
        weights = (part for key, value in sorted(network.state_dict().items()) for part in (key, value))
        self.digest = content_digest(architecture, str(resolution), *self.names, *weights)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> np.ndarray:
        """Return (N, A) float64 probabilities for images (N, 1 or 3, H, W) in [−1, 1]; one channel stands for grey."""
        images = check_images(images, len(images), name="the source of the images")
        device = next(self.network.parameters()).device
        logits = [self.network(fit_images(piece.to(device), self.resolution)) for piece in images.split(64)]
        return torch.cat(logits).sigmoid().cpu().double().numpy()

    def save(self, directory: str | Path) -> None:
        """Write weights and record; whoever reads sees both of one network or an error, never a mixture."""
        weights = save({key: value.cpu().contiguous() for key, value in self.network.state_dict().items()})
        record = {
            "architecture": self.architecture,
            "resolution": self.resolution,
            "names": list(self.names),
            "sha256": hashlib.sha256(weights).hexdigest(),
            **self.record,
        }
        write_whole(Path(directory) / WEIGHTS, weights)
        write_whole(Path(directory) / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, directory: str | Path, *, device: str | torch.device = "cpu") -> NetworkAttributes:
        """Read what `save` wrote."""
        directory, fix = Path(directory), "train it again with `isodiff train-attributes`"
        for name in (RECORD, WEIGHTS):
            if not (directory / name).is_file():
                raise FileNotFoundError(
                    f"no attribute classifier in {directory}: {name} is missing; "
                    "give 'faces' or a directory that `isodiff train-attributes` wrote"
                )
        weights = (directory / WEIGHTS).read_bytes()
        try:
            record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
            names, architecture, resolution, sha256 = (
                record.pop(name) for name in ("names", "architecture", "resolution", "sha256")
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{directory / RECORD} is damaged ({error!r}); {fix}") from error
        if hashlib.sha256(weights).hexdigest() != sha256:
            raise ValueError(f"{directory / WEIGHTS} is damaged or belongs to another {RECORD}; {fix}")
        network = build_network(architecture, len(names), resolution)
        try:
            network.load_state_dict(load(weights))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{directory / WEIGHTS} does not fit {architecture} ({error}); {fix}") from error
        return cls(network.to(device), names, architecture=architecture, resolution=resolution, record=record)


def open_attributes(spec: str, *, device: str | torch.device = "cpu") -> AttributeClassifier:
    """Open a classifier: ``"faces"`` for the renderer's factors, or a directory of `isodiff train-attributes`."""
    return FaceAttributes() if spec == "faces" else NetworkAttributes.load(spec, device=device)


def build_network(architecture: str, num_attributes: int, resolution: int) -> nn.Module:
    """Build an untrained classification network of torchvision, such as ``resnet18``, with a logit an attribute."""
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise ValueError(f"architecture is {architecture!r}; torchvision has {', '.join(known)}")
    try:
        with torch.device("meta"):  # shapes without numbers: does it take such images, and answer as it should?
            logits = torchvision.models.get_model(architecture, weights=None, num_classes=num_attributes)(
                torch.zeros(2, 3, resolution, resolution)
            )
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{architecture} cannot take images of {resolution} pixels ({error})") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_attributes):
        raise ValueError(f"{architecture} answers with more than logits; choose another, such as resnext50_32x4d")
    return torchvision.models.get_model(architecture, weights=None, num_classes=num_attributes)


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


def age_gender_labels(names: Sequence[str], *, age: int | None = None) -> Labels:
    """Read ``age>=…`` (by default the median, rounded up) and ``gender1`` from names as ``00000_age26_gender0.jpg``."""
    found = [re.search(r"_age(\d+)_gender([01])(?!\d)", PurePosixPath(name).name) for name in names]
    if not found or None in found:
        odd = repr(names[found.index(None)]) if found else "no images"
        raise ValueError(f"names must hold age and gender as in 00000_age26_gender0.jpg; got {odd}")
    ages, genders = np.array([[int(match[1]), int(match[2])] for match in found]).T
    age = int(np.ceil(np.median(ages))) if age is None else age
    return Labels(np.stack([ages >= age, genders == 1], axis=1), (f"age>={age}", "gender1"))


def celeba_labels(path: str | Path, names: Sequence[str]) -> Labels:
    """Read the attributes of images, found by the last part of their names, from CelebA's ``list_attr_celeba.txt``.

    Its first line is the number of images, its second the names of the attributes, and every other an image with −1 or
    1 for each.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; give CelebA's list_attr_celeba.txt")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if len(lines) < 3 or not lines[0].strip().isdigit():
        raise ValueError(
            f"{path} must begin with a line that counts the images and one that names the attributes; "
            f"got {(lines or [''])[0][:60]!r}"
        )
    attributes, table = tuple(lines[1].split()), {}
    for number, line in enumerate(lines[2:], start=3):
        image, *values = line.split() or [""]
        if len(values) != len(attributes) or not set(values) <= {"-1", "1"}:
            raise ValueError(
                f"line {number} of {path} must be an image and {len(attributes)} values −1 or 1; got {line[:60]!r}"
            )
        table[image] = [value == "1" for value in values]
    if len(table) != int(lines[0]):
        raise ValueError(f"{path} announces {int(lines[0])} images and lists {len(table)}; fetch it again")
    files = [PurePosixPath(name).name for name in names]
    if missing := [file for file in files if file not in table]:
        raise ValueError(f"{path} lacks {len(missing)} of {len(files)} images, such as {missing[0]!r}")
    return Labels(np.array([table[file] for file in files], dtype=bool).reshape(len(files), -1), attributes)


def factor_labels(factors: Tensor) -> Labels:
    """Label rendered faces with the sign of each of their factors (N, 10), such as `FacesDataset.factors`."""
    if factors.ndim != 2 or factors.shape[1] != len(FACTORS):
        raise ValueError(f"factors must be (N, {len(FACTORS)}); got shape {tuple(factors.shape)}")
    return Labels((factors > 0).cpu().numpy(), FACTORS)


def read_labels(spec: str, images: Dataset[Tensor], num_images: int | None = None) -> Labels:
    """Label the first so many images of a dataset, by default all, of the endless faces 10,000.

    By ``"factors"`` of rendered faces, or from file names, ``"age-gender"``, or a table, ``"celeba:FILE"``.
    """
    faces, (kind, _, file) = hasattr(images, "factors"), spec.partition(":")
    count = num_images if num_images is not None else min(len(images), 10_000) if faces else len(images)
    if not 1 <= count <= len(images):
        raise ValueError(f"num_images must be 1 to {len(images)}, the number of images; got {count}")
    if spec == "factors" and faces:
        return factor_labels(images.factors[:count])
    if spec == "age-gender" and not faces:
        return age_gender_labels(images.names[:count])
    if kind == "celeba" and file and not faces:
        return celeba_labels(file, images.names[:count])
    accepted = "'factors' of rendered faces, 'age-gender' or 'celeba:FILE' of other images"
    raise ValueError(f"labels is {spec!r} of {'faces' if faces else 'other images'}; accepted: {accepted}")
