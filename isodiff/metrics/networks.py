"""The networks that metrics look through: LPIPS on AlexNet or VGG16, and Inception-2015 for FID and KID.

The libraries compute: ``lpips`` the perceptual distance (Zhang et al. 2018, version 0.1), torch-fidelity the Inception
features. What is ours is how published weights reach them wherever they lie (`find_weights`), that both run in full
float32, and a ``protocol`` that says what decides their numbers.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import lpips
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

from isodiff.metrics.precision import full_precision
from isodiff.metrics.weight_formats import backbone_state, fidelity_names, inception_state
from isodiff.metrics.weights import WEIGHTS, FoundWeights, find_weights

Net = Literal["alex", "vgg"]
EXTRACTOR = "isodiff-inception"
"""Name under which torch-fidelity's registry knows `FidelityInception`: ``calculate_metrics(feature_extractor=…)``."""

_SMALLEST = 32  # AlexNet's pooling has nothing left of 8 or 16 pixels
_BACKBONES = {"alex": "alexnet", "vgg": "vgg16"}


def perceptual_distance(
    net: Net = "alex", *, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> PerceptualDistance:
    """Return LPIPS 0.1 with ImageNet features and the published heads.

    Args:
        net: Backbone, ``"alex"`` (as in Hahm et al. 2024) or ``"vgg"`` (as in Karras et al. 2019).
        weights: File or folder of the backbone's weights; see `find_weights`.
        device: Where the network runs.

    Returns:
        The distance.

    Raises:
        ValueError: For another backbone, or damaged weights, with the command that fixes them.
        FileNotFoundError: If there are no weights, with the command that fetches them.
    """
    if net not in get_args(Net):
        raise ValueError(f"net must be one of {', '.join(get_args(Net))}; got {net!r}")
    return PerceptualDistance(net, find_weights(_BACKBONES[net], weights), torch.device(device))


class PerceptualDistance:
    """LPIPS: a weighted squared distance of normalised features (Eq. 1, Zhang et al. 2018).

    Differentiable in the images; in float32 even under autocast, and without TF32 on a GPU. The network is loaded at
    the first call.

    Attributes:
        net: The backbone.
        protocol: What decides the numbers, as plain JSON values.
    """

    def __init__(self, net: Net, found: FoundWeights, device: torch.device) -> None:
        self.net, self.found, self.device = net, found, device
        self.protocol = {
            "distance": "lpips-0.1",
            "net": net,
            "weights": _digest(_BACKBONES[net], found),
            "small_images": f"sides below {_SMALLEST} pixels are enlarged bilinearly to {_SMALLEST}",
        }

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each pair.

        Args:
            a: (B, 1 or 3, H, W) images in [−1, 1]; one channel is repeated.
            b: Images of the same shape.

        Returns:
            (B,) distances, ≥ 0, float32, on the network's device.

        Raises:
            ValueError: If the shapes differ or are none of these, or values are NaN or outside [−1, 1].
        """
        if a.shape != b.shape:
            raise ValueError(f"a and b must have one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
        with full_precision():
            return self._network(self._prepare(a, "a"), self._prepare(b, "b")).flatten()

    def _prepare(self, images: Tensor, name: str) -> Tensor:
        _check_shape(images, name)
        low, high = (end.item() for end in images.detach().aminmax())
        if not max(-low, high) <= 1 + 1e-3:  # also true of NaN, which aminmax hands on
            raise ValueError(f"{name} must hold values in [−1, 1]; got {low:.4g} to {high:.4g}")
        images = images.to(self.device, torch.float32).expand(-1, 3, -1, -1)
        size = [max(side, _SMALLEST) for side in images.shape[2:]]
        return images if size == list(images.shape[2:]) else interpolate(images, size, mode="bilinear")

    @cached_property
    def _network(self) -> lpips.LPIPS:
        with torch.random.fork_rng(devices=()), warnings.catch_warnings():  # it first draws random weights
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # how lpips asks for them
            network = lpips.LPIPS(net=self.net, pnet_rand=True, verbose=False)
        features = backbone_state(_BACKBONES[self.net], self.found)
        # lpips cuts torchvision's `features` into slices but keeps the numbers of the layers
        names = {name: name.split(".", 1)[1] for name in network.net.state_dict()}
        network.net.load_state_dict({name: features[f"features.{layer}"] for name, layer in names.items()})
        return network.requires_grad_(False).eval().to(self.device)


def inception_features(*, weights: str | Path | None = None, device: torch.device | str = "cpu") -> InceptionFeatures:
    """Return the features that FID and KID are defined on.

    Args:
        weights: File or folder of the network's weights; see `find_weights`.
        device: Where the network runs.

    Returns:
        The extractor.

    Raises:
        ValueError: For damaged weights, with the command that fixes them.
        FileNotFoundError: If there are no weights, with the command that fetches them.
    """
    return InceptionFeatures(find_weights("inception", weights), torch.device(device))


class InceptionFeatures:
    """The 2,048 pooled features of Inception-2015, by torch-fidelity's network; loaded at the first call.

    Attributes:
        protocol: What decides the numbers, as plain JSON values.
    """

    def __init__(self, found: FoundWeights, device: torch.device) -> None:
        self.found, self.device = found, device
        self.protocol = {
            "network": "inception-2015",
            "layer": "2048",
            "weights": _digest("inception", found),
            "resize": "to 299 pixels, bilinear as in TensorFlow 1",
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images.

        Args:
            images: (N, 1 or 3, H, W) uint8; one channel is repeated.

        Returns:
            (N, 2048) float32, on the network's device.

        Raises:
            ValueError: For another shape or type.
        """
        _check_shape(images, "images")
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8, 0 to 255; got {images.dtype}")
        with full_precision():
            return self._network(images.to(self.device).expand(-1, 3, -1, -1))[0]

    @cached_property
    def _network(self) -> FidelityInception:
        return FidelityInception(EXTRACTOR, ["2048"], feature_extractor_weights_path=self.found.path).to(self.device)


class FidelityInception(FeatureExtractorInceptionV3):
    """torch-fidelity's extractor with weights from `find_weights`, batch normalisation folded, channels last.

    Features differ from those of the plain network by rounding, about 10⁻⁶; a pass on a CPU takes a fifth less time.

    Args:
        name: As torch-fidelity gives it.
        features_list: Layers, among `get_provided_features_list`.
        feature_extractor_weights_path: File or folder; see `find_weights`.
        **options: What else torch-fidelity hands to extractors; not used.
    """

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | Path | None = None,
        **options: Any,  # noqa: ANN401 - torch-fidelity's
    ) -> None:
        file = io.BytesIO()  # the library wants a file, and would run any code in it; this one holds arrays only
        torch.save(inception_state(find_weights("inception", feature_extractor_weights_path)), file)
        file.seek(0)
        with torch.random.fork_rng(devices=()):  # the library first draws random weights
            super().__init__(name, features_list, feature_extractor_weights_path=file)
        for block in self.modules():
            if isinstance(block, BasicConv2d):
                block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
        self.to(memory_format=torch.channels_last).requires_grad_(False)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], **options: Any) -> Any:  # noqa: ANN401 - torch's
        """Load weights under torch-fidelity's names, or under those of the TorchScript file."""
        return super().load_state_dict(fidelity_names(state_dict, self.state_dict()), **options)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the layers that every published file has weights for."""
        return "64", "192", "768", "2048"


register_feature_extractor(EXTRACTOR, FidelityInception)


def _check_shape(images: Tensor, name: str) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"{name} must have shape (N, 1 or 3, H, W) with N, H, W ≥ 1; got {tuple(images.shape)}")


def _digest(name: str, found: FoundWeights) -> str:
    return WEIGHTS[name].digests[found.form][:8]
