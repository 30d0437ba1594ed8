"""A whole evaluation of a real small model: every metric, interrupted, resumed, compared, refused; sizes, records."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from isodiff import cli
from isodiff.diffusion import load_pipeline
from isodiff.metrics import measure
from isodiff.metrics.evaluation import SUITE, Evaluation, Sizes, evaluate, sizes_of
from isodiff.metrics.measure import Measurement, Record, comparison_table, versions

# fmt: off
TINY = {
    "num_fid_images": 40, "fid_steps": 2, "num_ppl_pairs": 40, "ppl_steps": 2,
    "num_rtl_pairs": 3, "rtl_points": 3, "rtl_steps": 2, "spectrum_times": [300, 600],
    "num_spectra": 3, "spectrum_k": 3, "condition_ks": [3, 2], "num_anisotropy": 8, "num_maps": 3, "map_k": 2,
    "map_steps": 1,
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
    expected = {"fid", "kid", "recall", "ppl_alex_full", "log_ppl_vgg_end", "mrtl", "mcn_t300", "mcn_k2_t300"}
    expected |= {"vor_t600", "vor_affine_t300"}
    expected |= {"anisotropy_t600", "map_anisotropy", "map_condition", "ls_linear_training", "ls_rbf_cross-validated"}
    expected |= {"factor_excess", "manifold_distance", "encoder_alignment", "step_jerkiness_lerp", "step_mean_slerp"}
    expected |= {"factor_excess_lerp", "target_share", "monotone_share", "inversion_mse_s4_r1", "inversion_lpips_s2_r0"}
    expected |= {"inversion_mse_s2_r1_clipped", "latent_norm_ratio_s4_r0", "path_length_lerp", "path_excess_tangential"}
    assert expected | {"path_distance_slerp_tau100"} <= record.measurements.keys()
    assert record.measurements["step_mean_slerp"].protocol["num_steps"] == TINY["fid_steps"]
    for name, m in record.measurements.items():
        assert m.seed == 0, name
        assert np.isfinite(m.value), name
        assert m.interval is None or m.interval[0] <= m.value <= m.interval[1], name


def test_killed_it_goes_on_and_computes_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        with contextlib.suppress(KeyboardInterrupt):
            resumed = tiny("digits16/base", CHEAP, tmp_path, dataset="digits")
            break
    assert len(written) == len(set(written)) > 4
    assert numbers(resumed) == numbers(whole)
    alive = len(written)  # whatever is written from now on is a death
    assert numbers(tiny("digits16/base", CHEAP, tmp_path, dataset="digits")) == numbers(whole)


def test_what_does_not_apply_is_left_out_and_said() -> None:
    run = Evaluation(load_pipeline("digits16/base"), Sizes(), "digits", None, 0, torch.device("cpu"))
    left_out = {name for name, family in SUITE.items() if run.obstacle(family.needs)}
    assert left_out == {"separability", "truth", "alignment", "lerp", "directions", "rank", "spread"}
    with pytest.raises(ValueError, match=r"truth cannot be measured: .* known of 'faces' only, not of 'digits'"):
        tiny("digits16/base", ["truth"], dataset="digits")


def test_the_command_prints_a_table_and_writes_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    what = "--dataset digits --metrics anisotropy -p num_anisotropy=8 -p spectrum_times=[300,600] --no-progress"
    places = ["--output", str(tmp_path), "--cache", str(tmp_path / "cache")]
    assert cli.main(["evaluate", "digits16/base", "digits16/isometric", *what.split(), *places]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("anisotropy_t600"))
    assert row.endswith("*")  # 17 against 1.2, as notebook 04 shows
    assert cli.main(["compare", *(str(tmp_path / f"digits16-{name}.json") for name in ("base", "isometric"))]) == 0
    assert row in capsys.readouterr().out


def test_sizes_come_in_the_types_of_json() -> None:
    sizes = sizes_of("gpu", {"ppl_epsilon": 1, "spectrum_times": [5, 6], "swept_shares": (1, 0.5)})
    assert (sizes.ppl_epsilon, sizes.spectrum_times, sizes.swept_shares) == (1.0, (5, 6), (1.0, 0.5))
    assert isinstance(sizes.ppl_epsilon, float)


def record(model: str, shift: float = 0.0, **changes: object) -> Record:
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 50) + shift + 0.01 * rng.normal(size=50) * (shift != 0)
    ppl = Measurement.from_units("ppl", values, unit="pairs", seed=0, protocol={"net": "alex"}, details={"x": [[1, 2]]})
    bare = dataclasses.replace(ppl, name="chance", replicates=None, interval=None)
    where = {"digest": "0" * 64, "dataset": "faces", "profile": "cpu", "seed": 0, "device": "cpu", "revision": "abc"}
    where |= {"settings": {"times": [200, 600]}, "versions": versions(), "left_out": {"truth": "no faces"}}
    return Record(model=model, **(where | {"measurements": {"ppl": ppl, "chance": bare}} | changes))


def test_a_record_is_plain_json_and_comes_back_whole(tmp_path: Path) -> None:
    saved, path = record("base"), tmp_path / "deep" / "base.json"
    saved.save(path)
    again = Record.load(path)
    for name, measurement in saved.measurements.items():
        assert vars(again.measurements[name]) | {"replicates": 0} == vars(measurement) | {"replicates": 0}
    np.testing.assert_allclose(again.measurements["ppl"].replicates, saved.measurements["ppl"].replicates, rtol=1e-5)
    assert dataclasses.replace(again, measurements={}) == dataclasses.replace(saved, measurements={})
    text = path.read_text()
    assert len(text.splitlines()) < 80  # numbers stand on one line
    with pytest.raises(ValueError, match="JSON compliant"):
        record("base", settings={"x": float("nan")}).save(path)
    assert path.read_text() == text


def test_the_table_marks_what_is_outside_the_noise() -> None:
    table = comparison_table([record("base"), record("control", 1e-9), record("isometric", -1.0)])
    head, _, ppl, chance = table.splitlines()
    assert head.split() == ["metric", "n", "base", "control", "−", "base", "isometric", "−", "base"]
    assert (ppl.count("*"), ppl[-1], "50 pairs" in ppl, chance[-1]) == (1, "*", True, "–")
    _, _, ppl, _ = comparison_table([record("base"), record("isometric", measurements={})]).splitlines()
    assert ppl.split()[-2:] == ["–", "–"]


def loaded(folder: Path, form: str) -> Record:
    (folder / "x.json").write_text(f'{{"format": "{form}", "model": "x"}}')
    return Record.load(folder / "x.json")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: sizes_of("cpu", {"num_fid": 3}), "no parameter called num_fid; it accepts num_fid_images"),
        (lambda _: sizes_of("cpu", {"spectrum_times": [1, 3.5]}), r"spectrum_times\[1\] is 3\.5: .* integer"),
        (lambda _: sizes_of("cpu", {"ppl_epsilon": float("nan")}), "ppl_epsilon is nan: .* finite"),
        (lambda folder: loaded(folder, "other"), "format"),
        (lambda folder: loaded(folder, "isodiff-evaluation-1"), "damaged"),
        (lambda _: comparison_table([record("base"), record("other", profile="gpu")]), "profile"),
        (lambda _: comparison_table([record("base"), record("other", dataset="digits")]), "dataset"),
    ],
)
def test_other_sizes_and_records_are_refused_by_name(call: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
