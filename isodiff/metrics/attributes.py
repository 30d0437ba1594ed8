"""What an image shows, as probabilities: from a fit of the renderer, or from a network trained on labelled images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isodiff.datasets.face_factors import estimate_factors
from isodiff.datasets.faces import FACTORS
from isodiff.metrics.generator import check_images
from isodiff.metrics.store import content_digest

RECORD, WEIGHTS = "attributes.json", "model.safetensors"
_BATCH_SIZE = 64


class AttributeClassifier(Protocol):
    """Tells the attributes of images.

    Attributes:
        names: Of the A attributes.
        digest: SHA-256 of all that its answers depend on.
    """

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
        """Return (N, 10) values in [0, 1]; ½ is the middle of a factor's range.

        Raises:
            ValueError: If images are not finite (N, 3, R, R) in [−1, 1].
        """
        factors = estimate_factors(check_images(images, len(images), name="the source of the images")).factors
        return (1 + factors.clamp(-1, 1).cpu().double().numpy()) / 2


class NetworkAttributes:
    """A torchvision classification network with one sigmoid for each attribute.

    Args:
        network: As `build_network` makes it; it is set to evaluation.
        names: Of the A attributes.
        architecture: Name of the network in torchvision.
        resolution: Side in pixels of the images it was trained on; others are resized to it.
        record: What else is known, such as settings and held-out accuracies; plain JSON values.
    """

    def __init__(
        self,
        network: nn.Module,
        names: tuple[str, ...],
        *,
        architecture: str,
        resolution: int,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.names = network.eval(), tuple(names)
        self.architecture, self.resolution, self.record = architecture, resolution, dict(record or {})
        weights = (part for key, value in sorted(network.state_dict().items()) for part in (key, value.cpu().numpy()))
        self.digest = content_digest(architecture, str(resolution), *self.names, *weights)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> np.ndarray:
        """Return (N, A) probabilities of the attributes, in float64.

        Args:
            images: (N, 1 or 3, H, W) in [−1, 1]; one channel stands for grey.

        Raises:
            ValueError: If images have another shape, leave [−1, 1] or are not finite.
        """
        images = check_images(images, len(images), name="the source of the images")
        device = next(self.network.parameters()).device
        pieces = [torch.empty(0, len(self.names))]
        for piece in images.split(_BATCH_SIZE):
            pieces.append(self.network(fit_images(piece.to(device), self.resolution)).sigmoid().cpu())
        return torch.cat(pieces).double().numpy()

    def save(self, directory: str | Path) -> None:
        """Write weights and record; whoever reads sees both of one network or an error, never a mixture."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f".{WEIGHTS}.partial"
        save_file({key: value.cpu().contiguous() for key, value in self.network.state_dict().items()}, partial)
        record = {
            "architecture": self.architecture,
            "resolution": self.resolution,
            "names": list(self.names),
            "sha256": _sha256(partial),
            **self.record,
        }
        partial.replace(directory / WEIGHTS)
        partial = directory / f".{RECORD}.partial"
        partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(directory / RECORD)

    @classmethod
    def load(cls, directory: str | Path, *, device: str | torch.device = "cpu") -> NetworkAttributes:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If the directory holds no classifier.
            ValueError: If the record is damaged, or the weights are not those that belong to it.
        """
        directory = Path(directory)
        fix = "train it again with `isodiff train-attributes`"
        for name in (RECORD, WEIGHTS):
            if not (directory / name).is_file():
                raise FileNotFoundError(
                    f"no attribute classifier in {directory}: {name} is missing; "
                    "give 'faces' or a directory that `isodiff train-attributes` wrote"
                )
        try:
            record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
            names, architecture = tuple(record.pop("names")), record.pop("architecture")
            resolution, sha256 = record.pop("resolution"), record.pop("sha256")
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{directory / RECORD} is damaged ({error!r}); {fix}") from error
        if _sha256(directory / WEIGHTS) != sha256:
            raise ValueError(f"{directory / WEIGHTS} is damaged or belongs to another {RECORD}; {fix}")
        network = build_network(architecture, len(names), resolution)
        try:
            network.load_state_dict(load_file(directory / WEIGHTS))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{directory / WEIGHTS} does not fit {architecture} ({error}); {fix}") from error
        return cls(network.to(device), names, architecture=architecture, resolution=resolution, record=record)


def open_attributes(spec: str, *, device: str | torch.device = "cpu") -> AttributeClassifier:
    """Open a classifier: ``"faces"`` for the renderer's factors, or a directory of `isodiff train-attributes`.

    Raises:
        FileNotFoundError: If the directory holds no classifier.
        ValueError: If it is damaged.
    """
    return FaceAttributes() if spec == "faces" else NetworkAttributes.load(spec, device=device)


def build_network(architecture: str, num_attributes: int, resolution: int) -> nn.Module:
    """Build an untrained torchvision network with a logit for each attribute.

    Args:
        architecture: Classification network of torchvision, such as ``resnext50_32x4d`` or ``resnet18``.
        num_attributes: Number of logits.
        resolution: Side in pixels of the images it will get.

    Raises:
        ValueError: If torchvision has no such network, or it cannot take such images, or answers with more than one
            tensor of logits.
    """
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
    images = images.expand(-1, 3, -1, -1)
    if images.shape[-2:] == (resolution, resolution):
        return images
    size = (resolution, resolution)
    return nn.functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).clamp(-1, 1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
