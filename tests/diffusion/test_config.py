"""Settings refuse what they cannot mean, by name, and are told from the command line."""

from dataclasses import fields
from functools import partial
from math import inf, nan

import pytest
import tyro

from isodiff.diffusion.config import AttributeConfig, AutoencoderConfig, FinetuneConfig, Settings

from ..geometry.tensors import refusals

test_values_out_of_range_are_refused_by_name = refusals(
    (partial(FinetuneConfig, num_steps=0), "num_steps must be at least 1; got 0"),
    (partial(FinetuneConfig, learning_rate=nan), "learning_rate must be positive and finite; got nan"),
    (partial(FinetuneConfig, lambda_iso=inf), "lambda_iso must be at least 0 and finite; got inf"),
    (partial(FinetuneConfig, p=nan), r"p must be in \[0, 1\]; got nan"),
    (partial(FinetuneConfig, regularize_fraction=0.0), r"regularize_fraction must be in \(0, 1\]; got 0.0"),
    (partial(FinetuneConfig, metric="flat"), "metric must be one of stereographic, chart_.*, euclidean; got 'flat'"),
    (partial(FinetuneConfig, estimator="unbiased"), "num_probes must be at least 2 for the unbiased estimator; got 1"),
    (partial(FinetuneConfig, estimator="per_row", gradient_accumulation_steps=2), "1 for the per_row .*; got 2"),
    (partial(FinetuneConfig, seed=2**32), "seed must be at least 0 and below"),
    (partial(FinetuneConfig, target="decoder"), "^target must be"),
    (partial(FinetuneConfig, target="sampler", p=0.0), "^p must be"),
    (partial(FinetuneConfig, target="smooth", normalize=True), "^normalize must be"),
    (partial(FinetuneConfig, target="smooth", num_probes=2), "^num_probes must be"),
    (partial(AttributeConfig, held_out=1.0), r"held_out must be in \(0, 1\); got 1.0"),
)


@pytest.mark.parametrize("settings", [FinetuneConfig, AutoencoderConfig, AttributeConfig])
def test_every_setting_has_its_help(settings: type[Settings], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(settings, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").replace(",", " ").split())
    assert [field.name for field in fields(settings) if f"--{field.name.replace('_', '-')} " not in shown] == []
    assert shown.count("(default: ") == len(fields(settings))
    assert "of all randomness (default: 0)" in shown
