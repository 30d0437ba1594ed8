"""The cheaper forms of the isometry term: each has the gradient it promises, and none is silently zero."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.execution import checkpointing, compiled
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.global_batch import generator_of
from isodiff.diffusion.hspace import encode
from isodiff.diffusion.process import dsm_loss
from isodiff.diffusion.regularizer import IsometryTerm, Regularised, draw_regularised_step
from isodiff.geometry import isometry_loss_share, trace_samples
from isodiff.geometry.trace import sample_probes

CONFIG = FinetuneConfig(num_steps=1, batch_size=8, lambda_iso=0.3, normalize=True, p=0.0, max_grad_norm=1e9)
RANK = min(3 * 8 * 8 - 1, 8 * 4 * 4)


def _pipeline(dtype: torch.dtype = torch.float64) -> DDPMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return DDPMPipeline(unet=unet.to(dtype), scheduler=DDPMScheduler())


def _gradient(unet: UNet2DModel) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in unet.parameters()])


def _term(
    config: FinetuneConfig = CONFIG, *, step: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Regularised]:
    """Gradient and value of the term at one step, on fixed images."""
    pipeline, accelerator = _pipeline(dtype), Accelerator(cpu=True)
    images = FacesDataset(8, num_images=8)
    x_0 = torch.stack([images[i] for i in range(config.batch_size)]).to(dtype)
    term = IsometryTerm(pipeline.unet, pipeline.scheduler, config, accelerator)
    found = term.backward(step, x_0, lambda index: nullcontext())
    return _gradient(pipeline.unet), found


def test_every_row_at_every_step_is_the_plain_term() -> None:
    """Bit for bit: the draws, the traces and the share, written out."""
    found, state = _term()
    pipeline, images = _pipeline(), FacesDataset(8, num_images=8)
    x_0 = torch.stack([images[i] for i in range(8)]).double()
    generator = generator_of(CONFIG.seed, 0, "isometry")
    t = draw_regularised_step(1000, 0.0, generator)
    torch.randint(1000, (8,), generator=generator)
    eps = torch.randn(8, 3, 8, 8, generator=generator).double()
    probes = sample_probes((8, 3, 8, 8), generator=generator)[None]
    x_t = pipeline.scheduler.add_noise(x_0, eps, torch.full((8,), t))
    first, second = trace_samples(partial(encode, pipeline.unet, t=t), x_t, probes=probes)
    (CONFIG.lambda_iso * RANK * isometry_loss_share(first, second, first.mean(), second.mean())).backward()
    assert torch.equal(found, _gradient(pipeline.unet))
    assert state == (pytest.approx((second.mean() / first.mean().square()).item()), RANK * state.loss, t)


def test_the_whole_step_adds_both_gradients(tmp_path: Path) -> None:
    """One step of the loop is ∇L_dsm plus the term, whatever cheapens it; Adam's first moment tells the gradient."""
    config = replace(CONFIG, regularize_fraction=0.5, isometry_route="differences", gradient_checkpointing=True)
    images = FacesDataset(8, num_images=8)
    totals = []
    for weight in (config.lambda_iso, 0.0):
        pipeline = _pipeline()
        optimizers = []
        accelerator = Accelerator(cpu=True)
        prepare = accelerator.prepare
        accelerator.prepare = lambda optimizer, p=prepare, o=optimizers: o.append(optimizer) or p(optimizer)
        list(finetune(pipeline, images, replace(config, lambda_iso=weight), accelerator=accelerator))
        state = optimizers[0].state
        moments = [state[p]["exp_avg"].flatten() for p in pipeline.unet.parameters() if p in state]
        totals.append(10 * torch.cat(moments))
        assert not pipeline.unet.is_gradient_checkpointing
    difference = totals[0] - totals[1]
    order = torch.randperm(8, generator=generator_of(0, 0, "epoch"))
    x_0 = torch.stack([images[int(i)] for i in order]).double()
    pipeline = _pipeline()
    IsometryTerm(pipeline.unet, pipeline.scheduler, config, Accelerator(cpu=True)).backward(
        0, x_0, lambda index: nullcontext()
    )
    expected = _gradient(pipeline.unet)
    assert expected.norm() > 0
    assert (difference - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("metric", ["stereographic", "chart_identity", "euclidean"])
@pytest.mark.parametrize("route", ["double_backward", "differences"])
@pytest.mark.parametrize(("every", "fraction"), [(1, 1.0), (3, 1.0), (1, 0.25), (2, 0.5)])
def test_no_choice_leaves_the_parameters_untouched(metric: str, route: str, every: int, fraction: float) -> None:
    choice = {"regularize_every": every, "regularize_fraction": fraction}
    found, state = _term(replace(CONFIG, metric=metric, isometry_route=route, **choice), step=every)
    assert state.loss > 0
    pipeline = _pipeline()
    moved = [name for name, part in zip(_names(pipeline.unet), _split(found, pipeline.unet), strict=True) if part.any()]
    assert {"conv_in", "down_blocks", "mid_block"} <= {name.split(".")[0] for name in moved}


def _names(unet: UNet2DModel) -> list[str]:
    return [name for name, _ in unet.named_parameters()]


def _split(flat: Tensor, unet: UNet2DModel) -> tuple[Tensor, ...]:
    return flat.split([p.numel() for p in unet.parameters()])


def test_both_routes_have_one_gradient() -> None:
    for choice in ({}, {"regularize_fraction": 0.25}, {"gradient_accumulation_steps": 2}, {"num_probes": 2}):
        config = replace(CONFIG, **choice)
        expected, exact = _term(config)
        found, ours = _term(replace(config, isometry_route="differences"))
        assert ours == (pytest.approx(exact.loss), pytest.approx(exact.isotropy), exact.t)
        assert (found - expected).norm() < 1e-6 * expected.norm()


def test_lazy_steps_sum_to_the_full_ones_in_expectation() -> None:
    """Exactly k times the full gradient at one step in k; over seeds, the sum over k steps has the full one's mean."""
    every = 2
    lazy = replace(CONFIG, regularize_every=every)
    for step in range(2 * every):
        found, state = _term(lazy, step=step)
        if step % every:
            assert state == (None, None, None)
            assert not found.any()
        else:
            full, _ = _term(step=step)
            assert (found - every * full).norm() <= 1e-12 * found.norm()
    differences = []
    direction = _term()[0]
    for seed in range(1, 9):
        sums = [
            sum(_term(replace(config, seed=seed), step=step)[0] for step in range(every)) @ direction
            for config in (lazy, CONFIG)
        ]
        differences.append(sums[0] - sums[1])
    differences = torch.stack(differences)
    assert differences.std() > 0
    assert abs(differences.mean()) < 4 * differences.std() / math.sqrt(len(differences))


def test_a_fraction_takes_the_first_rows_with_their_noise_and_probes() -> None:
    """The term on 2 of 8 rows is the plain term of a model that sees those two alone."""
    found, state = _term(replace(CONFIG, regularize_fraction=0.25))
    pipeline, images = _pipeline(), FacesDataset(8, num_images=8)
    x_0 = torch.stack([images[i] for i in range(2)]).double()
    generator = generator_of(CONFIG.seed, 0, "isometry")
    t = draw_regularised_step(1000, 0.0, generator)
    torch.randint(1000, (8,), generator=generator)
    eps = torch.randn(8, 3, 8, 8, generator=generator).double()[:2]
    probes = sample_probes((8, 3, 8, 8), generator=generator)[None, :2]
    x_t = pipeline.scheduler.add_noise(x_0, eps, torch.full((2,), t))
    first, second = trace_samples(partial(encode, pipeline.unet, t=t), x_t, probes=probes)
    loss = second.mean() / first.mean().square()
    (CONFIG.lambda_iso * RANK * loss).backward()
    assert state.loss == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(found, _gradient(pipeline.unet), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("route", ["double_backward", "differences"])
def test_passes_change_nothing(fraction: float, route: str) -> None:
    config = replace(CONFIG, regularize_fraction=fraction, isometry_route=route)
    one, alone = _term(config)
    for passes in (2, 4, 8):
        found, state = _term(replace(config, gradient_accumulation_steps=passes))
        assert state.loss == pytest.approx(alone.loss, rel=1e-8)
        assert (found - one).norm() < 1e-6 * one.norm()


def test_recomputed_activations_change_no_bit() -> None:
    pipeline, images = _pipeline(torch.float32), FacesDataset(8, num_images=8)
    unet, x_0 = pipeline.unet.train(), torch.stack([images[i] for i in range(8)])
    eps, gradients = torch.randn(x_0.shape), []
    for enabled in (False, True):
        unet.zero_grad()
        with checkpointing(unet, enabled):
            assert unet.is_gradient_checkpointing is enabled
            loss = dsm_loss(unet, pipeline.scheduler, x_0, torch.arange(8) * 100, eps)
        loss.backward()
        gradients.append(_gradient(unet))
    assert not unet.is_gradient_checkpointing
    assert torch.equal(*gradients)
    route = replace(CONFIG, isometry_route="differences")
    plain, recomputed = (
        _term(replace(route, gradient_checkpointing=on), dtype=torch.float32)[0] for on in (False, True)
    )
    assert torch.equal(plain, recomputed)


def test_channels_last_trains_the_same_and_is_saved_as_usual(tmp_path: Path) -> None:
    trained = []
    for layout in (False, True):
        pipeline = _pipeline()
        config = replace(CONFIG, num_steps=3, channels_last=layout, learning_rate=1e-3)
        states = list(finetune(pipeline, FacesDataset(8, num_images=8), config, accelerator=Accelerator(cpu=True)))
        assert all(p.is_contiguous() for p in pipeline.unet.parameters())
        trained.append((torch.cat([p.detach().flatten() for p in pipeline.unet.parameters()]), states[-1].dsm))
    torch.testing.assert_close(trained[1][0], trained[0][0], rtol=1e-6, atol=1e-8)
    assert trained[1][1] == pytest.approx(trained[0][1], rel=1e-9)
    pipeline.save_pretrained(tmp_path)


def test_a_run_with_every_economy_resumes_bit_by_bit(tmp_path: Path) -> None:
    choice = {"regularize_every": 2, "regularize_fraction": 0.5, "isometry_route": "differences", "channels_last": True}
    config = replace(CONFIG, num_steps=6, checkpoint_every=3, learning_rate=1e-3, **choice)
    images = FacesDataset(8, num_images=8)

    def run(pipeline: DDPMPipeline, config: FinetuneConfig, file: Path | None = None) -> list:
        return list(finetune(pipeline, images, config, checkpoint=file, accelerator=Accelerator(cpu=True)))

    straight, start = _pipeline(torch.float32), _pipeline(torch.float32)
    states = run(straight, config)
    assert [state.isometry is None for state in states] == [False, True] * 3
    begun = finetune(copy.deepcopy(start), images, config, checkpoint=tmp_path / "c", accelerator=Accelerator(cpu=True))
    for _ in range(4):
        next(begun)
    begun.close()
    # recomputation may be switched on by the way, to fit into another memory
    resumed = _pipeline(torch.float32)
    again = run(resumed, replace(config, gradient_checkpointing=True), tmp_path / "c")
    assert again == states[3:]
    assert all(torch.equal(a, b) for a, b in zip(straight.unet.parameters(), resumed.unet.parameters(), strict=True))
    with pytest.raises(ValueError, match="other settings: regularize_every = 2 there, None now"):
        run(_pipeline(torch.float32), replace(config, regularize_every=1), tmp_path / "c")


def test_checkpoints_from_before_these_settings_are_still_of_the_same_run() -> None:
    later = {"regularize_every", "regularize_fraction", "isometry_route", "channels_last", "compile"}
    later |= {"regularize_times", "estimator"}
    defining = FinetuneConfig().defining()
    assert set(asdict(FinetuneConfig())) - set(defining) == later | {"gradient_checkpointing"}
    changed = FinetuneConfig(regularize_every=4, isometry_route="differences").defining()
    assert set(changed) - set(defining) == {"regularize_every", "isometry_route"}


def test_rows_that_processes_cannot_share_are_refused() -> None:
    class Four(Accelerator):
        num_processes = 4

    config = replace(CONFIG, regularize_fraction=0.25)
    run = finetune(_pipeline(), FacesDataset(8, num_images=8), config, accelerator=Four(cpu=True))
    with pytest.raises(ValueError, match=r"multiple of the 4 processes; got 0\.25 × 8 = 2 rows"):
        next(run)


def test_compiled_functions_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torch's own tracer, without a machine-code compiler, which takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    assert torch.equal(compiled(layer)(x), layer(x))


def test_a_compiler_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_arguments: object) -> None:
        raise FileNotFoundError("no C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(RuntimeError, match=r"^compile = True does not work here: [^\n]+set compile to False$"):
        compiled(torch.nn.Linear(4, 4))(torch.randn(2, 4))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("regularize_every", 0, "at least 1; got 0"),
        ("regularize_fraction", 0.0, r"\(0, 1\]; got 0.0"),
        ("regularize_fraction", 1.5, r"\(0, 1\]; got 1.5"),
        ("regularize_fraction", float("nan"), r"\(0, 1\]; got nan"),
        ("isometry_route", "forward", "double_backward, differences; got 'forward'"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must.*{message}"):
        FinetuneConfig(**{field: value})
