"""The table of the papers' data sets: its numbers are the paper's, they are checked, and without a hub it says so."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from PIL import Image

from isodiff.datasets import CATALOGUE, catalogue, open_dataset
from isodiff.datasets.hub import fetch_command

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _rows(count: int) -> datasets.Dataset:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(buffer, "PNG")
    cells = [{"bytes": buffer.getvalue(), "path": None}] * count
    features = datasets.Features({"mask": datasets.Image(), "img": datasets.Image()})
    return datasets.Dataset.from_dict({"mask": cells, "img": cells}, features=features)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache of a machine without a connection, as HF_HUB_OFFLINE=1 and HF_HOME make it."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return cache


def _fetched(cache: Path, count: int) -> None:
    """Put CIFAR-10's repository into the cache, with another number of images, as `hf download` lays it out."""
    folder = cache / "datasets--uoft-cs--cifar10"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    data = folder / "snapshots" / COMMIT / "plain_text"
    data.mkdir(parents=True)
    _rows(count).to_parquet(data / "train-00000-of-00001.parquet")


def test_the_counts_are_the_papers() -> None:
    """Sec. 4.1 of the paper, and the table's own text of it."""
    counts = {name: source.paper_count for name, source in CATALOGUE.items() if source.paper_count}
    assert counts == {"cifar10": 50_000, "celebahq": 14_342, "lsun-church": 126_227, "lsun-bedroom": 3_033_042}
    assert "50,000, 14,342, 126,227, and 3,033,042" in " ".join(catalogue.__doc__.split())
    assert {name: source.resolution for name, source in CATALOGUE.items() if source.resolution != 256} == {
        "cifar10": 32
    }
    assert [name for name, source in CATALOGUE.items() if source.streamed] == ["lsun-bedroom", "imagenet"]


@pytest.mark.parametrize("name", CATALOGUE)
def test_entries_are_well_formed(name: str) -> None:
    """Repositories and revisions have the hub's form; what is read as a stream says so."""
    source = CATALOGUE[name]
    huggingface_hub.utils.validate_repo_id(source.repository)
    assert source.revision is None or re.fullmatch("[0-9a-f]{40}", source.revision)
    assert source.terms
    assert source.note or source.paper_count in (None, source.count)
    assert source.spec.startswith("stream:" if source.streamed else "hub:")
    assert source.spec.endswith(f"#{source.split}")


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.usefixtures("offline")
def test_offline_each_name_fails_at_once_with_the_command_that_fetches_it(name: str) -> None:
    """One line: the name, the repository, the command."""
    source = CATALOGUE[name]
    with pytest.raises(ConnectionError) as failure:
        open_dataset(name, source.resolution)
    message = str(failure.value)
    assert message.startswith(f"{name}: the hub could not be asked for {source.repository!r}")
    command = f"`hf download {source.repository} --repo-type dataset"
    assert (f"{command} --revision {source.revision}`" if source.revision else f"{command}`") in message
    assert "HF_HUB_OFFLINE=1" in message
    assert "\n" not in message


def test_without_a_connection_it_takes_no_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one question that comes first is not repeated; the library's own attempts last 23 seconds."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing answers here
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    asked = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (asked.append(seconds), sleep(0)))
    with pytest.raises(
        ConnectionError, match=r"^cifar10: the hub could not be asked for 'uoft-cs/cifar10' \(.*hf down"
    ):
        open_dataset("cifar10", 32)
    assert sum(asked) < 5


def test_the_command_is_one_that_the_installed_library_has() -> None:
    """Program, subcommand and options."""
    program, subcommand, _, *options = fetch_command("uoft-cs/cifar10", COMMIT).split()
    installed = Path(sys.executable).parent / program
    shown = subprocess.run([installed, subcommand, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in shown for option in options[::2])
    assert options == ["--repo-type", "dataset", "--revision", COMMIT]


def test_what_was_fetched_opens_offline(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the table's name, split and column, although another column of images comes first."""
    _fetched(offline, 3)
    monkeypatch.setitem(
        CATALOGUE, "cifar10", catalogue.Source("uoft-cs/cifar10", "train", "img", 3, None, 3, 32, False, "-")
    )
    images = open_dataset("cifar10", 8)
    assert len(images) == 3
    assert images[0][:, 0, 0].tolist() == [1, -1, -1]


def test_another_number_of_images_is_an_error_with_a_way_around(offline: Path) -> None:
    """Both numbers are named; the way around that the message names works."""
    _fetched(offline, 3)
    with pytest.raises(ValueError, match=r"holds 3 images where 50,000 are expected") as failure:
        open_dataset("cifar10", 8)
    (way,) = set(re.findall(r"hub:[^ ;,]+", str(failure.value)))
    assert len(open_dataset(way, 8)) == 3


def test_a_number_that_is_not_the_papers_is_a_warning(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub has opens, and says what the paper has."""
    _fetched(offline, 3)
    source = catalogue.Source("uoft-cs/cifar10", "train", "img", 3, None, 7, 32, False, "-", "the rest is lost")
    monkeypatch.setitem(CATALOGUE, "cifar10", source)
    with pytest.warns(UserWarning, match=r"cifar10 is hub:.* with 3 images, where the paper has 7: the rest is lost"):
        open_dataset("cifar10", 8)


def test_a_copy_of_ones_own_is_checked_against_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever holds it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "own").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "own" / f"{i}.png")
    (tmp_path / "table").mkdir()
    _rows(3).to_parquet(tmp_path / "table" / "train.parquet")
    copies = [f"folder:{tmp_path / 'own'}", f"hub:{tmp_path / 'table'}", f"stream:{tmp_path / 'table'}#train=3"]
    for copy in copies:
        with pytest.raises(ValueError, match=r"(3 images where 14,342|14,342 images where 3) are expected"):
            open_dataset(f"celebahq={copy}", 8)
    source = catalogue.Source("a/b", "train", "image", 5, None, 3, 256, False, "-", "-")
    monkeypatch.setitem(CATALOGUE, "celebahq", source)
    assert [len(open_dataset(f"celebahq={copy}", 8)) for copy in copies] == [3, 3, 3]


@pytest.mark.parametrize("spec", ["cifar10=", "cifar10=faces", "cifar10=hub:", "cifar10:x", "CIFAR10", "stream:"])
def test_unknown_forms_of_the_names(spec: str) -> None:
    """The error repeats the spec and lists what is accepted."""
    with pytest.raises(ValueError, match=rf"unknown dataset '{re.escape(spec)}'.*accepted are .*'lsun-bedroom'"):
        open_dataset(spec, 8)


def test_a_column_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns there are are named."""
    from isodiff.datasets.hub import open_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    _rows(1).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"no column 'image' of type Image, only .*img"):
        open_hub(str(tmp_path), 8, column="image")
