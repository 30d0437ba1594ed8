"""What the sizes of an evaluation leave out is not measured: networks and parts of the path, the sweep, the floor."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from isodiff.metrics import suite
from isodiff.metrics.measurement import Measurement
from isodiff.profiles import settings
from isodiff.profiles_evaluation import EVALUATION
from isodiff.sizes_evaluation import EvaluationSettings

PLAIN = {"name": "ppl", "value": 1.0, "interval": None, "n": 2, "unit": "pairs", "seed": 0, "protocol": {}}


def measured(sizes: dict[str, object], family: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict, list[dict]]:
    """Return what a family measures at some sizes, and the options of every call that would have measured it."""
    calls: list[dict[str, Any]] = []

    def lengths(generate: object, shape: object, distances: dict, **options: object) -> dict[str, Measurement]:
        calls.append({"what": "lengths", "nets": list(distances), **options})
        return {net: Measurement(**PLAIN) for net in distances}

    def sweep(generate: object, shape: object, distances: dict, *epsilons: object, **options: object) -> dict:
        calls.append({"what": "sweep", "nets": list(distances), **options})
        return {net: "swept" for net in distances}

    monkeypatch.setattr(suite, "perceptual_distance", lambda net, device: net)
    monkeypatch.setattr(suite, "path_lengths", lengths)
    monkeypatch.setattr(suite, "epsilon_sweep", sweep)
    monkeypatch.setattr(suite, "path_truth", lambda *arguments, **options: calls.append(options) or {})
    run = SimpleNamespace(
        settings=settings("evaluation", profile="cpu", seed=0, device="cpu", overrides=json.dumps(sizes)),
        generator=lambda num_steps: SimpleNamespace(shape=(3, 8, 8)),
        store_of=lambda generate: None,
        seed=0,
    )
    return suite.SUITE[family].measure(run), calls


@pytest.mark.parametrize("networks", [["alex"], ["vgg"], ["alex", "vgg"]])
@pytest.mark.parametrize("modes", [["full"], ["end"], ["full", "end"]])
def test_perceptual_paths_of_the_networks_and_parts_asked_for(
    networks: list[str], modes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, calls = measured({"ppl_networks": networks, "ppl_modes": modes}, "ppl", monkeypatch)
    assert set(found) == {f"ppl_{net}_{mode}" for net in networks for mode in modes}
    assert [call["mode"] for call in calls if call["what"] == "lengths"] == modes
    assert all(call["nets"] == networks for call in calls)
    for name, measurement in found.items():  # the sweep belongs to the full path
        assert ("epsilon_sweep" in measurement.details) == name.endswith("full")
    assert [call["what"] for call in calls].count("sweep") == ("full" in modes)


def test_no_pairs_of_the_sweep_are_no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    found, calls = measured({"num_sweep_pairs": 0}, "ppl", monkeypatch)
    assert all(call["what"] == "lengths" for call in calls)
    assert not any(measurement.details for measurement in found.values())


@pytest.mark.parametrize("floor", [True, False])
def test_the_floor_of_the_truth_is_measured_where_it_is_asked_for(floor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (call,) = measured({"truth_floor": floor}, "truth", monkeypatch)
    assert call["floor"] is floor


def test_by_default_nothing_is_left_out() -> None:
    for sizes in EVALUATION.values():
        assert isinstance(sizes, EvaluationSettings)
        assert sizes.ppl_networks == ("alex", "vgg")
        assert sizes.ppl_modes == ("full", "end")
        assert sizes.truth_floor
