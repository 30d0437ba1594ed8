"""Statistics of frames: closed forms, invariances, the lpips package on the same files, records and refusals."""

from __future__ import annotations

import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from isodiff.cli import main
from isodiff.metrics import Record, comparison_table, evaluate_frames, jackknife_interval, networks
from isodiff.metrics.frames import DEFINITIONS, frame_statistics, pair_distances, student_interval
from isodiff.metrics.path_length import squared_l2

STEPS = st.lists(st.floats(1e-3, 10), min_size=1, max_size=30)


def pictures(count: int, size: tuple[int, int] = (40, 32), seed: int = 0) -> list[Image.Image]:
    """Mix two random pictures, from the one to the other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    one, other = (Image.fromarray(rough).resize(size) for rough in coarse)
    return [Image.blend(one, other, (i / (count - 1)) ** 1.5) for i in range(count)]


def write(folder: Path, images: list[Image.Image], name: str = "frame{}.png") -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / name.format(number))
    return folder


@pytest.fixture
def morphs(tmp_path: Path) -> Path:
    """Return a folder with two pairs of 12 frames, and one with what they join."""
    for pair in range(2):
        images = pictures(12, seed=pair)
        write(tmp_path / "morphs" / f"pair{pair}", images)
        write(tmp_path / "originals" / f"pair{pair}", [images[0], images[-1].resize((80, 64))], "{}.png")
    return tmp_path / "morphs"


def test_closed_forms() -> None:
    """Steps 1 … N have sum N(N + 1)/2, variance (N² − 1)/12 and jerkiness 2N/(N + 1)."""
    n = 12
    expected = {"ppl_sum": n * (n + 1) / 2, "ppl_mean": (n + 1) / 2, "pdv": ((n**2 - 1) / 12) ** 0.5}
    expected |= {"largest_step": n, "jerkiness": 2 * n / (n + 1)}
    assert frame_statistics(np.arange(1, n + 1)) == pytest.approx(expected)
    assert frame_statistics([0, 0, 0, 5])["jerkiness"] == 4  # one jump
    assert frame_statistics([2, 2, 2]) == {"ppl_sum": 6, "ppl_mean": 2, "pdv": 0, "largest_step": 2, "jerkiness": 1}


@given(STEPS, st.floats(0.01, 100), st.randoms())
def test_statistics_of_a_path_walked_back_shuffled_or_scaled(steps: list[float], scale: float, rng: object) -> None:
    found, shuffled = frame_statistics(steps), steps.copy()
    rng.shuffle(shuffled)
    for other in (steps[::-1], shuffled):
        assert frame_statistics(other) == pytest.approx(found, rel=1e-9, abs=1e-9)
    scaled = frame_statistics(np.array(steps) * scale)
    assert scaled.pop("jerkiness") == pytest.approx(found.pop("jerkiness"))
    assert scaled == pytest.approx({name: scale * value for name, value in found.items()}, rel=1e-9, abs=1e-9)


@given(STEPS)
def test_the_interval_is_that_of_the_jackknife_of_a_mean(values: list[float]) -> None:
    left_out = [np.mean(np.delete(values, i)) for i in range(len(values)) if len(values) > 1]
    expected = pytest.approx(jackknife_interval(np.mean(values), left_out), abs=1e-6) if left_out else None
    assert student_interval(values) == expected


def test_distances_of_pairs_are_in_their_order(generator: torch.Generator) -> None:
    pairs = torch.randint(0, 256, (70, 2, 3, 64, 64), generator=generator, dtype=torch.uint8)  # three batches
    expected = squared_l2(*(pairs.double() / 127.5 - 1).unbind(1))
    np.testing.assert_allclose(pair_distances(pairs, {"l2": squared_l2})["l2"], expected, rtol=1e-5)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_steps_and_ends_equal_the_lpips_package(net: str, morphs: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision has renamed what lpips asks for
        reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    reference.load_state_dict(networks.perceptual_distance(net)._network.state_dict())
    frames = (lpips.im2tensor(np.asarray(Image.open(morphs / f"pair0/frame{i}.png"))) for i in range(12))
    steps = [reference(a, b).item() for a, b in pairwise(frames)]
    record = evaluate_frames([morphs / "pair0"], originals=morphs.parent / "originals", nets=[net], device="cpu")
    found, ends = (record.measurements[f"{name}_{net}"] for name in ("ppl_sum", "end_distance"))
    assert found.details["steps"]["pair0"] == pytest.approx(steps, rel=1e-4, abs=1e-7)
    assert (found.value, found.interval) == (pytest.approx(sum(steps), rel=1e-4), None)
    assert ends.details["first"] == [0]  # the same pixels
    assert 0 < ends.details["last"][0] < 0.1  # enlarged, and made small again


def test_the_record_says_what_decides_its_numbers_and_comes_back(morphs: Path, capsys: pytest.CaptureFixture) -> None:
    output = morphs.parent / "records"
    command = ["evaluate", "--device", "cpu", "--output", str(output), "--cache", str(output / "cache")]
    assert main([*command, "--frames", str(morphs), "--originals", str(morphs.parent / "originals")]) == 0
    (path,) = output.glob("*.json")
    record = Record.load(path)
    assert comparison_table([record]) in capsys.readouterr().out
    assert record.measurements.keys() == {f"{name}_{net}" for name in DEFINITIONS for net in ("alex", "vgg")}
    for name, found in record.measurements.items():
        assert (found.n, len(found.replicates), found.value) == (2, 2, pytest.approx(found.replicates.mean(), rel=1e-5))
        assert found.interval == pytest.approx(student_interval(found.replicates), rel=1e-3, abs=1e-5)
        assert found.protocol["net"] == name.rpartition("_")[2]
        assert (found.protocol["frames"], found.protocol["size"]) == ([12], ["40 x 32"])
        assert (found.protocol["resize"], found.protocol["definition"]) == ("none", DEFINITIONS[found.name])
    assert record.settings["pairs"][0]["last"] == "frame11.png"
    assert {"network", "resolution", "sum or mean", "frames a path"} <= record.settings.popitem()[1].keys()
    again = evaluate_frames([morphs / "pair0", morphs / "pair1"], resolution=32, nets=["alex"], device="cpu")
    assert again.measurements["pdv_alex"].protocol["size"] == ["32 x 32"]
    assert again.left_out.keys() == {"end_distance"}


# what is done to the folder, the options, and what the line says
OF = "--frames morphs --originals originals"
REFUSED = {
    "empty": (lambda here: (here / "e").mkdir(), "--frames e", "e holds no image; expected frames"),
    "not there": (None, "--frames nowhere", "nowhere is not there; give a folder of frames"),
    "one frame": (lambda here: write(here / "o", pictures(2)[:1]), "--frames o", "expected at least 2 frames"),
    "still": (lambda here: write(here / "s", pictures(2)[:1] * 3), "--frames s", "all 3 frames of s are one image"),
    "sizes": (lambda here: pictures(2, (8, 9))[0].save(here / "morphs/pair1/frame12.png"), OF, "has 8 x 9 pixels"),
    "unreadable": (lambda here: (here / "morphs/pair1/frame3.png").write_bytes(b"no"), OF, "frame3.png cannot be read"),
    "no originals": (lambda here: shutil.rmtree(here / "originals/pair1"), OF, "pair1 is not there; give a folder of"),
    "one original": (lambda here: (here / "originals/pair0/1.png").unlink(), OF, "holds 1 images; expected two"),
    "resolution": (None, f"{OF} --resolution 0", "resolution must be at least 1 pixel"),
    "a model": (None, f"faces32/base {OF}", "models is ('faces32/base',); leave it out with --frames"),
    "another option": (None, f"{OF} --seed 3", "seed is 3; leave it out with --frames"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_before_any_network(
    case: str, morphs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    change, options, said = REFUSED[case]
    monkeypatch.chdir(morphs.parent)
    monkeypatch.setattr(networks.PerceptualDistance, "__call__", lambda *_: pytest.fail("a network was asked"))
    if change:
        change(morphs.parent)
    assert main(["evaluate", *options.split(), "--device", "cpu", "--output", "out", "--cache", "cache"]) == 2
    error = capsys.readouterr().err
    assert (said in error, error.count("\n")) == (True, 1), error
    assert {"out", "cache"}.isdisjoint(path.name for path in morphs.parent.iterdir())
