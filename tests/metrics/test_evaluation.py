"""A whole evaluation of a real small model: every metric, interrupted, resumed, compared, refused; sizes, records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from isodiff import cli
from isodiff.diffusion import load_pipeline
from isodiff.metrics import measure
from isodiff.metrics.evaluation import PROFILES, Evaluation, Sizes, sizes_of
from isodiff.metrics.measure import Measurement
from isodiff.metrics.record import Record, comparison_table, versions
from isodiff.metrics.suite import SUITE, evaluate

# fmt: off
TINY = {
    "num_fid_images": 40, "fid_steps": 2, "num_ppl_pairs": 40, "ppl_steps": 2, "num_sweep_pairs": 40,
    "sweep_epsilons": [0.01, 0.001], "num_rtl_pairs": 3, "rtl_points": 3, "rtl_steps": 2, "spectrum_times": [300, 600],
    "num_spectra": 3, "spectrum_k": 3, "num_anisotropy": 8, "num_maps": 3, "map_k": 2, "map_steps": 1,
    "num_separable": 64, "num_kept": 40, "num_truth_pairs": 2, "truth_points": 3, "num_alignment": 2, "walk_points": 3,
    "num_edited": 2, "num_directions": 2, "edit_gammas": [2, 4], "edit_steps": 2, "num_inverted": 2,
    "inversion_steps": [2, 4], "refinements": [0, 1], "num_interpolated": 2, "num_geodesics": 2,
    "path_methods": ["lerp", "tangential"], "path_segments": 4, "swept_shares": [1.0], "swept_methods": ["slerp"],
    "num_swept": 2,
}
# fmt: on
CHEAP = ["mrtl", "mcn", "vor", "anisotropy"]


def tiny(model: str, metrics: list[str] | None, cache: Path | None = None, **options: object) -> Record:
    return evaluate(model, metrics, sizes=TINY, cache=cache, device="cpu", **options)


def numbers(record: Record) -> dict[str, tuple[float, tuple[float, float] | None]]:
    return {name: (measured.value, measured.interval) for name, measured in record.measurements.items()}


def test_every_metric_of_a_model_of_faces(tmp_path: Path) -> None:
    record = tiny("faces32/base", None, tmp_path)
    assert not record.left_out
    assert all(np.isfinite(measured.value) for measured in record.measurements.values())
    expected = {"fid", "kid", "ppl_alex_full", "ppl_vgg_end", "mrtl", "mcn_t300", "vor_t600", "vor_affine_t300"}
    expected |= {"anisotropy_t600", "map_anisotropy", "map_condition", "ls_linear_training", "ls_rbf_cross-validated"}
    expected |= {"factor_excess", "manifold_distance", "encoder_alignment", "step_jerkiness_lerp", "step_mean_slerp"}
    expected |= {"factor_excess_lerp", "target_share", "monotone_share", "inversion_mse_s4_r1", "inversion_lpips_s2_r0"}
    assert expected | {"inversion_mse_s2_r1_clipped", "latent_norm_ratio_s4_r0"} <= record.measurements.keys()
    assert {"path_length_lerp", "path_excess_tangential", "path_distance_slerp_tau100"} <= record.measurements.keys()
    assert record.measurements["step_mean_slerp"].protocol["num_steps"] == TINY["fid_steps"]
    for name, measured in record.measurements.items():
        assert measured.seed == 0, name
        assert measured.interval is None or measured.interval[0] <= measured.value <= measured.interval[1], name
    record.save(tmp_path / "record.json")
    assert numbers(Record.load(tmp_path / "record.json")) == numbers(record)


def test_killed_at_any_moment_it_goes_on_and_a_second_evaluation_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny("digits16/base", CHEAP, dataset="digits")
    written: list[Path] = []
    write, alive = measure.write_whole, 0

    def dying(path: Path, content: bytes, **options: str) -> None:
        if len(written) == alive:
            raise KeyboardInterrupt
        write(path, content, **options)
        written.append(path)

    monkeypatch.setattr(measure, "write_whole", dying)
    for _ in range(100):
        alive = len(written) + 2  # every run finishes two pieces of work and dies on the third
        try:
            resumed = tiny("digits16/base", CHEAP, tmp_path, dataset="digits")
            break
        except KeyboardInterrupt:
            continue
    assert len(written) == len(set(written)) > 4
    assert numbers(resumed) == numbers(whole)
    alive = len(written)  # whatever is written from now on is a death
    assert numbers(tiny("digits16/base", CHEAP, tmp_path, dataset="digits")) == numbers(whole)


def test_what_does_not_apply_is_left_out_and_said() -> None:
    run = Evaluation(load_pipeline("digits16/base"), Sizes(), "digits", "auto", 0, torch.device("cpu"))
    reasons = {name: family.obstacle(run) for name, family in SUITE.items()}
    left_out = {name for name, reason in reasons.items() if reason}
    assert left_out == {"separability", "truth", "alignment", "lerp", "directions"}
    assert "'faces' only, not of 'digits'" in reasons["truth"]
    with pytest.raises(ValueError, match="truth cannot be measured: the truth is known"):
        tiny("digits16/base", ["truth"], dataset="digits")


def test_the_command_prints_a_table_and_writes_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [part for name in ("num_anisotropy", "spectrum_times") for part in ("-p", f"{name}={TINY[name]}")]
    models = ["digits16/base", "digits16/isometric"]
    places = ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--no-progress"]
    arguments = ["evaluate", *models, "--dataset", "digits", "--metrics", "anisotropy", *sizes, *places]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    records = [tmp_path / "out" / f"digits16-{name}.json" for name in ("base", "isometric")]
    assert all(path.is_file() for path in records)
    row = next(line for line in printed.splitlines() if line.startswith("anisotropy_t600"))
    assert row.endswith("*")  # 17 against 1.2, as notebook 04 shows
    assert cli.main(["compare", *map(str, records)]) == 0
    assert row in capsys.readouterr().out


# Sizes


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_consistent(profile: str) -> None:
    sizes = sizes_of(profile)
    assert sizes.num_kept < sizes.num_separable <= sizes.num_fid_images  # separability shares the images of FID
    assert min(sizes.num_fid_images, sizes.num_ppl_pairs) >= 40  # twenty groups


def test_sizes_come_in_the_types_of_json() -> None:
    sizes = sizes_of("gpu", {"ppl_epsilon": 1, "spectrum_times": [5, 6], "swept_shares": (1, 0.5)})
    assert (sizes.ppl_epsilon, sizes.spectrum_times, sizes.swept_shares) == (1.0, (5, 6), (1.0, 0.5))
    assert isinstance(sizes.ppl_epsilon, float)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_fid": 3}, "no parameter called num_fid; it accepts num_fid_images, fid_steps"),
        ({"num_fid_images": -1}, "num_fid_images is -1: .* greater than or equal to 0"),
        ({"num_fid_images": True}, "num_fid_images is True: .* integer"),
        ({"num_fid_images": 3.0}, r"num_fid_images is 3\.0: .* integer"),
        ({"ppl_epsilon": float("nan")}, "ppl_epsilon is nan: .* finite"),
        ({"ppl_epsilon": "1"}, "ppl_epsilon is '1': .* number"),
        ({"spectrum_times": []}, r"spectrum_times is \[\]: .* at least 1"),
        ({"spectrum_times": [1, "x"]}, r"spectrum_times\[1\] is 'x'"),
        ({"ppl_networks": ["squeeze"]}, "'alex' or 'vgg'"),
        ({"truth_floor": 1}, "truth_floor is 1: .* boolean"),
    ],
)
def test_other_sizes_are_refused_by_name(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sizes_of("cpu", sizes)


# Records


def record(model: str, shift: float = 0.0, **changes: object) -> Record:
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 50) + shift + 0.01 * rng.normal(size=50) * (shift != 0)
    ppl = Measurement.from_units(
        "ppl", values, unit="pairs", seed=0, protocol={"net": "alex"}, details={"curve": [[1, 2]]}
    )
    bare = dataclasses.replace(ppl, name="chance", replicates=None, interval=None)
    where = {"digest": "0" * 64, "dataset": "faces", "profile": "cpu", "seed": 0, "device": "cpu", "revision": "abc"}
    fields = where | {"settings": {"times": [200, 600]}, "versions": versions()}
    fields |= {"measurements": {"ppl": ppl, "chance": bare}, "left_out": {"truth": "no faces"}}
    return Record(model=model, **(fields | changes))


def test_a_record_is_plain_json_and_comes_back_whole(tmp_path: Path) -> None:
    saved = record("base")
    saved.save(tmp_path / "deep" / "base.json")
    again = Record.load(tmp_path / "deep" / "base.json")
    assert again.measurements["ppl"].interval == saved.measurements["ppl"].interval
    np.testing.assert_allclose(again.measurements["ppl"].replicates, saved.measurements["ppl"].replicates, rtol=1e-5)
    assert dataclasses.replace(again, measurements={}) == dataclasses.replace(saved, measurements={})
    text = (tmp_path / "deep" / "base.json").read_text()
    assert json.loads(text)["format"] == "isodiff-evaluation-1"
    assert len(text.splitlines()) < 80  # numbers stand on one line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a record"),
        ('{"format": "other"}', "not a record"),
        ('{"format": "isodiff-evaluation-1", "model": "x"}', "damaged"),
        ('{"format": "isodiff-evaluation-1", "measurements": {"fid": {}}}', "damaged"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Record.load(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match="isodiff evaluate"):
        Record.load(tmp_path / "none.json")


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    record("base").save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        record("base", settings={"x": float("nan")}).save(path)
    assert path.read_bytes() == before


def test_the_table_marks_what_is_outside_the_noise() -> None:
    lines = comparison_table([record("base"), record("control", 1e-9), record("isometric", -1.0)]).splitlines()
    assert lines[0].split() == ["metric", "n", "base", "control", "−", "base", "isometric", "−", "base"]
    ppl = next(line for line in lines if line.startswith("ppl"))
    assert ppl.count("*") == 1
    assert ppl.endswith("*")
    assert "50 pairs" in ppl
    assert next(line for line in lines if line.startswith("chance")).endswith("–")
    table = comparison_table([record("base"), record("isometric", measurements={})])
    assert next(line for line in table.splitlines() if line.startswith("ppl")).split()[-2:] == ["–", "–"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"profile": "gpu"}, {"dataset": "digits"}])
def test_records_measured_differently_do_not_compare(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        comparison_table([record("base"), record("other", **change)])
