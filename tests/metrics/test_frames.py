"""Statistics of frames: closed forms, invariances, the lpips package on the same files, records and refusals."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import lpips
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from isodiff.cli import main
from isodiff.metrics import Record, comparison_table, evaluate_frames, jackknife_interval, networks
from isodiff.metrics.frames import DEFINITIONS, frame_statistics, student_interval

STEPS = st.lists(st.floats(1e-3, 10), min_size=1, max_size=30)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return a folder with `morphs`, two pairs of 12 mixtures of two random pictures, and these, `originals`."""
    for pair in range(2):
        coarse = np.random.default_rng(pair).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
        one, other = (Image.fromarray(rough).resize((40, 32)) for rough in coarse)
        frames = [Image.blend(one, other, (i / 11) ** 1.5) for i in range(12)]
        for folder, images in (("morphs", frames), ("originals", [one, other.resize((80, 64))])):
            (tmp_path / folder / f"pair{pair}").mkdir(parents=True)
            for number, image in enumerate(images):
                image.save(tmp_path / folder / f"pair{pair}" / f"frame{number}.png")
    return tmp_path


def test_steps_that_grow_jump_or_are_equal_in_closed_form() -> None:
    """Steps 1 … N have sum N(N + 1)/2, variance (N² − 1)/12 and jerkiness 2N/(N + 1)."""
    n = 12
    expected = {"ppl_sum": n * (n + 1) / 2, "ppl_mean": (n + 1) / 2, "pdv": ((n**2 - 1) / 12) ** 0.5}
    expected |= {"largest_step": n, "jerkiness": 2 * n / (n + 1)}
    assert frame_statistics(np.arange(1, n + 1)) == pytest.approx(expected)
    assert frame_statistics([0, 0, 0, 5])["jerkiness"] == 4  # one jump
    assert frame_statistics([2, 2, 2]) == {"ppl_sum": 6, "ppl_mean": 2, "pdv": 0, "largest_step": 2, "jerkiness": 1}


@given(STEPS, st.floats(0.01, 100), st.randoms())
def test_statistics_know_no_order_and_only_jerkiness_no_scale(steps: list[float], scale: float, rng: object) -> None:
    found, shuffled = frame_statistics(steps), steps.copy()
    rng.shuffle(shuffled)
    assert frame_statistics(shuffled) == pytest.approx(found, rel=1e-9, abs=1e-9)
    scaled = frame_statistics(np.array(steps) * scale)
    assert 1 - 1e-9 <= found["jerkiness"] <= len(steps) + 1e-9
    assert scaled.pop("jerkiness") == pytest.approx(found.pop("jerkiness"))
    assert scaled == pytest.approx({name: scale * value for name, value in found.items()}, rel=1e-9, abs=1e-9)


@given(STEPS)
def test_the_interval_is_that_of_the_jackknife_of_a_mean(values: list[float]) -> None:
    left_out = [np.mean(np.delete(values, i)) for i in range(len(values)) if len(values) > 1]
    expected = pytest.approx(jackknife_interval(np.mean(values), left_out), abs=1e-6) if left_out else None
    assert student_interval(values) == expected


@pytest.mark.filterwarnings("ignore:.* deprecated since 0.13")  # lpips uses the former names of torchvision
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_steps_and_ends_equal_the_lpips_package(net: str, here: Path) -> None:
    reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    reference.load_state_dict(networks.perceptual_distance(net)._network.state_dict())
    frames = (lpips.im2tensor(np.asarray(Image.open(here / f"morphs/pair0/frame{i}.png"))) for i in range(12))
    steps = [reference(a, b).item() for a, b in pairwise(frames)]
    record = evaluate_frames([here / "morphs/pair0"], originals=here / "originals", nets=[net], device="cpu")
    found, ends = (record.measurements[f"{name}_{net}"] for name in ("ppl_sum", "end_distance"))
    assert found.details["steps"]["pair0"] == pytest.approx(steps, rel=1e-4, abs=1e-7)
    assert (found.value, found.interval) == (pytest.approx(sum(steps), rel=1e-4), None)
    assert ends.details["first"] == [0]  # the same pixels
    assert 0 < ends.details["last"][0] < 0.1  # enlarged, and made small again


def test_the_record_says_what_decides_its_numbers_and_comes_back(here: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["evaluate", "--device", "cpu", "--output", str(here / "records"), "--cache", str(here / "cache")]
    assert main([*command, "--frames", str(here / "morphs"), "--originals", str(here / "originals")]) == 0
    (path,) = (here / "records").glob("*.json")
    record = Record.load(path)
    assert comparison_table([record]) in capsys.readouterr().out
    assert record.measurements.keys() == {f"{name}_{net}" for name in DEFINITIONS for net in ("alex", "vgg")}
    for name, found in record.measurements.items():
        assert (found.n, len(found.replicates), found.value) == (2, 2, pytest.approx(found.replicates.mean(), rel=1e-5))
        assert found.interval == pytest.approx(student_interval(found.replicates), rel=1e-3, abs=1e-5)
        decisive = {"net": name.rpartition("_")[2], "frames": [12], "size": ["40 x 32"], "resize": "none"}
        assert found.protocol.items() >= (decisive | {"definition": DEFINITIONS[found.name]}).items()
    assert record.settings["pairs"][0]["last"] == "frame11.png"
    again = evaluate_frames([here / "morphs"], resolution=32, nets=["alex"], device="cpu")
    assert again.measurements["pdv_alex"].protocol["size"] == ["32 x 32"]
    assert again.left_out.keys() == {"end_distance"}


OF = "--frames morphs --originals originals"
LAST = "originals/pair0/frame1.png"


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (lambda: Path(LAST).unlink(), "--frames originals/pair0", "expected at least 2 frames"),
        (lambda: shutil.copy("originals/pair0/frame0.png", LAST), "--frames originals/pair0", "are one image"),
        (lambda: Image.new("RGB", (8, 9)).save("morphs/pair1/frame12.png"), OF, "has 8 x 9 pixels"),
        (lambda: shutil.rmtree("originals/pair1"), OF, "pair1 is not there; give a folder of"),
        (lambda: Path(LAST).unlink(), OF, "holds 1 images; expected two"),
        (lambda: None, f"{OF} --resolution 0", "resolution must be at least 1 pixel"),
        (lambda: None, f"faces32/base {OF}", "models is ('faces32/base',); leave it out with --frames"),
    ],
)
def test_refused_in_one_line_before_any_network(
    here: Path, change: Callable, line: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setattr(networks.PerceptualDistance, "__call__", lambda *_: pytest.fail("a network was asked"))
    change()
    assert main(["evaluate", *line.split(), "--device", "cpu", "--output", "out", "--cache", "cache"]) == 2
    error = capsys.readouterr().err
    assert (said in error, error.count("\n")) == (True, 1), error
    assert {"out", "cache"}.isdisjoint(path.name for path in here.iterdir())
