"""The door to images: its names, the table of the papers' data sets, and what it says without a connection."""

import re
import time
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from isodiff.datasets import CATALOGUE, open_dataset

from .pictures import flat, write_table, write_tar

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RED = flat(255, 0, 0)


@pytest.fixture
def fetched(hub_cache: Path) -> None:
    """As `hf download` lays out CIFAR-10's repository, with three images."""
    folder = hub_cache / "datasets--uoft-cs--cifar10"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    write_table(folder / "snapshots" / COMMIT / "plain_text", [RED] * 3)


def test_the_table_is_the_papers_and_well_formed() -> None:
    counts = {name: source.paper_count for name, source in CATALOGUE.items() if source.paper_count}
    assert counts == {"cifar10": 50_000, "celebahq": 14_342, "lsun-church": 126_227, "lsun-bedroom": 3_033_042}
    for source in CATALOGUE.values():
        kind, repository, revision = re.fullmatch(r"(hub|stream):([^@#]+)(@[0-9a-f]{40})?#.+", source.spec).groups()
        huggingface_hub.utils.validate_repo_id(repository)
        assert revision or repository in ("uoft-cs/cifar10", "ILSVRC/imagenet-1k")
        assert (kind == "stream") == (source.count > 300_000)  # too large to fetch and index first
        assert source.note or source.paper_count in (None, source.count)


@pytest.mark.parametrize("name", CATALOGUE)
def test_offline_each_name_fails_at_once_with_the_command_that_fetches_it(name: str) -> None:
    repository, _, revision = CATALOGUE[name].spec.partition(":")[2].partition("#")[0].partition("@")
    with pytest.raises(ConnectionError) as failure:
        open_dataset(name, 32)
    message = str(failure.value)
    assert message.startswith(f"{name}: the hub could not be asked for {repository!r}")
    option = f" --revision {revision}" if revision else ""
    assert f"`hf download {repository} --repo-type dataset{option}`" in message
    assert "HF_HUB_OFFLINE=1" in message
    assert "\n" not in message


def test_without_a_connection_it_takes_no_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one question that comes first is not repeated; the library's own attempts last 23 seconds."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing answers here
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    asked = []
    monkeypatch.setattr(time, "sleep", asked.append)
    with pytest.raises(ConnectionError, match=r"^cifar10: the hub could not be asked for 'uoft-cs/cifar10'.*hf down"):
        open_dataset("cifar10", 32)
    assert sum(asked) < 5


@pytest.mark.usefixtures("fetched")
def test_what_was_fetched_opens_offline_if_it_holds_as_many_images_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"holds 3 images where 50,000 are expected") as failure:
        open_dataset("cifar10", 8)
    (way,) = set(re.findall(r"hub:[^ ;,]+", str(failure.value)))
    assert len(open_dataset(way, 8)) == 3  # the way around that the message names
    entry = CATALOGUE["cifar10"]._replace(count=3, paper_count=3)
    monkeypatch.setitem(CATALOGUE, "cifar10", entry)
    assert [image[:, 0, 0].tolist() for image in open_dataset("cifar10", 8)] == [[1, -1, -1]] * 3
    monkeypatch.setitem(CATALOGUE, "cifar10", entry._replace(paper_count=7, note="the rest is lost"))
    with pytest.warns(UserWarning, match=r"cifar10 is hub:.* with 3 images, where the paper has 7: the rest is lost"):
        open_dataset("cifar10", 8)


def test_a_copy_of_ones_own_is_checked_against_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path / "table", [RED] * 3)
    own = write_tar(tmp_path / "own.tar", {f"{i}.png": RED for i in range(3)})
    copies = [f"folder:{own}", f"hub:{table}", f"stream:{table}#train=3"]
    for copy in copies:
        with pytest.raises(ValueError, match=r"(3 images where 14,342|14,342 images where 3) are expected"):
            open_dataset(f"celebahq={copy}", 8)
    monkeypatch.setitem(CATALOGUE, "celebahq", CATALOGUE["celebahq"]._replace(paper_count=3))
    assert [len(open_dataset(f"celebahq={copy}", 8)) for copy in copies] == [3, 3, 3]


def test_the_column_of_images_is_found_by_its_type_and_a_bad_cell_is_left_out(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    table = write_table(tmp_path / "set", [*(flat(*colour) for colour in colours), b"bad"])
    write_table(table, [RED], split="test")
    left_out = r"hub:.*: 3 images; left out: 1 that cannot be read: 00000003 \(not an image\)"
    with pytest.warns(UserWarning, match=left_out):
        images = open_dataset(f"hub:{table}", 8)
    assert [image[:, 3, 3].tolist() for image in images] == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    assert images.horizontal_flip
    assert len(open_dataset(f"hub:{table}#test", 8)) == 1


@pytest.mark.parametrize(
    ("spec", "resolution", "message"),
    [
        ("folder:", 8, "unknown dataset 'folder:'; accepted are 'faces', 'digits'.*'lsun-bedroom'"),
        ("cifar10=faces", 8, "unknown dataset 'cifar10=faces'"),
        *[("digits", side, "shape must be a positive whole number") for side in (0, 8.0, True)],
        *[("digits", side, f"8 to 64 pixels.*got {side}") for side in (7, 65)],
        ("hub:{here}/set#validation", 8, r"does not open \(.*Unknown split .?validation.*accepted are NAME"),
        ("hub:{here}/words", 8, r"no column of type Image, only .*text"),
        ("hub:{here}/no/where", 8, r"no data set .* was found .*accepted are NAME"),
        ("hub:someone/photographs@main", 8, r"could not be asked for 'someone/photographs'.*accepted are NAME"),
    ],
)
def test_bad_input_is_refused(spec: str, resolution: object, message: str, tmp_path: Path) -> None:
    write_table(tmp_path / "set", [RED])
    (tmp_path / "words").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "words" / "train.parquet")
    with pytest.raises((ValueError, ConnectionError, FileNotFoundError), match=message):
        open_dataset(spec.format(here=tmp_path), resolution)
