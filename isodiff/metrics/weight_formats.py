"""The forms in which pretrained networks are published, read without running any Python that a file may hold.

A ``"torch"`` file is a state dict. A ``"package"`` file is a pickle of numpy arrays in the layout of JAX (AlexNet and
VGG16) or TorchScript (Inception).
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isodiff.metrics.weights import FoundWeights

_TREES = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}
_CONVOLUTIONS = {"alexnet": (0, 3, 6, 8, 10), "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
_RECONSTRUCT = np.empty(0).__reduce__()[0]  # lives in a private module whose name depends on numpy's version
_ACCEPTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def inception_state(found: FoundWeights) -> Mapping[str, Tensor]:
    """Read Inception's weights, under the names that the file gives them.

    Args:
        found: As `find_weights` returned it.

    Returns:
        torch-fidelity's state dict, or that of the TorchScript file: ``weight``, ``beta``, ``mean`` and ``var`` of
        each convolution, without the logits.
    """
    if found.form == "torch":
        return torch.load(found.path, weights_only=True, map_location="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated")  # the file's form is given
        return torch.jit.load(found.path, map_location="cpu").state_dict()


def fidelity_names(state: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Give Inception's weights the names of torch-fidelity's network.

    Args:
        state: As `inception_state` returned it.
        network: A state dict of that network, whose logits are kept where the file has none.

    Returns:
        A state dict for that network.
    """
    if "fc.weight" in state:
        return state
    named = dict(network)
    theirs = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    ours = [name.removesuffix(".conv.weight") for name in network if name.endswith(".conv.weight")]
    for block, name in zip(ours, theirs, strict=True):  # both list the 94 convolutions in the order of the graph
        named[f"{block}.conv.weight"] = state[f"{name}.weight"]
        named[f"{block}.bn.weight"] = torch.ones_like(state[f"{name}.beta"])  # TensorFlow's normalisation has no gain
        named[f"{block}.bn.bias"] = state[f"{name}.beta"]
        named[f"{block}.bn.running_mean"] = state[f"{name}.mean"]
        named[f"{block}.bn.running_var"] = state[f"{name}.var"]
    return named


def backbone_state(name: str, found: FoundWeights) -> dict[str, Tensor]:
    """Read a classifier's convolutions from either published form.

    Args:
        name: ``"alexnet"`` or ``"vgg16"``.
        found: As `find_weights` returned it.

    Returns:
        Weights and biases under torchvision's names, ``features.0.weight`` and so on, kernels (out, in, H, W).

    Raises:
        pickle.UnpicklingError: If the file refers to anything but arrays.
    """
    if found.form == "torch":
        return torch.load(found.path, weights_only=True, map_location="cpu")
    layers = read_arrays(found.path)[_TREES[name]]
    state = {}
    for number, layer in enumerate(_CONVOLUTIONS[name]):
        kernel, bias = (layers[f"Conv_{number}"][part] for part in ("kernel", "bias"))
        kernel = kernel.transpose(3, 2, 0, 1)  # from (H, W, in, out)
        state[f"features.{layer}.weight"] = torch.from_numpy(kernel.copy())
        state[f"features.{layer}.bias"] = torch.from_numpy(bias.copy())
    return state


def read_arrays(path: Path) -> dict[str, Any]:
    """Read a pickle that may hold dictionaries, texts, numbers and numpy arrays, and nothing else.

    Raises:
        pickle.UnpicklingError: If it refers to anything else, by name; nothing of it is run.
    """
    with path.open("rb") as file:
        return _ArrayUnpickler(file).load()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - one of the four
        if (module, name) not in _ACCEPTED:
            raise pickle.UnpicklingError(f"the weights refer to {module}.{name}; only numpy arrays are accepted")
        return _ACCEPTED[module, name]
