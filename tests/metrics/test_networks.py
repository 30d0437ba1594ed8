"""LPIPS and Inception are the published networks: equal to the libraries given the same weights, in either form."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, interpolate
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from isodiff.metrics import networks
from isodiff.metrics.networks import EXTRACTOR, InceptionFeatures, inception_features, perceptual_distance
from isodiff.metrics.weight_formats import backbone_state, inception_state, read_arrays
from isodiff.metrics.weights import FoundWeights, find_weights

NETS = {"alex": "alexnet", "vgg": "vgg16"}


def images(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Draw smooth images in [−1, 1]."""
    small = torch.rand(*shape[:2], 5, 5, generator=generator) * 2 - 1
    return interpolate(small, shape[2:], mode="bilinear")


@pytest.fixture(scope="module")
def alex() -> networks.PerceptualDistance:
    return perceptual_distance("alex")


@pytest.fixture(scope="module")
def inception() -> InceptionFeatures:
    return inception_features()


# LPIPS


@pytest.mark.parametrize("net", NETS)
def test_distance_equals_the_package(net: str, generator: torch.Generator) -> None:
    """The lpips package, with the arrays of the file put layer by layer into its slices, gives the same number."""
    found = find_weights(NETS[net])
    if found.form != "package":
        pytest.skip(f"this machine has the weights as {found.path.name}, which the package reads itself")
    with found.path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy and torchvision have renamed what the file and lpips refer to
        arrays = pickle.load(file)
        reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    layers = arrays["AlexNet_0" if net == "alex" else "VGG16_0"]
    convolutions = [m for m in reference.net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == len(layers)
    for number, convolution in enumerate(convolutions):
        kernel = torch.from_numpy(layers[f"Conv_{number}"]["kernel"])
        bias = torch.from_numpy(layers[f"Conv_{number}"]["bias"])
        convolution.load_state_dict({"weight": torch.einsum("hwio->oihw", kernel), "bias": bias})
    a, b = images(generator, 3, 3, 64, 48), images(generator, 3, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(perceptual_distance(net)(a, b), reference(a, b).flatten(), atol=1e-6, rtol=0)
    for head in range(5):  # both packages carry the heads: they must be those of one version
        mine = getattr(reference, f"lin{head}").model[-1].weight.flatten()
        assert torch.equal(mine, torch.from_numpy(arrays[f"NetLinLayer_{head}"]["Conv_0"]["kernel"]).flatten())


def test_kernels_are_not_transposed(generator: torch.Generator) -> None:
    """AlexNet's first layer, summed window by window from the array as the file has it, equals the convolution."""
    found = find_weights("alexnet")
    if found.form != "package":
        pytest.skip(f"this machine has the weights as {found.path.name}")
    first = read_arrays(found.path)["AlexNet_0"]["Conv_0"]
    x = torch.randn(1, 3, 20, 27, generator=generator)
    windows = np.lib.stride_tricks.sliding_window_view(x[0].numpy(), (11, 11), axis=(1, 2))[:, ::4, ::4]
    expected = np.einsum("cyxhw,hwco->oyx", windows, first["kernel"]) + first["bias"][:, None, None]
    state = backbone_state("alexnet", found)
    layer = conv2d(x, state["features.0.weight"], state["features.0.bias"], stride=4)[0]
    np.testing.assert_allclose(layer.numpy(), expected, atol=1e-5)


def test_distance_is_zero_on_itself_symmetric_and_grows(
    alex: networks.PerceptualDistance, generator: torch.Generator
) -> None:
    a, noise = images(generator, 2, 3, 64, 64) * 0.5, torch.randn(2, 3, 64, 64, generator=generator).clamp(-4, 4)
    steps = torch.stack([alex(a, a + size * noise) for size in (0, 0.01, 0.03, 0.1)])
    assert torch.equal(steps[0], torch.zeros(2))
    assert (steps.diff(dim=0) > 0).all()
    assert torch.equal(alex(a, a + 0.1 * noise), alex(a + 0.1 * noise, a))


def test_one_channel_is_repeated(alex: networks.PerceptualDistance, generator: torch.Generator) -> None:
    a, b = images(generator, 2, 1, 40, 40), images(generator, 2, 1, 40, 40)
    assert torch.equal(alex(a, b), alex(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize(("size", "enlarged"), [((8, 8), (32, 32)), ((16, 16), (32, 32)), ((16, 40), (32, 40))])
def test_small_images_are_enlarged(
    alex: networks.PerceptualDistance,
    generator: torch.Generator,
    size: tuple[int, int],
    enlarged: tuple[int, int],
) -> None:
    """Sizes on which AlexNet fails are measured at the size that the protocol names, the others as they are."""
    a, b = images(generator, 2, 3, *size), images(generator, 2, 3, *size)
    larger = [interpolate(x, enlarged, mode="bilinear", align_corners=False) for x in (a, b)]
    torch.testing.assert_close(alex(a, b), alex(*larger), atol=1e-7, rtol=0)
    assert "32" in alex.protocol["small_images"]


def test_autocast_changes_nothing(alex: networks.PerceptualDistance, generator: torch.Generator) -> None:
    """The distance of two nearly equal images would drown in bfloat16."""
    a = images(generator, 2, 3, 64, 64) * 0.9
    b = a + 1e-3 * torch.randn(a.shape, generator=generator)
    plain = alex(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(alex(a, b), plain)
        assert alex(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_gradient_equals_the_difference_quotient(alex: networks.PerceptualDistance, generator: torch.Generator) -> None:
    a, b, v = (images(generator, 1, 3, 40, 40) * 0.9 for _ in range(3))
    (gradient,) = torch.autograd.grad(alex(a.requires_grad_(), b).sum(), a)
    with torch.no_grad():
        quotient = (alex(a + 0.01 * v, b) - alex(a - 0.01 * v, b)).item() / 0.02
    assert (gradient * v).sum().item() == pytest.approx(quotient, rel=0.02)


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (torch.full((1, 3, 32, 32), 1.5), r"\[−1, 1\]; got 1\.5 to 1\.5"),
        (torch.full((1, 3, 32, 32), torch.nan), "got nan to nan"),
        (torch.zeros(1, 4, 32, 32), r"\(N, 1 or 3, H, W\).*got \(1, 4, 32, 32\)"),
        (torch.zeros(0, 3, 32, 32), "N, H, W ≥ 1"),
        (torch.zeros(3, 32, 32), "got \\(3, 32, 32\\)"),
    ],
)
def test_images_of_another_kind_are_refused(alex: networks.PerceptualDistance, a: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alex(a, a)


def test_pairs_of_two_shapes_are_refused(alex: networks.PerceptualDistance) -> None:
    with pytest.raises(ValueError, match=r"one shape; got \(1, 3, 32, 32\) and \(1, 1, 32, 32\)"):
        alex(torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32))


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="alex, vgg; got 'squeeze'"):
        perceptual_distance("squeeze")


# Inception


def resized_as_in_tensorflow_1(image: np.ndarray, side: int) -> np.ndarray:
    """Interpolate (C, H, W) between the pixels around ``i · H / side``: corners aligned top left, none centred."""
    for axis in (1, 2):
        length = image.shape[axis]
        position = np.arange(side) * (length / side)
        low = position.astype(int)
        shape = [-1 if i == axis else 1 for i in range(3)]
        fraction = (position - low).reshape(shape)
        above = np.minimum(low + 1, length - 1)
        image = image.take(low, axis) * (1 - fraction) + image.take(above, axis) * fraction
    return image


def test_features_equal_the_published_script(inception: InceptionFeatures, generator: torch.Generator) -> None:
    """The TorchScript network itself, after a resize written from its definition, gives the same features."""
    found = find_weights("inception")
    if found.form != "package":
        pytest.skip(f"this machine has the weights as {found.path.name}, without a script")
    x = torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8, generator=generator)
    resized = np.stack([resized_as_in_tensorflow_1(image.numpy().astype(float), 299) for image in x])
    with torch.no_grad():
        expected = torch.jit.load(found.path)(torch.from_numpy((resized - 128) / 128).float())
    features = inception(x)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


def test_features_are_a_function_of_each_image(inception: InceptionFeatures, generator: torch.Generator) -> None:
    grey = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8, generator=generator)
    both = inception(grey)
    with torch.autocast("cpu", torch.bfloat16):
        second = inception(grey[1:].repeat(1, 3, 1, 1))
    torch.testing.assert_close(second, both[1:], atol=1e-5, rtol=1e-5)


def test_weights_as_torch_fidelity_downloads_them(
    inception: InceptionFeatures, generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torch-fidelity's names and with logits, as in its own download, the weights give the same features."""
    found = find_weights("inception")
    if found.form == "torch":
        pytest.skip("they are read in this form in every other test")
    shapes = {name: value.shape for name, value in Skeleton().state_dict().items()}
    state = {name: torch.ones(shape) for name, shape in shapes.items()}  # of one: the normalisation's gains
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    script = inception_state(found)
    for part, name in (("weight", "conv.weight"), ("beta", "bn.bias"), ("mean", "bn.running_mean"), ("var", "var")):
        theirs = [key for key in script if key.endswith(f".{part}")]
        ours = [key for key in state if key.endswith(name)]
        assert len(theirs) == len(ours) == 94
        state |= {key: script[other] for key, other in zip(ours, theirs, strict=True)}
    torch.save(state, tmp_path / "inception.pth")
    monkeypatch.setattr(networks, "find_weights", lambda *_: FoundWeights(tmp_path / "inception.pth", "torch"))
    x = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=generator)
    again = inception_features()
    torch.testing.assert_close(again(x), inception(x), atol=1e-6, rtol=1e-6)
    assert again.protocol["weights"] != inception.protocol["weights"]


class Skeleton(FeatureExtractorInceptionV3):
    """torch-fidelity's network with random weights."""

    def __init__(self) -> None:
        torch.save({}, file := io.BytesIO())
        file.seek(0)
        super().__init__("skeleton", ["2048"], feature_extractor_weights_path=file)

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        assert state_dict == {}


@pytest.mark.parametrize("x", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 8, 8, dtype=torch.uint8)])
def test_features_of_another_kind_are_refused(inception: InceptionFeatures, x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="images must"):
        inception(x)


# Weights


def test_loading_warns_of_nothing_and_draws_nothing(generator: torch.Generator) -> None:
    """The libraries' deprecations are not the reader's, and a measurement leaves global randomness alone."""
    x = images(generator, 1, 3, 32, 32)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perceptual_distance("alex")(x, x)
        inception_features()((x * 127 + 128).byte())
    assert torch.equal(torch.get_rng_state(), before)


class Attack:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.victim),)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    """A file that would make a folder when unpickled is refused by name, and makes none; in either form."""
    arrays, state = tmp_path / "weights.ckpt", tmp_path / "weights.pth"
    arrays.write_bytes(pickle.dumps({"AlexNet_0": Attack(tmp_path / "victim")}))
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.mkdir|nt\.mkdir"):
        read_arrays(arrays)
    torch.save({"features.0.weight": Attack(tmp_path / "victim")}, state)
    for read in (lambda found: backbone_state("alexnet", found), inception_state):
        with pytest.raises(pickle.UnpicklingError, match="mkdir"):
            read(FoundWeights(state, "torch"))
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("protocol", [3, 4])
def test_a_pickle_of_arrays_is_read(tmp_path: Path, protocol: int) -> None:
    tree = {"a": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "n": 3}
    (tmp_path / "weights.ckpt").write_bytes(pickle.dumps(tree, protocol))
    read = read_arrays(tmp_path / "weights.ckpt")
    assert read["n"] == 3
    np.testing.assert_array_equal(read["a"]["kernel"], tree["a"]["kernel"])


def test_missing_and_damaged_weights_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader learns what to run from every door: ours, and torch-fidelity's."""
    monkeypatch.setenv("ISODIFF_WEIGHTS", str(tmp_path))
    doors = [
        lambda: perceptual_distance("alex"),
        lambda: perceptual_distance("vgg"),
        inception_features,
        lambda: calculate_metrics(
            input1="none", input2="none", fid=True, feature_extractor=EXTRACTOR, cuda=False, verbose=False
        ),
    ]
    for door in doors:
        with pytest.raises(FileNotFoundError, match="run `isodiff fetch-weights`"):
            door()
    for name in ("alexnet.ckpt", "vgg16.ckpt", "default_1.pt"):
        (tmp_path / name).write_bytes(b"cut sho")
    for door in doors:
        with pytest.raises(ValueError, match="run `isodiff fetch-weights`"):
            door()
