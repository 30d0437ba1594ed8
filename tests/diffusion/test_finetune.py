"""The loop minimises Eq. 7: each term has the gradient it promises, whatever cheapens it, and none is silently zero."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMPipeline
from torch import Tensor

from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion import FinetuneConfig, TrainingState, checkpointing, dsm_loss, encode
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.terms import Terms, draw_regularised_step
from isodiff.diffusion.training import TrainingStep
from isodiff.geometry import estimate_loss, isometry_loss, sample_probes, trace_samples

from .tiny import noise, tiny_ddpm, weights

RANK = min(3 * 8 * 8 - 1, 8 * 4 * 4)
CONFIG = FinetuneConfig(num_steps=4, batch_size=4, learning_rate=1e-3, lambda_iso=0.3, p=0.0, max_grad_norm=1e9)
EIGHT = replace(CONFIG, batch_size=8, normalize=True)


def _images(count: int) -> Tensor:
    return torch.stack(FacesDataset(8, num_images=count).__getitems__(range(count)))


def _gradient(pipeline: DDPMPipeline) -> Tensor:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in pipeline.unet.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients])


def _term(
    config: FinetuneConfig, step: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, float | None, int | None]:
    """Gradient, value and t of the isometry term at one step, on fixed images."""
    pipeline, step = tiny_ddpm(), TrainingStep(step, config.seed, Accelerator(cpu=True))
    terms = Terms(pipeline.unet.to(dtype), pipeline.scheduler, config, 1)
    found = terms.add_isometry(step, _images(config.batch_size).to(dtype))
    return _gradient(pipeline), *found


def _run(pipeline: DDPMPipeline, config: FinetuneConfig, **options: str) -> list[TrainingState]:
    accelerator, images = Accelerator(cpu=True, **options), FacesDataset(8, num_images=8)
    return list(finetune(pipeline, images, config, accelerator=accelerator))


@pytest.mark.parametrize(
    ("config", "rows"),
    [(replace(CONFIG, estimator=name, num_probes=3), 4) for name in ("ratio", "unbiased", "jackknife", "per_row")]
    + [(replace(EIGHT, regularize_fraction=0.25), 2), (EIGHT, 8)]
    + [(replace(CONFIG, metric=metric), 4) for metric in ("chart_identity", "euclidean")],
)
def test_the_term_is_its_estimator_of_the_traces_of_the_first_rows_at_one_t(config: FinetuneConfig, rows: int) -> None:
    """As Eqs. 6 and 7 say it: draws for the whole batch, traces of its first rows, estimate, gradient."""
    pipeline, x_0 = tiny_ddpm(), _images(config.batch_size).double()[:rows]
    pipeline.unet.double()
    generator = TrainingStep(0, config.seed, Accelerator(cpu=True)).generator("isometry")
    t, shape = int(torch.randint(1000, (), generator=generator)), (config.batch_size, 3, 8, 8)
    torch.randint(1000, (config.batch_size,), generator=generator)
    eps = torch.randn(shape, generator=generator).double()[:rows]
    probes = torch.stack([sample_probes(shape, generator=generator)[:rows] for _ in range(config.num_probes)])
    x_t = pipeline.scheduler.add_noise(x_0, eps, torch.full((rows,), t))
    samples = trace_samples(partial(encode, pipeline.unet, t=t), x_t, probes=probes, metric=config.metric)
    expected = estimate_loss(*samples, estimator=config.estimator)
    (config.lambda_iso * (RANK if config.normalize else 1) * expected).backward()
    gradient, loss, at = _term(config)
    assert (loss, at) == (pytest.approx(expected.item(), rel=1e-10), t)
    torch.testing.assert_close(gradient, _gradient(pipeline), rtol=1e-9, atol=1e-12)
    moved = {name.split(".")[0] for name, p in pipeline.unet.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"conv_in", "time_embedding", "down_blocks", "mid_block"} <= moved


def test_per_row_asks_for_no_common_scale() -> None:
    """f(x)ᵢ = cᵢ x is conformal: per row it is isotropic, whereas the ratio sees mean c⁴ / (mean c²)² of one c."""
    x, c = noise(6, 12, dtype=torch.float64), torch.linspace(0.5, 2, 6, dtype=torch.float64)[:, None]
    ratio = ((c**4).mean() / (c**2).mean() ** 2).item()
    for estimator, expected in (("per_row", pytest.approx(1, rel=0.03)), ("ratio", pytest.approx(ratio, rel=0.05))):
        options = {"estimator": estimator, "num_probes": 500, "generator": torch.Generator().manual_seed(1)}
        assert 11 * isometry_loss(lambda z: c * z, x, **options).item() == expected


@pytest.mark.parametrize("choice", [{"regularize_fraction": 0.25}, {"num_probes": 2, "metric": "euclidean"}])
@pytest.mark.parametrize("route", ["double_backward", "differences"])
@pytest.mark.parametrize("passes", [1, 2, 8])
def test_both_routes_and_all_passes_have_one_gradient(choice: dict, route: str, passes: int) -> None:
    expected, loss, t = _term(replace(EIGHT, **choice))
    found, value, at = _term(replace(EIGHT, isometry_route=route, gradient_accumulation_steps=passes, **choice))
    assert (value, at) == (pytest.approx(loss, rel=1e-7), t)
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_a_lazy_term_is_k_times_the_full_one_at_one_step_in_k() -> None:
    for step in range(4):
        found, *state = _term(replace(CONFIG, regularize_every=2), step)
        full, *expected = _term(CONFIG, step)
        assert state == ([None, None] if step % 2 else expected)
        assert (found - (0 if step % 2 else 2) * full).norm() <= 1e-12 * full.norm()


def test_recomputed_activations_change_no_bit() -> None:
    pipeline, x_0, eps, gradients = tiny_ddpm(), _images(8), noise(8, 3, 8, 8), []
    unet = pipeline.unet.train()
    for enabled in (False, True):
        unet.zero_grad()
        with checkpointing(unet, enabled):
            assert unet.is_gradient_checkpointing is enabled
            dsm_loss(unet, pipeline.scheduler, x_0, torch.arange(8) * 100, eps).backward()
        gradients.append(_gradient(pipeline))
    assert not unet.is_gradient_checkpointing
    assert torch.equal(*gradients)
    term = partial(replace, EIGHT, isometry_route="differences")
    assert torch.equal(*(_term(term(gradient_checkpointing=on), dtype=torch.float32)[0] for on in (False, True)))


@pytest.mark.parametrize("p", [0.0, 0.25, 0.999, 1.0])
def test_the_indicator_of_equation_7(p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all t, each drawn once, those with t + 1 > pT are taken; early ones mirror them, in the same number."""
    taken = []
    for early in (False, True):
        every = iter(range(1000))
        monkeypatch.setattr(torch, "randint", lambda *_arguments, every=every, **_options: torch.tensor(next(every)))
        found = [draw_regularised_step(1000, p, torch.Generator(), early=early) for _ in range(1000)]
        taken.append([t for t in found if t is not None])
    assert taken[0] == list(range(round(1000 * p), 1000))
    assert taken[1] == [999 - t for t in reversed(taken[0])]


def test_late_and_early_draw_the_same_t_and_take_it_or_leave_it() -> None:
    half = replace(CONFIG, batch_size=2, p=0.5)
    late, early = ([_term(replace(half, regularize_times=at), n)[1:] for n in range(12)] for at in ("late", "early"))
    for (loss, t), (other, s) in zip(late, early, strict=True):
        assert (t is None and loss is None and s < 500) or (s is None and other is None and t >= 500)
    assert 0 < late.count((None, None)) < 12


def test_variance_weights_the_gradient_by_that_of_the_noise() -> None:
    """∇ is multiplied by 1 − ᾱ_t, the value that is logged is not; ᾱ_t is written out from Ho et al.'s β."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for seed in range(2):
        plain, *state = _term(replace(CONFIG, seed=seed))
        weighted, *same = _term(replace(CONFIG, seed=seed, regularize_times="variance"))
        assert same == state
        expected = (1 - alpha_bar[state[1]]) * plain
        assert (weighted - expected).norm() < 1e-6 * expected.norm()


def test_a_step_of_the_loop_adds_the_term_whatever_cheapens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)
    cheap = {"regularize_fraction": 0.5, "isometry_route": "differences", "gradient_checkpointing": True}
    config, states, ends = replace(EIGHT, num_steps=1, ema_decay=0.0, **cheap), [], []
    for weight in (config.lambda_iso, 0.0):
        pipeline = tiny_ddpm()
        pipeline.unet.double()
        states += _run(pipeline, replace(config, lambda_iso=weight))
        ends.append(weights(pipeline.unet))
    assert not pipeline.unet.is_gradient_checkpointing
    ours, theirs = states
    assert ours.dsm == theirs.dsm
    assert ours.anisotropy == pytest.approx(RANK * ours.isometry, rel=1e-6)
    assert (theirs.isometry, theirs.anisotropy, theirs.t) == (None, None, None)
    pipeline, step = tiny_ddpm(), TrainingStep(0, 0, Accelerator(cpu=True))
    x_0 = _images(8)[torch.randperm(8, generator=step.generator("epoch"))].double()
    Terms(pipeline.unet.double(), pipeline.scheduler, config, 1).add_isometry(step, x_0)
    expected = _gradient(pipeline)
    assert ((ends[1] - ends[0]) / config.learning_rate - expected).norm() < 1e-6 * expected.norm()


def test_mixed_precision_keeps_the_traces_in_float32() -> None:
    config = replace(CONFIG, num_steps=1)
    (exact,) = _run(tiny_ddpm(), config)
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one precision a process
    (mixed,) = _run(tiny_ddpm(), replace(config, mixed_precision="bf16"), mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert mixed.isometry == exact.isometry
    assert mixed.dsm != exact.dsm
    assert mixed.dsm == pytest.approx(exact.dsm, rel=0.02)


def test_a_term_that_processes_cannot_share_is_refused() -> None:
    pipeline = tiny_ddpm()
    for change, message in (
        ({"estimator": "per_row"}, "estimator 'per_row' needs one process; got 4"),
        ({"regularize_fraction": 0.5}, r"multiple of the 4 processes; got 0\.5 × 4 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            Terms(pipeline.unet, pipeline.scheduler, replace(CONFIG, **change), 4)
