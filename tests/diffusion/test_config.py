"""Settings refuse what they cannot mean, by name, and are told from the command line."""

from __future__ import annotations

from dataclasses import fields
from math import inf, nan

import pytest
import tyro

from isodiff.diffusion.config import AttributeConfig, AutoencoderConfig, FinetuneConfig, Settings


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        (FinetuneConfig, {"num_steps": 0}, "num_steps must be at least 1; got 0"),
        (FinetuneConfig, {"learning_rate": nan}, "learning_rate must be positive and finite; got nan"),
        (FinetuneConfig, {"lambda_iso": inf}, "lambda_iso must be at least 0 and finite; got inf"),
        (FinetuneConfig, {"p": nan}, r"p must be in \[0, 1\]; got nan"),
        (FinetuneConfig, {"regularize_fraction": 0.0}, r"regularize_fraction must be in \(0, 1\]; got 0.0"),
        (FinetuneConfig, {"metric": "flat"}, "metric must be one of stereographic, chart_.*, euclidean; got 'flat'"),
        (FinetuneConfig, {"estimator": "unbiased"}, "num_probes must be at least 2 for the unbiased estimator; got 1"),
        (FinetuneConfig, {"estimator": "per_row", "gradient_accumulation_steps": 2}, "1 for the per_row .*; got 2"),
        (FinetuneConfig, {"seed": 2**32}, "seed must be at least 0 and below"),
        (AttributeConfig, {"held_out": 1.0}, r"held_out must be in \(0, 1\); got 1.0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(settings: type[Settings], given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**given)


@pytest.mark.parametrize("settings", [FinetuneConfig, AutoencoderConfig, AttributeConfig])
def test_every_setting_has_its_help(settings: type[Settings], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(settings, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").replace(",", " ").split())
    assert [field.name for field in fields(settings) if f"--{field.name.replace('_', '-')} " not in shown] == []
    assert shown.count("(default: ") == len(fields(settings))
    assert "of all randomness (default: 0)" in shown
