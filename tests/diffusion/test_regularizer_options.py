"""Where in t the isometry term acts, and how Eq. 6 is estimated in training: the options beside the paper's own."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline
from torch import Tensor

from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.global_batch import generator_of
from isodiff.diffusion.hspace import encode
from isodiff.diffusion.regularizer import IsometryTerm, Regularised, draw_regularised_step
from isodiff.diffusion.training import require_same_run
from isodiff.geometry import isometry_loss, trace_samples
from isodiff.geometry.isometry import estimate_loss
from isodiff.geometry.trace import sample_probes

from .tiny import tiny_ddpm

ESTIMATORS = ("ratio", "unbiased", "jackknife", "per_row")
ROWS, PROBES = 4, 3
CONFIG = FinetuneConfig(num_steps=1, batch_size=ROWS, lambda_iso=0.3, p=0.0, num_probes=PROBES, max_grad_norm=1e9)


def _pipeline() -> DDPMPipeline:
    pipeline = tiny_ddpm()
    pipeline.unet.double()
    return pipeline


def _images() -> Tensor:
    images = FacesDataset(8, num_images=ROWS)
    return torch.stack([images[i] for i in range(ROWS)]).double()


def _term(config: FinetuneConfig, x_0: Tensor | None = None, *, step: int = 0) -> tuple[dict[str, Tensor], Regularised]:
    """Gradient by parameter and value of the term at one step."""
    pipeline = _pipeline()
    term = IsometryTerm(pipeline.unet, pipeline.scheduler, config, Accelerator(cpu=True))
    found = term.backward(step, _images() if x_0 is None else x_0, lambda index: nullcontext())
    return {name: p.grad.clone() for name, p in pipeline.unet.named_parameters() if p.grad is not None}, found


def _flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient[name].flatten() for name in sorted(gradient)])


def _samples(rows: int = 5, probes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(rows, probes, generator=source, dtype=torch.float64) + 0.5 for _ in range(2))


def _steps(monkeypatch: pytest.MonkeyPatch, p: float, *, early: bool, total: int = 1000) -> list[int]:
    """Return every step that is regularised, by drawing each once."""
    draws = iter(range(total))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda *arguments, **options: torch.tensor(next(draws)))
        found = [draw_regularised_step(total, p, torch.Generator(), early=early) for _ in range(total)]
    return [t for t in found if t is not None]


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_early_steps_mirror_late_ones_in_the_same_number(p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    late, early = (_steps(monkeypatch, p, early=early) for early in (False, True))
    assert late == list(range(round(1000 * p), 1000))
    assert early == [999 - t for t in reversed(late)]


def test_half_the_steps_are_early_and_the_others_late(monkeypatch: pytest.MonkeyPatch) -> None:
    late, early = (_steps(monkeypatch, 0.5, early=early) for early in (False, True))
    assert sorted(early + late) == list(range(1000))
    assert max(early) < 500 <= min(late)


def test_a_training_is_regularised_at_the_steps_it_says() -> None:
    images = FacesDataset(8, num_images=ROWS)
    taken = {}
    for times in ("late", "early", "variance"):
        config = replace(CONFIG, num_steps=12, batch_size=2, num_probes=1, p=0.5, regularize_times=times)
        states = list(finetune(tiny_ddpm(), images, config, accelerator=Accelerator(cpu=True)))
        assert all((state.t is None) == (state.isometry is None) for state in states)
        taken[times] = [state.t for state in states]
    assert taken["variance"] == taken["late"]
    for late, early in zip(taken["late"], taken["early"], strict=True):
        assert (late is None) != (early is None), "one of the two at every step, as they draw the same t"
        assert late is None or late >= 500
        assert early is None or early < 500
    assert None in taken["late"]
    assert None in taken["early"]


def test_variance_weights_the_gradient_by_that_of_the_noise() -> None:
    """∇ is multiplied by 1 − ᾱ_t, the value that is logged is not; ᾱ_t is written out from Ho et al.'s β."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    seen = set()
    for seed in range(4):
        config = replace(CONFIG, seed=seed)
        plain, state = _term(config)
        weighted, same = _term(replace(config, regularize_times="variance"))
        assert same == state
        seen.add(state.t)
        expected = (1 - alpha_bar[state.t]) * _flat(plain)
        assert (_flat(weighted) - expected).norm() < 1e-6 * expected.norm()
    assert len(seen) > 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("normalize", [False, True])
def test_the_term_is_its_estimator_of_the_same_traces(estimator: str, normalize: bool) -> None:
    """The draws, the traces and the estimate, written out: value and gradient."""
    found, state = _term(replace(CONFIG, estimator=estimator, normalize=normalize))
    pipeline, generator = _pipeline(), generator_of(CONFIG.seed, 0, "isometry")
    t = draw_regularised_step(1000, 0.0, generator)
    torch.randint(1000, (ROWS,), generator=generator)
    eps = torch.randn(ROWS, 3, 8, 8, generator=generator).double()
    probes = torch.stack([sample_probes((ROWS, 3, 8, 8), generator=generator) for _ in range(PROBES)])
    x_t = pipeline.scheduler.add_noise(_images(), eps, torch.full((ROWS,), t))
    loss = estimate_loss(*trace_samples(partial(encode, pipeline.unet, t=t), x_t, probes=probes), estimator=estimator)
    rank = min(3 * 8 * 8 - 1, 8 * 4 * 4)
    (CONFIG.lambda_iso * (rank if normalize else 1) * loss).backward()
    expected = {name: p.grad for name, p in pipeline.unet.named_parameters() if p.grad is not None}
    assert state == (pytest.approx(loss.item(), rel=1e-10), pytest.approx(rank * loss.item(), rel=1e-10), t)
    torch.testing.assert_close(_flat(found), _flat(expected), rtol=1e-9, atol=1e-12)


def test_every_estimator_moves_the_encoder_in_its_own_way() -> None:
    gradients = {}
    for estimator in ESTIMATORS:
        found, state = _term(replace(CONFIG, estimator=estimator))
        assert state.loss > 0
        moved = {name.split(".")[0] for name, gradient in found.items() if gradient.any()}
        assert {"conv_in", "time_embedding", "down_blocks", "mid_block"} <= moved
        gradients[estimator] = _flat(found)
    for one in ESTIMATORS:
        for other in ESTIMATORS[: ESTIMATORS.index(one)]:
            assert (gradients[one] - gradients[other]).norm() > 1e-4 * gradients[one].norm(), (one, other)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_row_changes_the_loss(estimator: str) -> None:
    config = replace(CONFIG, estimator=estimator)
    before = _term(config)[1].loss
    for row in range(ROWS):
        moved = _images()
        moved[row] = -moved[row]
        assert abs(_term(config, moved)[1].loss / before - 1) > 1e-9


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_sample_changes_the_estimate(estimator: str) -> None:
    first, second = (samples.requires_grad_() for samples in _samples())
    gradients = torch.autograd.grad(estimate_loss(first, second, estimator=estimator), (first, second))
    assert all(gradient.ne(0).all() for gradient in gradients)


def test_per_row_is_the_mean_of_the_losses_of_single_rows() -> None:
    first, second = _samples()
    rows = [estimate_loss(first[i : i + 1], second[i : i + 1]) for i in range(len(first))]
    torch.testing.assert_close(estimate_loss(first, second, estimator="per_row"), torch.stack(rows).mean())
    one = (samples[:1] for samples in _samples())
    assert estimate_loss(*one, estimator="per_row") == rows[0], "of one row there is one scale"


def test_per_row_asks_for_no_common_scale() -> None:
    """f(x)ᵢ = cᵢ x is conformal: per row it is isotropic, whereas the ratio sees mean c⁴ / (mean c²)² of one c."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(6, 12, generator=source, dtype=torch.float64)
    c = torch.linspace(0.5, 2, 6, dtype=torch.float64)[:, None]
    losses = {}
    for estimator in ("per_row", "ratio"):
        options = {"estimator": estimator, "num_probes": 500, "generator": torch.Generator().manual_seed(1)}
        losses[estimator] = 11 * isometry_loss(lambda z: c * z, x, **options).item()
    assert losses["per_row"] == pytest.approx(1, rel=0.03)
    assert losses["ratio"] == pytest.approx((c**4).mean().item() / (c**2).mean().item() ** 2, rel=0.05)
    scaled = [
        isometry_loss(lambda z, s=s: s * z.sin(), x, estimator="per_row", generator=source.manual_seed(2))
        for s in (1, c)
    ]
    torch.testing.assert_close(*scaled, rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS[1:])
def test_other_estimators_refuse_parts_of_a_batch(estimator: str) -> None:
    config = replace(CONFIG, estimator=estimator)
    with pytest.raises(ValueError, match=f"estimator '{estimator}' needs the whole batch in one pass; got .* = 2"):
        replace(config, gradient_accumulation_steps=2)

    class Four(Accelerator):
        num_processes = 4

    run = finetune(tiny_ddpm(), FacesDataset(8, num_images=ROWS), config, accelerator=Four(cpu=True))
    with pytest.raises(ValueError, match=f"estimator '{estimator}' needs one process; got 4"):
        next(run)


def test_the_ratio_needs_no_whole_batch() -> None:
    one, alone = _term(CONFIG)
    two, parts = _term(replace(CONFIG, gradient_accumulation_steps=2))
    assert parts.loss == pytest.approx(alone.loss, rel=1e-10)
    torch.testing.assert_close(_flat(two), _flat(one), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regularize_times": "never"}, "regularize_times must be one of late, early, variance; got 'never'"),
        ({"estimator": "median"}, "estimator must be one of .*'ratio'.*'per_row'.* got 'median'"),
        ({"estimator": "unbiased"}, "num_probes must be at least 2 for the unbiased estimator, got 1"),
        ({"estimator": "jackknife"}, "num_probes must be at least 2 for the jackknife estimator, got 1"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**fields)
    with pytest.raises(ValueError, match="got 'median'"):
        estimate_loss(*_samples(), estimator="median")


def test_defaults_are_the_paper_and_old_checkpoints_go_on(tmp_path: Path) -> None:
    """At their defaults the options are not told, so that a checkpoint from before them is of the same run."""
    default = FinetuneConfig()
    assert (default.regularize_times, default.estimator) == ("late", "ratio")
    assert not {"regularize_times", "estimator"} & set(default.defining())
    changed = FinetuneConfig(regularize_times="early", estimator="per_row").defining()
    assert {k: v for k, v in changed.items() if k not in default.defining()} == {
        "regularize_times": "early",
        "estimator": "per_row",
    }
    old = {k: v for k, v in asdict(default).items() if k not in ("regularize_times", "estimator")}
    require_same_run({"config": old}, default, {}, tmp_path)
    with pytest.raises(ValueError, match="other settings: regularize_times = 'late' there, 'early' now"):
        require_same_run({"config": old}, replace(default, regularize_times="early"), {}, tmp_path)


def test_a_checkpoint_is_of_one_choice_of_steps(tmp_path: Path) -> None:
    images, config = FacesDataset(8, num_images=2), replace(CONFIG, batch_size=2, num_probes=1)
    run = partial(finetune, images=images, checkpoint=tmp_path / "c", accelerator=Accelerator(cpu=True))
    assert len(list(run(tiny_ddpm(), config=config))) == 1
    with pytest.raises(ValueError, match="other settings: regularize_times = None there, 'early' now"):
        next(run(tiny_ddpm(), config=replace(config, regularize_times="early")))
