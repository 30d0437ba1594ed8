"""Folders of frames: their order by the numbers in their names, and what leaves it open."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from isodiff.datasets.morphs import in_order, open_morphs


def write(folder: Path, names: list[str], size: tuple[int, int] = (10, 8)) -> Path:
    """Write flat pictures, the i-th with grey level 10 i."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (10 * number,) * 3).save(folder / name, "PNG")
    return folder


@given(
    st.lists(st.integers(0, 10**20), unique=True, min_size=1), st.sampled_from(["{}.png", "f_{}.png", "a {} of 9.jpg"])
)
def test_frames_come_by_their_numbers(numbers: list[int], name: str) -> None:
    assert in_order([Path(name.format(n)) for n in numbers]) == [Path(name.format(n)) for n in sorted(numbers)]


@pytest.mark.parametrize("names", [["a.png", "B.png", "c.png"], ["0.0.png", "0.5.png", "1.0.png"], ["f.png", "f1.png"]])
def test_other_names_that_have_an_order(names: list[str]) -> None:
    assert [path.name for path in in_order([Path(name) for name in reversed(names)])] == names


def test_frames_are_loaded_in_order_at_their_own_size_or_resized(tmp_path: Path) -> None:
    names = [f"frame{i}.png" for i in range(12)]
    (morph,) = open_morphs([write(tmp_path / "m", names)])
    assert np.array_equal(morph.load()[:, 0, 0, 0], np.arange(0, 120, 10))
    assert (morph.load().shape, morph.facts["size"]) == ((12, 3, 8, 10), "10 x 8")
    (morph,) = open_morphs([tmp_path / "m"], resolution=4)
    assert (morph.load().shape, morph.facts["size"]) == ((12, 3, 4, 4), "4 x 4")


def test_pairs_are_sub_folders_or_folders_and_have_originals(tmp_path: Path) -> None:
    for pair in ("p1", "p2", "p10"):
        write(tmp_path / "m" / pair, ["0.png", "1.png"])
        write(tmp_path / "o" / pair, ["a.png", "b.png"], size=(30, 30))
    (tmp_path / "m" / "p1" / ".hidden.png").write_bytes(b"no")
    (tmp_path / "m" / "p2" / "prompt.txt").write_text("a face")
    with pytest.warns(UserWarning, match=r"1 files among the frames are no images and are left out: .*prompt.txt"):
        morphs = open_morphs([tmp_path / "m"], originals=tmp_path / "o")
    assert [morph.name for morph in morphs] == ["p1", "p2", "p10"]
    assert {(len(morph.frames), morph.load_originals().shape) for morph in morphs} == {(2, (2, 3, 8, 10))}
    assert [morph.name for morph in open_morphs([tmp_path / "m/p10", tmp_path / "m/p1"])] == ["p10", "p1"]
    (alone,) = open_morphs([tmp_path / "m/p1"], originals=tmp_path / "o/p2")
    assert [path.parent.name for path in alone.originals] == ["p2", "p2"]


@pytest.mark.parametrize(("numbers", "gap"), [([0, 1, 2, 4], "f2.png"), ([0, 10, 20], ""), ([5, 6], "")])
def test_a_gap_in_the_numbers_is_said(numbers: list[int], gap: str, tmp_path: Path) -> None:
    write(tmp_path / "m", [f"f{number}.png" for number in numbers])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        open_morphs([tmp_path / "m"])
    assert [str(warning.message).rpartition("/")[2] for warning in said] == ([gap] if gap else [])


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["1 01"], "have one place in the order"),
        (["1 2 grid"], "are named differently"),
        (["0.25 0.125 0.5"], "change places if a point is read as decimal"),
        (["0 1", "0 1"], "given twice"),
        (["mixed"], "holds 1 images and 1 folders"),
        (["0 1", "pairs"], "of several folders each is one pair"),
        (["film"], "holds 2 pictures"),
        (["heic"], r"f1\.heic cannot be read"),
        (["link"], r"f2\.png cannot be read"),
    ],
)
def test_folders_refused(folders: list[str], said: str, tmp_path: Path) -> None:
    for names in ("1 01", "1 2 grid", "0.25 0.125 0.5", "0 1"):
        write(tmp_path / names, [f"{name}.png" for name in names.split()])
    write(write(tmp_path / "mixed", ["overview.png"]) / "p", ["0.png", "1.png"])
    write(tmp_path / "pairs" / "p", ["0.png", "1.png"])
    (write(tmp_path / "heic", ["f0.png"]) / "f1.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (write(tmp_path / "link", ["f0.png", "f1.png"]) / "f2.png").symlink_to("nowhere")
    stills = [Image.new("RGB", (10, 8), (grey,) * 3) for grey in (0, 90)]
    stills[0].save(write(tmp_path / "film", ["f0.png"]) / "f1.gif", save_all=True, append_images=stills[1:])
    with pytest.raises(ValueError, match=said):
        open_morphs([tmp_path / folder for folder in folders])
